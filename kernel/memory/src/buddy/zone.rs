//! One contiguous span of a node's memory as a binary buddy allocator.

use super::meta::{FrameMeta, Link, MAX_ZONE_FRAMES, NIL};
use super::{FrameError, FrameState, Order};
use core::fmt;
use units::{Frame, PAGE_SHIFT};

/// A buddy allocator over a contiguous span of frames.
///
/// The free blocks of each order form a doubly linked list through the metadata, so that a block is
/// taken out of the middle in O(1) when its buddy comes home; allocating and freeing cost at most one
/// step for each order. Blocks are aligned by *physical* address, whatever the zone's base.
pub struct Zone<'m> {
    base: Frame,
    meta: &'m mut [FrameMeta],
    /// First free block of each order.
    heads: [Link; Order::COUNT],
    /// Bit k: the list of order k is not empty.
    available: u32,
    free: u64,
    present: u64,
}

impl<'m> Zone<'m> {
    /// The most frames a zone can have; larger spans become several zones.
    pub const MAX_FRAMES: u64 = MAX_ZONE_FRAMES as u64;

    /// A zone of `meta.len()` frames from `base`, all of them absent.
    ///
    /// # Errors
    /// [`FrameError::BadZone`] if the zone is empty, too large, or ends past 52 bits of address.
    pub fn new(base: Frame, meta: &'m mut [FrameMeta]) -> Result<Self, FrameError> {
        let frames = meta.len() as u64;
        let end = base.0.checked_add(frames);
        let fits = end.is_some_and(|end| end <= 1 << (52 - PAGE_SHIFT));
        if meta.is_empty() || meta.len() > MAX_ZONE_FRAMES || !fits {
            return Err(FrameError::BadZone { base, frames });
        }
        meta.fill(FrameMeta::ABSENT);
        Ok(Self {
            base,
            meta,
            heads: [NIL; Order::COUNT],
            available: 0,
            free: 0,
            present: 0,
        })
    }

    /// First frame of the span.
    pub fn base(&self) -> Frame {
        self.base
    }
    /// Frames in the span, absent ones included.
    pub fn span(&self) -> u64 {
        self.meta.len() as u64
    }
    /// Frames that were released to this zone.
    pub fn present(&self) -> u64 {
        self.present
    }
    /// Frames on free lists.
    pub fn free_frames(&self) -> u64 {
        self.free
    }
    /// Whether `frame` lies in the span.
    pub fn contains(&self, frame: Frame) -> bool {
        self.index_of(frame).is_some()
    }
    /// The smallest order, at least `order`, of which a free block exists.
    pub fn best_fit(&self, order: Order) -> Option<Order> {
        let larger = self.available >> order.index();
        if larger == 0 {
            return None;
        }
        Order::new(order.index() as u32 + larger.trailing_zeros())
    }
    /// Free blocks of exactly `order`. Walks the list: for reports, not for decisions.
    pub fn free_blocks(&self, order: Order) -> u64 {
        let mut count = 0;
        let mut at = self.head(order);
        while at != NIL && count < self.span() {
            count += 1;
            at = self.meta_at(at).next();
        }
        count
    }
    /// What is known about `frame`.
    ///
    /// # Errors
    /// [`FrameError::Foreign`] outside the span.
    pub fn state(&self, frame: Frame) -> Result<FrameState, FrameError> {
        let index = self.index_of(frame).ok_or(FrameError::Foreign { frame })?;
        Ok(self.meta_at(index).state())
    }

    /// That `frame` is the first of an allocated block of `order`.
    ///
    /// # Errors
    /// [`FrameError`] says what it is instead.
    pub fn check_allocated(&self, frame: Frame, order: Order) -> Result<(), FrameError> {
        self.expect_state(frame, FrameState::Allocated(order), order)
            .map(|_| ())
    }

