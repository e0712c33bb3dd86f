//! What the processors themselves measured at boot, and whether to believe it.
//!
//! Firmware's tables are written by hand, and some are wrong; a measurement is of this machine, but something may have
//! disturbed it, and in an emulator it says nothing of the machine that is emulated. So it takes the place of the
//! HMAT or the SLIT only where nothing speaks against it (MECHANISMS section 4): repeats agree within 5 %, each node is
//! nearest to its own memory, and the order is that of firmware's figures, by more than repeats
//! may differ. Else those stay, and each objection is said.

use crate::distance::{LOCAL, Side};
use crate::machine::{LatencySource, Machine};
use alloc::vec::Vec;
use core::fmt;
use units::NodeId;

/// How often each figure is measured.
pub const REPEATS: usize = 5;
/// The best of them must agree: a repeat that an interrupt of firmware's disturbed does not count.
const MUST_AGREE: usize = 3;
/// Largest difference between those, as a share of the least.
const SPREAD_PERCENT: u64 = 5;
/// Firmware's figures must differ by this much for an order to be asked for; tables are rounded.
const ORDER_PERCENT: u64 = 10;

/// What was measured for each pair of nodes; empty where there is no processor, no memory, or no time for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measurements {
    /// By accessing node, then by memory: picoseconds of one read that waits for the last, of each repeat.
    pub read_ps: Vec<Vec<Vec<u32>>>,
    /// By accessing node, then by memory: MB/s that all processors of the node read together, of each repeat.
    pub read_mb_s: Vec<Vec<Vec<u32>>>,
}

/// Why a measurement is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A pair with processors and memory was not measured often enough.
    Missing {
        /// Accessing node.
        from: NodeId,
        /// Node of the memory.
        to: NodeId,
    },
    /// Repeats differ.
    Unsteady {
        /// Accessing node.
        from: NodeId,
        /// Node of the memory.
        to: NodeId,
        /// The least, in ps.
        least: u32,
        /// The largest of those that must agree, in ps.
        most: u32,
    },
    /// Other memory is as near as a node's own.
    LocalNotLeast {
        /// The node.
        node: NodeId,
        /// Its own memory, in ps.
        local: u32,
        /// The other node.
        other: NodeId,
        /// Its memory, in ps.
        remote: u32,
    },
    /// Firmware calls one node's memory nearer, the measurement does not.
    Order {
        /// Accessing node.
        from: NodeId,
        /// Nearer by firmware's figures.
        nearer: NodeId,
        /// Farther by them.
        farther: NodeId,
        /// As measured, in ps: of the nearer.
        near: u32,
        /// Of the farther.
        far: u32,
    },
}

/// Nanoseconds with one decimal.
struct Ns(u32);

impl fmt::Display for Ns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 / 100 % 10)
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Missing { from, to } => write!(f, "{to} was not measured from {from}"),
            Self::Unsteady {
                from,
                to,
                least,
                most,
            } => write!(
                f,
                "repeats from {from} to {to} say {} to {} ns",
                Ns(least),
                Ns(most)
            ),
            Self::LocalNotLeast {
                node,
                local,
                other,
                remote,
            } => write!(
                f,
                "{node} reaches its own memory in {} ns and that of {other} in {} ns",
                Ns(local),
                Ns(remote)
            ),
            Self::Order {
                from,
                nearer,
                farther,
                near,
                far,
            } => write!(
                f,
                "by firmware's figures {nearer} is nearer to {from} than {farther}, measured are {} and {} ns",
                Ns(near),
                Ns(far)
            ),
        }
    }
}

/// What came of a measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The machine, with measured latencies where they are believed and measured bandwidths where they are steady.
    pub machine: Machine,
    /// Why the latencies are not believed; nothing if they are.
    pub doubts: Vec<Doubt>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.doubts.split_first() else {
            return write!(
                f,
                "measured latencies are used: repeats agree, local is nearest, and the order is firmware's"
            );
        };
        write!(
            f,
            "measured latencies are not used, {} is: {first}",
            self.machine.latency_source
        )?;
        match rest.len() {
            0 => Ok(()),
            n => write!(f, "; and {n} more objections"),
        }
    }
}

/// Whether to believe what was measured on this machine, and the machine as it is then.
pub fn judge(machine: &Machine, measured: &Measurements) -> Verdict {
    let mut machine = machine.clone();
    take_bandwidths(&mut machine, &measured.read_mb_s);
    let sides: Vec<Side> = machine.nodes.iter().map(Side::of).collect();
    let figures = figures(&sides, |k, n| {
        of_pair(&measured.read_ps, k, n).iter().copied().min()
    });
    let mut doubts = contradictions(&machine, &figures);
    if doubts.is_empty() {
        doubts = unsteady(&sides, &measured.read_ps);
    }
    if doubts.is_empty() && figures.iter().flatten().any(Option::is_some) {
        machine.latencies_ns = complete(&machine, &figures);
        machine.latency_source = LatencySource::Measured;
    }
    Verdict { machine, doubts }
}

fn id(node: usize) -> NodeId {
    NodeId(u16::try_from(node).unwrap_or(u16::MAX))
}

fn of_pair(matrix: &[Vec<Vec<u32>>], k: usize, n: usize) -> &[u32] {
    let repeats = matrix.get(k).and_then(|row| row.get(n));
    repeats.map_or(&[], Vec::as_slice)
}

