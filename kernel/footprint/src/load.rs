//! How much traffic nodes' memories and the links between them carry, and how much they could.
//!
//! A [`Traffic`] holds bytes per second by the node whose processors cause them and the node whose memory answers. Where
//! processors count what leaves their last-level cache ([`Counted`]) a row is what they say; elsewhere it is estimated from what is known of
//! machines anyway: reads in a second of run time, as counters see them or as the caller assumes, times the run time,
//! divided as the access matrix divides touches. A cache line a read; what is written back is counted or estimated by nobody.
//!
//! [`Capacities`] turn traffic into load. Where nobody says what a memory or a link could carry there is no load, which is
//! not the same as none.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use units::{NodeId, PerMille};

use crate::tracker::Footprint;

/// Bytes of one read: a cache line.
const LINE: u64 = 64;

/// Who says how much traffic there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Processors count what goes to memory and how much of it to their own node's.
    Counted,
    /// Processors count what goes to memory; how it divides among nodes is estimated.
    CountedTotal,
    /// Processors count what goes to their own node's memory; the rest is estimated.
    CountedLocal,
    /// Virtual CPUs' counters, and the access matrix.
    EstimatedFromReads,
    /// The access matrix, with an assumed number of accesses.
    EstimatedFromBits,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counted => "counted",
            Self::CountedTotal => "counted, divided by accessed bits",
            Self::CountedLocal => "near memory counted, the rest estimated from accessed bits",
            Self::EstimatedFromReads => "estimated from counted reads",
            Self::EstimatedFromBits => "estimated from accessed bits",
        })
    }
}

/// What the processors of a node counted, in bytes per second; `None` for what they do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// To memory of any node.
    pub total: Option<u64>,
    /// To memory of their own.
    pub local: Option<u64>,
}

/// Traffic by accessing node and memory node, in bytes per second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// A row for each accessing node.
    rows: Vec<Vec<u64>>,
    sources: Vec<Source>,
    /// Nodes that have memory.
    memory: Vec<bool>,
}

impl Traffic {
    /// None yet, on a host with these nodes: whether each has memory.
    pub fn new(memory: Vec<bool>) -> Self {
        let nodes = memory.len();
        Self {
            rows: vec![vec![0; nodes]; nodes],
            sources: vec![Source::EstimatedFromBits; nodes],
            memory,
        }
    }

    /// Adds what a machine is estimated to cause. `assumed_per_s`: reads that reach memory in a second of run time of one virtual CPU, for
    /// machines whose reads nobody counts. A machine that was not seen to touch anything causes nothing.
    pub fn add(&mut self, footprint: &Footprint, assumed_per_s: u64) {
        let counted = footprint.reads_per_s();
        let per_s = u128::from(counted.unwrap_or(assumed_per_s));
        let bytes = per_s * u128::from(footprint.run_total()) * u128::from(LINE) / 1000;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let cells = footprint.matrix().rows();
        let touches: u128 = cells.iter().flatten().map(|cell| u128::from(*cell)).sum();
        for ((row, source), cells) in self.rows.iter_mut().zip(&mut self.sources).zip(cells) {
            if counted.is_some() && cells.iter().any(|cell| *cell > 0) {
                *source = Source::EstimatedFromReads;
            }
            for (sum, cell) in row.iter_mut().zip(cells) {
                *sum = sum.saturating_add(part(bytes.into(), cell.into(), touches));
            }
        }
    }

    /// Puts what processors of `node` counted in the place of what was estimated for them.
    ///
    /// What went to other nodes is divided among them as estimated, else evenly: nobody counts to which. Where no other node has
    /// memory it was near. Nothing changes where nothing is counted.
    pub fn correct(&mut self, node: NodeId, counted: Counted) {
        let (Some(row), Some(source)) = (
            self.rows.get_mut(node.index()),
            self.sources.get_mut(node.index()),
        ) else {
            return;
        };
        let near = row.get(node.index()).copied().unwrap_or(0);
        let all = row.iter().fold(0u64, |sum, cell| sum.saturating_add(*cell));
        let (near, far) = match (counted.total, counted.local) {
            (Some(total), Some(local)) => {
                *source = Source::Counted;
                // Two registers are read one after the other, so local may seem to be more.
                (local.min(total), total.saturating_sub(local))
            }
            (Some(total), None) => {
                *source = Source::CountedTotal;
                let near = match all {
                    0 => total,
                    _ => part(total.into(), near.into(), all.into()),
                };
                (near, total - near)
            }
            (None, Some(local)) => {
                *source = Source::CountedLocal;
                (local, all - near)
            }
            (None, None) => return,
        };
        divide(row, &self.memory, node.index(), near, far);
    }

