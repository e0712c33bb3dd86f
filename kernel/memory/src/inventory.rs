//! Which memory goes to which node's allocator, and when.
//!
//! A loader says which ranges of memory exist and what they hold, firmware's affinity table says
//! which node a range belongs to, and the two never agree on boundaries. [`Inventory::new`] cuts both into
//! zones: each on one node, with its metadata inside itself, and with the pieces that may be released
//! now or later. It decides; the kernel then adds the zones to [`crate::buddy::Frames`].

use crate::buddy::FrameMeta;
use alloc::vec::Vec;
use units::{Frame, NodeId, PAGE_BYTES};

/// Frames from `start` up to, not including, `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameRange {
    /// First frame.
    pub start: Frame,
    /// First frame after the range.
    pub end: Frame,
}

impl FrameRange {
    /// The whole frames inside `bytes` bytes from host-physical `base`.
    pub const fn inside(base: u64, bytes: u64) -> Self {
        Self {
            start: Frame(base.div_ceil(PAGE_BYTES)),
            end: Frame(base.saturating_add(bytes) / PAGE_BYTES),
        }
    }
    /// All frames that `bytes` bytes from host-physical `base` touch.
    pub const fn around(base: u64, bytes: u64) -> Self {
        Self {
            start: Frame(base / PAGE_BYTES),
            end: Frame(base.saturating_add(bytes).div_ceil(PAGE_BYTES)),
        }
    }
    /// How many frames.
    pub const fn frames(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.frames() == 0
    }
    /// The frames that are in both.
    pub fn and(&self, other: &Self) -> Self {
        let start = self.start.max(other.start);
        Self {
            start,
            end: self.end.min(other.end).max(start),
        }
    }
    /// The frames of `self` before and after `other`; empty ranges where there are none.
    fn without(&self, other: &Self) -> [Self; 2] {
        let cut = self.and(other);
        if cut.is_empty() {
            return [
                *self,
                Self {
                    start: self.end,
                    end: self.end,
                },
            ];
        }
        [
            Self {
                start: self.start,
                end: cut.start,
            },
            Self {
                start: cut.end,
                end: self.end,
            },
        ]
    }
}

/// When memory may be handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    /// At once.
    Now,
    /// When whatever occupies it, told apart by a number of the caller's, is done with.
    Later(u32),
}

/// A range of memory that is or will be free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// Where.
    pub range: FrameRange,
    /// When.
    pub ready: Ready,
}

/// A range that firmware assigns to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeSpan {
    /// Where, whether or not there is memory.
    pub range: FrameRange,
    /// Whose.
    pub node: NodeId,
}

/// One allocator zone to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZonePlan {
    /// Whose.
    pub node: NodeId,
    /// From its first to its last frame, with holes.
    pub range: FrameRange,
    /// Where the zone's [`FrameMeta`] go: frames that no piece contains.
    pub metadata: FrameRange,
    /// The node of the metadata: the zone's, unless that has no room for it.
    pub metadata_node: NodeId,
    /// What is released, ascending.
    pub pieces: Vec<Source>,
}

/// All zones of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inventory {
    /// In ascending order of address.
    pub zones: Vec<ZonePlan>,
    /// Memory that firmware assigns to no node; it went to the node of the nearest span.
    pub homeless: Vec<FrameRange>,
    /// Memory that is not used, because no memory was left to describe it.
    pub lost: Vec<FrameRange>,
}

/// Holes of at least so many frames (64 MiB) end a zone: describing them would cost more than they do.
const HOLE_FRAMES: u64 = 16 << 10;
/// Frames in one zone at most: 1 TiB.
const ZONE_FRAMES: u64 = 1 << 28;

impl Inventory {
    /// Cuts `sources` less `excluded` by the `spans` of nodes. Where spans overlap, the first counts.
    /// Without any span everything belongs to node 0.
    pub fn new(sources: &[Source], excluded: &[FrameRange], spans: &[NodeSpan]) -> Self {
        let mut inventory = Self::default();
        let mut pieces = Vec::new();
        for source in sources {
            for range in subtract(source.range, excluded) {
                inventory.assign(Source { range, ..*source }, spans, &mut pieces);
            }
        }
        pieces.sort_unstable_by_key(|(_, piece): &(NodeId, Source)| piece.range.start);
        for (node, piece) in pieces {
            inventory.append(node, piece);
        }
        inventory.place_metadata();
        inventory
    }

    /// Splits a source by node.
    fn assign(&mut self, source: Source, spans: &[NodeSpan], pieces: &mut Vec<(NodeId, Source)>) {
        let mut rest = [source.range].to_vec();
        for span in spans {
            let mut still = Vec::with_capacity(rest.len());
            for range in rest {
                let here = range.and(&span.range);
                if here.is_empty() {
                    still.push(range);
                } else {
                    pieces.push((
                        span.node,
                        Source {
                            range: here,
                            ..source
                        },
                    ));
                    still.extend(
                        range
                            .without(&span.range)
                            .into_iter()
                            .filter(|r| !r.is_empty()),
                    );
                }
            }
            rest = still;
        }
        for range in rest.into_iter().filter(|r| !r.is_empty()) {
            if !spans.is_empty() {
                self.homeless.push(range);
            }
            pieces.push((nearest(range, spans), Source { range, ..source }));
        }
    }

