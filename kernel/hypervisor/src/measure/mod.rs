//! How far each node's memory is from each node's processors, measured once at boot.
//!
//! After all processors are up and before any runs a guest, the boot processor sends them errands ([`errand`]): read
//! a block of one node's memory so that each read waits for the last, and read it as fast as all processors of a node
//! can together ([`reading`]). The repeats go around all pairs of nodes, so that what disturbs the machine for a
//! while shows as a difference between repeats and not as one between nodes. Whether the figures are believed
//! is `topology`'s to judge.

mod errand;
mod reading;

pub use errand::serve;

use crate::arch::{percpu, tsc};
use crate::mm;
use alloc::vec;
use alloc::vec::Vec;
use errand::Part;
use topology::measured::{self, Measurements, REPEATS};
use topology::{Machine, Node};
use units::{CpuId, Frame, NodeId, PageSize};

/// A node's free memory is not used up for this: at most one part in so many.
const SHARE_OF_FREE: u64 = 8;

/// Repeats that must speak against firmware's order before the others are spared.
const CONTRADICTIONS: u32 = 2;

/// Blocks of one node, for as many processors as read them at a time.
struct Blocks {
    node: NodeId,
    frames: Vec<Frame>,
}

/// Measures all pairs of nodes that have processors and memory; nothing on a machine with one node. A processor that
/// does not answer ends it, and what was measured until then is what there is.
pub fn all(machine: &Machine) -> Measurements {
    let size = machine.nodes.len();
    let mut found = Measurements {
        read_ps: vec![vec![Vec::new(); size]; size],
        read_mb_s: vec![vec![Vec::new(); size]; size],
    };
    if size < 2 {
        return found;
    }
    let readers: Vec<(NodeId, Vec<CpuId>)> = machine.nodes.iter().map(readers).collect();
    let most = readers.iter().map(|(_, cpus)| cpus.len()).max();
    let nodes = machine.nodes.iter().filter(|node| node.has_memory());
    let targets: Vec<Blocks> = nodes
        .map(|node| Blocks::take(node.id, most.unwrap_or(0)))
        .collect();
    let answered = measure(machine, &readers, &targets, &mut found).is_some();
    if answered {
        targets.into_iter().for_each(Blocks::give_back);
    } else {
        // Somebody may still read them.
        log::error!(
            "a CPU did not come back from measuring memory; the blocks that it read stay out of use"
        );
    }
    found
}

fn readers(node: &Node) -> (NodeId, Vec<CpuId>) {
    let online = |cpu: &CpuId| percpu::of(*cpu).is_some_and(percpu::PerCpu::is_online);
    let cpus = node.cpus.iter().copied().filter(online).collect();
    (node.id, cpus)
}

/// All repeats of all pairs: latencies, and bandwidths where the latencies are believed. `None` when a processor did not
/// answer.
fn measure(
    machine: &Machine,
    readers: &[(NodeId, Vec<CpuId>)],
    targets: &[Blocks],
    found: &mut Measurements,
) -> Option<()> {
    let mut contradicted = 0;
    for repeat in 0..REPEATS {
        latencies(readers, targets, found)?;
        contradicted += u32::from(measured::is_contradicted(machine, found, repeat));
        if contradicted == CONTRADICTIONS {
            return Some(());
        }
    }
    if measured::judge(machine, found).doubts.is_empty() {
        for _ in 0..REPEATS {
            bandwidths(readers, targets, found)?;
        }
    }
    Some(())
}

/// One repeat: the first processor of each node reads of all nodes in turn.
fn latencies(
    readers: &[(NodeId, Vec<CpuId>)],
    targets: &[Blocks],
    found: &mut Measurements,
) -> Option<()> {
    let blocks = || {
        targets
            .iter()
            .filter_map(|to| Some((to, *to.frames.first()?)))
    };
    for (from, cpus) in readers {
        let Some(cpu) = cpus.first() else { continue };
        let frames = blocks().map(|(_, frame)| frame).collect();
        let done = errand::send(vec![Part::new(*cpu, reading::waiting, frames)])?;
        for ((to, _), ticks) in blocks().zip(done.iter().flatten()) {
            note(&mut found.read_ps, *from, to.node, latency_ps(*ticks));
        }
    }
    Some(())
}

/// One repeat: all processors of a node read of another together, each another block.
fn bandwidths(
    readers: &[(NodeId, Vec<CpuId>)],
    targets: &[Blocks],
    found: &mut Measurements,
) -> Option<()> {
    for (from, cpus) in readers {
        for to in targets {
            let pairs = cpus.iter().zip(&to.frames);
            let parts = pairs.map(|(cpu, frame)| Part::new(*cpu, reading::streaming, vec![*frame]));
            let done = errand::send(parts.collect())?;
            let rates = done.iter().flatten().map(|ticks| rate_mb_s(*ticks));
            if let Some(rate) = rates.reduce(u32::saturating_add) {
                note(&mut found.read_mb_s, *from, to.node, rate);
            }
        }
    }
    Some(())
}

fn note(matrix: &mut [Vec<Vec<u32>>], from: NodeId, to: NodeId, figure: u32) {
    let row = matrix.get_mut(from.index());
    if let Some(cell) = row.and_then(|row| row.get_mut(to.index())) {
        cell.push(figure);
    }
}

/// Picoseconds of each of the reads that took so many ticks together.
fn latency_ps(ticks: u64) -> u32 {
    let all_ps = u128::from(ticks) * 1_000_000_000_000 / u128::from(tsc::hz().max(1));
    u32::try_from(all_ps / u128::from(reading::HOPS)).unwrap_or(u32::MAX)
}

/// MB/s of the bytes that were read in so many ticks.
fn rate_mb_s(ticks: u64) -> u32 {
    let bytes_hz = u128::from(reading::STREAMED) * u128::from(tsc::hz());
    u32::try_from(bytes_hz / u128::from(ticks.max(1)) / 1_000_000).unwrap_or(u32::MAX)
}

impl Blocks {
    /// As many as are wanted and can be spared, ready to be read.
    fn take(node: NodeId, wanted: usize) -> Self {
        let spare = mm::free_bytes_in(node, PageSize::Size2M) / SHARE_OF_FREE;
        let spare = spare.div_ceil(PageSize::Size2M.bytes());
        let wanted = wanted.min(usize::try_from(spare).unwrap_or(usize::MAX));
        let blocks = (0..wanted).map_while(|_| mm::allocate_on(node, PageSize::Size2M).ok());
        let frames = blocks.map(memory::buddy::Allocation::into_frame);
        Self {
            node,
            frames: frames.inspect(|frame| reading::prepare(*frame)).collect(),
        }
    }

    fn give_back(self) {
        for frame in self.frames {
            mm::free(frame, PageSize::Size2M);
        }
    }
}
