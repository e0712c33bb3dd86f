//! What runs: machines (VMs) of several kinds, and how they touch memory.
//!
//! A vCPU does *work*, counted in ns on an unstalled core; each microsecond of work misses the last-level
//! cache some number of times, and a miss costs the loaded latency divided by how many misses overlap.
//! Misses go to the VM's pages of 2 MiB: a part of them to pages that all vCPUs share, the rest to the
//! vCPU's own. Nine tenths of a segment's misses go to its hot quarter.

use serde::{Deserialize, Serialize};

/// Misses that a core overlaps.
pub const OVERLAP: f64 = 4.0;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Computes in its caches.
    Cpu,
    /// Misses its caches all the time.
    Memory,
    /// The same, on another half of its memory every few seconds.
    Phases,
    /// Runs for milliseconds, sleeps for milliseconds.
    Bursty,
    /// Sleeps, and wakes for a fraction of a millisecond.
    Sleeper,
    /// Takes one lock again and again.
    Locky,
    /// All vCPUs work on the same memory.
    Sharing,
    /// Has nothing to do but to serve its own timers, some twenty times a second.
    Idle,
}

impl Kind {
    /// Those that random mixes are made of.
    pub const ALL: [Self; 7] = [
        Self::Cpu,
        Self::Memory,
        Self::Phases,
        Self::Bursty,
        Self::Sleeper,
        Self::Locky,
        Self::Sharing,
    ];

    /// Misses per microsecond of work.
    pub const fn misses(self) -> f64 {
        match self {
            Self::Cpu => 0.3,
            Self::Memory | Self::Phases => 40.0,
            Self::Sharing => 30.0,
            Self::Bursty => 15.0,
            Self::Sleeper | Self::Locky | Self::Idle => 4.0,
        }
    }

    /// Part of the misses that go to shared pages, if the scenario says nothing else.
    pub const fn shared(self) -> f64 {
        match self {
            Self::Sharing => 0.9,
            Self::Locky => 0.5,
            _ => 0.2,
        }
    }

    /// Work before a sleep and length of the sleep, on average, in ns.
    pub const fn rhythm(self) -> Option<(f64, f64)> {
        match self {
            Self::Bursty => Some((4e6, 4e6)),
            Self::Sleeper => Some((150e3, 5e6)),
            Self::Idle => Some((50e3, 50e6)),
            _ => None,
        }
    }

    /// Work outside of and inside the lock, in ns.
    pub const fn lock(self) -> Option<(f64, f64)> {
        match self {
            Self::Locky => Some((30e3, 8e3)),
            _ => None,
        }
    }

    /// Bytes that a vCPU keeps in a last-level cache.
    pub const fn working_set(self) -> f64 {
        match self {
            Self::Cpu => 1e6,
            Self::Sleeper | Self::Locky | Self::Idle => 256e3,
            _ => 2e6,
        }
    }

    /// How often the hot half changes, in ns.
    pub const fn phase(self) -> Option<u64> {
        match self {
            Self::Phases => Some(6_000_000_000),
            _ => None,
        }
    }
}

/// Who uses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// All vCPUs.
    Shared,
    /// One of them.
    Vcpu(usize),
}

/// A page of 2 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Where it lies.
    pub node: usize,
    /// Who uses it.
    pub owner: Owner,
    /// Its part of its segment's misses.
    pub weight: f64,
    /// On its way to this node.
    pub moving: Option<usize>,
}

/// A VM before it runs.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// What it does.
    pub kind: Kind,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Scheduling weight, 256 being ordinary.
    pub weight: u32,
    /// Where its vCPUs start.
    pub start: usize,
    /// Node of each page.
    pub pages: Vec<usize>,
    /// Part of the misses that go to pages that all of its vCPUs use.
    pub shared: f64,
}

/// Lays a VM's pages out: the first quarter is shared, the rest belongs to the vCPUs in turn.
pub fn pages(spec: &VmSpec) -> Vec<Page> {
    let shared = (spec.pages.len() / 4).max(1).min(spec.pages.len());
    let page = |(i, node): (usize, &usize)| Page {
        node: *node,
        owner: if i < shared {
            Owner::Shared
        } else {
            Owner::Vcpu((i - shared) % spec.vcpus)
        },
        weight: 0.0,
        moving: None,
    };
    let mut pages: Vec<Page> = spec.pages.iter().enumerate().map(page).collect();
    heat(&mut pages, spec.vcpus, 0);
    pages
}

/// Spreads each segment's misses: nine tenths to a hot quarter, which starts at the front or, in odd
/// phases, at the middle.
pub fn heat(pages: &mut [Page], vcpus: usize, phase: u64) {
    let owners = core::iter::once(Owner::Shared).chain((0..vcpus).map(Owner::Vcpu));
    for owner in owners {
        let of: Vec<usize> = (0..pages.len())
            .filter(|i| pages[*i].owner == owner)
            .collect();
        let hot = of.len().div_ceil(4);
        let from = if phase % 2 == 1 { of.len() / 2 } else { 0 };
        let cold = of.len() - hot;
        for (rank, i) in of.iter().enumerate() {
            let is_hot = (from..from + hot).contains(&rank);
            pages[*i].weight = match (is_hot, cold) {
                (true, 0) => 1.0 / hot as f64,
                (true, _) => 0.9 / hot as f64,
                (false, _) => 0.1 / cold as f64,
            };
        }
    }
}

/// Part of a vCPU's misses that go to each node. An owner without pages uses the shared ones.
pub fn spread(pages: &[Page], nodes: usize, vcpu: usize, shared: f64) -> Vec<f64> {
    let own = pages.iter().any(|p| p.owner == Owner::Vcpu(vcpu));
    let mut part = vec![0.0; nodes];
    for p in pages {
        let share = match p.owner {
            Owner::Shared if own => shared,
            Owner::Shared => 1.0,
            Owner::Vcpu(v) if v == vcpu => 1.0 - shared,
            Owner::Vcpu(_) => 0.0,
        };
        part[p.node] += share * p.weight;
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpus_misses_add_up_and_follow_its_pages() {
        let spec = VmSpec {
            kind: Kind::Memory,
            vcpus: 2,
            weight: 256,
            start: 0,
            pages: (0..32).map(|i| i % 2).collect(),
            shared: 0.2,
        };
        let mut pages = pages(&spec);
        let sum: f64 = spread(&pages, 2, 1, 0.2).iter().sum();
        assert!((sum - 1.0).abs() < 1e-9);
        for p in &mut pages {
            p.node = usize::from(p.owner == Owner::Vcpu(1));
        }
        assert!((spread(&pages, 2, 1, 0.2)[1] - 0.8).abs() < 1e-9);
        assert!((spread(&pages, 2, 0, 0.2)[0] - 1.0).abs() < 1e-9);
        let before: Vec<f64> = pages.iter().map(|p| p.weight).collect();
        heat(&mut pages, 2, 1);
        assert!(
            pages.iter().zip(before).any(|(p, b)| p.weight != b),
            "a phase changes what is hot"
        );
    }
}
