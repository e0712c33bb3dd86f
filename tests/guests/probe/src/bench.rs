//! One class of exit after the other, each operation between two marks.
#![expect(unsafe_code, reason = "accesses to device registers")]

use crate::board::{IOAPIC, NOTHING, PM_TMR, POST};
use crate::console::println;
use crate::ticks::{self, Ticks, Wanted};
use crate::words::Words;
use crate::{apic, cpu, mark, second};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// IA32_PAT.
const PAT: u32 = 0x277;
/// Bus ticks from arming the timer to its interrupt: longer than what arming costs anywhere.
const TIMER_TICKS: u32 = 2_000_000;

/// `count` operations of one class.
fn laps<const CLASS: u32>((count, wanted): (u64, Wanted), operation: impl Fn()) {
    let ticks = Ticks::new(wanted);
    for _ in 0..count {
        mark::lap::<CLASS>();
        ticks.around(&operation);
    }
    mark::lap::<0>();
    ticks.tell(CLASS);
}

fn read(gpa: u64) -> u32 {
    // SAFETY: mapped one to one, and a device's register, or nothing that answers.
    unsafe { core::ptr::with_exposed_provenance::<u32>(gpa as usize).read_volatile() }
}

fn write(gpa: u64, value: u32) {
    // SAFETY: as in `read`; the I/O APIC's index register only chooses.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(gpa as usize).write_volatile(value) };
}

static LISTENING: AtomicBool = AtomicBool::new(false);
static ENOUGH: AtomicBool = AtomicBool::new(false);

/// The second processor's part: to be interrupted while it runs.
fn listen() {
    cpu::interrupts(true);
    LISTENING.store(true, SeqCst);
    while !ENOUGH.load(SeqCst) {
        cpu::relax();
    }
    cpu::interrupts(false);
}

/// All classes, `count` operations each. The classes' numbers are the observer's names for them.
pub fn run(words: &Words<'_>, cpus: u64) -> Result<(), &'static str> {
    let wanted = match words.has("ticks") {
        true => Wanted::Yes,
        false => Wanted::No,
    };
    let count = (words.number("count").unwrap_or(100), wanted);
    ticks::check(wanted, count.0);
    let vtx = cpu::cpuid(0).ebx == u32::from_le_bytes(*b"Genu");
    laps::<1>(count, || {
        cpu::cpuid(0x8000_0000);
    });
    let pat = cpu::rdmsr(PAT);
    laps::<2>(count, || {
        cpu::rdmsr(PAT);
    });
    laps::<3>(count, || cpu::wrmsr(PAT, pat));
    laps::<4>(count, || {
        cpu::in32(PM_TMR);
    });
    laps::<5>(count, || cpu::out8(POST, 0));
    laps::<6>(count, || {
        read(IOAPIC);
    });
    laps::<7>(count, || write(IOAPIC, 0));
    laps::<8>(count, || {
        read(NOTHING);
    });
    laps::<9>(count, || {
        if vtx {
            cpu::hypercall_vtx();
        } else {
            cpu::hypercall();
        }
    });
    cpu::interrupts(true);
    laps::<10>(count, || {
        let seen = apic::IPIS.load(SeqCst);
        apic::ipi_to_self();
        apic::wait(&apic::IPIS, seen);
    });
    laps::<11>((count.0.min(200), count.1), || {
        let seen = apic::TIMERS.load(SeqCst);
        apic::arm(TIMER_TICKS);
        apic::wait(&apic::TIMERS, seen);
    });
    if cpus > 1 {
        second::give(listen);
        while !LISTENING.load(SeqCst) {
            cpu::relax();
        }
        laps::<12>(count, || {
            let seen = apic::IPIS.load(SeqCst);
            apic::ipi_to(second::APIC);
            apic::wait(&apic::IPIS, seen);
        });
        ENOUGH.store(true, SeqCst);
        second::finished();
    }
    cpu::interrupts(false);
    mark::flush();
    println!("BENCH done count={}", count.0);
    Ok(())
}
