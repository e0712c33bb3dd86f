//! Reads that left the caches, as performance counters saw them: the second opinion on who touches what.
//!
//! Bits and looks see touches. Counters see which of them reached memory, near or far, and which CPU made them; they do not see
//! which far node answered, nor which page. So bits and looks divide a node's far touches among the other nodes, and
//! counters say how many of its touches are far.
//!
//! # The rule
//! For each accessing node `k` with `N` counted reads, of which the share `c` was far, where bits and looks say `b`:
//!
//! * far touches of `k` become the share `(READS b + N c) / (READS + N)` of all of its touches: bits and looks count as
//!   [`READS`] reads, there is no threshold between, and no read leaves the row alone;
//! * they are divided among far nodes as bits and looks divide them; where these saw none, by the bytes that the machine has on
//!   each. A part that has nowhere to go, because the machine has no memory there, is not moved: then counters tell of what
//!   is not this machine's, and are believed only in that there is doubt;
//! * what a row weighs stays what bits and looks say.
//!
//! # Doubt
//! Where the two disagree one of them is wrong. A pass' disagreement is `|c - b| N / (READS + N)`, weighed by rows; the doubt is
//! its average over about eight passes, and confidence is what evidence gives times `1 - doubt / 2`. So what is flatly contradicted
//! is worth half, which a planner that multiplies gains with confidence feels, and what both say is worth no less than
//! before. A pass in which nothing was counted brings no disagreement. On a machine without counters this file changes
//! nothing, to the last bit (tested).

use alloc::vec;
use alloc::vec::Vec;
use units::{Nanos, NodeId, PerMille, Score};

use crate::matrix::Matrix;
use crate::tracker::Footprint;

/// Reads that weigh as much as a pass of bits and looks. A program that waits for memory makes millions in a second; one that makes
/// fewer than this does not notice where its memory is.
pub const READS: u64 = 4096;

/// Reads that reached memory, by the node of the CPU that made them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DramReads {
    /// Near and far.
    by_node: Vec<(u64, u64)>,
}

impl DramReads {
    /// None yet, on a host with so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self {
            by_node: vec![(0, 0); nodes],
        }
    }

    /// Adds what CPUs of `accessor` read from their own node's memory and from others'. A node that does not exist reads
    /// nothing.
    pub fn add(&mut self, accessor: NodeId, near: u64, far: u64) {
        if let Some(sum) = self.by_node.get_mut(accessor.index()) {
            *sum = (sum.0.saturating_add(near), sum.1.saturating_add(far));
        }
    }

    /// Reads from near and from far memory, by node.
    pub fn by_node(&self) -> &[(u64, u64)] {
        &self.by_node
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_node.iter().all(|(near, far)| near | far == 0)
    }

    /// The pass as corrected by these reads, and by how much they contradict it. `resident`: bytes on each node.
    fn correct(&self, pass: &Matrix, resident: &[u64]) -> (Matrix, Score) {
        let nodes = pass.nodes();
        let mut corrected = Matrix::new(nodes);
        let (mut contradicted, mut all) = (0u128, 0u128);
        for k in 0..nodes {
            let row: Vec<u64> = (0..nodes).map(|n| pass.at(k, n)).collect();
            let total: u128 = row.iter().map(|cell| u128::from(*cell)).sum();
            let (near, far) = self.by_node.get(k).copied().unwrap_or_default();
            let reads = u128::from(near) + u128::from(far);
            all += total;
            let corrected_row = match total.min(reads) {
                0 => row,
                _ => {
                    let seen = Score::ratio(total - u128::from(pass.at(k, k)), total);
                    let counted = Score::ratio(far.into(), reads);
                    let weight = Score::ratio(reads, reads + u128::from(READS));
                    let apart = Score(seen.0.abs_diff(counted.0));
                    let moved = u128::from(weight.of(apart.0.into()));
                    contradicted += (total * moved) >> Score::ONE.0.trailing_zeros();
                    let moved = u32::try_from(moved).unwrap_or(Score::ONE.0);
                    let share = match counted > seen {
                        true => Score(seen.0 + moved),
                        false => Score(seen.0 - moved),
                    };
                    divided(k, &row, share, resident)
                }
            };
            for (n, cell) in corrected_row.into_iter().enumerate() {
                corrected.add(k, n, cell);
            }
        }
        (corrected, Score::ratio(contradicted, all))
    }
}

