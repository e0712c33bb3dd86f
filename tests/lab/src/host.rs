//! Instructions that the hypervisor executes, and what each of its guest's operations costs it.
//!
//! Each CPU has a counter that grows by one for each instruction on the host's side (`side.rs`). The guest
//! marks where an operation ends and the next of its class begins; between two marks the counters grow by
//! what the hypervisor did for that operation, and nothing of the guest's own is in it. What the
//! hypervisor does besides, such as looking at its console now and then, falls into few of the
//! operations, so the median is free of it, and the same build gives the same median.
//!
//! A REP instruction may count once or several times, as the emulator runs its rounds.

use crate::tag::CLASSES;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Operations of a class that are kept; more are counted and forgotten.
const MAX_LAPS: usize = 100_000;
/// The hypervisor's code lies above this address, firmware and loader below.
pub(crate) const UPPER_HALF: u64 = 1 << 63;

/// What one operation cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lap {
    /// Host instructions of the CPU that the marks were executed on.
    pub(crate) own: u64,
    /// Host instructions of all CPUs that have run a guest.
    pub(crate) all: u64,
    /// Times that this CPU returned from its guest.
    pub(crate) exits: u64,
}

/// Counters of one CPU, written by its own thread only.
#[derive(Debug, Default)]
#[repr(align(256))]
struct Cpu {
    /// Host instructions in the lower half: firmware and loader.
    low: AtomicU64,
    /// Host instructions in the upper half: the hypervisor.
    high: AtomicU64,
    exits: AtomicU64,
}

/// Where an operation began.
#[derive(Debug)]
struct Begun {
    class: usize,
    vcpu: usize,
    high: Vec<u64>,
    exits: u64,
}

#[derive(Debug, Default)]
struct Laps {
    begun: Option<Begun>,
    classes: Vec<Vec<Lap>>,
    /// Operations during which the guest came to another CPU.
    moved: u64,
}

/// What had been executed when the first guest began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// By CPU: firmware and loader, hypervisor.
    pub(crate) cpus: Vec<(u64, u64)>,
    /// The CPU that entered the first guest.
    pub(crate) first: usize,
}

/// How often each instruction was executed, by class and address.
type Profile = HashMap<(usize, u64), u64>;

/// All of it.
#[derive(Debug)]
pub(crate) struct Host {
    /// The class of the operation under way, 0 for none, and its CPU.
    under_way: [AtomicUsize; 2],
    /// Which instructions the operations' own CPUs execute, if that is wanted.
    profile: Option<Mutex<Profile>>,
    cpus: Vec<Cpu>,
    laps: Mutex<Laps>,
    boot: std::sync::OnceLock<Boot>,
}

impl Host {
    pub(crate) fn new(vcpus: usize, profile: bool) -> Self {
        Self {
            under_way: Default::default(),
            profile: profile.then(Mutex::default),
            cpus: (0..vcpus).map(|_| Cpu::default()).collect(),
            laps: Mutex::new(Laps {
                classes: vec![Vec::new(); CLASSES],
                ..Laps::default()
            }),
            boot: std::sync::OnceLock::new(),
        }
    }

    /// `vcpu` executes `instructions` in the lower half.
    pub(crate) fn low(&self, vcpu: usize, instructions: u64) {
        if let Some(cpu) = self.cpus.get(vcpu) {
            add(&cpu.low, instructions);
        }
    }

    /// `vcpu` executes the instruction at `address`, in the upper half.
    pub(crate) fn high(&self, vcpu: usize, address: u64) {
        if let Some(cpu) = self.cpus.get(vcpu) {
            add(&cpu.high, 1);
        }
        if let Some(profile) = &self.profile {
            let [class, at] = [0, 1].map(|i: usize| self.under_way[i].load(Relaxed));
            if class != 0 && at == vcpu {
                let mut profile = profile.lock().unwrap_or_else(PoisonError::into_inner);
                *profile.entry((class, address)).or_default() += 1;
            }
        }
    }

    /// For each class the addresses that its operations' CPUs executed, and how often; empty unless wanted.
    pub(crate) fn profile(&self) -> Vec<(usize, u64, u64)> {
        let Some(profile) = &self.profile else {
            return Vec::new();
        };
        let profile = profile.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: Vec<_> = profile.iter().map(|((c, at), n)| (*c, *at, *n)).collect();
        rows.sort_unstable();
        rows
    }

