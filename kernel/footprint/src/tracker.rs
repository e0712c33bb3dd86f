//! One machine's footprint: what a pass adds and what can be asked.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use units::{Gpa, Nanos, NodeId, PageSize, PerMille, Score};

use crate::counters::SecondOpinion;
use crate::evidence::wilson_lower;
use crate::fading::Fading;
use crate::groups::Groups;
use crate::latency::{Latencies, proximity};
use crate::matrix::Matrix;
use crate::operands::{Operands, WEIGHT_OF_BITS};
use crate::sample::{Coverage, LeafSample, Window};
use crate::share::divide;
use crate::tunables::Tunables;

/// Weight of one touch; of a rate, one page touched once a second. Shares of a touch are rounded to this.
pub const TOUCH: u64 = crate::rate::TOUCH_PER_SECOND;

/// A leaf's heat is limited to this, 2^30 touches a second, so that sums over millions of leaves stay exact.
pub(crate) const HEAT_LIMIT: u64 = TOUCH << 30;

/// A page that was touched lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotPage {
    /// First guest address.
    pub gpa: Gpa,
    /// Size of its leaf.
    pub size: PageSize,
    /// Node that holds it.
    pub node: NodeId,
    /// Decayed touches; in units of [`TOUCH`].
    pub heat: u64,
}

/// What one pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassSummary {
    /// Leaves read.
    pub leaves: u64,
    /// Those that were touched.
    pub touched: u64,
    /// Those that were written.
    pub dirty: u64,
    /// Leaves on nodes that this footprint was not told of; they were left out.
    pub on_unknown_nodes: u64,
    /// Whether the machine counted as idle, so that its touches were not recorded.
    pub idle: bool,
}

/// The footprint of one machine.
#[derive(Clone, Debug)]
pub struct Footprint {
    tunables: Tunables,
    matrix: Matrix,
    /// Observations that found each node's memory touched, in [`TOUCH`] units, of about the last eight passes.
    evidence: Vec<u64>,
    /// Ascending by address.
    pages: Vec<HotPage>,
    /// Bytes on each node, touched or not.
    resident: Vec<u64>,
    /// Where the machine ran in the last window, in thousandths of one CPU.
    run: Vec<PerMille>,
    passes: u64,
    idle: bool,
    settled: bool,
    home: Option<NodeId>,
    /// For how long it has been busy with the same home.
    age: Nanos,
    /// What counters say besides.
    pub(crate) second: SecondOpinion,
    /// Which vCPUs work on the same memory.
    groups: Groups,
}

impl Footprint {
    /// Of a machine on a host with `nodes` nodes, before its first pass.
    pub fn new(nodes: usize, tunables: Tunables) -> Self {
        Self {
            tunables,
            matrix: Matrix::new(nodes),
            evidence: vec![0; nodes],
            pages: Vec::new(),
            resident: vec![0; nodes],
            run: vec![PerMille(0); nodes],
            passes: 0,
            idle: true,
            settled: true,
            home: None,
            age: Nanos::ZERO,
            second: SecondOpinion::default(),
            groups: Groups::new(nodes),
        }
    }

    /// Changes the constants from the next pass on.
    pub fn set_tunables(&mut self, tunables: Tunables) {
        self.tunables = tunables;
    }

    /// Whether the weights of the passes from now on rest on observation; where they do not, there is no opinion.
    pub fn set_settled(&mut self, settled: bool) {
        self.settled = settled;
    }

    /// Takes in one pass: each leaf once, or once for each set of nodes that touched it, in any order.
    pub fn record(
        &mut self,
        window: &Window<'_>,
        leaves: impl IntoIterator<Item = LeafSample>,
    ) -> PassSummary {
        let mut samples: Vec<LeafSample> = leaves.into_iter().collect();
        samples.sort_unstable_by_key(|s| (s.gpa, s.accessed));
        samples.dedup_by_key(|s| (s.gpa, s.accessed));
        let touches = samples.clone();
        samples.dedup_by(|more, leaf| more.gpa == leaf.gpa && leaf.absorb(more));

        self.passes = self.passes.saturating_add(1);
        self.note_run(window);
        self.note_resident(window, &samples);
        let known = |s: &&LeafSample| s.node.index() < self.matrix.nodes();
        let mut summary = PassSummary {
            leaves: samples.len() as u64,
            touched: samples.iter().filter(|s| s.accessed != 0).count() as u64,
            dirty: samples.iter().filter(|s| s.dirty).count() as u64,
            on_unknown_nodes: samples.iter().filter(|s| !known(s)).count() as u64,
            idle: self.idle,
        };
        self.follow_relocations(&samples);
        self.fade(window.length);
        self.groups.pass(window.length);
        if !self.idle {
            self.add_touches(window, &touches, &samples);
        }
        self.second.end_pass(window.total_run());
        self.note_home(window.length);
        summary.idle = self.idle;
        summary
    }

