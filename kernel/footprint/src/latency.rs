//! How long each node takes to reach each node's memory, and the score made of it.

use alloc::vec::Vec;
use core::fmt;
use units::{NodeId, Score};

/// Latencies in nanoseconds, row = accessing node, column = node that holds the memory.
///
/// Square and complete: where nothing is known, the caller puts a value that it can stand for
/// (HMAT, else 10 ns x SLIT).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies {
    nodes: usize,
    ns: Vec<u32>,
}

/// Why rows are not a latency table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyError {
    /// A row has not one entry per node.
    Ragged {
        /// The row.
        row: usize,
        /// Entries it has.
        entries: usize,
        /// Entries it should have.
        nodes: usize,
    },
}

impl fmt::Display for LatencyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ragged {
                row,
                entries,
                nodes,
            } => write!(
                f,
                "latency row of node{row} has {entries} entries for {nodes} nodes; the table was refused"
            ),
        }
    }
}

impl core::error::Error for LatencyError {}

impl Latencies {
    /// From rows.
    ///
    /// # Errors
    /// [`LatencyError::Ragged`] unless every row has as many entries as there are rows.
    pub fn from_rows(rows: &[Vec<u32>]) -> Result<Self, LatencyError> {
        let nodes = rows.len();
        match rows.iter().position(|r| r.len() != nodes) {
            Some(row) => Err(LatencyError::Ragged {
                row,
                entries: rows.get(row).map_or(0, Vec::len),
                nodes,
            }),
            None => Ok(Self {
                nodes,
                ns: rows.concat(),
            }),
        }
    }

    /// From a function of accessor and memory node.
    pub fn from_fn(nodes: usize, mut ns: impl FnMut(NodeId, NodeId) -> u32) -> Self {
        let id = |i: usize| NodeId(u16::try_from(i).unwrap_or(u16::MAX));
        let mut table = Vec::with_capacity(nodes.saturating_mul(nodes));
        for k in 0..nodes {
            for n in 0..nodes {
                table.push(ns(id(k), id(n)));
            }
        }
        Self { nodes, ns: table }
    }

    /// Number of nodes.
    pub const fn nodes(&self) -> usize {
        self.nodes
    }

    /// From `k` to memory of `n`; the worst of the table for a node that it does not know.
    pub fn ns(&self, k: NodeId, n: NodeId) -> u32 {
        let known = k.index() < self.nodes && n.index() < self.nodes;
        let entry = if known {
            self.ns.get(k.index() * self.nodes + n.index())
        } else {
            None
        };
        entry.copied().unwrap_or_else(|| self.max())
    }

    /// The shortest of the table.
    pub fn min(&self) -> u32 {
        self.ns.iter().copied().min().unwrap_or(0)
    }

    /// The longest of the table.
    pub fn max(&self) -> u32 {
        self.ns.iter().copied().max().unwrap_or(0)
    }

    /// Whether every way is equally long, so that no place is better than another.
    pub fn is_flat(&self) -> bool {
        self.min() == self.max()
    }
}

/// How near each node is to memory touched with these weights: one score per node of the table.
///
/// `P(k) = 1 - sum w[n] (lat(k,n) - lat_min) / sum w[n] (lat_max - lat_min)`. `weights[n]` is how
/// often memory of node `n` is touched, by anybody. Without touches, or where all ways are equally
/// long, every node scores 1: no place is better. Weights beyond the table are ignored.
pub fn proximity(weights: &[u64], latencies: &Latencies) -> Vec<Score> {
    let (min, max) = (latencies.min(), latencies.max());
    let known = || weights.iter().take(latencies.nodes).enumerate();
    let span = u128::from(max - min);
    // At most 2^64 weight x 2^32 ns x 2^16 nodes: fits 128 bits.
    let whole: u128 = known().map(|(_, w)| u128::from(*w) * span).sum();
    (0..latencies.nodes)
        .map(|k| {
            if whole == 0 {
                return Score::ONE;
            }
            let row = latencies.ns.get(k * latencies.nodes..).unwrap_or(&[]);
            let lost: u128 = known()
                .zip(row)
                .map(|((_, w), ns)| u128::from(*w) * u128::from(ns - min))
                .sum();
            Score::ONE.above(Score::ratio(lost, whole))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    /// A ring of four: 80 local, 130 to a neighbour, 260 across.
    fn ring() -> Latencies {
        Latencies::from_fn(4, |k, n| match k.0.abs_diff(n.0) {
            0 => 80,
            2 => 260,
            _ => 130,
        })
    }

    #[test]
    fn all_touches_local_is_one_and_all_across_is_zero() {
        assert_eq!(
            proximity(&[0, 0, 9, 0], &ring()).first(),
            Some(&Score::ZERO)
        );
        assert_eq!(proximity(&[0, 0, 9, 0], &ring()).get(2), Some(&Score::ONE));
    }

    #[test]
    fn no_touches_or_no_distances_make_every_node_equal() {
        assert_eq!(proximity(&[0; 4], &ring()), vec![Score::ONE; 4]);
        let flat = Latencies::from_fn(4, |_, _| 100);
        assert_eq!(proximity(&[1, 2, 3, 4], &flat), vec![Score::ONE; 4]);
        assert!(proximity(&[1], &Latencies::from_fn(0, |_, _| 0)).is_empty());
    }

    #[test]
    fn a_ragged_table_is_refused_with_its_row() {
        let error = Latencies::from_rows(&[vec![10, 20], vec![10]]).expect_err("second row");
        assert!(
            error
                .to_string()
                .contains("node1 has 1 entries for 2 nodes"),
            "{error}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn a_farther_node_never_scores_higher(
            rows in proptest::collection::vec(proptest::collection::vec(10u32..2000, 5), 5),
            weights in proptest::collection::vec(prop_oneof![Just(0u64), 0..u64::MAX], 5),
            near in 0usize..5, far in 0usize..5, further in proptest::collection::vec(0u32..500, 5),
        ) {
            // Make `far` at least as far as `near` from every node.
            let mut rows = rows;
            let near_row = rows[near].clone();
            if near != far {
                rows[far] = near_row.iter().zip(&further).map(|(a, b)| a + b).collect();
            }
            let latencies = Latencies::from_rows(&rows).expect("square");
            let scores = proximity(&weights, &latencies);
            prop_assert!(scores[far] <= scores[near], "{scores:?}");
            prop_assert!(scores.iter().all(|s| *s <= Score::ONE));
        }

        #[test]
        fn untouched_memory_weighs_nothing(
            rows in proptest::collection::vec(proptest::collection::vec(10u32..2000, 4), 4),
            w in 1u64..1_000_000,
        ) {
            // Whatever the other nodes hold, only the touched one orders the scores.
            let latencies = Latencies::from_rows(&rows).expect("square");
            let scores = proximity(&[0, w, 0, 0], &latencies);
            for a in 0..4 {
                for b in 0..4 {
                    if rows[a][1] < rows[b][1] {
                        prop_assert!(scores[a] >= scores[b]);
                    }
                }
            }
        }
    }
}