    /// Bytes per second that processors of `from` cause at memory of `to`.
    pub fn between(&self, from: NodeId, to: NodeId) -> u64 {
        let row = self.rows.get(from.index());
        row.and_then(|row| row.get(to.index()))
            .copied()
            .unwrap_or(0)
    }

    /// Bytes per second at memory of `node`, whoever causes them.
    pub fn at(&self, node: NodeId) -> u64 {
        let cells = self.rows.iter().filter_map(|row| row.get(node.index()));
        cells.fold(0, |sum: u64, cell| sum.saturating_add(*cell))
    }

    /// Who says what processors of `from` cause.
    pub fn source(&self, from: NodeId) -> Source {
        let source = self.sources.get(from.index()).copied();
        source.unwrap_or(Source::EstimatedFromBits)
    }

    /// Who says how much there is at memory of `node`: the sources of all who cause some of it, of its own processors if nobody
    /// does.
    pub fn sources_at(&self, node: NodeId) -> Vec<Source> {
        let touches = |row: &Vec<u64>| row.get(node.index()).is_some_and(|cell| *cell > 0);
        let rows = self.rows.iter().zip(&self.sources);
        let mut sources: Vec<Source> = rows.filter(|(row, _)| touches(row)).map(|r| *r.1).collect();
        if sources.is_empty() {
            sources.push(self.source(node));
        }
        sources.sort_unstable();
        sources.dedup();
        sources
    }
}

/// `amount x share / of`; nothing of nothing.
fn part(amount: u128, share: u128, of: u128) -> u64 {
    // Both are of 64 bits wherever this is called.
    let part = amount.saturating_mul(share).checked_div(of);
    u64::try_from(part.unwrap_or(0)).unwrap_or(u64::MAX)
}

/// Makes `near` of the row's cell at `own`, and divides `far` among the others as they were, evenly among those with memory if they were
/// nothing.
fn divide(row: &mut [u64], memory: &[bool], own: usize, near: u64, far: u64) {
    let others = || {
        row.iter()
            .zip(memory)
            .enumerate()
            .filter(|(n, _)| *n != own)
    };
    let sum: u128 = others().map(|(_, (cell, _))| u128::from(*cell)).sum();
    let places = others().filter(|(_, (_, memory))| **memory).count() as u128;
    let near = match places {
        0 => near.saturating_add(far),
        _ => near,
    };
    for (n, (cell, memory)) in row.iter_mut().zip(memory).enumerate() {
        *cell = match (n == own, sum) {
            (true, _) => near,
            (false, 0) => part(far.into(), u128::from(*memory), places),
            (false, sum) => part(far.into(), u128::from(*cell), sum),
        };
    }
}

/// What memories and links can carry, in bytes per second, as far as somebody says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// A row for each accessing node.
    rows: Vec<Vec<Option<u64>>>,
}

impl Capacities {
    /// From the bandwidth between each pair of nodes in MB/s, if that is known.
    pub fn from_fn(nodes: usize, mb_s: impl Fn(NodeId, NodeId) -> Option<u32>) -> Self {
        let ids = || (0..=u16::MAX).map(NodeId).take(nodes);
        let bytes = |from, to| {
            let known = mb_s(from, to).filter(|mb_s| *mb_s > 0);
            known.map(|mb_s| u64::from(mb_s) * 1_000_000)
        };
        Self {
            rows: ids()
                .map(|from| ids().map(|to| bytes(from, to)).collect())
                .collect(),
        }
    }

    /// From processors of `from` to memory of `to`.
    pub fn between(&self, from: NodeId, to: NodeId) -> Option<u64> {
        let row = self.rows.get(from.index())?;
        row.get(to.index()).copied().flatten()
    }

    /// Of the memory of `node`: what its own processors can get of it, else the most that others can.
    pub fn at(&self, node: NodeId) -> Option<u64> {
        let columns = self.rows.iter().filter_map(|row| row.get(node.index()));
        self.between(node, node)
            .or_else(|| columns.copied().flatten().max())
    }

    /// Of the link that carries least.
    pub fn slowest_link(&self) -> Option<u64> {
        let rows = self.rows.iter().enumerate();
        let links = rows.flat_map(|(k, row)| row.iter().enumerate().filter(move |(n, _)| *n != k));
        links.filter_map(|(_, known)| *known).min()
    }

    /// How much of what it could the memory of `node` carries.
    pub fn memory_load(&self, traffic: &Traffic, node: NodeId) -> Option<PerMille> {
        let capacity = self.at(node)?;
        Some(PerMille::ratio(traffic.at(node), capacity))
    }

    /// How much of what it could the link from processors of `from` to memory of `to` carries; `None` within a node as well.
    pub fn link_load(&self, traffic: &Traffic, from: NodeId, to: NodeId) -> Option<PerMille> {
        let capacity = self.between(from, to).filter(|_| from != to)?;
        Some(PerMille::ratio(traffic.between(from, to), capacity))
    }
}
