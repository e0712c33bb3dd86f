//! Changing one leaf: unmap, protect, freeze, install.

use super::radix::{Slot, leaf, offset_of};
use super::{Attributes, ENTRIES, Entry, Flush, Leaf, Level, RadixTable, Rights, Shootdown};
use super::{TableAddress, TableError, TableFormat, TableMemory};
use units::{Frame, PageSize};

/// Tables that one unmap can leave empty: all but the root.
const RETIRED: usize = 3;

/// A leaf that is no longer in the table but may still be in a processor.
///
/// Its frame and the table frames that became empty are out of reach until
/// [`Unmapped::finish`] has flushed.
#[must_use = "the frame and empty tables are lost unless the unmapping is finished"]
#[derive(Debug)]
pub struct Unmapped<A> {
    leaf: Leaf<A>,
    retired: [Option<Frame>; RETIRED],
}

impl<A: TableAddress> Unmapped<A> {
    /// What [`Unmapped::finish`] will make processors forget.
    pub fn flush(&self) -> Flush {
        range(self.leaf.at, self.leaf.size)
    }
    /// Flushes, frees the tables that became empty, and gives out the leaf that was, whose frame
    /// nobody reaches through this table any more. Its A and D are final.
    pub fn finish(self, by: &(impl Shootdown + ?Sized), memory: &impl TableMemory) -> Leaf<A> {
        self.flush().carry_out(by);
        for table in self.retired.into_iter().flatten() {
            memory.free_table(table);
        }
        self.leaf
    }
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Removes the leaf of `size` at `at`, and tables that become empty.
    ///
    /// # Errors
    /// [`TableError::Misaligned`], [`TableError::OutOfRange`], [`TableError::NotMapped`],
    /// [`TableError::WrongSize`], [`TableError::Frozen`].
    pub fn unmap(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<Unmapped<F::Address>, TableError> {
        let slot = self.leaf_slot(at, size)?;
        let old = self.memory.swap(slot.table, slot.index, 0);
        self.changes(at, size);
        let retired = self.prune(at.to_offset().unwrap_or(0), slot.level);
        Ok(Unmapped {
            leaf: leaf::<F>(old, at, size),
            retired,
        })
    }

    /// Gives the leaf of `size` at `at` other rights or another memory type. A and D are kept.
    ///
    /// # Errors
    /// As [`RadixTable::unmap`], and [`TableError::NotReadable`].
    pub fn protect(
        &mut self,
        at: F::Address,
        size: PageSize,
        attributes: Attributes,
    ) -> Result<Flush, TableError> {
        if !attributes.rights.contains(Rights::READ) {
            return Err(TableError::NotReadable { at: at.bits() });
        }
        let slot = self.leaf_slot(at, size)?;
        let attributes = self.allowed(attributes, size);
        let bare = F::leaf(F::leaf_frame(slot.value, size), size, attributes);
        let old = self.update(slot, |old| bare | old & (F::ACCESSED | F::DIRTY));
        self.changes(at, size);
        let changed = old & !(F::ACCESSED | F::DIRTY) != bare;
        Ok(if changed {
            range(at, size)
        } else {
            Flush::None
        })
    }

    /// Makes a leaf absent and marks it. Processors may hold its translation until a flush.
    /// Returns the leaf as the exchange found it: A and D are final, since processors recheck
    /// presence in the locked operation that sets them.
    pub(crate) fn freeze(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<Leaf<F::Address>, TableError> {
        let slot = self.leaf_slot(at, size)?;
        let old = self.update(slot, F::frozen);
        self.changes(at, size);
        Ok(leaf::<F>(old, at, size))
    }

    /// Replaces a frozen leaf by one with `frame` and all else equal. With the old frame it is right
    /// at any time, since old translations say the same; with another one the caller proves that
    /// no processor holds a translation to the old frame.
    pub(crate) fn install(
        &mut self,
        old: &Leaf<F::Address>,
        frame: Frame,
    ) -> Result<(), TableError> {
        let slot = self.frozen_slot(old.at, old.size)?;
        let mut entry = F::leaf(frame, old.size, self.allowed(old.attributes, old.size));
        entry |= if old.accessed { F::ACCESSED } else { 0 };
        entry |= if old.dirty { F::DIRTY } else { 0 };
        self.memory.store(slot.table, slot.index, entry);
        Ok(())
    }

    /// Sets A and D that a leaf had in another replica, and A of the entries above it: a harvest finds them.
    pub(crate) fn inherit(&self, from: &Leaf<F::Address>) {
        let bits =
            if from.accessed { F::ACCESSED } else { 0 } | if from.dirty { F::DIRTY } else { 0 };
        let Some(offset) = from.at.to_offset().filter(|_| bits != 0) else {
            return;
        };
        let mut level = Level::of(from.size);
        let mut mask = bits;
        loop {
            let slot = self.find_at(offset, level);
            if slot.level == level && F::is_present(slot.value) {
                self.update(slot, |old| old | mask);
            }
            // Leaves before their ancestors: whoever finds the ancestor finds the leaf.
            mask = bits & F::ACCESSED;
            match level.above() {
                Some(above) if mask != 0 => level = above,
                _ => return,
            }
        }
    }

    /// Whoever watches a leaf here has nothing to judge by any more.
    pub(super) fn changes(&mut self, at: F::Address, size: PageSize) {
        if let Some(start) = at.to_offset() {
            self.watches.end(start, size.bytes());
        }
    }

    /// The slot of the present leaf of exactly `size` at `at`.
    pub(super) fn leaf_slot(&self, at: F::Address, size: PageSize) -> Result<Slot, TableError> {
        let offset = offset_of::<F>(at, size.pages())?;
        let bits = at.bits();
        if !at.is_aligned(size) {
            return Err(TableError::Misaligned {
                at: bits,
                frame: Frame(0),
                size,
            });
        }
        let slot = self.find_at(offset, Level::of(size));
        match slot.entry::<F>() {
            Entry::Leaf if slot.level == Level::of(size) => Ok(slot),
            Entry::Leaf | Entry::Table(_) => Err(TableError::WrongSize {
                at: bits,
                wanted: size,
            }),
            Entry::FrozenLeaf | Entry::FrozenTable(_) => Err(TableError::Frozen { at: bits }),
            Entry::Empty => Err(TableError::NotMapped { at: bits }),
        }
    }

    /// The slot of the frozen entry that spans exactly `size` at `at`.
    pub(super) fn frozen_slot(&self, at: F::Address, size: PageSize) -> Result<Slot, TableError> {
        let slot = self.find_at(offset_of::<F>(at, size.pages())?, Level::of(size));
        if slot.level == Level::of(size) && F::is_frozen(slot.value) {
            Ok(slot)
        } else {
            Err(TableError::NotFrozen { at: at.bits() })
        }
    }

    /// Replaces a present entry by a function of itself, whatever processors set in it meanwhile;
    /// returns the entry that was replaced.
    pub(super) fn update(&self, slot: Slot, new: impl Fn(u64) -> u64) -> u64 {
        let mut current = slot.value;
        loop {
            match self
                .memory
                .compare_exchange(slot.table, slot.index, current, new(current))
            {
                Ok(old) => return old,
                Err(other) => current = other,
            }
        }
    }

    /// Unlinks the tables above an entry that was emptied, from `level` upwards, while they are empty.
    fn prune(&mut self, offset: u64, level: Level) -> [Option<Frame>; RETIRED] {
        let mut retired = [None; RETIRED];
        let mut level = level;
        for place in &mut retired {
            let slot = self.find_at(offset, level);
            let empty = (0..ENTRIES).all(|index| self.memory.load(slot.table, index) == 0);
            if slot.table == self.root() || !empty {
                break;
            }
            let Some(above) = level.above() else { break };
            let parent = self.find_at(offset, above);
            self.memory.swap(parent.table, parent.index, 0);
            self.tables -= 1;
            *place = Some(slot.table);
            level = above;
        }
        retired
    }
}

/// The flush of one leaf.
pub(super) fn range<A: TableAddress>(at: A, size: PageSize) -> Flush {
    Flush::Range {
        first: at.bits(),
        bytes: size.bytes(),
    }
}
