#![expect(
    unsafe_code,
    reason = "table entries are words in frames, reached through the direct map"
)]
//! Page-table frames in the direct map.

use crate::mm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use memory::buddy::OutOfFrames;
use memory::table::{ENTRIES, LINE, LINES, TableMemory};
use units::{Frame, NodeId, PageSize};

/// Tables whose frames come from the node allocators.
#[derive(Clone, Copy, Debug)]
pub struct DirectTables;

fn entry(table: Frame, index: usize) -> &'static AtomicU64 {
    let at = mm::direct(table.address())
        .cast::<u64>()
        .wrapping_add(index % ENTRIES);
    // SAFETY: `table` is a frame that `allocate_table` gave (the trait's contract), so the direct map covers it and
    // nobody else uses it until `free_table`, which is called when no processor and no caller can reach it.
    // The word is aligned and only ever accessed atomically, here and by processors' walkers.
    unsafe { AtomicU64::from_ptr(at) }
}

/// A line of entries, found once for all of them.
fn line(table: Frame, line: usize) -> &'static [AtomicU64; LINE] {
    let first: *const AtomicU64 = entry(table, line % LINES * LINE);
    // SAFETY: as in `entry`; a table has `LINES` lines, so all entries of this one are in the same frame.
    unsafe { &*first.cast() }
}

impl TableMemory for DirectTables {
    fn load(&self, table: Frame, index: usize) -> u64 {
        entry(table, index).load(Acquire)
    }
    fn load_line(&self, table: Frame, number: usize) -> [u64; LINE] {
        line(table, number)
            .each_ref()
            .map(|entry| entry.load(Acquire))
    }
    fn store(&self, table: Frame, index: usize, value: u64) {
        entry(table, index).store(value, Release);
    }
    fn compare_exchange(
        &self,
        table: Frame,
        index: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        entry(table, index).compare_exchange(current, new, AcqRel, Acquire)
    }
    fn swap(&self, table: Frame, index: usize, new: u64) -> u64 {
        entry(table, index).swap(new, AcqRel)
    }
    fn fetch_and(&self, table: Frame, index: usize, mask: u64) -> u64 {
        entry(table, index).fetch_and(mask, AcqRel)
    }
    fn allocate_table(&self, node: NodeId) -> Result<Frame, OutOfFrames> {
        mm::alloc(node, PageSize::Size4K)
    }
    fn free_table(&self, table: Frame) {
        mm::free(table, PageSize::Size4K);
    }
}
