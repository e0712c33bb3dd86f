//! The machine's frames, node by node.

use super::meta::Link;
use super::{FrameError, FrameMeta, FrameState, Order, OutOfFrames, Zone};
use alloc::vec::Vec;
use units::{Frame, NodeId};

/// A block of frames that has an owner, and the receipt of which node gave it.
///
/// It cannot be copied: whoever holds it owns the frames. [`Allocation::into_frame`] passes the
/// ownership on to a page table or a device; [`Frames::take_back`] recovers it from there.
#[must_use = "the frames are lost unless they are used or freed"]
#[derive(PartialEq, Eq, Debug)]
pub struct Allocation {
    frame: Frame,
    order: Order,
    node: NodeId,
    fell_back: bool,
}

impl Allocation {
    pub(super) fn new(frame: Frame, order: Order, node: NodeId, fell_back: bool) -> Self {
        Self {
            frame,
            order,
            node,
            fell_back,
        }
    }
    /// First frame of the block.
    pub fn frame(&self) -> Frame {
        self.frame
    }
    /// Size of the block.
    pub fn order(&self) -> Order {
        self.order
    }
    /// The node that the frames are on.
    pub fn node(&self) -> NodeId {
        self.node
    }
    /// Whether the wanted node had none and another one gave them.
    pub fn fell_back(&self) -> bool {
        self.fell_back
    }
    /// Hands the frames over to whatever will remember them, a page table for example.
    pub fn into_frame(self) -> Frame {
        self.frame
    }
    /// Declares the content gone: `zero` must overwrite `order().frames()` frames from the one
    /// it is given. Only scrubbed frames can be freed, so no VM ever sees another one's data.
    pub fn scrub(self, zero: impl FnOnce(Frame, u64)) -> Scrubbed {
        zero(self.frame, self.order.frames());
        Scrubbed(self)
    }
}

/// Frames whose content has been overwritten: ready for [`Frames::free`].
#[must_use = "the frames are lost unless they are freed"]
#[derive(PartialEq, Eq, Debug)]
pub struct Scrubbed(Allocation);

/// What happened on one node. Sizes in 4 KiB frames, events since boot.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NodeCounters {
    /// Frames released to the node's allocator.
    pub total: u64,
    /// Frames on free lists.
    pub free: u64,
    /// Frames that claims hold and nobody has drawn.
    pub claimed: u64,
    /// Blocks that this node gave, for itself and others; drawn claims count once, when claimed.
    pub allocations: u64,
    /// Blocks that were wanted here and came from another node.
    pub fallbacks: u64,
    /// Blocks or claims that were wanted here and could not be given at all.
    pub failures: u64,
}

/// One node's zones and counters.
#[derive(Debug)]
pub struct NodeMemory<'m> {
    node: NodeId,
    zones: Vec<Zone<'m>>,
    claimed: u64,
    allocations: u64,
    fallbacks: u64,
    failures: u64,
}

