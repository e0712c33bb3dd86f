//! Where tables live.

use super::ENTRIES;
use crate::buddy::OutOfFrames;
use alloc::sync::Arc;
use units::{Frame, NodeId};

/// Entries in a line of 64 bytes.
pub const LINE: usize = 8;
/// Lines of a table.
pub const LINES: usize = ENTRIES / LINE;

/// The memory that table frames are made of: the direct map in the kernel, a `Vec` of atomics in
/// tests, a model of a processor's view under a checker.
///
/// Entries are 64-bit atomics that processors read and write at the same time. `table` is always a
/// frame that [`TableMemory::allocate_table`] gave and `index` is below [`super::ENTRIES`].
/// Loads acquire, stores release, read-modify-writes do both (an x86 processor gives all of that
/// for the price of a `LOCK` prefix on the last kind).
pub trait TableMemory {
    /// Reads an entry.
    fn load(&self, table: Frame, index: usize) -> u64;
    /// Reads a line of entries, which is what a cache line holds: `line` is below [`LINES`]. Who knows where a table is
    /// finds it once for all of them.
    #[inline]
    fn load_line(&self, table: Frame, line: usize) -> [u64; LINE] {
        core::array::from_fn(|i| self.load(table, line * LINE + i))
    }
    /// Writes an entry that no processor changes meanwhile: an absent one, or one of an unlinked table.
    fn store(&self, table: Frame, index: usize, value: u64);
    /// Writes `new` if the entry is still `current`.
    ///
    /// # Errors
    /// The value that the entry has instead.
    fn compare_exchange(
        &self,
        table: Frame,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64>;
    /// Writes `new` and returns what was there.
    fn swap(&self, table: Frame, index: usize, new: u64) -> u64;
    /// Clears the bits that are 0 in `mask` and returns what was there.
    fn fetch_and(&self, table: Frame, index: usize, mask: u64) -> u64;
    /// A frame for a table, zeroed, on `node` if possible.
    ///
    /// # Errors
    /// [`OutOfFrames`] if there is none.
    fn allocate_table(&self, node: NodeId) -> Result<Frame, OutOfFrames>;
    /// Takes back a table frame that no processor can reach any more.
    fn free_table(&self, table: Frame);
}

/// A handle to table memory is table memory.
macro_rules! through_a_handle {
    ($handle:ty) => {
        impl<M: TableMemory + ?Sized> TableMemory for $handle {
            #[inline]
            fn load(&self, table: Frame, index: usize) -> u64 {
                (**self).load(table, index)
            }
            #[inline]
            fn load_line(&self, table: Frame, line: usize) -> [u64; LINE] {
                (**self).load_line(table, line)
            }
            #[inline]
            fn store(&self, table: Frame, index: usize, value: u64) {
                (**self).store(table, index, value);
            }
            fn compare_exchange(
                &self,
                table: Frame,
                index: usize,
                current: u64,
                new: u64,
            ) -> Result<u64, u64> {
                (**self).compare_exchange(table, index, current, new)
            }
            fn swap(&self, table: Frame, index: usize, new: u64) -> u64 {
                (**self).swap(table, index, new)
            }
            #[inline]
            fn fetch_and(&self, table: Frame, index: usize, mask: u64) -> u64 {
                (**self).fetch_and(table, index, mask)
            }
            fn allocate_table(&self, node: NodeId) -> Result<Frame, OutOfFrames> {
                (**self).allocate_table(node)
            }
            fn free_table(&self, table: Frame) {
                (**self).free_table(table);
            }
        }
    };
}

through_a_handle!(&M);
through_a_handle!(Arc<M>);
