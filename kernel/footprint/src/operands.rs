//! What stopped guests were about to touch: how often, by whom, where. The second opinion beside accessed bits.
//!
//! An accessed bit saturates: a page that a timer grazes in each interval and one that takes half of all accesses
//! look alike. Looks at the next instructions of a guest that is stopped at random are the opposite: few and far
//! between, but each falls where time is spent, and the CPU that made it is known. So bits say *which* pages are
//! touched, and looks say how the touches divide among accessors and memory nodes.
//!
//! With `N` looks in a pass the share of a cell is `(N p + W b) / (N + W)`: `p` is its share of what was looked at,
//! `b` its share by bits, and [`WEIGHT_OF_BITS`] `W` says how many looks the bits are worth (a Dirichlet prior). No
//! look leaves the bits alone, and there is no threshold between. Rates of pages are scaled so that their sums agree.

use units::NodeId;

use crate::matrix::Matrix;

/// How many looks the accessed bits of a pass are worth.
pub const WEIGHT_OF_BITS: u64 = 4;

/// What looks found since the last pass.
#[derive(Clone, Debug)]
pub struct Operands {
    looks: u64,
    cells: Matrix,
}

impl Operands {
    /// None yet, on a host with so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self {
            looks: 0,
            cells: Matrix::new(nodes),
        }
    }

    /// One look by a CPU of `accessor`: the nodes of the operands that it found, and what each weighs.
    pub fn look(&mut self, accessor: NodeId, operands: impl IntoIterator<Item = (NodeId, u32)>) {
        let mut any = false;
        for (memory, weight) in operands {
            self.cells
                .add(accessor.index(), memory.index(), weight.into());
            any |= weight > 0 && accessor.index().max(memory.index()) < self.cells.nodes();
        }
        self.looks = self.looks.saturating_add(any.into());
    }

    /// Looks that found an operand.
    pub const fn looks(&self) -> u64 {
        self.looks
    }

    /// What the bits of a pass found, divided as looks and bits together say. Its sum stays what it was.
    pub(crate) fn temper(&self, bits: &Matrix) -> Matrix {
        let (seen, all) = (self.cells.total(), bits.total());
        if seen == 0 || all == 0 {
            return bits.clone();
        }
        // Both are below 2^48, so that nothing below overflows.
        let looks = u128::from(self.looks.min(1 << 32));
        let mut tempered = Matrix::new(bits.nodes());
        for (k, n) in (0..bits.nodes()).flat_map(|k| (0..bits.nodes()).map(move |n| (k, n))) {
            let by_looks = (u128::from(self.cells.at(k, n)) << 16) * looks / u128::from(seen);
            let by_looks = (u128::from(all) * by_looks) >> 16;
            let by_bits = u128::from(bits.at(k, n)) * u128::from(WEIGHT_OF_BITS);
            let share = (by_looks + by_bits) / (looks + u128::from(WEIGHT_OF_BITS));
            tempered.add(k, n, u64::try_from(share).unwrap_or(u64::MAX));
        }
        tempered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn many_looks_outweigh_the_bits_and_none_leaves_them_alone() {
        let mut bits = Matrix::new(4);
        bits.add(3, 3, 550_000);
        bits.add(3, 1, 450_000);
        let mut looks = Operands::new(4);
        assert_eq!(looks.temper(&bits), bits);
        for i in 0..400 {
            let memory = if i % 100 == 0 { NodeId(3) } else { NodeId(1) };
            looks.look(NodeId(3), [(memory, 256)]);
        }
        let tempered = looks.temper(&bits).by_memory();
        // (400 x 1 % + 4 x 55 %) / 404 = 1.53 %
        assert!((15_000..15_700).contains(&tempered[3]), "{tempered:?}");
    }

    #[test]
    fn looks_know_who_touched() {
        let mut bits = Matrix::new(2);
        for (k, n) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            bits.add(k, n, 1000);
        }
        let mut looks = Operands::new(2);
        for _ in 0..1000 {
            looks.look(NodeId(0), [(NodeId(0), 100)]);
            looks.look(NodeId(1), [(NodeId(1), 100)]);
        }
        let rows = looks.temper(&bits).rows();
        assert!(rows[0][0] > 1990 && rows[1][1] > 1990, "{rows:?}");
    }

    #[test]
    fn a_look_without_operands_or_at_unknown_nodes_is_none() {
        let mut looks = Operands::new(2);
        looks.look(NodeId(0), []);
        looks.look(NodeId(0), [(NodeId(7), 100)]);
        looks.look(NodeId(9), [(NodeId(0), 100)]);
        assert_eq!(looks.looks(), 0);
        looks.look(NodeId(0), [(NodeId(1), 100), (NodeId(7), 100)]);
        assert_eq!(looks.looks(), 1);
    }

    proptest! {
        #[test]
        fn sums_stay(cells in proptest::collection::vec((0usize..5, 0usize..5, any::<u64>()), 0..20),
                     seen in proptest::collection::vec((0u16..6, 0u16..6, any::<u32>()), 0..50)) {
            let mut bits = Matrix::new(4);
            for (k, n, weight) in cells {
                bits.add(k, n, weight >> 6);
            }
            let mut looks = Operands::new(4);
            for (k, n, weight) in seen {
                looks.look(NodeId(k), [(NodeId(n), weight)]);
            }
            let (before, after) = (bits.total(), looks.temper(&bits).total());
            prop_assert!(after <= before && before - after <= 64 + (before >> 14), "{before} {after}");
        }
    }
}
