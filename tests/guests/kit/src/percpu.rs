//! What belongs to one processor. It knows its number from its task register, which nothing a test does to
//! segments or model-specific registers can change.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::boot::{FIRST_TASK, MAX_CPUS};

/// One processor.
#[derive(Debug)]
pub struct Cpu {
    /// Its number, counted as they came up.
    pub index: usize,
    /// The identifier of its local APIC.
    pub apic_id: AtomicU32,
    /// How often each vector came that has no handler of its own.
    pub hits: [AtomicU32; 256],
    /// Where the last of them interrupted.
    pub last_rip: AtomicU64,
    /// When it came, by its TSC.
    pub last_tsc: AtomicU64,
    /// The job it is given, a function's address; 0 is none.
    pub(crate) job: AtomicUsize,
    /// Where a caught exception goes on; 0 is nowhere.
    pub(crate) fixup: UnsafeCell<u64>,
    pub(crate) caught: UnsafeCell<Option<crate::Caught>>,
}

// SAFETY: both cells are used by their own processor only.
unsafe impl Sync for Cpu {}

static CPUS: [Cpu; MAX_CPUS] = {
    let mut index = 0;
    let mut cpus = [const { Cpu::new(0) }; MAX_CPUS];
    while index < MAX_CPUS {
        cpus[index].index = index;
        index += 1;
    }
    cpus
};

impl Cpu {
    const fn new(index: usize) -> Self {
        Self {
            index,
            apic_id: AtomicU32::new(0),
            hits: [const { AtomicU32::new(0) }; 256],
            last_rip: AtomicU64::new(0),
            last_tsc: AtomicU64::new(0),
            job: AtomicUsize::new(0),
            fixup: UnsafeCell::new(0),
            caught: UnsafeCell::new(None),
        }
    }

    /// How often `vector` came.
    pub fn hits(&self, vector: u8) -> u32 {
        self.hits[usize::from(vector)].load(SeqCst)
    }

    /// Forgets all counts.
    pub fn forget(&self) {
        self.hits.iter().for_each(|count| count.store(0, SeqCst));
    }
}

/// A processor by its number.
pub fn cpu(index: usize) -> &'static Cpu {
    &CPUS[index]
}

/// This processor.
pub fn this() -> &'static Cpu {
    let task: u16;
    // SAFETY: reads the task register.
    unsafe { asm!("str {:x}", out(reg) task, options(nostack, nomem)) };
    cpu(usize::from(task.saturating_sub(FIRST_TASK) / 16).min(MAX_CPUS - 1))
}
