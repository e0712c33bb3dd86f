//! Table memory and a page walker for host tests.
//!
//! [`VecTables`] is a [`TableMemory`] made of atomics. [`touch`] walks a table as a processor without
//! any cache does: it sets A on its way down and D at a store, by locked operations that recheck
//! presence. It has no TLB: what a forgotten flush does shows only in the strict model.

use crate::buddy::{Order, OutOfFrames};
use crate::table::{ENTRIES, Level, TableAddress, TableFormat, TableMemory};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use units::{Frame, Gpa, Hpa, NodeId, PageSize};

/// Number of the first table frame; the others follow.
pub const FIRST_TABLE: u64 = 0x100;

/// One table frame.
#[derive(Debug)]
struct Table {
    used: AtomicBool,
    entries: Vec<AtomicU64>,
}

/// A fixed number of table frames.
#[derive(Debug)]
pub struct VecTables {
    tables: Vec<Table>,
}

impl VecTables {
    /// Room for `capacity` tables.
    pub fn new(capacity: usize) -> Self {
        let entries = || (0..ENTRIES).map(|_| AtomicU64::new(0)).collect();
        let table = || Table {
            used: AtomicBool::new(false),
            entries: entries(),
        };
        Self {
            tables: (0..capacity).map(|_| table()).collect(),
        }
    }

    /// Tables that are allocated now.
    pub fn in_use(&self) -> usize {
        self.tables
            .iter()
            .filter(|table| table.used.load(Ordering::Acquire))
            .count()
    }

    /// The entry.
    ///
    /// # Panics
    /// If the frame is no allocated table or the index is out of range: a defect of the code under test.
    fn entry(&self, frame: Frame, index: usize) -> &AtomicU64 {
        let table = self.table(frame);
        assert!(
            table.used.load(Ordering::Acquire),
            "table frame {frame} is used after it was freed"
        );
        table.entries.get(index).expect("an index below 512")
    }

    fn table(&self, frame: Frame) -> &Table {
        let index = frame.0.checked_sub(FIRST_TABLE).expect("a table frame");
        self.tables.get(index as usize).expect("a table frame")
    }
}

impl TableMemory for VecTables {
    fn load(&self, table: Frame, index: usize) -> u64 {
        self.entry(table, index).load(Ordering::Acquire)
    }
    fn store(&self, table: Frame, index: usize, value: u64) {
        self.entry(table, index).store(value, Ordering::Release);
    }
    fn compare_exchange(
        &self,
        table: Frame,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let entry = self.entry(table, index);
        entry.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }
    fn swap(&self, table: Frame, index: usize, new: u64) -> u64 {
        self.entry(table, index).swap(new, Ordering::AcqRel)
    }
    fn fetch_and(&self, table: Frame, index: usize, mask: u64) -> u64 {
        self.entry(table, index).fetch_and(mask, Ordering::AcqRel)
    }
    fn allocate_table(&self, node: NodeId) -> Result<Frame, OutOfFrames> {
        for (index, table) in self.tables.iter().enumerate() {
            if !table.used.swap(true, Ordering::AcqRel) {
                for entry in &table.entries {
                    entry.store(0, Ordering::Release);
                }
                return Ok(Frame(FIRST_TABLE + index as u64));
            }
        }
        Err(OutOfFrames {
            node,
            order: Order::from(PageSize::Size4K),
            count: 1,
            free: 0,
        })
    }
    fn free_table(&self, frame: Frame) {
        let was_used = self.table(frame).used.swap(false, Ordering::AcqRel);
        assert!(was_used, "table frame {frame} is freed twice");
    }
}

/// What a processor does with memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
}

/// Walks the nested table of format `F` at `root` for `gpa`, sets A and D as a processor does, and
/// returns the host address; `None` is a nested fault (absent, or a store without the right).
pub fn touch<F: TableFormat<Address = Gpa>>(
    memory: &impl TableMemory,
    root: Frame,
    gpa: Gpa,
    access: Access,
) -> Option<Hpa> {
    let offset = gpa.to_offset()?;
    let mut table = root;
    for level in [
        Level::ROOT,
        Level::of(PageSize::Size1G),
        Level::of(PageSize::Size2M),
        Level::LOWEST,
    ] {
        let index = (offset / level.span()) as usize % ENTRIES;
        let mut entry = memory.load(table, index);
        loop {
            if !F::is_present(entry) {
                return None;
            }
            let size = level.leaf_size().filter(|_| F::is_leaf(entry, level));
            let mut used = entry | F::ACCESSED;
            if let Some(size) = size
                && access == Access::Write
            {
                if !F::attributes(entry, size)
                    .rights
                    .contains(crate::table::Rights::WRITE)
                {
                    return None;
                }
                used |= F::DIRTY;
            }
            // A locked update of what was read: if the entry changed, presence is judged again.
            if used != entry
                && let Err(other) = memory.compare_exchange(table, index, entry, used)
            {
                entry = other;
                continue;
            }
            if let Some(size) = size {
                let inside = gpa.0 & (size.bytes() - 1);
                return Some(Hpa(F::leaf_frame(entry, size).address().0 + inside));
            }
            table = F::table_frame(entry);
            break;
        }
    }
    None
}
