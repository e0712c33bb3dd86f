#![expect(
    unsafe_code,
    reason = "a test of instructions is written in instructions"
)]
//! An NMI that waits for another's handler comes with the handler's IRET (SDM 3A 6.7.1, APM 2 8.1.3): at once, though interrupts are
//! off and nothing that a hypervisor notices happens; and however the hypervisor manages that, it does not show.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use kit::apic::{self, ipi};
use kit::{Frame, Test, Verdict, cpu, ensure, trap};

pub const TESTS: &[Test] = &[
    Test::new("nmi-comes-with-iret", comes_with_iret),
    Test::new("nmi-iret-that-faults", iret_that_faults),
];

const NMI: u8 = 2;
const PROTECTION: u8 = 13;
const DEBUG: u8 = 1;
const TF: u64 = 1 << 8;
/// DR6 as after reset, and a single step in it.
const DR6_CLEAR: u64 = 0xffff_0ff0;
const BS: u64 = 1 << 14;

static CAME: AtomicU32 = AtomicU32::new(0);
static STEPS: AtomicU32 = AtomicU32::new(0);
/// Flags that the handlers' frames hold, all together.
static FLAGS: AtomicU64 = AtomicU64::new(0);

/// By one store, behind which nothing makes an exit; [`apic::send`] would look at the register again.
fn nmi_to_self() {
    let (command, me) = (ipi::NMI | ipi::ASSERT, apic::id());
    if apic::x2apic() {
        return apic::send(command, me);
    }
    apic::write(apic::reg::ICR_HIGH, me << 24);
    apic::write(apic::reg::ICR, command);
}

fn begin(handler: trap::Handler) {
    CAME.store(0, SeqCst);
    STEPS.store(0, SeqCst);
    FLAGS.store(0, SeqCst);
    trap::on(NMI, handler);
    trap::on(DEBUG, |_| {
        STEPS.fetch_add(1, SeqCst);
    });
}

fn end() {
    [NMI, DEBUG, PROTECTION].iter().for_each(|v| trap::off(*v));
    cpu::set_dr6(DR6_CLEAR);
}

/// The first sends another, which has to wait.
fn twice(frame: &mut Frame) {
    FLAGS.fetch_or(frame.rflags, SeqCst);
    if CAME.fetch_add(1, SeqCst) == 0 {
        nmi_to_self();
    }
}

fn comes_with_iret() -> Verdict {
    for dr6 in [DR6_CLEAR, DR6_CLEAR | BS] {
        begin(twice);
        cpu::set_dr6(dr6);
        nmi_to_self();
        // Nothing here makes an exit; a few instructions are granted.
        let mut came = 0;
        for _ in 0..8 {
            came = CAME.load(SeqCst);
        }
        let (kept, steps, flags) = (cpu::dr6(), STEPS.load(SeqCst), FLAGS.load(SeqCst));
        end();
        ensure!(came == 2, "{came} NMIs came by the handler's end, not 2");
        ensure!(
            steps == 0 && flags & TF == 0,
            "{steps} steps, flags {flags:#x}"
        );
        ensure!(kept == dr6, "DR6 became {kept:#x} from {dr6:#x}");
    }
    Ok(())
}

/// Where the handler of #GP goes on.
static BEHIND: AtomicU64 = AtomicU64::new(0);

/// Its own IRET returns to no code segment. Behind the #GP it returns once more, as handlers do.
fn stumbles(frame: &mut Frame) {
    twice(frame);
    if CAME.load(SeqCst) != 1 {
        return;
    }
    // SAFETY: IRET faults with the five words still on the stack; the handler of #GP goes on behind it.
    unsafe {
        asm!(
            "lea {t}, [rip + 88f]", "mov [{behind}], {t}",
            "mov {t}, rsp",
            "push 0", "push {t}", "pushfq", "push 0", "push 0",
            "iretq",
            "88:", "add rsp, 40",
            t = out(reg) _, behind = in(reg) BEHIND.as_ptr(),
        );
    }
}

fn iret_that_faults() -> Verdict {
    begin(stumbles);
    cpu::set_dr6(DR6_CLEAR);
    trap::on(PROTECTION, |frame| {
        FLAGS.fetch_or(frame.rflags, SeqCst);
        frame.rip = BEHIND.swap(0, SeqCst);
    });
    nmi_to_self();
    let mut came = 0;
    for _ in 0..8 {
        came = CAME.load(SeqCst);
    }
    let (dr6, steps, flags) = (cpu::dr6(), STEPS.load(SeqCst), FLAGS.load(SeqCst));
    end();
    ensure!(came == 2, "{came} NMIs came by the handler's end, not 2");
    ensure!(
        steps == 0 && flags & TF == 0,
        "{steps} steps, flags {flags:#x}"
    );
    ensure!(dr6 == DR6_CLEAR, "DR6 became {dr6:#x}");
    Ok(())
}
