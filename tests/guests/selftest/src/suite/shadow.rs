//! Where an interrupt may come between two instructions (SDM 3A 6.8.1, 6.8.3; APM 2 8.1.3).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use kit::{DATA, Frame, Test, Verdict, apic, clock, cpu, ensure, this, trap};

pub const TESTS: &[Test] = &[
    Test::new("shadow-sti", sti),
    Test::new("shadow-sti-exit", sti_exit),
    Test::new("shadow-sti-cli", sti_cli),
    Test::new("shadow-sti-hlt", sti_hlt),
    Test::new("shadow-mov-ss", mov_ss),
    Test::new("popf-opens-at-once", popf),
    Test::new("hlt-sleeps", hlt_sleeps),
    Test::new("hlt-woken-by-timer", hlt_woken),
];

const VECTOR: u8 = 0x51;

/// Fails unless the one interrupt came `place`.
fn came_at(place: u64) -> Verdict {
    cpu::cli();
    let (hits, rip) = (this().hits(VECTOR), this().last_rip.load(SeqCst));
    ensure!(hits == 1, "{hits} interrupts came, not one");
    ensure!(
        rip == place,
        "the interrupt came {} bytes beside its place",
        rip.wrapping_sub(place) as i64
    );
    Ok(())
}

macro_rules! pending_at {
    ($($code:literal),+ ; $($operands:tt)*) => {{
        cpu::cli();
        apic::send_self(VECTOR);
        let place: u64;
        // SAFETY: opens the door for one interrupt that is counted, and closes it.
        unsafe {
            core::arch::asm!("lea {place}, [rip + 3f]", $($code,)+ "cli", place = out(reg) place, $($operands)*);
        }
        place
    }};
}

fn sti() -> Verdict {
    came_at(pending_at!("sti", "nop", "3:", "nop", "nop";))
}

fn sti_exit() -> Verdict {
    came_at(pending_at!(
        "mov r8, rbx", "xor eax, eax", "sti", "cpuid", "3:", "nop", "mov rbx, r8";
        out("rax") _, out("rcx") _, out("rdx") _, out("r8") _
    ))?;
    this().forget();
    came_at(pending_at!("sti", "in al, 0x61", "3:", "nop", "nop"; out("al") _))
}

fn sti_cli() -> Verdict {
    for _ in 0..100 {
        let _ = pending_at!("sti", "3:";);
        let early = this().hits(VECTOR);
        cpu::sti();
        cpu::cli();
        let late = this().hits(VECTOR);
        this().forget();
        ensure!(early == 0, "an interrupt came between STI and CLI");
        ensure!(
            late == 1,
            "the interrupt came {late} times after the next STI"
        );
    }
    Ok(())
}

fn sti_hlt() -> Verdict {
    came_at(pending_at!("sti", "hlt", "3:", "nop";))
}

fn popf() -> Verdict {
    came_at(pending_at!("pushfq", "or qword ptr [rsp], 0x200", "popfq", "3:", "nop", "nop";))
}

static STEPS: AtomicUsize = AtomicUsize::new(0);
static PLACES: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

fn step(frame: &mut Frame) {
    if let Some(place) = PLACES.get(STEPS.fetch_add(1, SeqCst)) {
        place.store(frame.rip, SeqCst);
    }
    cpu::set_dr6(0xffff_0ff0);
}

/// A debug trap after MOV SS waits for the next instruction.
fn mov_ss() -> Verdict {
    STEPS.store(0, SeqCst);
    trap::on(1, step);
    let (behind, next): (u64, u64);
    // SAFETY: loads the stack segment that is loaded; steps are noted.
    unsafe {
        core::arch::asm!(
            "lea {b}, [rip + 2f]", "lea {n}, [rip + 3f]",
            "pushfq", "pushfq", "or qword ptr [rsp], 0x100", "popfq",
            "mov ss, {s:x}", "2:", "nop", "3:", "nop", "popfq",
            b = out(reg) behind, n = out(reg) next, s = in(reg) DATA,
        );
    }
    trap::off(1);
    let places = || {
        PLACES
            .iter()
            .take(STEPS.load(SeqCst).min(8))
            .map(|p| p.load(SeqCst))
    };
    ensure!(
        !places().any(|p| p == behind),
        "a debug trap came right behind MOV SS"
    );
    ensure!(
        places().any(|p| p == next),
        "no debug trap came behind the instruction after MOV SS"
    );
    Ok(())
}

/// HLT goes on for an interrupt and for nothing else.
fn hlt_sleeps() -> Verdict {
    apic::write(apic::reg::DIVIDE, 0b1011);
    for _ in 0..10 {
        this().forget();
        cpu::cli();
        apic::write(apic::reg::TIMER, u32::from(VECTOR));
        apic::write(apic::reg::INITIAL, 3_000_000);
        cpu::sti_hlt();
        cpu::cli();
        let hits = this().hits(VECTOR);
        apic::write(apic::reg::INITIAL, 0);
        apic::write(apic::reg::TIMER, apic::MASKED);
        ensure!(hits == 1, "HLT went on after {hits} interrupts");
    }
    Ok(())
}

fn hlt_woken() -> Verdict {
    cpu::cli();
    apic::write(apic::reg::DIVIDE, 0b1011);
    apic::write(apic::reg::TIMER, u32::from(VECTOR));
    let began = cpu::tsc();
    apic::write(apic::reg::INITIAL, 20_000_000);
    let place: u64;
    // SAFETY: sleeps until the timer's interrupt.
    unsafe { core::arch::asm!("lea {}, [rip + 2f]", "sti", "hlt", "2:", "cli", out(reg) place) };
    let slept = clock::us(began, cpu::tsc());
    apic::write(apic::reg::TIMER, apic::MASKED);
    came_at(place)?;
    ensure!(slept < 10_000_000, "20 million counts took {slept} us");
    Ok(())
}