/// The least of those repeats that must agree and the most of them, in this order of goodness.
fn best(repeats: &[u32], larger_is_better: bool) -> Option<(u32, u32)> {
    let mut sorted = repeats.to_vec();
    sorted.sort_unstable();
    if larger_is_better {
        sorted.reverse();
    }
    let (first, last) = (*sorted.first()?, *sorted.get(MUST_AGREE - 1)?);
    Some((first.min(last), first.max(last)))
}

fn agree((least, most): (u32, u32)) -> bool {
    least > 0 && u64::from(most - least) * 100 <= u64::from(least) * SPREAD_PERCENT
}

/// A figure for each pair with processors and memory.
fn figures(sides: &[Side], figure: impl Fn(usize, usize) -> Option<u32>) -> Vec<Vec<Option<u32>>> {
    let rows = sides.iter().enumerate().map(|(k, from)| {
        let row = sides.iter().enumerate().map(|(n, to)| {
            let possible = from.has_cpus && to.has_memory;
            possible.then(|| figure(k, n)).flatten()
        });
        row.collect()
    });
    rows.collect()
}

/// What is wrong with the repeats.
fn unsteady(sides: &[Side], read_ps: &[Vec<Vec<u32>>]) -> Vec<Doubt> {
    let all = sides.iter().enumerate();
    let pairs = all.flat_map(|(k, from)| {
        let others = sides.iter().enumerate();
        others.filter_map(move |(n, to)| (from.has_cpus && to.has_memory).then_some((k, n)))
    });
    let doubt = |(k, n)| {
        let (from, to) = (id(k), id(n));
        match best(of_pair(read_ps, k, n), false) {
            None => Some(Doubt::Missing { from, to }),
            Some((least, most)) if !agree((least, most)) => Some(Doubt::Unsteady {
                from,
                to,
                least,
                most,
            }),
            Some(_) => None,
        }
    };
    pairs.filter_map(doubt).collect()
}

/// Whether one repeat alone speaks against what firmware says. When several do, more are of no use: that is so in
/// every emulator, where all memory is equally near.
pub fn is_contradicted(machine: &Machine, measured: &Measurements, repeat: usize) -> bool {
    let sides: Vec<Side> = machine.nodes.iter().map(Side::of).collect();
    let figures = figures(&sides, |k, n| {
        of_pair(&measured.read_ps, k, n).get(repeat).copied()
    });
    !contradictions(machine, &figures).is_empty()
}

fn contradictions(machine: &Machine, figures: &[Vec<Option<u32>>]) -> Vec<Doubt> {
    let rows = figures.iter().enumerate();
    rows.flat_map(|(k, row)| doubts_of_row(machine, k, row))
        .collect()
}

/// What a row of figures has against firmware's.
fn doubts_of_row(machine: &Machine, k: usize, row: &[Option<u32>]) -> Vec<Doubt> {
    let known = || {
        let figures = row.iter().enumerate();
        figures.filter_map(|(n, ps)| Some((n, (*ps)?)))
    };
    let mut doubts = Vec::new();
    if let Some(local) = row.get(k).copied().flatten() {
        let nearer = known().find(|(n, remote)| *n != k && *remote < local);
        doubts.extend(nearer.map(|(n, remote)| Doubt::LocalNotLeast {
            node: id(k),
            local,
            other: id(n),
            remote,
        }));
    }
    if machine.latency_source == LatencySource::Default {
        return doubts;
    }
    for (a, near) in known() {
        let wrong = known().filter(|(b, far)| {
            let firmware = |n| u64::from(machine.latency_ns(id(k), id(n)));
            let ordered = firmware(a) * (100 + ORDER_PERCENT) <= firmware(*b) * 100;
            // Within the difference that repeats may have, two figures are the same.
            let apart = u64::from(near) * (100 + SPREAD_PERCENT) < u64::from(*far) * 100;
            ordered && !apart
        });
        doubts.extend(wrong.map(|(b, far)| Doubt::Order {
            from: id(k),
            nearer: id(a),
            farther: id(b),
            near,
            far,
        }));
    }
    doubts
}

/// All pairs in ns: those that nobody can measure in proportion to their distance, as for an HMAT.
fn complete(machine: &Machine, figures: &[Vec<Option<u32>>]) -> Vec<u32> {
    let ns = |ps: u32| (ps.saturating_add(500) / 1000).max(1);
    let all = figures.iter().flatten().copied().flatten();
    let least_of_all = all.min().map_or(LOCAL, ns);
    let mut complete = Vec::new();
    for (k, row) in figures.iter().enumerate() {
        let own = row.get(k).copied().flatten();
        let local = own
            .or(row.iter().copied().flatten().min())
            .map_or(least_of_all, ns);
        complete.extend(row.iter().enumerate().map(|(n, ps)| {
            let distance = u64::from(machine.distance(id(k), id(n)));
            let estimated = u64::from(local) * distance / u64::from(LOCAL);
            ps.map_or(u32::try_from(estimated).unwrap_or(u32::MAX), ns)
        }));
    }
    complete
}

/// Measured bandwidths take the place of what the tables say, pair by pair, where repeats agree.
fn take_bandwidths(machine: &mut Machine, read_mb_s: &[Vec<Vec<u32>>]) {
    let nodes = machine.nodes.len();
    for (i, known) in machine.bandwidths_mb_s.iter_mut().enumerate() {
        let (k, n) = (i / nodes.max(1), i % nodes.max(1));
        if let Some((least, most)) = best(of_pair(read_mb_s, k, n), true)
            && agree((least, most))
        {
            *known = Some(most);
        }
    }
}
