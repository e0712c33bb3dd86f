//! What an operation costs by the guest's own clock, for an emulator whose clock counts instructions.
//!
//! Bochs gives its one processor a TSC that advances by one with each instruction, the hypervisor's among them. So the
//! difference around an operation is what it cost, less what reading the clock costs. That this is so is not
//! taken on trust: [`check`] measures a known number of instructions.

use crate::console::println;
use crate::cpu;
use core::cell::RefCell;
use core::fmt::Display;

/// Most operations of a class that are kept.
const ROOM: usize = 1024;
/// Instructions of the check.
const KNOWN: u64 = 1000;

/// The operations of one class.
#[derive(Debug)]
pub struct Ticks(Option<RefCell<([u64; ROOM], usize)>>);

impl Ticks {
    /// `wanted`, or nothing is measured.
    pub fn new(wanted: Wanted) -> Self {
        Self((wanted == Wanted::Yes).then(|| RefCell::new(([0; ROOM], 0))))
    }

    /// Measures an operation.
    #[inline(always)]
    pub fn around(&self, operation: impl Fn()) {
        let Some(kept) = &self.0 else {
            return operation();
        };
        let began = cpu::tsc();
        operation();
        let took = cpu::tsc() - began;
        let (all, count) = &mut *kept.borrow_mut();
        if let Some(next) = all.get_mut(*count) {
            *next = took;
            *count += 1;
        }
    }

    /// Says what was measured under this name.
    pub fn tell(&self, class: impl Display) {
        let Some(kept) = &self.0 else { return };
        let (all, count) = &mut *kept.borrow_mut();
        let all = &mut all[..*count];
        all.sort_unstable();
        let at = |percent: usize| all.get((all.len() * percent / 100).min(all.len().max(1) - 1));
        let [least, median, p90, most] = [0, 50, 90, 100].map(|p| at(p).copied().unwrap_or(0));
        println!(
            "TICKS {class} operations={count} least={least} median={median} p90={p90} most={most}"
        );
    }
}

/// Whether there is something to measure with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The clock counts instructions.
    Yes,
    /// It does not.
    No,
}

/// What reading the clock costs, and what a thousand instructions do.
pub fn check(wanted: Wanted, count: u64) {
    let nothing = Ticks::new(wanted);
    let known = Ticks::new(wanted);
    for _ in 0..count {
        nothing.around(|| ());
        known.around(cpu::nops::<KNOWN>);
    }
    nothing.tell("nothing");
    known.tell("thousand");
}
