//! Making sure that no CPU uses an old translation: the CPUs of [`memory::entry`].
//!
//! A CPU that enters a guest publishes that it is inside before it reads the generation of the nested table. A CPU
//! that has changed the table looks who is inside, interrupts those, and waits until each has been outside once.
//! Waiting needs no lock of anybody: leaving the guest is all that is asked.

use crate::arch::{self, percpu};
use alloc::vec::Vec;
use core::cell::Cell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use memory::entry::{self, Whereabouts};
use spin::Once;
use units::{CpuId, VmId};

/// Longest wait before a CPU that does not leave its guest is reported, in turns of the loop.
const PATIENCE: u64 = 2_000_000_000;

/// One for each CPU, each on a cache line of its own.
static WHEREABOUTS: Once<Vec<Whereabouts<AtomicU64>>> = Once::new();

/// CPUs that were interrupted so far.
static KICKS: AtomicU64 = AtomicU64::new(0);

/// Makes room for so many CPUs; before any guest runs.
pub fn init(cpus: usize) {
    WHEREABOUTS.call_once(|| (0..cpus).map(|_| Whereabouts::default()).collect());
}

/// The calling CPU's.
fn here() -> &'static Whereabouts<AtomicU64> {
    static NOWHERE: Whereabouts<AtomicU64> = Whereabouts::outside(AtomicU64::new(0));
    let cpu = percpu::current().cpu.index();
    WHEREABOUTS
        .get()
        .and_then(|all| all.get(cpu))
        .unwrap_or(&NOWHERE)
}

/// The calling CPU is inside a guest as long as this lives.
#[derive(Debug)]
pub struct Inside(PhantomData<*const ()>);

impl Inside {
    /// Publishes it; interrupts are off and stay off.
    pub fn publish(vm: VmId) -> Self {
        here().enter(vm);
        Self(PhantomData)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        here().leave();
    }
}

/// Waits until every CPU that was inside `vm` has left it at least once, and says how many were interrupted for that. The
/// caller has bumped the generation that entries compare.
pub fn expel(vm: VmId) -> u64 {
    let here = percpu::current().cpu;
    let all = WHEREABOUTS.get().map_or(&[][..], Vec::as_slice);
    let others = percpu::all()
        .iter()
        .map(|other| other.cpu)
        .filter(|cpu| *cpu != here)
        .filter_map(|cpu| Some((cpu, all.get(cpu.index())?)));
    let kicked = Cell::new(0);
    let kick = |cpu| {
        kicked.set(kicked.get() + 1);
        arch::apic::kick(cpu);
    };
    entry::expel(vm, others, kick, wait);
    KICKS.fetch_add(kicked.get(), Relaxed);
    kicked.get()
}

/// CPUs that were interrupted for shootdowns so far.
pub fn kicks() -> u64 {
    KICKS.load(Relaxed)
}

fn wait(cpu: CpuId, turn: u64) {
    core::hint::spin_loop();
    if turn.is_multiple_of(PATIENCE) {
        log::error!("{cpu} has not left its guest although it was interrupted; still waiting");
        arch::apic::kick(cpu);
    }
}