    /// Run time per node as shares of one CPU, and whether that is idle.
    fn note_run(&mut self, window: &Window<'_>) {
        self.run.fill(PerMille(0));
        for (share, t) in self.run.iter_mut().zip(window.run_time) {
            *share = PerMille::ratio(t.0, window.length.0);
        }
        self.idle =
            window.length == Nanos::ZERO || self.run_total() < u32::from(self.tunables.idle_run.0);
    }

    fn note_resident(&mut self, window: &Window<'_>, samples: &[LeafSample]) {
        self.resident.fill(0);
        match window.coverage {
            Coverage::EveryLeaf => {
                for s in samples {
                    if let Some(bytes) = self.resident.get_mut(s.node.index()) {
                        *bytes = bytes.saturating_add(s.size.bytes());
                    }
                }
                // A page without a leaf is gone, and so is what it was touched for.
                self.pages
                    .retain(|p| samples.binary_search_by_key(&p.gpa, |s| s.gpa).is_ok());
            }
            Coverage::TouchedLeaves { resident } => {
                for (bytes, now) in self.resident.iter_mut().zip(resident) {
                    *bytes = *now;
                }
            }
        }
    }

    /// Notices pages that a pass finds on another node than before.
    fn follow_relocations(&mut self, samples: &[LeafSample]) {
        let moved: Vec<LeafSample> = self
            .pages
            .iter_mut()
            .filter_map(|page| {
                let i = samples.binary_search_by_key(&page.gpa, |s| s.gpa).ok()?;
                let sample = samples.get(i)?;
                page.size = sample.size;
                (sample.node != page.node).then_some(*sample)
            })
            .collect();
        for sample in moved {
            self.relocated(sample.gpa, sample.node);
        }
    }

    /// The leaf at `gpa` was moved to another node. It takes its history along, so that the
    /// matrix says where the touched memory is and not where it was.
    pub fn relocated(&mut self, gpa: Gpa, to: NodeId) {
        let Ok(i) = self.pages.binary_search_by_key(&gpa, |p| p.gpa) else {
            return;
        };
        let Some(page) = self.pages.get_mut(i) else {
            return;
        };
        if page.node == to || to.index() >= self.matrix.nodes() {
            return;
        }
        self.groups.relocated(gpa, page.size, page.node, to);
        let (from, heat) = (page.node.index(), page.heat);
        page.node = to;
        let column = self.matrix.by_memory().get(from).copied().unwrap_or(0);
        self.matrix.relocate(from, to.index(), heat, column);
        let part = Score::ratio(heat.into(), column.into());
        let moved = self.evidence.get(from).map_or(0, |e| part.of(*e));
        if let Some(e) = self.evidence.get_mut(from) {
            *e -= moved;
        }
        if let Some(e) = self.evidence.get_mut(to.index()) {
            *e = e.saturating_add(moved);
        }
        // The machine does what it did before: moving its pages is no new pattern.
        if self.home.is_some() {
            self.home = self.most_touched();
        }
    }

    fn fade(&mut self, length: Nanos) {
        let fading = Fading::after(length, self.tunables.half_life);
        self.matrix.fade(fading);
        for e in &mut self.evidence {
            *e -= *e / 8;
        }
        for page in &mut self.pages {
            page.heat = fading.of(page.heat);
        }
        self.pages.retain(|p| p.heat > 0);
    }

    /// Adds the touches of a busy window to matrix, evidence and pages; `leaves` has each leaf once.
    fn add_touches(&mut self, window: &Window<'_>, touches: &[LeafSample], leaves: &[LeafSample]) {
        let bits = self.touches_by_bits(window, touches);
        let pass = match window.operands {
            Some(looks) => looks.temper(&bits),
            None => bits.clone(),
        };
        let pass = self.second.correct(pass, &self.resident);
        self.add_evidence(window, leaves, &pass);
        self.matrix.add_all(&pass);
        // What the leaves of a node weigh together is what the matrix says of it.
        let (before, after) = (bits.by_memory(), pass.by_memory());
        let weigh = |leaf: &LeafSample| {
            let of = |sums: &[u64]| sums.get(leaf.node.index()).copied().unwrap_or(0);
            let (before, after) = (of(&before), of(&after));
            if before == after {
                return leaf.touched_heat();
            }
            let scaled = u128::from(leaf.touched_heat()) * u128::from(after);
            u64::try_from(scaled / u128::from(before.max(1)))
                .unwrap_or(u64::MAX)
                .min(HEAT_LIMIT)
        };
        let weights: Vec<u64> = leaves.iter().map(weigh).collect();
        self.warm(leaves, &weights);
    }