    /// Adds a piece behind all others, to the last zone if it fits there.
    fn append(&mut self, node: NodeId, piece: Source) {
        let mut rest = piece.range;
        while !rest.is_empty() {
            let end = Frame(rest.end.0.min(rest.start.0.saturating_add(ZONE_FRAMES)));
            let range = FrameRange {
                start: rest.start,
                end,
            };
            rest.start = end;
            let part = Source { range, ..piece };
            match self.zones.last_mut() {
                Some(zone)
                    if zone.node == node
                        && range.start.0.saturating_sub(zone.range.end.0) < HOLE_FRAMES
                        && range.end.0.saturating_sub(zone.range.start.0) <= ZONE_FRAMES =>
                {
                    zone.range.end = range.end;
                    zone.pieces.push(part);
                }
                _ => self.zones.push(ZonePlan {
                    node,
                    range,
                    metadata: FrameRange::default(),
                    metadata_node: node,
                    pieces: [part].to_vec(),
                }),
            }
        }
    }

    /// Takes each zone's metadata from the zone, else from its node, else from anywhere; a zone that finds
    /// no place is lost.
    fn place_metadata(&mut self) {
        let mut index = 0;
        while let Some(zone) = self.zones.get(index) {
            let bytes = zone
                .range
                .frames()
                .saturating_mul(size_of::<FrameMeta>() as u64);
            let need = bytes.div_ceil(PAGE_BYTES);
            let node = zone.node;
            let taken = self
                .take(need, |other, _| other == index)
                .or_else(|| self.take(need, |_, zone| zone.node == node))
                .or_else(|| self.take(need, |_, _| true));
            match (taken, self.zones.get_mut(index)) {
                (Some((metadata, on)), Some(zone)) => {
                    zone.metadata = metadata;
                    zone.metadata_node = on;
                    index += 1;
                }
                _ => {
                    let zone = self.zones.remove(index);
                    self.lost
                        .extend(zone.pieces.iter().map(|piece| piece.range));
                }
            }
        }
    }

    /// Takes `need` frames from the largest piece that is ready, among the zones that `eligible` admits.
    fn take(
        &mut self,
        need: u64,
        eligible: impl Fn(usize, &ZonePlan) -> bool,
    ) -> Option<(FrameRange, NodeId)> {
        let (_, zone, piece) = self
            .zones
            .iter()
            .enumerate()
            .filter(|(index, zone)| eligible(*index, zone))
            .flat_map(|(index, zone)| {
                zone.pieces
                    .iter()
                    .enumerate()
                    .map(move |(at, piece)| (index, at, piece))
            })
            .filter(|(_, _, piece)| piece.ready == Ready::Now && piece.range.frames() >= need)
            .map(|(index, at, piece)| (piece.range.frames(), index, at))
            .max_by_key(|(frames, ..)| *frames)?;
        let zone = self.zones.get_mut(zone)?;
        let range = &mut zone.pieces.get_mut(piece)?.range;
        // The end that is aligned worse: the other one may be the start of a large block.
        let taken = if range.start.0.trailing_zeros() < range.end.0.trailing_zeros() {
            let end = Frame(range.start.0 + need);
            let taken = FrameRange {
                start: range.start,
                end,
            };
            range.start = end;
            taken
        } else {
            let start = Frame(range.end.0 - need);
            let taken = FrameRange {
                start,
                end: range.end,
            };
            range.end = start;
            taken
        };
        let node = zone.node;
        zone.pieces.retain(|piece| !piece.range.is_empty());
        Some((taken, node))
    }
}

/// What is left of `range` without any of `excluded`.
fn subtract(range: FrameRange, excluded: &[FrameRange]) -> Vec<FrameRange> {
    let mut rest = [range].to_vec();
    for hole in excluded {
        rest = rest
            .iter()
            .flat_map(|r| r.without(hole))
            .filter(|r| !r.is_empty())
            .collect();
    }
    rest.retain(|r| !r.is_empty());
    rest
}

/// The node of the span that is the fewest frames away, the first of equals.
fn nearest(range: FrameRange, spans: &[NodeSpan]) -> NodeId {
    let distance = |span: &NodeSpan| {
        let below = range.start.0.saturating_sub(span.range.end.0);
        below.max(span.range.start.0.saturating_sub(range.end.0))
    };
    spans
        .iter()
        .min_by_key(|span| distance(span))
        .map_or(NodeId(0), |span| span.node)
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