impl<'m> NodeMemory<'m> {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            zones: Vec::new(),
            claimed: 0,
            allocations: 0,
            fallbacks: 0,
            failures: 0,
        }
    }
    /// Which node this is.
    pub fn node(&self) -> NodeId {
        self.node
    }
    /// The node's zones, in the order in which they were added.
    pub fn zones(&self) -> &[Zone<'m>] {
        &self.zones
    }
    /// Current figures.
    pub fn counters(&self) -> NodeCounters {
        NodeCounters {
            total: self.zones.iter().map(Zone::present).sum(),
            free: self.zones.iter().map(Zone::free_frames).sum(),
            claimed: self.claimed,
            allocations: self.allocations,
            fallbacks: self.fallbacks,
            failures: self.failures,
        }
    }
    /// Free blocks of exactly `order`, over all zones.
    pub fn free_blocks(&self, order: Order) -> u64 {
        self.zones.iter().map(|zone| zone.free_blocks(order)).sum()
    }

    /// A block from the zone whose best fit is tightest, the first of equals.
    fn allocate(&mut self, order: Order) -> Option<(usize, Frame)> {
        let fits = self
            .zones
            .iter()
            .enumerate()
            .filter_map(|(i, zone)| Some((zone.best_fit(order)?, i)));
        let (_, index) = fits.min()?;
        let frame = self.zones.get_mut(index)?.allocate(order)?;
        self.allocations += 1;
        Some((index, frame))
    }

    /// Takes a block and chains it before `next`; returns its zone and index.
    pub(super) fn claim_block(&mut self, order: Order, next: (Link, Link)) -> Option<(Link, Link)> {
        let (zone, frame) = self.allocate(order)?;
        let index = self.zones.get_mut(zone)?.claim(frame, order, next).ok()?;
        self.claimed += order.frames();
        Some((zone as Link, index))
    }

    /// Turns the claimed block at `at` into an allocated one; returns it and the chain's next.
    pub(super) fn unclaim_block(
        &mut self,
        order: Order,
        at: (Link, Link),
    ) -> Result<(Frame, (Link, Link)), FrameError> {
        let foreign = FrameError::Foreign {
            frame: Frame(u64::from(at.1)),
        };
        let zone = self.zones.get_mut(at.0 as usize).ok_or(foreign)?;
        let unclaimed = zone.unclaim(at.1, order)?;
        self.claimed -= order.frames();
        Ok(unclaimed)
    }

    /// Frees the claimed block at `at`; returns the chain's next.
    pub(super) fn return_block(&mut self, order: Order, at: (Link, Link)) -> Option<(Link, Link)> {
        let (frame, next) = self.unclaim_block(order, at).ok()?;
        self.zones.get_mut(at.0 as usize)?.free(frame, order).ok()?;
        self.allocations -= 1;
        Some(next)
    }
}

/// All frames of the machine.
///
/// The kernel keeps it behind one lock: a claim over several nodes is one critical section, and an
/// allocation under it takes a few dozen memory accesses.
#[derive(Debug, Default)]
pub struct Frames<'m> {
    nodes: Vec<NodeMemory<'m>>,
}

impl<'m> Frames<'m> {
    /// A machine without memory.
    pub const fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// Adds `metadata.len()` frames from `base` to `node`, all of them absent until they are
    /// [released](Frames::release). A node may have any number of zones. Nodes below `node` come into
    /// being without memory.
    ///
    /// # Errors
    /// [`FrameError::BadZone`] or [`FrameError::Overlap`]; the zone is not added then.
    pub fn add_zone(
        &mut self,
        node: NodeId,
        base: Frame,
        metadata: &'m mut [FrameMeta],
    ) -> Result<(), FrameError> {
        let zone = Zone::new(base, metadata)?;
        let (start, end) = (base.0, base.0 + zone.span());
        let overlaps = self
            .nodes
            .iter()
            .flat_map(|node| &node.zones)
            .any(|other| start < other.base().0 + other.span() && other.base().0 < end);
        if overlaps {
            return Err(FrameError::Overlap {
                base,
                frames: zone.span(),
            });
        }
        while self.nodes.len() <= node.index() {
            let next = NodeId(self.nodes.len() as u16);
            self.nodes.push(NodeMemory::new(next));
        }
        if let Some(memory) = self.nodes.get_mut(node.index()) {
            memory.zones.push(zone);
        }
        Ok(())
    }

    /// Makes `frames` absent frames from `first` allocatable. Their content becomes an owner's to
    /// overwrite: what boot left there is nobody's secret only if the caller says so.
    ///
    /// # Errors
    /// [`FrameError::Foreign`] if the range is not inside one zone, [`FrameError::NotAbsent`] if part
    /// of it was released before. Nothing changes then.
    pub fn release(&mut self, first: Frame, frames: u64) -> Result<(), FrameError> {
        if frames == 0 {
            return Ok(());
        }
        self.zone_of(first)?.release(first, frames)
    }

    /// A block on `node`, else on the first node of `fallback` that has one.
    ///
    /// # Errors
    /// [`OutOfFrames`] when none of them has.
    pub fn allocate(
        &mut self,
        node: NodeId,
        order: impl Into<Order>,
        fallback: &[NodeId],
    ) -> Result<Allocation, OutOfFrames> {
        let order = order.into();
        if let Some((_, frame)) = self
            .node_mut(node)
            .and_then(|memory| memory.allocate(order))
        {
            return Ok(Allocation::new(frame, order, node, false));
        }
        for &other in fallback.iter().filter(|other| **other != node) {
            let found = self
                .node_mut(other)
                .and_then(|memory| memory.allocate(order));
            if let Some((_, frame)) = found {
                if let Some(memory) = self.node_mut(node) {
                    memory.fallbacks += 1;
                }
                return Ok(Allocation::new(frame, order, other, true));
            }
        }
        self.count_failure(node);
        Err(OutOfFrames {
            node,
            order,
            count: 1,
            free: self.free_on(node),
        })
    }