    /// Makes `frames` absent frames from `first` free.
    ///
    /// # Errors
    /// [`FrameError::Foreign`] if the range leaves the span, [`FrameError::NotAbsent`] if any frame
    /// of it was released before. Either way nothing changes.
    pub fn release(&mut self, first: Frame, frames: u64) -> Result<(), FrameError> {
        if frames == 0 {
            return Ok(());
        }
        let start = self
            .index_of(first)
            .ok_or(FrameError::Foreign { frame: first })? as usize;
        let range = usize::try_from(frames)
            .ok()
            .and_then(|frames| start.checked_add(frames))
            .and_then(|end| self.meta.get_mut(start..end))
            .ok_or(FrameError::Foreign {
                frame: Frame(first.0.saturating_add(frames - 1)),
            })?;
        if let Some(offset) = range
            .iter()
            .position(|meta| meta.state() != FrameState::Absent)
        {
            return Err(FrameError::NotAbsent {
                frame: Frame(first.0 + offset as u64),
            });
        }
        range.fill(FrameMeta::INNER);
        self.present += frames;

        let end = start as u64 + frames;
        let mut at = start as u64;
        while at < end {
            let aligned = (self.base.0 + at).trailing_zeros();
            let fits = (end - at).ilog2();
            let order = Order::new(aligned.min(fits)).unwrap_or(Order::MAX);
            self.insert(at as Link, order);
            at += order.frames();
        }
        Ok(())
    }

    /// A block of `order`, or `None` if no block of that or a larger order is free.
    pub fn allocate(&mut self, order: Order) -> Option<Frame> {
        let mut found = self.best_fit(order)?;
        let index = self.head(found);
        self.unlink(index, found);
        while found > order {
            found = found.smaller()?;
            self.push(index + found.frames() as Link, found);
        }
        self.set(
            index,
            FrameMeta::linked(FrameState::Allocated(order), NIL, NIL),
        );
        Some(Frame(self.base.0 + u64::from(index)))
    }

    /// Takes back a block of `order`, merging it with free buddies.
    ///
    /// # Errors
    /// [`FrameError`] if the frame is foreign, free already, or not the first of an allocated block
    /// of that order; nothing changes then.
    pub fn free(&mut self, frame: Frame, order: Order) -> Result<(), FrameError> {
        let index = self.expect_state(frame, FrameState::Allocated(order), order)?;
        self.insert(index, order);
        Ok(())
    }

    /// Turns an allocated block of `from` into as many allocated blocks of `to` as it holds, which
    /// are then freed one by one: what becomes of a 2 MiB frame when its leaf is split.
    ///
    /// # Errors
    /// [`FrameError`] if the frame is not the first of an allocated block of `from`, or if `to` is
    /// larger than `from`.
    pub fn split(&mut self, frame: Frame, from: Order, to: Order) -> Result<(), FrameError> {
        let index = self.expect_state(frame, FrameState::Allocated(from), from)?;
        if to > from {
            return Err(FrameError::WrongBlock {
                frame,
                given: to,
                state: FrameState::Allocated(from),
            });
        }
        for part in (0..from.frames()).step_by(to.frames() as usize) {
            self.set(
                index + part as Link,
                FrameMeta::linked(FrameState::Allocated(to), NIL, NIL),
            );
        }
        Ok(())
    }

    /// The reverse of [`Zone::split`]: as many allocated blocks of `from` as fill one of `to`, beginning with
    /// `frame`, become that one block.
    ///
    /// # Errors
    /// [`FrameError`] for the first of them that is not an allocated block of `from`, or if `frame` cannot begin a
    /// block of `to`; nothing changes then.
    pub fn join(&mut self, frame: Frame, from: Order, to: Order) -> Result<(), FrameError> {
        let index = self.expect_state(frame, FrameState::Allocated(from), from)?;
        if from > to || !frame.0.is_multiple_of(to.frames()) {
            return Err(FrameError::WrongBlock {
                frame,
                given: to,
                state: FrameState::Allocated(from),
            });
        }
        let parts = (0..to.frames()).step_by(from.frames() as usize);
        for part in parts.clone() {
            self.expect_state(Frame(frame.0 + part), FrameState::Allocated(from), from)?;
        }
        for part in parts {
            self.set(index + part as Link, FrameMeta::INNER);
        }
        self.set(
            index,
            FrameMeta::linked(FrameState::Allocated(to), NIL, NIL),
        );
        Ok(())
    }

    /// Marks an allocated block as held by a claim and chains it to the claim's former first block.
    pub(super) fn claim(
        &mut self,
        frame: Frame,
        order: Order,
        next: (Link, Link),
    ) -> Result<Link, FrameError> {
        let index = self.expect_state(frame, FrameState::Allocated(order), order)?;
        self.set(
            index,
            FrameMeta::linked(FrameState::Claimed(order), next.1, next.0),
        );
        Ok(index)
    }

