//! Stopping every CPU, once and for ever, before a report.
//!
//! The first CPU that fails owns the end of the machine. It sends an NMI to the others; each records
//! where it was and halts. A CPU that fails while another owns the end records itself and halts
//! as well, and a CPU that fails inside its own report is told so, so that it gets at least one line out.

use core::sync::atomic::{AtomicU32, Ordering};

use super::{apic, cpu, percpu, tsc};

const NOBODY: u32 = u32::MAX;
static OWNER: AtomicU32 = AtomicU32::new(NOBODY);
static STOPPED: AtomicU32 = AtomicU32::new(0);

/// Who the caller of [`claim`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It owns the end.
    Owner,
    /// It owned it before: its report failed.
    Again,
    /// Another CPU owns it.
    Late,
}

/// Tries to own the end of the machine.
pub fn claim() -> Claim {
    let me = percpu::current().cpu.0;
    match OWNER.compare_exchange(NOBODY, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Claim::Owner,
        Err(owner) if owner == me => Claim::Again,
        Err(_) => Claim::Late,
    }
}

/// Whether the machine is ending.
pub fn is_requested() -> bool {
    OWNER.load(Ordering::Acquire) != NOBODY
}

/// Stops all other online CPUs; waits about a second for them. Gives how many stopped and how many
/// should have.
pub fn stop_others() -> (u32, u32) {
    let me = percpu::current().cpu;
    let others = percpu::online().filter(|c| c.cpu != me).count();
    let others = u32::try_from(others).unwrap_or(u32::MAX);
    if others != 0 {
        // One by one: a processor that is only just starting could not take it.
        for other in percpu::online().filter(|c| c.cpu != me) {
            apic::send_nmi(other.apic);
        }
        let start = tsc::read();
        let patience = tsc::hz().max(1_000_000_000);
        while STOPPED.load(Ordering::Acquire) < others && tsc::read().wrapping_sub(start) < patience
        {
            core::hint::spin_loop();
        }
    }
    (STOPPED.load(Ordering::Acquire), others)
}

/// The calling CPU's side of [`stop_others`], after it has recorded where it was.
pub fn stop_here() -> ! {
    STOPPED.fetch_add(1, Ordering::AcqRel);
    cpu::halt_forever()
}