    /// Puts scrubbed frames back on their node's free lists.
    ///
    /// # Errors
    /// [`FrameError`] if the block is not an allocated one of this machine; nothing changes.
    pub fn free(&mut self, block: Scrubbed) -> Result<(), FrameError> {
        let Scrubbed(Allocation { frame, order, .. }) = block;
        self.zone_of(frame)?.free(frame, order)
    }

    /// Recovers the ownership of a block that [`Allocation::into_frame`] gave away, when a page
    /// table or a device lets go of it. The caller vouches that nobody else still uses it.
    ///
    /// # Errors
    /// [`FrameError`] if `frame` is not the first of an allocated block of `order`.
    pub fn take_back(
        &mut self,
        frame: Frame,
        order: impl Into<Order>,
    ) -> Result<Allocation, FrameError> {
        let order = order.into();
        let node = self.node_of(frame).ok_or(FrameError::Foreign { frame })?;
        self.zone_of(frame)?.check_allocated(frame, order)?;
        Ok(Allocation::new(frame, order, node, false))
    }

    /// Turns one allocated block into allocated blocks of a smaller size, each freed by itself.
    ///
    /// # Errors
    /// [`FrameError`] if `frame` is not the first of an allocated block of `from`, or `to` is larger.
    pub fn split(
        &mut self,
        frame: Frame,
        from: impl Into<Order>,
        to: impl Into<Order>,
    ) -> Result<(), FrameError> {
        self.zone_of(frame)?.split(frame, from.into(), to.into())
    }

    /// Turns the allocated blocks of `from` that fill one of `to` into that one block.
    ///
    /// # Errors
    /// [`FrameError`] if `frame` does not begin such a row of blocks; nothing changes then.
    pub fn join(
        &mut self,
        frame: Frame,
        from: impl Into<Order>,
        to: impl Into<Order>,
    ) -> Result<(), FrameError> {
        self.zone_of(frame)?.join(frame, from.into(), to.into())
    }

    /// The node whose zone contains `frame`, present or absent.
    pub fn node_of(&self, frame: Frame) -> Option<NodeId> {
        self.nodes
            .iter()
            .find(|node| node.zones.iter().any(|z| z.contains(frame)))
            .map(|n| n.node)
    }
    /// What is known about `frame`.
    ///
    /// # Errors
    /// [`FrameError::Foreign`] if no zone contains it.
    pub fn state(&self, frame: Frame) -> Result<FrameState, FrameError> {
        let zones = self.nodes.iter().flat_map(|node| &node.zones);
        zones
            .into_iter()
            .find(|zone| zone.contains(frame))
            .ok_or(FrameError::Foreign { frame })?
            .state(frame)
    }
    /// The nodes in ascending order, memory-less ones included if a higher one has memory.
    pub fn nodes(&self) -> &[NodeMemory<'m>] {
        &self.nodes
    }
    /// One node's figures.
    pub fn counters(&self, node: NodeId) -> Option<NodeCounters> {
        self.nodes.get(node.index()).map(NodeMemory::counters)
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> Option<&mut NodeMemory<'m>> {
        self.nodes.get_mut(node.index())
    }
    pub(super) fn free_on(&self, node: NodeId) -> u64 {
        self.counters(node).map_or(0, |counters| counters.free)
    }
    pub(super) fn count_failure(&mut self, node: NodeId) {
        if let Some(memory) = self.node_mut(node) {
            memory.failures += 1;
        }
    }
    fn zone_of(&mut self, frame: Frame) -> Result<&mut Zone<'m>, FrameError> {
        self.nodes
            .iter_mut()
            .flat_map(|node| &mut node.zones)
            .find(|zone| zone.contains(frame))
            .ok_or(FrameError::Foreign { frame })
    }
}