    /// What the bits of a window say: who touched what. The sum over accessors is what was touched.
    fn touches_by_bits(&self, window: &Window<'_>, touches: &[LeafSample]) -> Matrix {
        let nodes = self.matrix.nodes();
        let mut sums: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for touch in touches {
            let by_node = sums.entry(touch.accessed).or_insert_with(|| vec![0; nodes]);
            if let Some(sum) = by_node.get_mut(touch.node.index()) {
                *sum = sum.saturating_add(touch.touched_heat());
            }
        }
        let mut bits = Matrix::new(nodes);
        for (accessed, sums) in sums {
            let accessors = self.accessors(window, accessed);
            for (n, sum) in sums.into_iter().enumerate() {
                for (k, part) in divide(sum, &accessors).into_iter().enumerate() {
                    bits.add(k, n, part);
                }
            }
        }
        bits
    }

    /// By node: what its part is of touches through these roots. Among nodes that use the same root it is their run time.
    fn accessors(&self, window: &Window<'_>, accessed: u64) -> Vec<u64> {
        let nodes = self.matrix.nodes();
        let ran = |node: &usize| window.run_time.get(*node).map_or(0, |ran| ran.0);
        let weigh = |who: &mut dyn Iterator<Item = usize>, weight: &dyn Fn(&usize) -> u64| {
            let mut weights = vec![0; nodes];
            for node in who {
                if let Some(slot) = weights.get_mut(node) {
                    *slot = weight(&node);
                }
            }
            weights.iter().any(|w| *w > 0).then_some(weights)
        };
        let using = || window.attribution.nodes(accessed, nodes);
        // Nobody who uses these roots ran: it was touched before this window began, and a root's own node is the likeliest.
        weigh(&mut using(), &ran)
            .or_else(|| {
                let mut owners = using().filter(|node| window.attribution.owns_root(*node));
                weigh(&mut owners, &|_| 1)
            })
            // Nobody uses them any more.
            .or_else(|| weigh(&mut (0..nodes), &ran))
            .unwrap_or_default()
    }

    /// Adds what the shares of a pass rest on: looks, where there were any, else touched leaves.
    fn add_evidence(&mut self, window: &Window<'_>, samples: &[LeafSample], pass: &Matrix) {
        let mut hits = vec![0u64; self.matrix.nodes()];
        for s in samples {
            if let Some(sum) = hits.get_mut(s.node.index()) {
                let hits = if s.accessed != 0 { s.hits } else { 0 };
                *sum = sum.saturating_add(TOUCH.saturating_mul(hits.into()));
            }
        }
        let looks = window.operands.map_or(0, Operands::looks);
        if looks > 0 {
            let all = hits.iter().fold(0u64, |sum, h| sum.saturating_add(*h));
            let all = all.min(TOUCH * WEIGHT_OF_BITS);
            let all = all.saturating_add(TOUCH.saturating_mul(looks));
            let total = pass.total();
            for (share, hits) in pass.by_memory().iter().zip(&mut hits) {
                *hits = Score::ratio((*share).into(), total.into()).of(all);
            }
        }
        for (e, hits) in self.evidence.iter_mut().zip(hits) {
            *e = e.saturating_add(hits);
        }
    }

    /// Merges the touched samples into the remembered pages.
    fn warm(&mut self, samples: &[LeafSample], weights: &[u64]) {
        let mut merged = Vec::with_capacity(self.pages.len());
        let mut old = self.pages.iter().copied().peekable();
        for (s, weight) in samples.iter().zip(weights).filter(|(_, w)| **w > 0) {
            while let Some(other) = old.next_if(|p| p.gpa < s.gpa) {
                merged.push(other);
            }
            let heat = old.next_if(|p| p.gpa == s.gpa).map_or(0, |p| p.heat);
            let heat = heat.saturating_add(*weight);
            merged.push(HotPage {
                gpa: s.gpa,
                size: s.size,
                node: s.node,
                heat,
            });
        }
        merged.extend(old);
        self.pages = merged;
    }

    /// The node whose memory is touched most.
    fn most_touched(&self) -> Option<NodeId> {
        let weights = self.matrix.by_memory();
        let most = weights.iter().copied().max().unwrap_or(0);
        let home = weights.iter().position(|w| *w == most && most > 0);
        home.and_then(|n| u16::try_from(n).ok()).map(NodeId)
    }

