//! Distances, latencies and bandwidths between nodes, made fit for use.

use crate::hmat::Hmat;
use crate::machine::{LatencySource, Node, UNREACHABLE};
use crate::quirk::{Quirk, Quirks};
use crate::slit::Slit;
use alloc::vec::Vec;
use units::ProximityDomain;

/// A node's distance to itself (ACPI 6.5, 5.2.17).
pub(crate) const LOCAL: u32 = 10;
/// What Linux and others take for a remote node of which nothing is known.
const REMOTE: u32 = 20;
/// Nanoseconds for one unit of distance.
const NS_PER_UNIT: u32 = 10;

/// One side of a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) domain: ProximityDomain,
    pub(crate) has_cpus: bool,
    pub(crate) has_memory: bool,
}

impl Side {
    pub(crate) fn of(node: &Node) -> Self {
        Self {
            domain: node.domain,
            has_cpus: node.has_cpus(),
            has_memory: node.has_memory(),
        }
    }
}

/// Row-by-row distances between `sides`: 10 on the diagonal, 10 to 255 elsewhere.
pub(crate) fn distances(sides: &[Side], slit: Option<&Slit<'_>>, quirks: &mut Quirks) -> Vec<u32> {
    if let Some(slit) = slit {
        for side in sides
            .iter()
            .filter(|side| u64::from(side.domain.0) >= slit.localities)
        {
            quirks.push(Quirk::SlitMissing {
                domain: side.domain,
                localities: slit.localities,
            });
        }
    }
    let mut matrix = Vec::with_capacity(sides.len() * sides.len());
    for (row, from) in sides.iter().enumerate() {
        for (column, to) in sides.iter().enumerate() {
            let value = slit.and_then(|slit| slit.get(from.domain, to.domain));
            matrix.push(if row == column {
                if let Some(value) = value.filter(|value| u32::from(*value) != LOCAL) {
                    quirks.push(Quirk::SlitLocal {
                        domain: from.domain,
                        value,
                    });
                }
                LOCAL
            } else {
                remote(from.domain, to.domain, value, quirks)
            });
        }
    }
    matrix
}

fn remote(
    from: ProximityDomain,
    to: ProximityDomain,
    value: Option<u8>,
    quirks: &mut Quirks,
) -> u32 {
    match value {
        None => REMOTE,
        Some(value) if u32::from(value) < LOCAL => {
            quirks.push(Quirk::SlitBelowLocal { from, to, value });
            REMOTE
        }
        Some(u8::MAX) => {
            quirks.push(Quirk::SlitUnreachable { from, to });
            UNREACHABLE
        }
        Some(value) => value.into(),
    }
}

/// Row-by-row latencies in ns, with the least of each row on the diagonal.
///
/// The HMAT counts if it has a figure for every node with processors and every node with memory, and local
/// memory is nowhere slower than remote. Otherwise all figures come from the distances: a matrix
/// of two scales would make one node look near that is not.
pub(crate) fn latencies(
    sides: &[Side],
    distances: &[u32],
    slit: bool,
    hmat: Option<&Hmat>,
    quirks: &mut Quirks,
) -> (Vec<u32>, LatencySource) {
    if let Some(matrix) = hmat
        .filter(|hmat| !hmat.matrices.is_empty())
        .and_then(|hmat| believable(sides, distances, hmat, quirks))
    {
        return (matrix, LatencySource::Hmat);
    }
    let source = if slit {
        LatencySource::Slit
    } else {
        LatencySource::Default
    };
    (
        distances
            .iter()
            .map(|distance| distance * NS_PER_UNIT)
            .collect(),
        source,
    )
}

fn believable(
    sides: &[Side],
    distances: &[u32],
    hmat: &Hmat,
    quirks: &mut Quirks,
) -> Option<Vec<u32>> {
    let mut matrix = Vec::with_capacity(distances.len());
    for (row, from) in sides.iter().enumerate() {
        let mut known: Vec<Option<u32>> = Vec::with_capacity(sides.len());
        for to in sides {
            let latency = hmat.latency_ns(from.domain, to.domain);
            if latency.is_none() && from.has_cpus && to.has_memory {
                quirks.push(Quirk::HmatIncomplete {
                    from: from.domain,
                    to: to.domain,
                });
                return None;
            }
            known.push(latency);
        }
        let least = known.iter().copied().flatten().min();
        let local = known.get(row).copied().flatten();
        if let (Some(local_ns), Some(least_ns)) = (local, least)
            && least_ns < local_ns
        {
            quirks.push(Quirk::HmatLocalNotLeast {
                domain: from.domain,
                local_ns,
                least_ns,
            });
            return None;
        }
        // Pairs that no access can use (no processor there, or no memory) get a figure in
        // proportion to their distance.
        let local = local.or(least).unwrap_or(LOCAL * NS_PER_UNIT);
        let row_distances = distances.iter().skip(row * sides.len());
        matrix.extend(known.iter().zip(row_distances).enumerate().map(
            |(column, (latency, distance))| {
                let estimated = u64::from(local) * u64::from(*distance) / u64::from(LOCAL);
                match latency {
                    _ if column == row => local,
                    Some(latency) => *latency,
                    None => u32::try_from(estimated).unwrap_or(u32::MAX),
                }
            },
        ));
    }
    Some(matrix)
}

/// Row-by-row bandwidths in MB/s where the HMAT has them.
pub(crate) fn bandwidths(sides: &[Side], hmat: Option<&Hmat>) -> Vec<Option<u32>> {
    let pairs = sides
        .iter()
        .flat_map(|from| sides.iter().map(move |to| (from.domain, to.domain)));
    pairs
        .map(|(from, to)| hmat.and_then(|hmat| hmat.bandwidth_mb_s(from, to)))
        .collect()
}
