//! The access matrix `F[k][n]`.

use alloc::vec;
use alloc::vec::Vec;
use units::{NodeId, PerMille, Score};

use crate::fading::Fading;

/// How often each node touched memory of each node; decayed, in units of [`TOUCH`](crate::TOUCH).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    nodes: usize,
    cells: Vec<u64>,
}

impl Matrix {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            cells: vec![0; nodes.saturating_mul(nodes)],
        }
    }

    /// Touches by `accessor` of memory on `memory`; 0 for nodes that do not exist.
    pub fn get(&self, accessor: NodeId, memory: NodeId) -> u64 {
        self.at(accessor.index(), memory.index())
    }

    /// Number of nodes.
    pub const fn nodes(&self) -> usize {
        self.nodes
    }

    /// One row per accessing node.
    pub fn rows(&self) -> Vec<Vec<u64>> {
        self.cells
            .chunks(self.nodes.max(1))
            .map(<[u64]>::to_vec)
            .collect()
    }

    /// Touches of each node's memory by anybody.
    pub fn by_memory(&self) -> Vec<u64> {
        let mut sums = vec![0u64; self.nodes];
        for row in self.cells.chunks(self.nodes.max(1)) {
            for (sum, cell) in sums.iter_mut().zip(row) {
                *sum = sum.saturating_add(*cell);
            }
        }
        sums
    }

    /// The nodes whose memory is touched most, each with its share of all touches, largest first: those that get more than a third
    /// of what the first one gets (MECHANISMS section 4).
    pub fn primaries(&self) -> Vec<(NodeId, PerMille)> {
        let by_memory = self.by_memory();
        let all = by_memory
            .iter()
            .fold(0, |sum: u64, w| sum.saturating_add(*w));
        let most = by_memory.iter().copied().max().unwrap_or(0);
        let mut nodes: Vec<(u64, NodeId)> = by_memory
            .into_iter()
            .zip(0u16..)
            .filter(|(weight, _)| *weight > most / 3)
            .map(|(weight, node)| (weight, NodeId(node)))
            .collect();
        nodes.sort_by_key(|(weight, node)| (core::cmp::Reverse(*weight), *node));
        let share = |(weight, node)| (node, PerMille::ratio(weight, all));
        nodes.into_iter().map(share).collect()
    }

    pub(crate) fn add(&mut self, accessor: usize, memory: usize, weight: u64) {
        if accessor < self.nodes
            && memory < self.nodes
            && let Some(cell) = self.cells.get_mut(accessor * self.nodes + memory)
        {
            *cell = cell.saturating_add(weight);
        }
    }

    /// The cell in a row and a column.
    pub(crate) fn at(&self, accessor: usize, memory: usize) -> u64 {
        let inside = accessor < self.nodes && memory < self.nodes;
        let cell = inside.then(|| self.cells.get(accessor * self.nodes + memory));
        cell.flatten().copied().unwrap_or(0)
    }

    /// The sum of all cells.
    pub(crate) fn total(&self) -> u64 {
        let cells = self.cells.iter();
        cells.fold(0, |sum: u64, cell| sum.saturating_add(*cell))
    }

    /// Adds another matrix of the same size.
    pub(crate) fn add_all(&mut self, other: &Self) {
        for (cell, more) in self.cells.iter_mut().zip(&other.cells) {
            *cell = cell.saturating_add(*more);
        }
    }

    pub(crate) fn fade(&mut self, fading: Fading) {
        for cell in &mut self.cells {
            *cell = fading.of(*cell);
        }
    }

    /// Moves `weight` of `of` from one memory node to another, in each row alike.
    pub(crate) fn relocate(&mut self, from: usize, to: usize, weight: u64, of: u64) {
        if from >= self.nodes || to >= self.nodes {
            return;
        }
        let part = Score::ratio(weight.into(), of.into());
        for row in self.cells.chunks_mut(self.nodes.max(1)) {
            let moved = row.get(from).map_or(0, |cell| part.of(*cell));
            if let Some(cell) = row.get_mut(from) {
                *cell -= moved;
            }
            if let Some(cell) = row.get_mut(to) {
                *cell = cell.saturating_add(moved);
            }
        }
    }

    /// Touches made from the node that holds the memory, and all touches.
    pub(crate) fn local_and_total(&self) -> (u128, u128) {
        let total = self.cells.iter().map(|c| u128::from(*c)).sum();
        let local = self
            .cells
            .chunks(self.nodes.max(1))
            .enumerate()
            .filter_map(|(k, row)| row.get(k))
            .map(|c| u128::from(*c))
            .sum();
        (local, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primary_is_what_gets_more_than_a_third_of_the_most() {
        let mut matrix = Matrix::new(4);
        matrix.add(0, 2, 300);
        matrix.add(3, 2, 300);
        matrix.add(0, 1, 201);
        matrix.add(1, 3, 199);
        let primary = [(NodeId(2), PerMille(600)), (NodeId(1), PerMille(201))];
        assert_eq!(matrix.primaries(), primary);
        assert!(Matrix::new(3).primaries().is_empty());
    }
}
