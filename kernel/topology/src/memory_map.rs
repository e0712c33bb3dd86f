//! Usable memory meets the SRAT's ranges: who owns which byte.
//!
//! Ranges are rounded up to whole pages, so that a page belongs to the node of its first byte.

use crate::machine::{MemoryRange, PhysRange};
use crate::quirk::{Quirk, Quirks};
use crate::srat::MemoryAffinity;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use units::{Hpa, NodeId, PAGE_BYTES, ProximityDomain};

/// A range and the domain that claims it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) range: PhysRange,
    pub(crate) domain: ProximityDomain,
}

/// Disjoint ascending claims; where the SRAT contradicts itself, its first word counts.
pub(crate) fn claims(affinities: &[MemoryAffinity], quirks: &mut Quirks) -> Vec<Claim> {
    let mut taken: BTreeMap<u64, Claim> = BTreeMap::new();
    for affinity in affinities {
        let mut free = vec![PhysRange {
            start: page_up(affinity.start),
            end: page_up(affinity.end),
        }];
        // Downwards through the claims that reach into the new one, cutting them out of it.
        let whole = PhysRange {
            start: page_up(affinity.start),
            end: page_up(affinity.end),
        };
        for (_, other) in taken.range(..whole.end.0).rev() {
            if other.range.end <= whole.start {
                break;
            }
            quirks.push(Quirk::Overlap {
                start: other.range.start.max(whole.start),
                end: other.range.end.min(whole.end),
                kept: other.domain,
                ignored: affinity.domain,
            });
            if let Some(lowest) = free.pop() {
                let above = PhysRange {
                    start: other.range.end.max(lowest.start),
                    end: lowest.end,
                };
                let below = PhysRange {
                    start: lowest.start,
                    end: other.range.start.min(lowest.end),
                };
                free.extend([above, below].into_iter().filter(|piece| piece.bytes() > 0));
            }
        }
        for range in free.into_iter().filter(|range| range.bytes() > 0) {
            taken.insert(
                range.start.0,
                Claim {
                    range,
                    domain: affinity.domain,
                },
            );
        }
    }
    taken.into_values().collect()
}

fn page_up(address: Hpa) -> Hpa {
    Hpa(address.0.saturating_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1))
}

/// Ascending disjoint ranges with the same bytes as `ranges`.
pub(crate) fn normalised(ranges: &[PhysRange]) -> Vec<PhysRange> {
    let mut sorted: Vec<PhysRange> = ranges
        .iter()
        .copied()
        .filter(|range| range.bytes() > 0)
        .collect();
    sorted.sort_by_key(|range| range.start);
    let mut merged: Vec<PhysRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The domains that own at least one usable byte.
pub(crate) fn domains_with_memory(
    usable: &[PhysRange],
    claims: &[Claim],
) -> BTreeSet<ProximityDomain> {
    let mut domains = BTreeSet::new();
    for range in usable {
        domains.extend(inside(*range, claims).map(|claim| claim.domain));
    }
    domains
}

/// The claims that overlap `range`.
fn inside(range: PhysRange, claims: &[Claim]) -> impl Iterator<Item = &Claim> {
    let first = claims.partition_point(|claim| claim.range.end <= range.start);
    claims
        .iter()
        .skip(first)
        .take_while(move |claim| claim.range.start < range.end)
}

/// Gives every usable byte a node. `claims` hold only domains that are nodes, `node` says which;
/// what no claim covers goes to the nearest one, and all of it to node 0 if there are none.
pub(crate) fn assign(
    usable: &[PhysRange],
    claims: &[Claim],
    node: impl Fn(ProximityDomain) -> NodeId,
    quirks: &mut Quirks,
) -> Vec<MemoryRange> {
    let mut assigned = Vec::new();
    for range in usable {
        let mut at = range.start;
        for claim in inside(*range, claims) {
            let gap = PhysRange {
                start: at,
                end: claim.range.start,
            };
            orphan(gap, claims, &node, &mut assigned, quirks);
            let start = at.max(claim.range.start);
            let end = range.end.min(claim.range.end);
            push(
                &mut assigned,
                MemoryRange {
                    range: PhysRange { start, end },
                    node: node(claim.domain),
                },
            );
            at = end;
        }
        orphan(
            PhysRange {
                start: at,
                end: range.end,
            },
            claims,
            &node,
            &mut assigned,
            quirks,
        );
    }
    assigned
}

/// Memory that nobody claims.
fn orphan(
    gap: PhysRange,
    claims: &[Claim],
    node: &impl Fn(ProximityDomain) -> NodeId,
    assigned: &mut Vec<MemoryRange>,
    quirks: &mut Quirks,
) {
    if gap.bytes() == 0 {
        return;
    }
    let above = claims.partition_point(|claim| claim.range.start < gap.end);
    let below = above.checked_sub(1).and_then(|index| claims.get(index));
    let owner = match (below, claims.get(above)) {
        (Some(below), Some(above)) => {
            let down = gap.start.0.saturating_sub(below.range.end.0);
            let up = above.range.start.0.saturating_sub(gap.end.0);
            Some(if up < down { above } else { below })
        }
        (below, above) => below.or(above),
    };
    let node = owner.map_or(NodeId(0), |claim| node(claim.domain));
    if owner.is_some() {
        quirks.push(Quirk::MemoryWithoutNode {
            start: gap.start,
            end: gap.end,
            node,
        });
    }
    push(assigned, MemoryRange { range: gap, node });
}

/// Appends, joining what is adjacent and of one node.
fn push(assigned: &mut Vec<MemoryRange>, piece: MemoryRange) {
    match assigned.last_mut() {
        Some(last) if last.node == piece.node && last.range.end == piece.range.start => {
            last.range.end = piece.range.end
        }
        _ => assigned.push(piece),
    }
}