/// Row `k` with `share` of its weight in far cells; as it was if a part would have nowhere to go.
fn divided(k: usize, row: &[u64], share: Score, resident: &[u64]) -> Vec<u64> {
    let total = row.iter().fold(0u64, |sum, cell| sum.saturating_add(*cell));
    let far = share.of(total);
    let near = total - far;
    let bytes = |n: usize| resident.get(n).copied().unwrap_or(0);
    let others = |of: &dyn Fn(usize) -> u64| -> Vec<u128> {
        let cell = |n: usize| if n == k { 0 } else { u128::from(of(n)) };
        (0..row.len()).map(cell).collect()
    };
    let mut parts = others(&|n| row.get(n).copied().unwrap_or(0));
    if parts.iter().all(|part| *part == 0) {
        parts = others(&bytes);
    }
    let of: u128 = parts.iter().sum();
    let near_has_room = near == 0 || row.get(k).is_some_and(|cell| *cell > 0) || bytes(k) > 0;
    if (far > 0 && of == 0) || !near_has_room {
        return row.to_vec();
    }
    let cell = |part: &u128| u64::try_from(u128::from(far) * part / of.max(1)).unwrap_or(u64::MAX);
    let mut divided: Vec<u64> = parts.iter().map(cell).collect();
    // What rounding leaves over is near.
    let placed: u64 = divided.iter().sum();
    if let Some(own) = divided.get_mut(k) {
        *own = total - placed;
    }
    divided
}

/// What a footprint remembers of its counters.
#[derive(Clone, Debug, Default)]
pub(crate) struct SecondOpinion {
    /// For the pass to come, where anything counts.
    pending: Option<DramReads>,
    /// Of the last pass.
    last: DramReads,
    /// Reads in a second of run time: halved each counted pass, plus half of the new.
    per_s: Option<u64>,
    /// Disagreement on average.
    doubt: Score,
}

impl SecondOpinion {
    /// A busy pass as counters correct it.
    pub(crate) fn correct(&mut self, pass: Matrix, resident: &[u64]) -> Matrix {
        let (corrected, apart) = match &self.pending {
            Some(reads) if !reads.is_empty() => reads.correct(&pass, resident),
            _ => (pass, Score::ZERO),
        };
        // Rounded so that a lasting disagreement is reached from below and none from above.
        let step = |difference: u32| difference.div_ceil(8);
        self.doubt = match apart > self.doubt {
            true => Score(self.doubt.0 + step(apart.0 - self.doubt.0)),
            false => Score(self.doubt.0 - step(self.doubt.0 - apart.0)),
        };
        corrected
    }

    /// The pass is over, busy or not; the machine ran for `run` in it.
    pub(crate) fn end_pass(&mut self, run: Nanos) {
        let Some(reads) = self.pending.take() else {
            self.last = DramReads::default();
            return;
        };
        let sums = reads.by_node.iter();
        let sum = sums.fold(0u128, |sum, (near, far)| {
            sum + u128::from(*near) + u128::from(*far)
        });
        if let Some(now) = (sum * 1_000_000_000).checked_div(run.0.into()) {
            let now = u64::try_from(now).unwrap_or(u64::MAX);
            self.per_s = Some(self.per_s.map_or(now, |before| before / 2 + now / 2));
        }
        self.last = reads;
    }

    /// What is left of a confidence.
    pub(crate) fn temper(&self, evidence: Score) -> Score {
        let lost = Score(self.doubt.0 / 2).of(evidence.0.into());
        Score(evidence.0 - u32::try_from(lost).unwrap_or(evidence.0))
    }
}

impl Footprint {
    /// Adds reads that counters saw since the last pass; they correct the next one. Called by whoever has counters, for each
    /// pass, also where they saw nothing. Without any reads, this footprint is that of bits and looks.
    pub fn count(&mut self, reads: &DramReads) {
        let pending = self.second.pending.get_or_insert_default();
        if pending.by_node.len() < reads.by_node.len() {
            pending.by_node.resize(reads.by_node.len(), (0, 0));
        }
        for (n, (near, far)) in (0u16..).zip(&reads.by_node) {
            pending.add(NodeId(n), *near, *far);
        }
    }

    /// What counters saw in the last pass.
    pub fn counted(&self) -> &DramReads {
        &self.second.last
    }

    /// Reads that reached memory, in a second of run time of one virtual CPU; `None` where nothing counts them.
    pub fn reads_per_s(&self) -> Option<u64> {
        self.second.per_s
    }

