//! Which of a machine's vCPUs work on the same memory, and where that is.
//!
//! # The problem
//! Two vCPUs of a machine may work on memory of their own, each on another node. What the machine as a whole touches then lies
//! half here and half there, no place looks better than another, and yet each of the two could have all of its own near.
//!
//! # The idea
//! Looks at what stopped vCPUs were about to touch ([`operands`](crate::operands)) say who touches what. Of each vCPU they are
//! counted by granule of 2 MiB and fade. Two vCPUs are as similar as their counts overlap: the sum over granules of the smaller
//! of the two shares. From [`JOINS`] on they form a group, and so does whoever is similar to one of them (MECHANISMS section 4:
//! a third of their hits).
//!
//! Few looks at much memory rarely meet the same granule twice, so two vCPUs that use the same memory would seem to be strangers. So the
//! looks of a vCPU are dealt into two hands, and overlap is measured against how much a vCPU's two hands overlap: who is not
//! even similar to itself has not been seen enough. Such a vCPU belongs to no group, and where no two groups are known,
//! there are none: then there is only the machine, as for a machine with one vCPU.
//!
//! # What keeps groups from fluttering
//! Those in a group stay in it down to [`PARTS`], and groups change only after [`AGREE`] comparisons with the same outcome.
//!
//! # What it needs
//! At most [`GRANULES`](trace::GRANULES) granules of each vCPU, 32 bytes each with what a tree adds: for each granule of memory 32 bytes by
//! the vCPUs that touch it, which is 0.2 % of a machine's memory for more than a hundred vCPUs that all touch all of it.

mod trace;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use units::{Gpa, Nanos, NodeId, PageSize, PerMille, Score};

use crate::evidence::wilson_lower;
use crate::fading::Fading;
use crate::latency::{Latencies, proximity};
use crate::matrix::Matrix;
use trace::{Hands, LOOK, Trace};

/// Similarity from which on two vCPUs are joined.
pub const JOINS: Score = Score(Score::ONE.0 / 3);
/// Similarity below which two that are joined part.
pub const PARTS: Score = Score(Score::ONE.0 / 4);
/// Consecutive comparisons that must have the same outcome.
pub const AGREE: u8 = 3;
/// Looks below which a vCPU has not been seen enough.
pub const ENOUGH: u64 = 64;
/// The same for one that is in a group.
const STILL_ENOUGH: u64 = 32;
/// How much a vCPU's two hands of looks must overlap.
const ITSELF: Score = Score(Score::ONE.0 / 4);
/// The same for one that is in a group.
const STILL_ITSELF: Score = Score(Score::ONE.0 / 8);
/// Time in which what was seen comes to weigh half: some hundred looks of a busy vCPU count at a time.
const HALF_LIFE: Nanos = Nanos::from_secs(6);
/// Groups are compared so often: as soon as there is anything to fade.
const EVERY: Nanos = Nanos(HALF_LIFE.0 / 16);
/// Proximity that a group must gain over the machine's best node before groups have opinions of their own.
const APART: Score = Score(Score::ONE.0 / 10);
/// The same while they have.
const STILL_APART: Score = Score(Score::ONE.0 / 20);
/// Looks that a granule is taken to have had besides those that met it.
pub const PRIOR: u64 = 8;
/// By how much a score must change to be told anew.
const WORTH_TELLING: u32 = Score::ONE.0 / 100;
/// vCPUs that are followed.
const FOLLOWED: usize = 256;

/// vCPUs that work on the same memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Which, ascending.
    pub vcpus: Vec<u16>,
}

/// What looks at the vCPUs of one machine found, and the groups that follow from it.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    nodes: usize,
    traces: BTreeMap<u16, Trace>,
    /// Groups of those who were seen enough, even if that is one only.
    parts: Vec<Group>,
    /// What the last comparisons found, and how many of them.
    found: (Vec<Group>, u8),
    /// Time since the last comparison.
    pending: Nanos,
    apart: bool,
    /// Scores that were told, by vCPU.
    told: BTreeMap<u16, Vec<Score>>,
}

