//! Events of all kinds, counted: each comes exactly once, whatever happens on its way (SDM 3C 28.2.3 and 28.2.4, APM 2 15.7.2).

use core::arch::naked_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use kit::CODE64;
use kit::apic::{self, ipi};
use kit::{Test, Verdict, attempt, clock, cpu, ensure, this, trap};

pub const TESTS: &[Test] = &[
    Test::new("delivery-counted", counted),
    Test::new("delivery-nmi-return", nmi_return),
];

const ROUNDS: u32 = 100;
const BREAKPOINT: u8 = 3;
const UNDEFINED: u8 = 6;
const NMI: u8 = 2;
const VECTOR: u8 = 0x53;
const SOFTWARE: u8 = 0x54;

fn nmi_to_self() {
    apic::send(ipi::NMI | ipi::ASSERT, apic::id());
}

static BREAKPOINTS: AtomicU32 = AtomicU32::new(0);
static SOFT: AtomicU32 = AtomicU32::new(0);

fn counted() -> Verdict {
    [&BREAKPOINTS, &SOFT]
        .iter()
        .for_each(|n| n.store(0, SeqCst));
    trap::on(BREAKPOINT, |_| {
        BREAKPOINTS.fetch_add(1, SeqCst);
    });
    trap::on(SOFTWARE, |_| {
        SOFT.fetch_add(1, SeqCst);
    });
    let mut verdict = Ok(());
    for round in 1..=ROUNDS {
        verdict = one_of_each(round);
        if verdict.is_err() {
            break;
        }
    }
    [BREAKPOINT, SOFTWARE].iter().for_each(|v| trap::off(*v));
    verdict
}

fn one_of_each(round: u32) -> Verdict {
    cpu::cli();
    apic::send_self(VECTOR);
    nmi_to_self();
    // SAFETY: their handlers do nothing but count.
    unsafe { core::arch::asm!("int3", "int {}", const SOFTWARE) };
    let undefined = attempt!("ud2");
    cpu::sti();
    cpu::cli();
    let seen = [
        this().hits(NMI),
        this().hits(VECTOR),
        BREAKPOINTS.load(SeqCst),
        SOFT.load(SeqCst),
    ];
    ensure!(
        seen == [round; 4],
        "NMIs, interrupts, INT3 and INT n came {seen:?} times in {round} rounds"
    );
    ensure!(
        undefined.is_some_and(|caught| caught.vector == UNDEFINED),
        "UD2 raised {undefined:?} in round {round}"
    );
    Ok(())
}

static CAME: AtomicU32 = AtomicU32::new(0);
static NESTED: AtomicBool = AtomicBool::new(false);

/// An NMI's handler: calls [`handle`], exits once more, and returns, by the next instruction.
#[unsafe(naked)]
unsafe extern "C" fn entry() {
    naked_asm!(
        "push rax; push rcx; push rdx; push rsi; push rdi; push r8; push r9; push r10; push r11; push rbp",
        "mov rbp, rsp",
        "mov rdi, [rsp + 80]", // RIP
        "and rsp, -16",
        "cld",
        "call {handle}",
        "mov rsp, rbp",
        "pop rbp; pop r11; pop r10; pop r9; pop r8; pop rdi; pop rsi; pop rdx; pop rcx; pop rax",
        "out 0x80, al",
        "iretq",
        handle = sym handle,
    )
}

/// Bytes of [`entry`], and more: nothing of it is longer.
const ENTRY_BYTES: u64 = 64;

/// The first of a round sends another one, which must wait until the IRET is done, not only begun.
extern "C" fn handle(interrupted: u64) {
    let start = entry as *const () as u64;
    if (start..start + ENTRY_BYTES).contains(&interrupted) {
        NESTED.store(true, SeqCst);
    }
    if CAME.fetch_add(1, SeqCst).is_multiple_of(2) {
        nmi_to_self();
    }
}

fn nmi_return() -> Verdict {
    CAME.store(0, SeqCst);
    NESTED.store(false, SeqCst);
    // SAFETY: a gate of our own table; the handler keeps all registers.
    let old = unsafe {
        let old = trap::gate(NMI).read_volatile();
        let at = entry as *const () as u64;
        let low = at & 0xffff | u64::from(CODE64) << 16 | 0x8E << 40 | (at >> 16 & 0xffff) << 48;
        trap::gate(NMI).write_volatile([low, at >> 32]);
        old
    };
    let mut all = true;
    for round in 1..=ROUNDS {
        nmi_to_self();
        all &= clock::within_ms(5_000, || CAME.load(SeqCst) >= 2 * round);
        if !all {
            break;
        }
    }
    clock::delay_us(1_000);
    // SAFETY: what was there before.
    unsafe { trap::gate(NMI).write_volatile(old) };
    let came = CAME.load(SeqCst);
    ensure!(
        all && came == 2 * ROUNDS,
        "{came} NMIs came, not {}",
        2 * ROUNDS
    );
    ensure!(
        !NESTED.load(SeqCst),
        "an NMI came before the IRET of another's handler was done"
    );
    Ok(())
}
