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
//!
//! A pass weighs as much as it had looks ([`LOOK`] each), which is how long the machine ran: by bits a second in which a
//! kernel starts and touches everything once would outweigh many in which a small working set is all there is.

use units::NodeId;

use crate::matrix::Matrix;

/// How many looks the accessed bits of a pass are worth.
pub const WEIGHT_OF_BITS: u64 = 4;

/// What one look weighs in the matrix: enough that its part of a page does not vanish.
pub const LOOK: u64 = 1024 * crate::TOUCH;

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

    /// What was touched in a pass, divided as looks and bits together say: as much as the looks weigh.
    pub(crate) fn temper(&self, bits: &Matrix) -> Matrix {
        let (seen, all) = (self.cells.total(), bits.total());
        if seen == 0 || all == 0 {
            return bits.clone();
        }
        // Few enough that nothing below overflows.
        let looks = self.looks.min(1 << 24);
        let sum = u128::from(looks * LOOK);
        let mut tempered = Matrix::new(bits.nodes());
        for (k, n) in (0..bits.nodes()).flat_map(|k| (0..bits.nodes()).map(move |n| (k, n))) {
            let by_looks = u128::from(self.cells.at(k, n)) * sum / u128::from(seen);
            let by_bits = u128::from(bits.at(k, n)) * sum / u128::from(all);
            let share = by_looks * u128::from(looks) + by_bits * u128::from(WEIGHT_OF_BITS);
            let share = share / u128::from(looks + WEIGHT_OF_BITS);
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
        let tempered = looks.temper(&bits);
        // (400 x 1 % + 4 x 55 %) / 404 = 1.53 %
        let far = tempered.by_memory()[3] * 10_000 / tempered.total();
        assert!((150..157).contains(&far), "{tempered:?}");
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
        let (own, other) = (rows[0][0] + rows[1][1], rows[0][1] + rows[1][0]);
        assert!(
            own > 500 * other && rows[0][0].abs_diff(rows[1][1]) < 2,
            "{rows:?}"
        );
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
        fn a_pass_weighs_what_its_looks_do(cells in proptest::collection::vec((0usize..5, 0usize..5, any::<u64>()), 0..20),
                     seen in proptest::collection::vec((0u16..6, 0u16..6, any::<u32>()), 0..50)) {
            let mut bits = Matrix::new(4);
            for (k, n, weight) in cells {
                bits.add(k, n, weight >> 6);
            }
            let mut looks = Operands::new(4);
            for (k, n, weight) in seen {
                looks.look(NodeId(k), [(NodeId(n), weight)]);
            }
            let seen = looks.cells.total() > 0 && bits.total() > 0;
            let sum = if seen { looks.looks() * LOOK } else { bits.total() };
            let after = looks.temper(&bits).total();
            prop_assert!(after <= sum && sum - after <= 64, "{sum} {after}");
        }
    }
}
