//! Single-stepping and breakpoints (SDM 3B 18, APM 2 13.1).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use kit::cpu::{self, TF};
use kit::{Frame, Test, Verdict, attempt, ensure, trap};

pub const TESTS: &[Test] = &[
    Test::new("debug-single-step", single_step),
    Test::new("debug-single-step-exits", single_step_exits),
    Test::new("debug-icebp", icebp),
    Test::new("debug-breakpoint", breakpoint),
    Test::new("debug-watch", watch),
    Test::new("debug-watch-io-string", watch_io_string),
];

const DEBUG: u8 = 1;
const DR6_STEP: u64 = 1 << 14;
const DR7_QUIET: u64 = 0x400;
const RESUME: u64 = 1 << 16;
const LONGEST: usize = 32;

static STEPS: [AtomicU64; LONGEST] = [const { AtomicU64::new(0) }; LONGEST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static REASON: AtomicU64 = AtomicU64::new(0);

/// Notes where it is, and why.
fn note(frame: &mut Frame) {
    let n = COUNT.fetch_add(1, SeqCst);
    if let Some(step) = STEPS.get(n) {
        step.store(frame.rip, SeqCst);
    }
    REASON.fetch_or(cpu::dr6(), SeqCst);
    cpu::set_dr6(0xffff_0ff0);
    // An instruction breakpoint is not met a second time.
    frame.rflags |= RESUME;
    if n > 1000 {
        frame.rflags &= !TF;
        cpu::set_dr7(DR7_QUIET);
    }
}

fn watching(work: impl FnOnce()) -> usize {
    COUNT.store(0, SeqCst);
    REASON.store(0, SeqCst);
    cpu::set_dr6(0xffff_0ff0);
    trap::on(DEBUG, note);
    work();
    cpu::set_dr7(DR7_QUIET);
    trap::off(DEBUG);
    COUNT.load(SeqCst)
}

/// The steps must be at exactly these places.
fn steps_are(count: usize, places: &[u64]) -> Verdict {
    ensure!(
        count == places.len(),
        "{count} steps were taken, not {}",
        places.len()
    );
    for (n, place) in places.iter().enumerate() {
        let step = STEPS[n].load(SeqCst);
        ensure!(
            step == *place,
            "step {n} ended {} bytes beside its place",
            step.wrapping_sub(*place) as i64
        );
    }
    let reason = REASON.load(SeqCst);
    ensure!(reason & DR6_STEP != 0, "DR6 reads {reason:#x}, without BS");
    Ok(())
}

fn single_step() -> Verdict {
    let mut places = [0_u64; 6];
    let count = watching(|| {
        // SAFETY: flags are changed and restored; the steps are noted.
        unsafe {
            core::arch::asm!(
                "lea {t}, [rip + 2f]", "mov [{p}], {t}",
                "lea {t}, [rip + 3f]", "mov [{p} + 8], {t}",
                "lea {t}, [rip + 4f]", "mov [{p} + 16], {t}",
                "lea {t}, [rip + 5f]", "mov [{p} + 24], {t}",
                "lea {t}, [rip + 6f]", "mov [{p} + 32], {t}",
                "lea {t}, [rip + 7f]", "mov [{p} + 40], {t}",
                "pushfq", "pushfq", "or qword ptr [rsp], 0x100", "popfq",
                "nop", "2:", "mov {t}, 1", "3:", "add {t}, {t}", "4:", "push {t}", "5:", "lea rsp, [rsp + 8]", "6:",
                "popfq", "7:",
                t = out(reg) _, p = in(reg) places.as_mut_ptr(),
            );
        }
    });
    // The POPF that ends it is stepped as well: the flag counts that it began with.
    steps_are(count, &places)
}

/// The same over instructions that leave the guest: each is one step, too.
fn single_step_exits() -> Verdict {
    let mut places = [0_u64; 6];
    let count = watching(|| {
        // SAFETY: flags are changed and restored; the steps are noted.
        unsafe {
            core::arch::asm!(
                "mov {kept}, rbx",
                "lea rax, [rip + 2f]", "mov [{p}], rax",
                "lea rax, [rip + 3f]", "mov [{p} + 8], rax",
                "lea rax, [rip + 4f]", "mov [{p} + 16], rax",
                "lea rax, [rip + 5f]", "mov [{p} + 24], rax",
                "lea rax, [rip + 6f]", "mov [{p} + 32], rax",
                "lea rax, [rip + 7f]", "mov [{p} + 40], rax",
                "pushfq", "pushfq", "or qword ptr [rsp], 0x100", "popfq",
                "cpuid", "2:", "in al, 0x61", "3:", "mov ecx, 0x1b", "4:", "rdmsr", "5:", "out 0x80, al", "6:",
                "popfq", "7:",
                "mov rbx, {kept}",
                kept = out(reg) _, p = in(reg) places.as_mut_ptr(),
                out("rax") _, out("rcx") _, out("rdx") _,
            );
        }
    });
    steps_are(count, &places)
}

fn icebp() -> Verdict {
    let caught = attempt!(".byte 0xf1");
    ensure!(
        caught.is_some_and(|c| c.vector == DEBUG),
        "ICEBP gives {caught:?}"
    );
    Ok(())
}

fn breakpoint() -> Verdict {
    let mut place = 0_u64;
    let count = watching(|| {
        // SAFETY: a breakpoint on an instruction of this block, executed three times.
        unsafe {
            core::arch::asm!(
                "lea {t}, [rip + 3f]", "mov [{p}], {t}", "mov dr0, {t}",
                "mov {t}, 0x402", "mov dr7, {t}",
                "mov {t}, 3",
                "2:", "in al, 0x61", "3:", "dec {t}", "jnz 2b",
                t = out(reg) _, p = in(reg) &raw mut place, out("al") _,
            );
        }
    });
    let reason = REASON.load(SeqCst);
    ensure!(count == 3, "a breakpoint was met {count} times, not 3");
    ensure!(STEPS[0].load(SeqCst) == place, "it was met elsewhere");
    ensure!(reason & 0xf == 1, "DR6 reads {reason:#x}");
    Ok(())
}

fn watch() -> Verdict {
    static WATCHED: AtomicU64 = AtomicU64::new(0);
    let mut place = 0_u64;
    let count = watching(|| {
        cpu::set_dr1(WATCHED.as_ptr() as u64);
        cpu::set_dr7(0x400 | 1 << 3 | 0b01 << 20 | 0b10 << 22); // global, writes, 8 bytes
        // SAFETY: a store to the watched word.
        unsafe {
            core::arch::asm!("lea {t}, [rip + 2f]", "mov [{p}], {t}", "mov qword ptr [{w}], 5", "2:", "mov {t}, [{w}]",
                t = out(reg) _, p = in(reg) &raw mut place, w = in(reg) WATCHED.as_ptr());
        }
    });
    let reason = REASON.load(SeqCst);
    ensure!(count == 1, "a watched word was met {count} times, not once");
    ensure!(
        STEPS[0].load(SeqCst) == place,
        "the trap came elsewhere than behind the store"
    );
    ensure!(reason & 0xf == 2, "DR6 reads {reason:#x}");
    Ok(())
}

/// A breakpoint elsewhere must not be met, and must survive instructions that leave the guest.
fn watch_io_string() -> Verdict {
    cpu::set_dr2(0x1234_5678);
    let count = watching(|| {
        cpu::set_dr7(0x400 | 1 << 5 | 0b11 << 24);
        for _ in 0..50 {
            cpu::cpuid(0, 0);
            cpu::inb(0x61);
        }
    });
    let kept = cpu::dr2();
    ensure!(
        count == 0,
        "a breakpoint was met {count} times where it is not"
    );
    ensure!(kept == 0x1234_5678, "DR2 became {kept:#x}");
    Ok(())
}