    /// Names the node whose memory is touched most and restarts the clock when that changes.
    fn note_home(&mut self, length: Nanos) {
        let home = self.most_touched();
        if self.idle || home != self.home {
            self.age = Nanos::ZERO;
        }
        if !self.idle {
            self.age += length;
        }
        self.home = home;
    }

    /// Number of passes taken in.
    pub const fn passes(&self) -> u64 {
        self.passes
    }

    /// Whether the machine was idle in the last window.
    pub const fn is_idle(&self) -> bool {
        self.idle
    }

    /// `F[k][n]`.
    pub const fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// Which vCPUs work on the same memory.
    pub const fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The same, to be told of looks and asked for opinions.
    pub const fn groups_mut(&mut self) -> &mut Groups {
        &mut self.groups
    }

    /// Bytes on each node, touched or not.
    pub fn resident(&self) -> &[u64] {
        &self.resident
    }

    /// Where the machine ran in the last window: thousandths of one CPU, per node.
    pub fn run(&self) -> &[PerMille] {
        &self.run
    }

    /// The sum of [`Self::run`]: 2000 = two CPUs all the time.
    pub fn run_total(&self) -> u32 {
        self.run.iter().map(|r| u32::from(r.0)).sum()
    }

    /// For how long the machine has been busy with the same [`Self::home`].
    pub const fn age(&self) -> Nanos {
        self.age
    }

    /// Share of its touches that goes to each node's memory; all 0 before the first touch.
    pub fn shares(&self) -> Vec<PerMille> {
        let weights = self.matrix.by_memory();
        let total = weights.iter().fold(0u64, |sum, w| sum.saturating_add(*w));
        weights.iter().map(|w| PerMille::ratio(*w, total)).collect()
    }

    /// How sure the shares are: 0 is no opinion (idle, not settled, or fewer touches than needed). Less where counters
    /// contradict ([`crate::counters`]).
    pub fn confidence(&self) -> PerMille {
        let hits = self.hits();
        if self.idle || !self.settled || hits < u64::from(self.tunables.min_touches) {
            return PerMille(0);
        }
        self.second.temper(wilson_lower(hits, hits)).per_mille()
    }

    /// The share that goes to memory of `node` at least, with 95 % confidence; 0 without opinion.
    pub fn share_at_least(&self, node: NodeId) -> Score {
        if self.confidence().0 == 0 {
            return Score::ZERO;
        }
        let hits = self.evidence.get(node.index()).map_or(0, |e| e / TOUCH);
        self.second.temper(wilson_lower(hits, self.hits()))
    }

    /// Touches that back the shares.
    fn hits(&self) -> u64 {
        self.evidence
            .iter()
            .fold(0u64, |sum, e| sum.saturating_add(*e))
            / TOUCH
    }

    /// The node whose memory it really touches: by accesses, not by bytes. None without opinion.
    pub fn home(&self) -> Option<NodeId> {
        if self.confidence().0 == 0 {
            None
        } else {
            self.home
        }
    }

    /// Share of touches made from the node that holds the memory; None before the first touch.
    pub fn locality(&self) -> Option<Score> {
        let (local, total) = self.matrix.local_and_total();
        (total > 0).then(|| Score::ratio(local, total))
    }

    /// How near each node is to what the machine touches; every node 1 without opinion.
    pub fn proximity(&self, latencies: &Latencies) -> Vec<Score> {
        if self.confidence().0 == 0 {
            return vec![Score::ONE; latencies.nodes()];
        }
        proximity(&self.matrix.by_memory(), latencies)
    }

    /// Touched pages on nodes that `on` accepts, hottest first, then by address.
    pub fn hot(&self, on: impl Fn(NodeId) -> bool) -> Vec<HotPage> {
        let mut pages: Vec<HotPage> = self.pages.iter().copied().filter(|p| on(p.node)).collect();
        pages.sort_by_key(|p| (core::cmp::Reverse(p.heat), p.gpa));
        pages
    }

    /// Bytes of memory that it takes.
    pub fn metadata_bytes(&self) -> usize {
        self.pages.capacity() * size_of::<HotPage>() + self.groups.metadata_bytes()
    }

    /// The touched page that begins at an address.
    pub fn page(&self, gpa: Gpa) -> Option<&HotPage> {
        let i = self.pages.binary_search_by_key(&gpa, |p| p.gpa).ok()?;
        self.pages.get(i)
    }

    /// Bytes of touched pages on each node.
    pub fn touched(&self) -> Vec<u64> {
        let mut bytes = vec![0u64; self.matrix.nodes()];
        for p in &self.pages {
            if let Some(sum) = bytes.get_mut(p.node.index()) {
                *sum = sum.saturating_add(p.size.bytes());
            }
        }
        bytes
    }
}
