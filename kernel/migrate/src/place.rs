//! Where a machine runs and what it touches, and how long its accesses take for that.
//!
//! With `r[k]` the share of run time on node `k` and `w[n]` the share of accesses that go to memory of node `n`, an access takes
//! `L = sum r[k] w[n] lat(k,n)` on average. That holds for vCPUs that work on the same memory. Where groups of a machine's
//! vCPUs work on memory of their own ([`footprint::groups`]), it holds of each, and the machine's is the mean of theirs by what they
//! touch: two vCPUs on two nodes, each beside its own memory, are as near as can be, and as one they would seem half far.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use footprint::{Latencies, proximity};
use units::{Gpa, NodeId, PageSize, Score};

use crate::view::VmView;

/// vCPUs that work on the same memory: weights by node.
#[derive(Clone, Debug)]
struct Part {
    run: Vec<u64>,
    touch: Vec<u64>,
}

/// A machine: its groups, or all of it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    parts: Vec<Part>,
    /// What each part touches of a granule, as far as that was seen.
    touchers: Rc<BTreeMap<Gpa, Vec<u64>>>,
}

/// Latency of accesses to memory of each node, by part, in picoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Ways {
    by_part: Vec<Vec<u64>>,
    /// How much each part touches, compared with the others.
    whole: Vec<u64>,
    touchers: Rc<BTreeMap<Gpa, Vec<u64>>>,
}

fn sum(weights: &[u64]) -> u64 {
    weights.iter().fold(0, |sum, w| sum.saturating_add(*w))
}

/// `part` of `amount`, where all parts are `whole`.
fn divided(amount: u64, part: u64, whole: u64) -> u64 {
    let divided = u128::from(amount) * u128::from(part);
    let divided = divided.checked_div(whole.into()).unwrap_or(0);
    u64::try_from(divided).unwrap_or(u64::MAX)
}

/// The mean of values with weights; None without weights.
fn mean(values: impl Iterator<Item = (u64, u64)>) -> Option<u64> {
    let (mut sum, mut weight) = (0u128, 0u128);
    for (value, w) in values {
        sum = sum.saturating_add(u128::from(value) * u128::from(w));
        weight += u128::from(w);
    }
    let mean = sum.checked_div(weight)?;
    Some(u64::try_from(mean).unwrap_or(u64::MAX))
}

impl Part {
    fn new(nodes: usize) -> Self {
        Self {
            run: vec![0; nodes],
            touch: vec![0; nodes],
        }
    }

    /// Average latency of an access in picoseconds.
    fn latency_ps(&self, latencies: &Latencies) -> u64 {
        let (mut sum, mut weight) = (0u128, 0u128);
        for (k, r) in (0u16..).zip(&self.run).filter(|(_, r)| **r > 0) {
            for (n, w) in (0u16..).zip(&self.touch).filter(|(_, w)| **w > 0) {
                // At most 2^26 x 2^64 x 2^32: fits 128 bits.
                let pair = u128::from(*r) * u128::from(*w);
                sum += pair * u128::from(latencies.ns(NodeId(k), NodeId(n)));
                weight += pair;
            }
        }
        u64::try_from(sum.saturating_mul(1000) / weight.max(1)).unwrap_or(u64::MAX)
    }

    /// Proximity averaged over where it runs.
    fn proximity(&self, latencies: &Latencies) -> Score {
        let scores = proximity(&self.touch, latencies);
        let total: u128 = self.run.iter().map(|r| u128::from(*r)).sum();
        let by_node = self.run.iter().zip(&scores);
        let sum: u128 = by_node.map(|(r, s)| u128::from(*r) * u128::from(s.0)).sum();
        if total == 0 {
            Score::ONE
        } else {
            Score::ratio(sum, total << 16)
        }
    }

    /// Latency of an access to memory of `n` from where it runs, in picoseconds.
    fn way_to(&self, n: NodeId, latencies: &Latencies) -> u64 {
        let mut touch = vec![0; self.touch.len()];
        if let Some(w) = touch.get_mut(n.index()) {
            *w = 1;
        }
        let run = self.run.clone();
        Self { run, touch }.latency_ps(latencies)
    }
}

impl Place {
    /// As it is.
    pub(crate) fn of(vm: &VmView<'_>, nodes: usize) -> Self {
        let groups = vm.footprint.groups();
        // Who is in no group runs somewhere, and nothing is known of what it touches.
        let others = groups.groups().len();
        let mut parts = vec![Part::new(nodes); others + 1];
        for v in vm.vcpus {
            let part = parts.get_mut(groups.of(v.vcpu.index).unwrap_or(others));
            if let Some(weight) = part.and_then(|part| part.run.get_mut(v.node.index())) {
                // A vCPU that hardly runs still stands somewhere.
                *weight += u64::from(v.demand.0).max(1);
            }
        }
        let mut touch = vm.footprint.matrix().by_memory();
        touch.resize(nodes, 0);
        if others == 0 {
            if let Some(all) = parts.first_mut() {
                all.touch = touch;
            }
            return Self {
                parts,
                touchers: Rc::default(),
            };
        }
        // What the machine touches on each node is divided as looks at its vCPUs divide it.
        let looked: Vec<Vec<u64>> = (0..others).map(|g| groups.matrix(g).by_memory()).collect();
        let whole: Vec<u64> = looked.iter().map(|by_node| sum(by_node)).collect();
        for (n, weight) in touch.iter().enumerate() {
            let on: Vec<u64> = looked
                .iter()
                .map(|l| l.get(n).copied().unwrap_or(0))
                .collect();
            let shares = if sum(&on) > 0 { &on } else { &whole };
            for (part, share) in parts.iter_mut().zip(shares) {
                if let Some(touch) = part.touch.get_mut(n) {
                    *touch = divided(*weight, *share, sum(shares));
                }
            }
        }
        Self {
            parts,
            touchers: Rc::new(groups.touchers()),
        }
    }

