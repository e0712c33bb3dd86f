//! Non-maskable interrupts: one at a time, until IRET (SDM 3A 6.7.1, APM 2 8.1.3).

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use kit::apic::{self, ipi};
use kit::{Frame, Test, Verdict, clock, cpu, ensure, smp, this, trap};

pub const TESTS: &[Test] = &[
    Test::new("nmi-blocking", blocking),
    Test::new("nmi-unblocked-by-iret", unblocked),
    Test::new("nmi-with-interrupts-off", interrupts_off),
    Test::new("nmi-wakes-hlt", wakes_hlt).with_two(),
    Test::new("nmi-keeps-interrupt", keeps_interrupt),
];

const NMI: u8 = 2;

static DEPTH: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);
static CAME: AtomicU32 = AtomicU32::new(0);
static MORE: AtomicU32 = AtomicU32::new(0);

fn nmi_to_self() {
    apic::send(ipi::NMI | ipi::ASSERT, apic::id());
}

fn begin(handler: trap::Handler) {
    [&DEPTH, &DEEPEST, &CAME, &MORE]
        .iter()
        .for_each(|n| n.store(0, SeqCst));
    trap::on(NMI, handler);
}

/// Sends itself more NMIs from inside and stays a while, so that they could come if they might.
fn blocked(_: &mut Frame) {
    let depth = DEPTH.fetch_add(1, SeqCst) + 1;
    DEEPEST.fetch_max(depth, SeqCst);
    if CAME.fetch_add(1, SeqCst) == 0 {
        (0..3).for_each(|_| nmi_to_self());
        // Exits of all kinds while more are pending.
        for _ in 0..20 {
            cpu::cpuid(0, 0);
            cpu::inb(0x61);
        }
        clock::delay_us(2_000);
    }
    DEPTH.fetch_sub(1, SeqCst);
}

fn blocking() -> Verdict {
    begin(blocked);
    nmi_to_self();
    clock::within_ms(5_000, || CAME.load(SeqCst) >= 2);
    clock::delay_us(2_000);
    trap::off(NMI);
    let (came, deepest) = (CAME.load(SeqCst), DEEPEST.load(SeqCst));
    ensure!(deepest == 1, "an NMI came inside the handler of another");
    ensure!(
        came == 2,
        "{came} NMIs came: one, and one for the three that met it, were expected"
    );
    Ok(())
}

/// An IRET inside the handler, of an exception of its own, opens the door.
fn unblocking(_: &mut Frame) {
    let depth = DEPTH.fetch_add(1, SeqCst) + 1;
    DEEPEST.fetch_max(depth, SeqCst);
    if CAME.fetch_add(1, SeqCst) == 0 {
        nmi_to_self();
        clock::delay_us(500);
        MORE.store(CAME.load(SeqCst), SeqCst);
        // SAFETY: the handler of the breakpoint does nothing but return.
        unsafe { core::arch::asm!("int3") };
        clock::within_ms(5_000, || CAME.load(SeqCst) == 2);
    }
    DEPTH.fetch_sub(1, SeqCst);
}

fn unblocked() -> Verdict {
    begin(unblocking);
    trap::on(3, |_| {});
    nmi_to_self();
    clock::within_ms(5_000, || CAME.load(SeqCst) == 2);
    trap::off(3);
    trap::off(NMI);
    ensure!(
        MORE.load(SeqCst) == 1,
        "the second NMI came before the IRET"
    );
    ensure!(
        DEEPEST.load(SeqCst) == 2,
        "no NMI came after an IRET inside the handler"
    );
    Ok(())
}

fn interrupts_off() -> Verdict {
    cpu::cli();
    nmi_to_self();
    let came = clock::within_ms(5_000, || this().hits(NMI) == 1);
    ensure!(came, "no NMI came while interrupts were off");
    Ok(())
}

fn wakes_hlt() -> Verdict {
    cpu::cli();
    for round in 0..5 {
        this().forget();
        smp::give(1, || {
            clock::delay_us(20_000);
            apic::send(
                ipi::NMI | ipi::ASSERT,
                kit::processor(0).apic_id.load(SeqCst),
            );
        });
        // Without an NMI nothing would wake it: interrupts are off.
        cpu::hlt();
        let hits = this().hits(NMI);
        smp::done_within_ms(1, 10_000);
        ensure!(hits == 1, "HLT went on with {hits} NMIs in round {round}");
    }
    Ok(())
}

/// An interrupt that waits is not lost when an NMI overtakes it.
fn keeps_interrupt() -> Verdict {
    const VECTOR: u8 = 0x52;
    for round in 1..=100 {
        cpu::cli();
        apic::send_self(VECTOR);
        nmi_to_self();
        cpu::sti();
        cpu::cli();
        let (nmi, interrupts) = (this().hits(NMI), this().hits(VECTOR));
        ensure!(
            nmi == round && interrupts == round,
            "{nmi} NMIs and {interrupts} interrupts came in {round} rounds"
        );
    }
    Ok(())
}
