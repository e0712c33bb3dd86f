//! Leaves whose D bit is somebody's evidence.
//!
//! A page that is copied while the guest runs must not change unseen: D is cleared in its leaf, every processor
//! forgets the translation, and from then on a D that is still 0 says that nobody wrote. That conclusion holds only
//! while nobody else clears D and the leaf stays the same leaf. So the table remembers who watches:
//!
//! * one watch at a time for each leaf; the second is refused;
//! * a harvest that clears D leaves the D of watched leaves alone;
//! * whatever changes the leaf (unmap, protect, freeze, resize) ends the watch, and the watcher, who
//!   shows a ticket that is never used twice, learns it. A leaf that went away and came back is another leaf.
//!
//! The hypervisor's own stores to guest memory go through no nested table. [`RadixTable::soil`] makes them show.

use super::TableMemory;
use super::pages::Pages;
use super::radix::{leaf, offset_of};
use super::{ENTRIES, Entry, Leaf, Level, RadixTable, TableAddress, TableError, TableFormat};
use alloc::collections::BTreeMap;
use units::{Frame, PageSize};

/// The right to judge by a leaf's D.
#[must_use = "the leaf stays watched until the watch is ended"]
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Ticket(u64);

/// All watched leaves of a table: by offset, their length and ticket.
#[derive(Default, Debug)]
pub(super) struct Watches {
    watched: BTreeMap<u64, (u64, u64)>,
    tickets: u64,
}

impl Watches {
    fn begin(&mut self, start: u64, bytes: u64) -> Ticket {
        self.tickets += 1;
        self.watched.insert(start, (bytes, self.tickets));
        Ticket(self.tickets)
    }

    fn holds(&self, start: u64, ticket: &Ticket) -> bool {
        self.watched
            .get(&start)
            .is_some_and(|(_, t)| *t == ticket.0)
    }

    /// Whether a watched leaf meets the range.
    pub(super) fn meet(&self, start: u64, bytes: u64) -> bool {
        self.first_in(start, bytes).is_some()
    }

    /// Ends every watch that meets the range.
    pub(super) fn end(&mut self, start: u64, bytes: u64) {
        while let Some(at) = self.first_in(start, bytes) {
            self.watched.remove(&at);
        }
    }

    /// Watched leaves do not overlap, so only the last that begins before the end can meet the range.
    fn first_in(&self, start: u64, bytes: u64) -> Option<u64> {
        let end = start.saturating_add(bytes);
        let (at, (length, _)) = self.watched.range(..end).next_back()?;
        (at.saturating_add(*length) > start).then_some(*at)
    }
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Clears D of the leaf of `size` at `at` and watches it. Returns the leaf as it was. Processors may still store
    /// through translations with D = 1, unseen, until the flush.
    ///
    /// # Errors
    /// As [`RadixTable::unmap`], and [`TableError::Watched`].
    pub(crate) fn watch(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<(Leaf<F::Address>, Ticket), TableError> {
        let slot = self.leaf_slot(at, size)?;
        let start = offset_of::<F>(at, size.pages())?;
        if self.watches.meet(start, size.bytes()) {
            return Err(TableError::Watched { at: at.bits() });
        }
        let ticket = self.watches.begin(start, size.bytes());
        let old = self.memory.fetch_and(slot.table, slot.index, !F::DIRTY);
        Ok((leaf::<F>(old, at, size), ticket))
    }

    /// Clears D of the 512 small leaves at `at` and watches them as one. Returns what they would be as one leaf and which
    /// were dirty. Processors may still store through translations with D = 1, unseen, until the flush.
    ///
    /// # Errors
    /// As [`RadixTable::begin_collapse`], and [`TableError::Watched`].
    pub(crate) fn watch_parts(
        &mut self,
        at: F::Address,
    ) -> Result<(Leaf<F::Address>, Pages, Ticket), TableError> {
        let size = PageSize::Size2M;
        let (_, table, whole) = self.parts(at, size)?;
        let start = offset_of::<F>(at, size.pages())?;
        if self.watches.meet(start, size.bytes()) {
            return Err(TableError::Watched { at: at.bits() });
        }
        let ticket = self.watches.begin(start, size.bytes());
        Ok((whole, self.clear_dirty(table), ticket))
    }

    /// Clears D of the watched small leaves once more; None if the watch has ended.
    pub(crate) fn take_dirty(&mut self, at: F::Address, ticket: &Ticket) -> Option<Pages> {
        if !self.is_watched(at, ticket) {
            return None;
        }
        let (_, table, _) = self.parts(at, PageSize::Size2M).ok()?;
        Some(self.clear_dirty(table))
    }

    /// Which of the watched small leaves were written since; none if the watch has ended.
    pub(crate) fn peek_dirty(&self, at: F::Address, ticket: &Ticket) -> Pages {
        let parts = self.parts(at, PageSize::Size2M).ok();
        let Some((_, table, _)) = parts.filter(|_| self.is_watched(at, ticket)) else {
            return Pages::default();
        };
        let dirty = |index: &usize| self.memory.load(table, *index) & F::DIRTY != 0;
        (0..ENTRIES).filter(dirty).collect()
    }

    fn clear_dirty(&self, table: Frame) -> Pages {
        let clear = |index: &usize| {
            self.memory.load(table, *index) & F::DIRTY != 0
                && self.memory.fetch_and(table, *index, !F::DIRTY) & F::DIRTY != 0
        };
        (0..ENTRIES).filter(clear).collect()
    }

    /// Whether the leaf at `at` is the one that this ticket was given for, untouched by anybody else's changes.
    pub(crate) fn is_watched(&self, at: F::Address, ticket: &Ticket) -> bool {
        at.to_offset()
            .is_some_and(|start| self.watches.holds(start, ticket))
    }

    /// Whether somebody judges by the D of a leaf in this range of the table.
    pub(crate) fn is_evidence(&self, start: u64, size: PageSize) -> bool {
        self.watches.meet(start, size.bytes())
    }

    /// Ends a watch, if it has not ended by itself.
    pub(crate) fn end_watch(&mut self, at: F::Address, ticket: &Ticket) {
        if self.is_watched(at, ticket) {
            self.watches.end(at.to_offset().unwrap_or(0), 1);
        }
    }

    /// Sets D of the present leaf that maps `at`: for a store that went past the table. The caller holds the owner's
    /// lock (shared will do) from the translation to after the store. False if nothing present maps `at`.
    pub fn soil(&self, at: F::Address) -> bool {
        let Some(offset) = at.to_offset() else {
            return false;
        };
        let slot = self.find_at(offset, Level::LOWEST);
        if slot.entry::<F>() != Entry::Leaf {
            return false;
        }
        if slot.value & F::DIRTY == 0 {
            self.update(slot, |old| old | F::DIRTY);
        }
        true
    }
}
