//! Changing a leaf's size.
//!
//! A processor that holds a 2 MiB and a 4 KiB translation of one address may raise a machine check
//! (SDM 3A 4.10.2.3; erratum "page size change MCE"), so the size never changes live: the entry is made absent,
//! everyone flushes, then the new shape is installed. Between the two the owner's lock is free, and
//! whoever faults on the range sees it frozen and waits.
//!
//! ```text
//! begin_split    -> Splitting  -- shoot_down --> SplitReady    -> finish_split
//! begin_collapse -> Collapsing -- shoot_down --> CollapseReady -> finish_collapse
//! ```
//! Children inherit the parent's A and D; a parent gets the OR of its children's, read only after
//! the flush, since walkers write into a table that they still know.

use super::change::range;
use super::pages::Pages;
use super::radix::{Slot, leaf};
use super::{ENTRIES, Entry, Flush, Leaf, Level, RadixTable, Rights, Shootdown};
use super::{TableAddress, TableError};
use super::{TableFormat, TableMemory};
use units::{Frame, PageSize};

/// A large leaf that was frozen to be split. Processors may still hold its translation.
#[must_use = "the range stays frozen until the split is finished"]
#[derive(Debug)]
pub struct Splitting<A> {
    leaf: Leaf<A>,
    child: Frame,
}

/// A large leaf that was frozen and that no processor remembers.
#[must_use = "the range stays frozen until the split is finished"]
#[derive(Debug)]
pub struct SplitReady<A>(Splitting<A>);

/// A table that was frozen to become one leaf. Processors may still walk it.
#[must_use = "the range stays frozen until the collapse is finished"]
#[derive(Debug)]
pub struct Collapsing<A> {
    /// What the leaf will be, A and D aside.
    leaf: Leaf<A>,
    child: Frame,
}

/// A frozen table that no processor remembers.
#[must_use = "the range stays frozen until the collapse is finished"]
#[derive(Debug)]
pub struct CollapseReady<A>(Collapsing<A>);

impl<A> AsRef<Self> for Collapsing<A> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<A> AsRef<Collapsing<A>> for CollapseReady<A> {
    fn as_ref(&self) -> &Collapsing<A> {
        &self.0
    }
}

impl<A: TableAddress> Splitting<A> {
    /// The smaller leaves may be executed, although the large one was not.
    #[must_use = "the range stays frozen until the split is finished"]
    pub fn to_execute(mut self) -> Self {
        self.leaf.attributes.rights |= Rights::EXECUTE;
        self
    }
    /// Makes processors forget the leaf.
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> SplitReady<A> {
        range(self.leaf.at, self.leaf.size).carry_out(by);
        SplitReady(self)
    }
}

