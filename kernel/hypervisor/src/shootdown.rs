//! Making sure that no CPU uses an old translation (MECHANISMS: "entry" and "initiator").
//!
//! A CPU that enters a guest publishes that it is inside, then reads the generation of the nested
//! table and flushes if it changed. A CPU that changes the table bumps the generation, then looks who is
//! inside, interrupts those, and waits until each has been outside once. With a full fence
//! between the two steps on both sides, either the one sees the new generation or the other sees
//! it inside. A CPU that is outside needs no answer: it will read the generation when it enters.
//!
//! Waiting needs no lock of anybody: leaving the guest is all that is asked.

use crate::arch::{self, percpu};
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU64, fence};
use spin::Once;
use units::{CpuId, VmId};

/// Longest wait before a CPU that does not leave its guest is reported, in turns of the loop.
const PATIENCE: u64 = 2_000_000_000;

/// Where one CPU is: an odd number counts entries while it is inside a guest, an even one while it is
/// outside; the VM is in the upper 16 bits.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Whereabouts(AtomicU64);

/// One for each CPU, each on a cache line of its own.
static WHEREABOUTS: Once<Vec<Whereabouts>> = Once::new();

/// Makes room for so many CPUs; before any guest runs.
pub fn init(cpus: usize) {
    WHEREABOUTS.call_once(|| (0..cpus).map(|_| Whereabouts::default()).collect());
}

/// The calling CPU's word.
fn here() -> &'static AtomicU64 {
    static NOWHERE: AtomicU64 = AtomicU64::new(0);
    let cpu = percpu::current().cpu.index();
    WHEREABOUTS
        .get()
        .and_then(|all| all.get(cpu))
        .map_or(&NOWHERE, |w| &w.0)
}

const VM_SHIFT: u32 = 48;
const COUNT_MASK: u64 = (1 << VM_SHIFT) - 1;

/// The calling CPU is inside a guest as long as this lives.
#[derive(Debug)]
pub struct Inside(PhantomData<*const ()>);

impl Inside {
    /// Publishes it; interrupts are off and stay off.
    pub fn publish(vm: VmId) -> Self {
        let word = here();
        let count = word.load(SeqCst) & COUNT_MASK;
        word.store(
            (count + 1) & COUNT_MASK | u64::from(vm.0) << VM_SHIFT,
            SeqCst,
        );
        fence(SeqCst);
        Self(PhantomData)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let word = here();
        let count = word.load(SeqCst) & COUNT_MASK;
        word.store((count + 1) & COUNT_MASK, SeqCst);
    }
}

/// Waits until every CPU that was inside `vm` has left it at least once. The caller has bumped the
/// generation that entries compare.
pub fn expel(vm: VmId) {
    fence(SeqCst);
    let here = percpu::current().cpu;
    for other in percpu::all() {
        if other.cpu == here {
            continue;
        }
        let Some(whereabouts) = WHEREABOUTS.get().and_then(|all| all.get(other.cpu.index())) else {
            continue;
        };
        let seen = whereabouts.0.load(SeqCst);
        if !inside(seen, vm) {
            continue;
        }
        arch::apic::kick(other.cpu);
        wait_for_change(whereabouts, seen, other.cpu);
    }
}

fn inside(word: u64, vm: VmId) -> bool {
    word & 1 == 1 && word >> VM_SHIFT == u64::from(vm.0)
}

fn wait_for_change(whereabouts: &Whereabouts, seen: u64, cpu: CpuId) {
    let mut turns = 0_u64;
    while whereabouts.0.load(SeqCst) == seen {
        core::hint::spin_loop();
        turns += 1;
        if turns.is_multiple_of(PATIENCE) {
            log::error!("{cpu} has not left its guest although it was interrupted; still waiting");
            arch::apic::kick(cpu);
        }
    }
}