impl Groups {
    /// Of a machine on a host with `nodes` nodes, before the first look.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes,
            ..Self::default()
        }
    }

    /// One look at a vCPU by a CPU of `accessor`: the pages that it met, where they lie, and what each weighs.
    pub fn look(&mut self, vcpu: u16, accessor: NodeId, pages: &[(Gpa, NodeId, u32)]) {
        if !self.traces.contains_key(&vcpu) && self.traces.len() >= FOLLOWED {
            return;
        }
        let known = |node: NodeId| node.index() < self.nodes;
        let pages = pages.iter().copied();
        let pages = pages.filter(|(_, node, weight)| *weight > 0 && known(*node));
        if pages.clone().next().is_some() && known(accessor) {
            let trace = self.traces.entry(vcpu).or_default();
            trace.look(accessor, pages);
        }
    }

    /// A page was moved: what it is touched for is where it is now.
    pub fn relocated(&mut self, gpa: Gpa, size: PageSize, from: NodeId, to: NodeId) {
        if from.index() < self.nodes && to.index() < self.nodes {
            let traces = self.traces.values_mut();
            traces.for_each(|trace| trace.relocated(gpa, size, from, to));
        }
    }

    /// Time has passed: what was seen counts for less, and now and then groups are compared.
    pub fn pass(&mut self, length: Nanos) {
        self.pending += length;
        if self.pending < EVERY {
            return;
        }
        let fading = Fading::after(core::mem::take(&mut self.pending), HALF_LIFE);
        self.traces.retain(|_, trace| trace.fade(fading));
        let now = self.compared();
        self.found = match core::mem::take(&mut self.found) {
            (before, times) if before == now => (before, times.saturating_add(1)),
            _ => (now, 1),
        };
        if self.found.1 >= AGREE {
            self.parts.clone_from(&self.found.0);
        }
    }

    /// What the counts say now, with the groups so far as they bear on it.
    fn compared(&self) -> Vec<Group> {
        let known: Vec<(u16, Hands, Score)> = self.known().collect();
        let mut leader: Vec<usize> = (0..known.len()).collect();
        for (i, (a, hands, itself)) in known.iter().enumerate() {
            for (j, (b, other, other_itself)) in known.iter().enumerate().take(i) {
                let (mine, theirs) = (find(&leader, i), find(&leader, j));
                if mine == theirs {
                    continue;
                }
                let together = self.part_of(*a).is_some() && self.part_of(*a) == self.part_of(*b);
                let least = if together { PARTS } else { JOINS };
                if hands.similarity(other, (*itself).min(*other_itself)) >= least
                    && let Some(l) = leader.get_mut(mine.max(theirs))
                {
                    *l = mine.min(theirs);
                }
            }
        }
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        for (i, (vcpu, ..)) in known.iter().enumerate() {
            let group = groups.entry(find(&leader, i)).or_default();
            group.vcpus.push(*vcpu);
        }
        groups.into_values().collect()
    }

    /// vCPUs that have been seen enough, and how similar each is to itself.
    fn known(&self) -> impl Iterator<Item = (u16, Hands, Score)> {
        self.traces.iter().filter_map(|(vcpu, trace)| {
            let (looks, least) = match self.part_of(*vcpu) {
                Some(_) => (STILL_ENOUGH, STILL_ITSELF),
                None => (ENOUGH, ITSELF),
            };
            let hands = trace.hands();
            let itself = hands.itself();
            (trace.looks() >= looks && itself >= least).then_some((*vcpu, hands, itself))
        })
    }

    /// The groups, by their first vCPU; none if there is only the machine as a whole.
    pub fn groups(&self) -> &[Group] {
        match self.parts.len() {
            0 | 1 => &[],
            _ => &self.parts,
        }
    }

    /// The group of a vCPU.
    pub fn of(&self, vcpu: u16) -> Option<usize> {
        self.part_of(vcpu).filter(|_| self.parts.len() > 1)
    }

    fn part_of(&self, vcpu: u16) -> Option<usize> {
        let mut parts = self.parts.iter();
        parts.position(|g| g.vcpus.binary_search(&vcpu).is_ok())
    }

    fn traces_of(&self, group: usize) -> impl Iterator<Item = &Trace> {
        let vcpus = self.groups().get(group).map_or(&[][..], |g| &g.vcpus);
        vcpus.iter().filter_map(|vcpu| self.traces.get(vcpu))
    }

    /// `F_g[k][n]`: how often vCPUs of a group were seen to touch memory of node `n` from node `k`.
    pub fn matrix(&self, group: usize) -> Matrix {
        let mut matrix = Matrix::new(self.nodes);
        let cells = self.traces_of(group).flat_map(Trace::cells);
        cells.for_each(|(accessor, memory, weight)| {
            matrix.add(accessor.index(), memory.index(), weight);
        });
        matrix
    }

    /// How sure a group's shares are; 0 for a group that is none.
    pub fn confidence(&self, group: usize) -> PerMille {
        let looks = self.traces_of(group).map(Trace::looks).sum();
        wilson_lower(looks, looks).per_mille()
    }

    /// How near each node is to what a group touches.
    pub fn proximity(&self, group: usize, latencies: &Latencies) -> Vec<Score> {
        proximity(&self.matrix(group).by_memory(), latencies)
    }

    /// How the touches of each granule divide among groups: by first address, one weight for each group.
    ///
    /// Few looks at a granule say little, so it counts as if [`PRIOR`] more had met it, divided as all looks do.
    pub fn touchers(&self) -> BTreeMap<Gpa, Vec<u64>> {
        let groups = 0..self.groups().len();
        let wholes: Vec<u64> = groups
            .map(|g| self.traces_of(g).map(Trace::looks).sum())
            .collect();
        let all: u64 = wholes.iter().sum();
        let prior = wholes.iter().map(|looks| looks * PRIOR * LOOK);
        let prior: Vec<u64> = prior.map(|w| w.checked_div(all).unwrap_or(0)).collect();
        let mut touchers: BTreeMap<Gpa, Vec<u64>> = BTreeMap::new();
        for group in 0..self.groups().len() {
            for (granule, weight) in self.traces_of(group).flat_map(Trace::granules) {
                let weights = touchers.entry(granule).or_insert_with(|| prior.clone());
                if let Some(sum) = weights.get_mut(group) {
                    *sum = sum.saturating_add(weight);
                }
            }
        }
        touchers
    }

    /// Scores of their own for the vCPUs of groups that would rather be elsewhere than the machine as a whole, so far as they
    /// have changed; empty ones for those that have none any more. There are none as long as all groups want the same,
    /// for then it is the machine's wish, which is the planner's business.
    pub fn opinions(&mut self, whole: &[Score], latencies: &Latencies) -> Vec<(u16, Vec<Score>)> {
        let groups = 0..self.groups().len();
        let scores: Vec<Vec<Score>> = groups.map(|g| self.proximity(g, latencies)).collect();
        self.apart = self.are_apart(&scores, best(whole));
        let mut now: BTreeMap<u16, Vec<Score>> = BTreeMap::new();
        if self.apart {
            for (group, scores) in self.groups().iter().zip(&scores) {
                now.extend(group.vcpus.iter().map(|vcpu| (*vcpu, scores.clone())));
            }
        }
        self.tell(now)
    }

    /// Whether groups want to be in different places, and one gains by that over `common`, the best place of the machine as a
    /// whole.
    fn are_apart(&self, scores: &[Vec<Score>], common: usize) -> bool {
        let wishes: BTreeSet<usize> = scores.iter().map(|s| best(s)).collect();
        let gains = scores.iter().map(|s| at(s, best(s)).above(at(s, common)));
        let least = if self.apart { STILL_APART } else { APART };
        wishes.len() > 1 && gains.max().is_some_and(|gain| gain >= least)
    }

    /// Takes all opinions back: what is to be told for that.
    pub fn retract(&mut self) -> Vec<(u16, Vec<Score>)> {
        self.apart = false;
        self.tell(BTreeMap::new())
    }

    /// What has changed since something was told last.
    fn tell(&mut self, now: BTreeMap<u16, Vec<Score>>) -> Vec<(u16, Vec<Score>)> {
        let gone = self.told.keys().filter(|vcpu| !now.contains_key(vcpu));
        let gone: Vec<u16> = gone.copied().collect();
        let mut changes = Vec::new();
        for vcpu in gone {
            self.told.remove(&vcpu);
            changes.push((vcpu, Vec::new()));
        }
        for (vcpu, scores) in now {
            let before = self.told.get(&vcpu);
            if before.is_none_or(|before| differ(before, &scores)) {
                self.told.insert(vcpu, scores.clone());
                changes.push((vcpu, scores));
            }
        }
        changes
    }

    /// Bytes that it needs besides itself, about.
    pub fn metadata_bytes(&self) -> usize {
        self.traces.values().map(Trace::bytes).sum()
    }
}

/// Who leads the set that `i` is in.
fn find(leader: &[usize], mut i: usize) -> usize {
    while let Some(l) = leader.get(i).filter(|l| **l != i) {
        i = *l;
    }
    i
}

fn at(scores: &[Score], node: usize) -> Score {
    scores.get(node).copied().unwrap_or(Score::ZERO)
}

/// The node with the highest score.
fn best(scores: &[Score]) -> usize {
    let most = scores.iter().copied().max().unwrap_or(Score::ZERO);
    scores.iter().position(|s| *s == most).unwrap_or(0)
}

/// Whether scores differ by as much as is worth telling.
fn differ(before: &[Score], now: &[Score]) -> bool {
    let pairs = before.iter().zip(now);
    before.len() != now.len()
        || pairs
            .map(|(a, b)| a.0.abs_diff(b.0))
            .any(|by| by >= WORTH_TELLING)
}