    /// `vcpu` enters its guest.
    pub(crate) fn leaves(&self, vcpu: usize) {
        self.boot.get_or_init(|| Boot {
            cpus: self
                .cpus
                .iter()
                .map(|c| (c.low.load(Relaxed), c.high.load(Relaxed)))
                .collect(),
            first: vcpu,
        });
    }

    /// `vcpu` returns from its guest.
    pub(crate) fn returns(&self, vcpu: usize) {
        if let Some(cpu) = self.cpus.get(vcpu) {
            add(&cpu.exits, 1);
        }
    }

    /// The guest on `vcpu` ends an operation and begins one of `class`.
    pub(crate) fn lap(&self, vcpu: usize, class: usize) {
        self.under_way[1].store(vcpu, Relaxed);
        self.under_way[0].store(class, Relaxed);
        let high: Vec<u64> = self.cpus.iter().map(|cpu| cpu.high.load(Relaxed)).collect();
        let exits = self.cpus.get(vcpu).map_or(0, |cpu| cpu.exits.load(Relaxed));
        let mut laps = self.laps.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Begun {
            class,
            vcpu,
            high,
            exits,
        };
        let begun = std::mem::replace(&mut laps.begun, (class != 0).then_some(now));
        let Some(begun) = begun else { return };
        if begun.vcpu != vcpu {
            laps.moved += 1;
            return;
        }
        let grown = |index: usize, cpu: &Cpu| {
            let before = begun.high.get(index).copied().unwrap_or(0);
            cpu.high.load(Relaxed).saturating_sub(before)
        };
        let ran_guest = |cpu: &&Cpu| cpu.exits.load(Relaxed) > 0;
        let lap = Lap {
            own: self.cpus.get(vcpu).map_or(0, |cpu| grown(vcpu, cpu)),
            all: self
                .cpus
                .iter()
                .enumerate()
                .filter(|(_, cpu)| ran_guest(cpu))
                .map(|(index, cpu)| grown(index, cpu))
                .sum(),
            exits: exits - begun.exits,
        };
        if let Some(kept) = laps
            .classes
            .get_mut(begun.class)
            .filter(|l| l.len() < MAX_LAPS)
        {
            kept.push(lap);
        }
    }

    /// The operations of each class that had any.
    pub(crate) fn classes(&self) -> Vec<(usize, Vec<Lap>)> {
        let laps = self.laps.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = laps
            .classes
            .iter()
            .enumerate()
            .filter(|(_, laps)| !laps.is_empty());
        counted.map(|(class, laps)| (class, laps.clone())).collect()
    }

    /// Operations that are in no class because the guest moved meanwhile.
    pub(crate) fn moved(&self) -> u64 {
        self.laps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .moved
    }

    /// What it took to the first guest; nothing before.
    pub(crate) fn boot(&self) -> Option<&Boot> {
        self.boot.get()
    }
}

/// Adds to a cell that this thread alone writes.
fn add(cell: &AtomicU64, more: u64) {
    cell.store(cell.load(Relaxed) + more, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_costs_what_the_host_did_between_its_marks() {
        let host = Host::new(3, true);
        host.low(0, 70);
        (0..5).for_each(|_| host.high(0, 64));
        host.leaves(0);
        assert_eq!(host.boot().map(|b| b.cpus[0]), Some((70, 5)));
        host.lap(0, 2);
        host.returns(0);
        (0..30).for_each(|_| host.high(0, 64));
        (0..9).for_each(|_| host.high(1, 64));
        host.leaves(0);
        host.lap(0, 2);
        host.returns(1);
        host.returns(0);
        (0..31).for_each(|_| host.high(0, 64));
        (0..4).for_each(|_| host.high(1, 64));
        (0..1000).for_each(|_| host.high(2, 64));
        host.lap(0, 0);
        (0..500).for_each(|_| host.high(0, 64));
        host.lap(0, 3);
        host.lap(1, 3);
        host.lap(1, 0);
        let lap = |own, all, exits| Lap { own, all, exits };
        assert_eq!(
            host.classes(),
            [
                (2, vec![lap(30, 30, 1), lap(31, 35, 1)]),
                (3, vec![lap(0, 0, 0)])
            ],
            "a CPU that ran no guest has no part in it"
        );
        assert_eq!(host.moved(), 1);
        assert_eq!(host.profile(), [(2, 64, 61)], "of the operation's CPU");
        assert_eq!(host.boot().map(|b| b.cpus[0]), Some((70, 5)), "once");
    }
}