    /// How much counters contradict bits and looks, on average over about eight passes; 0 where they agree, and without them.
    pub fn doubt(&self) -> PerMille {
        self.second.doubt.per_mille()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matrix(rows: &[&[u64]]) -> Matrix {
        let mut m = Matrix::new(rows.len());
        for (k, row) in rows.iter().enumerate() {
            row.iter()
                .enumerate()
                .for_each(|(n, cell)| m.add(k, n, *cell));
        }
        m
    }

    fn reads(by_node: &[(u64, u64)]) -> DramReads {
        DramReads {
            by_node: by_node.to_vec(),
        }
    }

    #[test]
    fn counters_move_touches_between_near_and_far_and_bits_divide_the_far_ones() {
        let pass = matrix(&[&[900, 80, 20], &[0, 0, 0], &[0, 0, 0]]);
        let (m, apart) = reads(&[(READS, 3 * READS)]).correct(&pass, &[1, 1, 1]);
        // b = 0.1, c = 0.75, weight 4/5: 0.1 + 0.65 x 0.8 = 0.62 are far, 4 to 1.
        assert_eq!(m.rows()[0], [382, 495, 123]);
        assert!((519..=521).contains(&apart.per_mille().0), "{apart}");
        // A thousand times as many leave nothing of what bits say.
        let (m, _) = reads(&[(1000 * READS, 3000 * READS)]).correct(&pass, &[1, 1, 1]);
        assert_eq!(m.rows()[0], [252, 599, 149]);
    }

    #[test]
    fn where_bits_saw_nothing_far_its_bytes_say_where_that_is() {
        let pass = matrix(&[&[1000, 0, 0], &[0, 0, 0], &[0, 0, 0]]);
        let all_far = reads(&[(0, 1 << 40)]);
        let (m, apart) = all_far.correct(&pass, &[50, 30, 10]);
        assert_eq!(m.rows()[0], [0, 750, 250]);
        assert_eq!(apart.per_mille(), PerMille(1000));
        // With all of its memory near, the reads are somebody else's: doubt, and nothing else.
        let (m, apart) = all_far.correct(&pass, &[50, 0, 0]);
        assert_eq!((m, apart.per_mille()), (pass, PerMille(1000)));
        // The other way round.
        let pass = matrix(&[&[0, 1000], &[0, 0]]);
        let (m, _) = reads(&[(1 << 40, 0)]).correct(&pass, &[1, 1]);
        assert_eq!(m.rows()[0], [1000, 0]);
        let (m, _) = reads(&[(1 << 40, 0)]).correct(&pass, &[0, 1]);
        assert_eq!(m, pass);
    }

    #[test]
    fn agreement_and_silence_bring_no_doubt() {
        let pass = matrix(&[&[250, 750], &[10, 10]]);
        let (m, apart) = reads(&[(1 << 20, 3 << 20), (0, 0)]).correct(&pass, &[1, 1]);
        assert_eq!((m.rows(), apart), (pass.rows(), Score::ZERO));
    }

    #[test]
    fn doubt_is_an_average_and_costs_half_of_what_it_is() {
        let mut second = SecondOpinion::default();
        let pass = || matrix(&[&[1000, 0], &[0, 0]]);
        let mut last = Score::ZERO;
        for _ in 0..60 {
            second.pending = Some(reads(&[(0, 1 << 40)]));
            let _ = second.correct(pass(), &[1, 1]);
            second.end_pass(Nanos::from_secs(2));
            assert!(second.doubt >= last);
            last = second.doubt;
        }
        assert_eq!(second.doubt.per_mille(), PerMille(1000));
        assert_eq!(second.per_s, Some(1 << 39));
        assert_eq!(second.temper(Score::ONE).per_mille(), PerMille(500));
        for _ in 0..100 {
            let _ = second.correct(pass(), &[1, 1]);
        }
        assert_eq!(second.temper(Score::ONE), Score::ONE);
    }

    proptest! {
        #[test]
        fn rows_keep_their_weight_and_nothing_lands_where_there_is_no_memory(
            cells in proptest::collection::vec(0u64..1 << 60, 9),
            counts in proptest::collection::vec((any::<u64>(), any::<u64>()), 3),
            resident in proptest::collection::vec(0u64..4, 3),
        ) {
            let rows: Vec<Vec<u64>> = cells
                .chunks(3)
                .map(|row| row.iter().zip(&resident).map(|(c, r)| (c >> 4) * u64::from(*r > 0)).collect())
                .collect();
            let pass = matrix(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let (m, apart) = reads(&counts).correct(&pass, &resident);
            prop_assert!(apart <= Score::ONE);
            for (before, after) in pass.rows().iter().zip(m.rows()) {
                prop_assert_eq!(before.iter().sum::<u64>(), after.iter().sum::<u64>());
                for (cell, bytes) in after.iter().zip(&resident) {
                    prop_assert!(*bytes > 0 || *cell == 0);
                }
            }
        }
    }
}