    fn sums(&self, of: impl Fn(&Part) -> &[u64]) -> Vec<u64> {
        let nodes = self.parts.first().map_or(0, |part| of(part).len());
        let mut sums = vec![0u64; nodes];
        for part in &self.parts {
            for (sum, weight) in sums.iter_mut().zip(of(part)) {
                *sum = sum.saturating_add(*weight);
            }
        }
        sums
    }

    /// Where all of it runs.
    pub(crate) fn run(&self) -> Vec<u64> {
        self.sums(|part| &part.run)
    }

    /// What all of it touches.
    pub(crate) fn touch(&self) -> Vec<u64> {
        self.sums(|part| &part.touch)
    }

    /// If all of it ran on `target`.
    pub(crate) fn all_on(&self, target: NodeId) -> Self {
        let mut all = self.clone();
        for part in &mut all.parts {
            part.run.fill(0);
            if let Some(run) = part.run.get_mut(target.index()) {
                *run = 1;
            }
        }
        all
    }

    /// A page that is so hot goes from one node to another.
    pub(crate) fn moved(&mut self, gpa: Gpa, heat: u64, from: NodeId, to: NodeId) {
        let whole = self.whole();
        let shares = shares(&self.touchers, &whole, gpa);
        let all = sum(shares);
        for (part, share) in self.parts.iter_mut().zip(shares) {
            let Some(there) = part.touch.get_mut(from.index()) else {
                continue;
            };
            let weight = divided(heat, *share, all).min(*there);
            *there -= weight;
            if let Some(w) = part.touch.get_mut(to.index()) {
                *w = w.saturating_add(weight);
            }
        }
    }

    /// How much each part touches, compared with the others.
    fn whole(&self) -> Vec<u64> {
        if self.parts.len() == 1 {
            return vec![1];
        }
        self.parts.iter().map(|part| sum(&part.touch)).collect()
    }

    /// Average latency of an access in picoseconds.
    pub(crate) fn latency_ps(&self, latencies: &Latencies) -> u64 {
        let parts = self.parts.iter();
        mean(parts.map(|part| (part.latency_ps(latencies), sum(&part.touch)))).unwrap_or(0)
    }

    /// Proximity averaged over where it runs.
    pub(crate) fn proximity(&self, latencies: &Latencies) -> Score {
        let parts = self.parts.iter();
        let scores = parts.map(|part| (part.proximity(latencies).0.into(), sum(&part.touch)));
        let mean = mean(scores).and_then(|mean| u32::try_from(mean).ok());
        mean.map_or(Score::ONE, Score)
    }

    /// How long accesses to memory of each node take from where it runs.
    pub(crate) fn ways(&self, latencies: &Latencies) -> Ways {
        let nodes = || (0u16..).map(NodeId).take(latencies.nodes());
        let of = |part: &Part| nodes().map(|n| part.way_to(n, latencies)).collect();
        Ways {
            by_part: self.parts.iter().map(of).collect(),
            whole: self.whole(),
            touchers: self.touchers.clone(),
        }
    }

    /// The node with most of `weights`.
    pub(crate) fn most(weights: &[u64]) -> NodeId {
        let most = weights.iter().copied().max().unwrap_or(0);
        NodeId(
            (0u16..)
                .zip(weights)
                .find(|(_, w)| **w == most)
                .map_or(0, |(n, _)| n),
        )
    }
}

/// How a page's accesses divide among parts: as its granule's were seen to, else as all do.
fn shares<'a>(touchers: &'a BTreeMap<Gpa, Vec<u64>>, whole: &'a [u64], gpa: Gpa) -> &'a [u64] {
    let seen = touchers.get(&gpa.align_down(PageSize::Size2M));
    seen.map_or(whole, Vec::as_slice)
}

impl Ways {
    /// From those who touch a page to memory of `n`, in picoseconds.
    pub(crate) fn to(&self, gpa: Gpa, n: NodeId) -> u64 {
        let way = |ways: &Vec<u64>| ways.get(n.index()).copied().unwrap_or(0);
        let by_part = self.by_part.iter().map(way);
        let shares = shares(&self.touchers, &self.whole, gpa).iter().copied();
        mean(by_part.zip(shares)).unwrap_or(0)
    }
}