    /// Turns a claimed block into an allocated one; returns it and its successor in the chain.
    pub(super) fn unclaim(
        &mut self,
        index: Link,
        order: Order,
    ) -> Result<(Frame, (Link, Link)), FrameError> {
        let frame = Frame(self.base.0 + u64::from(index));
        self.expect_state(frame, FrameState::Claimed(order), order)?;
        let meta = self.meta_at(index);
        self.set(
            index,
            FrameMeta::linked(FrameState::Allocated(order), NIL, NIL),
        );
        Ok((frame, (meta.prev(), meta.next())))
    }

    /// The index of `frame` if it is in state `wanted`, else the error that says what it is.
    fn expect_state(
        &self,
        frame: Frame,
        wanted: FrameState,
        given: Order,
    ) -> Result<Link, FrameError> {
        let index = self.index_of(frame).ok_or(FrameError::Foreign { frame })?;
        match self.meta_at(index).state() {
            state if state == wanted => Ok(index),
            FrameState::Free(_) => Err(FrameError::DoubleFree { frame }),
            FrameState::Absent => Err(FrameError::Foreign { frame }),
            FrameState::Inner if self.is_inside_free(index) => {
                Err(FrameError::DoubleFree { frame })
            }
            state => Err(FrameError::WrongBlock {
                frame,
                given,
                state,
            }),
        }
    }

    /// Whether an inner frame belongs to a free block: its head is one of at most 18 candidates.
    fn is_inside_free(&self, index: Link) -> bool {
        let frame = self.base.0 + u64::from(index);
        (1..Order::COUNT as u32)
            .filter_map(Order::new)
            .any(|order| {
                let head = Frame(frame & !(order.frames() - 1));
                self.index_of(head)
                    .is_some_and(|head| self.meta_at(head).state() == FrameState::Free(order))
            })
    }

    /// Puts a block on its free list, after merging it with every free buddy.
    fn insert(&mut self, mut index: Link, mut order: Order) {
        while let Some(larger) = order.larger() {
            let buddy = Frame((self.base.0 + u64::from(index)) ^ order.frames());
            let Some(buddy) = self.index_of(buddy) else {
                break;
            };
            if self.meta_at(buddy).state() != FrameState::Free(order) {
                break;
            }
            self.unlink(buddy, order);
            self.set(index.max(buddy), FrameMeta::INNER);
            index = index.min(buddy);
            order = larger;
        }
        self.push(index, order);
    }

    fn push(&mut self, index: Link, order: Order) {
        let next = self.head(order);
        self.set(index, FrameMeta::linked(FrameState::Free(order), next, NIL));
        if next != NIL {
            let after = self.meta_at(next);
            self.set(next, FrameMeta::linked(after.state(), after.next(), index));
        }
        self.set_head(order, index);
        self.free += order.frames();
    }

    fn unlink(&mut self, index: Link, order: Order) {
        let meta = self.meta_at(index);
        match meta.prev() {
            NIL => self.set_head(order, meta.next()),
            prev => {
                let before = self.meta_at(prev);
                self.set(
                    prev,
                    FrameMeta::linked(before.state(), meta.next(), before.prev()),
                );
            }
        }
        if meta.next() != NIL {
            let after = self.meta_at(meta.next());
            self.set(
                meta.next(),
                FrameMeta::linked(after.state(), after.next(), meta.prev()),
            );
        }
        self.free -= order.frames();
    }

    fn head(&self, order: Order) -> Link {
        self.heads.get(order.index()).copied().unwrap_or(NIL)
    }

    fn set_head(&mut self, order: Order, index: Link) {
        if let Some(head) = self.heads.get_mut(order.index()) {
            *head = index;
        }
        if index == NIL {
            self.available &= !(1 << order.index());
        } else {
            self.available |= 1 << order.index();
        }
    }

    fn index_of(&self, frame: Frame) -> Option<Link> {
        let offset = frame.0.checked_sub(self.base.0)?;
        (offset < self.span()).then_some(offset as Link)
    }

    fn meta_at(&self, index: Link) -> FrameMeta {
        self.meta
            .get(index as usize)
            .copied()
            .unwrap_or(FrameMeta::ABSENT)
    }

    fn set(&mut self, index: Link, meta: FrameMeta) {
        if let Some(slot) = self.meta.get_mut(index as usize) {
            *slot = meta;
        }
    }
}

impl fmt::Debug for Zone<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone")
            .field("base", &self.base)
            .field("span", &self.span())
            .field("present", &self.present)
            .field("free", &self.free)
            .finish()
    }
}