impl<A: TableAddress> Collapsing<A> {
    /// Makes processors forget the table and its leaves.
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> CollapseReady<A> {
        range(self.leaf.at, self.leaf.size).carry_out(by);
        CollapseReady(self)
    }
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Freezes the leaf of `size` (1 GiB or 2 MiB) at `at`, to become 512 of the next smaller size.
    ///
    /// # Errors
    /// Those of [`RadixTable::unmap`]; [`TableError::WrongSize`] also for 4 KiB;
    /// [`TableError::OutOfTables`].
    pub fn begin_split(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<Splitting<F::Address>, TableError> {
        if smaller(size).is_none() {
            return Err(TableError::WrongSize {
                at: at.bits(),
                wanted: size,
            });
        }
        self.leaf_slot(at, size)?;
        let child = self.memory.allocate_table(self.node)?;
        match self.freeze(at, size) {
            Ok(leaf) => Ok(Splitting { leaf, child }),
            Err(error) => {
                self.memory.free_table(child);
                Err(error)
            }
        }
    }

    /// Thaws a leaf that was to be split: as if nothing had been begun.
    pub(crate) fn cancel_split(&mut self, split: Splitting<F::Address>) {
        let Splitting { leaf, child } = split;
        self.memory.free_table(child);
        let thawed = self.install(&leaf, leaf.frame);
        debug_assert!(thawed.is_ok(), "the owner's lock is held since the freeze");
    }

    /// Installs the 512 smaller leaves.
    ///
    /// # Errors
    /// [`TableError::NotFrozen`] if the range was torn down meanwhile; the child table is freed.
    pub fn finish_split(&mut self, ready: SplitReady<F::Address>) -> Result<(), TableError> {
        let SplitReady(Splitting { leaf, child }) = ready;
        let slot = self.frozen_slot(leaf.at, leaf.size);
        let (slot, size) = match (slot, smaller(leaf.size)) {
            (Ok(slot), Some(size)) => (slot, size),
            (slot, _) => {
                self.memory.free_table(child);
                slot?;
                return Err(TableError::WrongSize {
                    at: leaf.at.bits(),
                    wanted: leaf.size,
                });
            }
        };
        let mut bits = if leaf.accessed { F::ACCESSED } else { 0 };
        let table_bits = bits;
        bits |= if leaf.dirty { F::DIRTY } else { 0 };
        let attributes = self.allowed(leaf.attributes, size);
        for index in 0..ENTRIES {
            let frame = Frame(leaf.frame.0 + index as u64 * size.pages());
            self.memory
                .store(child, index, F::leaf(frame, size, attributes) | bits);
        }
        self.memory
            .store(slot.table, slot.index, F::table(child) | table_bits);
        self.tables += 1;
        Ok(())
    }

    /// Freezes the table of 512 leaves at `at` to become one leaf of `size` (2 MiB or 1 GiB).
    ///
    /// # Errors
    /// [`TableError::Misaligned`], [`TableError::OutOfRange`], [`TableError::NotMapped`],
    /// [`TableError::Frozen`]; [`TableError::WrongSize`] if there is no table of leaves;
    /// [`TableError::NotUniform`] if the leaves do not form one, or are executed and the large one may not be.
    pub fn begin_collapse(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<Collapsing<F::Address>, TableError> {
        let (slot, child, leaf) = self.parts(at, size)?;
        self.update(slot, F::frozen);
        self.changes(at, size);
        Ok(Collapsing { leaf, child })
    }

    /// The entry of `size` at `at`, the table of leaves that it refers to, and what the leaves would be as one.
    ///
    /// # Errors
    /// As [`RadixTable::begin_collapse`].
    pub(super) fn parts(
        &self,
        at: F::Address,
        size: PageSize,
    ) -> Result<(Slot, Frame, Leaf<F::Address>), TableError> {
        let bits = at.bits();
        let wrong_size = TableError::WrongSize {
            at: bits,
            wanted: size,
        };
        let part = smaller(size).ok_or(wrong_size)?;
        let offset = super::radix::offset_of::<F>(at, size.pages())?;
        if !at.is_aligned(size) {
            return Err(TableError::Misaligned {
                at: bits,
                frame: Frame(0),
                size,
            });
        }
        let slot = self.find_at(offset, Level::of(size));
        let child = match slot.entry::<F>() {
            Entry::Table(child) if slot.level == Level::of(size) => child,
            Entry::Table(_) | Entry::Leaf => return Err(wrong_size),
            Entry::FrozenLeaf | Entry::FrozenTable(_) => {
                return Err(TableError::Frozen { at: bits });
            }
            Entry::Empty => return Err(TableError::NotMapped { at: bits }),
        };
        let leaf = self
            .uniform(child, at, part)
            .filter(|leaf| self.allowed(leaf.attributes, size) == leaf.attributes)
            .ok_or(TableError::NotUniform { at: bits })?;
        Ok((slot, child, Leaf { size, ..leaf }))
    }

    /// Installs the one leaf and frees the table that it replaces.
    ///
    /// # Errors
    /// [`TableError::NotFrozen`] if the range was torn down meanwhile.
    pub fn finish_collapse(
        &mut self,
        ready: CollapseReady<F::Address>,
    ) -> Result<Flush, TableError> {
        let frame = ready.0.leaf.frame;
        self.finish_collapse_to(ready, frame, false)
    }

    /// As [`RadixTable::finish_collapse`], with a leaf that leads to `frame`, to which the caller has copied what the
    /// parts lead to. `dirty` = it was written, whatever the parts say.
    pub(crate) fn finish_collapse_to(
        &mut self,
        ready: CollapseReady<F::Address>,
        frame: Frame,
        dirty: bool,
    ) -> Result<Flush, TableError> {
        let CollapseReady(Collapsing { leaf, child }) = ready;
        self.frozen_slot(leaf.at, leaf.size)?;
        let used = (0..ENTRIES).fold(0, |used, index| used | self.memory.load(child, index));
        let leaf = Leaf {
            accessed: used & F::ACCESSED != 0,
            dirty: dirty || used & F::DIRTY != 0,
            ..leaf
        };
        self.install(&leaf, frame)?;
        self.tables -= 1;
        self.memory.free_table(child);
        Ok(Flush::None)
    }

    /// Thaws a table that was to become one leaf: as if nothing had been begun. Safe at any time: old translations say
    /// the same.
    pub(crate) fn cancel_collapse(&mut self, join: &Collapsing<F::Address>) {
        let Collapsing { leaf, child } = *join;
        let slot = self.frozen_slot(leaf.at, leaf.size);
        debug_assert!(slot.is_ok(), "whoever froze it thaws it");
        if let Ok(slot) = slot {
            // A = 1, for walkers may still set A below.
            let entry = F::table(child) | F::ACCESSED;
            self.memory.store(slot.table, slot.index, entry);
        }
    }

    /// Which parts of a frozen table were written. Final: nobody walks it any more.
    pub(crate) fn written_parts(&self, ready: &CollapseReady<F::Address>) -> Pages {
        let load = |index: &usize| self.memory.load(ready.0.child, *index) & F::DIRTY != 0;
        (0..ENTRIES).filter(load).collect()
    }

    /// Whether a frozen table is still in its place.
    pub(crate) fn is_collapsing(&self, ready: &CollapseReady<F::Address>) -> bool {
        self.frozen_slot(ready.0.leaf.at, ready.0.leaf.size).is_ok()
    }

    /// The first leaf of `table`, if all of them are present leaves of `part` with the same attributes and
    /// frames that form one aligned block.
    fn uniform(&self, table: Frame, at: F::Address, part: PageSize) -> Option<Leaf<F::Address>> {
        let changing = F::ACCESSED | F::DIRTY;
        let first = self.memory.load(table, 0);
        let leaf = leaf::<F>(first, at, part);
        let aligned = leaf.frame.0 & (part.pages() * ENTRIES as u64 - 1) == 0;
        let same = (0..ENTRIES).all(|index| {
            let entry = self.memory.load(table, index);
            let frame = Frame(leaf.frame.0 + index as u64 * part.pages());
            Entry::decode::<F>(entry, Level::of(part)) == Entry::Leaf
                && entry & !changing == F::leaf(frame, part, leaf.attributes)
        });
        (aligned && same).then_some(leaf)
    }
}

/// The next smaller leaf size.
fn smaller(size: PageSize) -> Option<PageSize> {
    Level::of(size).below().and_then(Level::leaf_size)
}
