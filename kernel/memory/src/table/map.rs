//! Mapping what was not mapped.

use super::radix::offset_of;
use super::{Attributes, Entry, Flush, Level, RadixTable, Rights, TableAddress, TableError};
use super::{TableFormat, TableMemory};
use units::{Frame, PAGE_SHIFT, PageSize};

/// Frames that fit 52 bits of physical address.
const FRAMES: u64 = 1 << (52 - PAGE_SHIFT);

/// A range cut into the largest leaves that alignment allows.
#[derive(Clone, Copy)]
struct Pieces {
    offset: u64,
    frame: u64,
    pages: u64,
    largest: PageSize,
}

/// One leaf to be.
#[derive(Clone, Copy)]
struct Piece {
    offset: u64,
    frame: Frame,
    size: PageSize,
}

impl Iterator for Pieces {
    type Item = Piece;
    fn next(&mut self) -> Option<Piece> {
        if self.pages == 0 {
            return None;
        }
        let fits = |size: &PageSize| {
            let pages = size.pages();
            *size <= self.largest
                && self.pages >= pages
                && (self.offset >> PAGE_SHIFT | self.frame) & (pages - 1) == 0
        };
        let size = [PageSize::Size1G, PageSize::Size2M].into_iter().find(fits);
        let size = size.unwrap_or(PageSize::Size4K);
        let piece = Piece {
            offset: self.offset,
            frame: Frame(self.frame),
            size,
        };
        self.offset += size.bytes();
        self.frame += size.pages();
        self.pages -= size.pages();
        Some(piece)
    }
}

/// Table frames allocated ahead and chained through their first entry: not linked, so that
/// giving them back needs no flush.
struct Spares {
    first: Option<Frame>,
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Maps one leaf.
    ///
    /// # Errors
    /// As [`RadixTable::map_range`], and [`TableError::Misaligned`] for `size`.
    pub fn map(
        &mut self,
        at: F::Address,
        frame: Frame,
        size: PageSize,
        attributes: Attributes,
    ) -> Result<Flush, TableError> {
        if !at.is_aligned(size) || !frame.address().is_aligned(size) {
            return Err(TableError::Misaligned {
                at: at.bits(),
                frame,
                size,
            });
        }
        self.map_range(at, frame, size.pages(), attributes, size)
    }

    /// Maps `pages` contiguous 4 KiB pages from `at` to contiguous frames, by the largest leaves
    /// that both alignments and `largest` allow. All or nothing.
    ///
    /// # Errors
    /// [`TableError::Misaligned`], [`TableError::OutOfRange`], [`TableError::NotReadable`],
    /// [`TableError::AlreadyMapped`] and [`TableError::Frozen`] where anything of the range is mapped,
    /// [`TableError::OutOfTables`].
    pub fn map_range(
        &mut self,
        at: F::Address,
        frame: Frame,
        pages: u64,
        attributes: Attributes,
        largest: PageSize,
    ) -> Result<Flush, TableError> {
        if !at.is_aligned(PageSize::Size4K) {
            return Err(TableError::Misaligned {
                at: at.bits(),
                frame,
                size: PageSize::Size4K,
            });
        }
        let offset = offset_of::<F>(at, pages)?;
        if frame.0.checked_add(pages).is_none_or(|end| end > FRAMES) {
            return Err(TableError::OutOfRange {
                at: at.bits(),
                pages,
            });
        }
        if !attributes.rights.contains(Rights::READ) {
            return Err(TableError::NotReadable { at: at.bits() });
        }
        let pieces = Pieces {
            offset,
            frame: frame.0,
            pages,
            largest,
        };
        let mut spares = self.spare_tables(self.tables_needed(pieces)?)?;
        for piece in pieces {
            self.install_piece(piece, attributes, &mut spares);
        }
        Ok(Flush::None)
    }

    /// How many tables the range needs; refuses it if any of it is mapped.
    fn tables_needed(&self, pieces: Pieces) -> Result<u64, TableError> {
        let mut needed = 0;
        let mut previous: Option<u64> = None;
        for piece in pieces {
            let goal = Level::of(piece.size);
            let slot = self.find_at(piece.offset, goal);
            let at = F::Address::from_offset(piece.offset).bits();
            match slot.entry::<F>() {
                Entry::Empty => {}
                Entry::Leaf | Entry::Table(_) => return Err(TableError::AlreadyMapped { at }),
                Entry::FrozenLeaf | Entry::FrozenTable(_) => return Err(TableError::Frozen { at }),
            }
            // Every empty entry above the goal gets a table, once for all pieces that it spans.
            let mut level = slot.level;
            while level > goal {
                let new = previous.is_none_or(|p| p / level.span() != piece.offset / level.span());
                needed += u64::from(new);
                level = level.below().unwrap_or(Level::LOWEST);
            }
            previous = Some(piece.offset);
        }
        Ok(needed)
    }

    fn spare_tables(&self, count: u64) -> Result<Spares, TableError> {
        let mut spares = Spares { first: None };
        for _ in 0..count {
            match self.memory.allocate_table(self.node) {
                Ok(table) => {
                    // Frame 0 holds no table, so 0 ends the chain.
                    self.memory
                        .store(table, 0, spares.first.map_or(0, |next| next.0));
                    spares.first = Some(table);
                }
                Err(error) => {
                    while let Some(table) = self.take_spare(&mut spares) {
                        self.memory.free_table(table);
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(spares)
    }

    fn take_spare(&self, spares: &mut Spares) -> Option<Frame> {
        let table = spares.first?;
        let next = self.memory.load(table, 0);
        self.memory.store(table, 0, 0);
        spares.first = (next != 0).then_some(Frame(next));
        Some(table)
    }

    fn install_piece(&mut self, piece: Piece, attributes: Attributes, spares: &mut Spares) {
        let goal = Level::of(piece.size);
        loop {
            let slot = self.find_at(piece.offset, goal);
            if slot.level == goal {
                let leaf = F::leaf(
                    piece.frame,
                    piece.size,
                    self.allowed(attributes, piece.size),
                );
                self.memory.store(slot.table, slot.index, leaf);
                return;
            }
            let Some(table) = self.take_spare(spares) else {
                debug_assert!(false, "tables_needed counted too few");
                return;
            };
            self.tables += 1;
            self.memory.store(slot.table, slot.index, F::table(table));
        }
    }
}
