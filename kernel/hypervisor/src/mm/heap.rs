//! The kernel's heap.
//!
//! Free lists (crate `linked_list_allocator`) over blocks of the direct map, so that every object has
//! one host-physical address. The first block is part of the kernel image and works from the first
//! instruction; when no block has room, another is taken, on the boot processor's node, as large as all so
//! far together. What belongs to a CPU or a VM for long comes from [`super::alloc`] on its node, not
//! from here.
#![expect(unsafe_code, reason = "GlobalAlloc hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::{self, NonNull};

use arrayvec::ArrayVec;
use linked_list_allocator::Heap;
use memory::buddy::Order;
use spin::Mutex;
use units::PAGE_BYTES;

use super::frames;

/// Part of the kernel image: enough to copy the memory map and to build the first page tables' lists.
const FIRST_BLOCK_BYTES: usize = 1 << 20;
/// Smallest block that is added.
const LEAST_GROWTH_BYTES: usize = 4 << 20;
/// Largest block that is added, unless a single object needs more.
const MOST_GROWTH_BYTES: usize = 64 << 20;
/// Blocks at most; growth doubles, so that is far more than a machine has.
const BLOCKS: usize = 64;

#[repr(C, align(4096))]
struct FirstBlock(UnsafeCell<[u8; FIRST_BLOCK_BYTES]>);
// SAFETY: only the heap, under its lock, touches the block.
unsafe impl Sync for FirstBlock {}
static FIRST_BLOCK: FirstBlock = FirstBlock(UnsafeCell::new([0; FIRST_BLOCK_BYTES]));

struct Blocks(ArrayVec<Heap, BLOCKS>);

struct KernelHeap(Mutex<Blocks>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Mutex::new(Blocks(ArrayVec::new_const())));

/// How full the heap is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapStats {
    /// Bytes in all blocks.
    pub size_bytes: usize,
    /// Bytes in use.
    pub used_bytes: usize,
    /// Blocks.
    pub blocks: usize,
}

impl fmt::Display for HeapStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: usize| bytes / 1024;
        write!(
            f,
            "{} of {} KiB in {} blocks",
            kib(self.used_bytes),
            kib(self.size_bytes),
            self.blocks
        )
    }
}

/// How full the heap is now.
pub fn heap_stats() -> HeapStats {
    let blocks = HEAP.0.lock();
    HeapStats {
        size_bytes: blocks.0.iter().map(Heap::size).sum(),
        used_bytes: blocks.0.iter().map(Heap::used).sum(),
        blocks: blocks.0.len(),
    }
}

/// Makes sure that the next 2 MiB of allocations need no new block.
pub(super) fn reserve() {
    const RESERVE_BYTES: usize = 2 << 20;
    drop(alloc::vec::Vec::<u8>::with_capacity(RESERVE_BYTES));
}

impl Blocks {
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if self.0.is_empty() {
            self.add(FIRST_BLOCK.0.get().cast(), FIRST_BLOCK_BYTES);
        }
        if let Some(place) = self.try_allocate(layout) {
            return Some(place);
        }
        self.grow(layout)?;
        self.try_allocate(layout)
    }

    /// The newest block first: it has the longest free stretch.
    fn try_allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.0
            .iter_mut()
            .rev()
            .find_map(|heap| heap.allocate_first_fit(layout).ok())
    }

    fn grow(&mut self, layout: Layout) -> Option<()> {
        if self.0.is_full() {
            return None;
        }
        let so_far: usize = self.0.iter().map(Heap::size).sum();
        let wish = so_far.clamp(LEAST_GROWTH_BYTES, MOST_GROWTH_BYTES);
        // The allocator's own bookkeeping and the object's alignment need a little more.
        let need = layout
            .size()
            .checked_add(layout.align())?
            .checked_add(PAGE_BYTES as usize)?;
        let order = |bytes: usize| Order::for_bytes(bytes as u64);
        let (start, bytes) = frames::heap_block(order(wish.max(need))?)
            .or_else(|| frames::heap_block(order(need)?))?;
        self.add(start, bytes);
        Some(())
    }

    fn add(&mut self, start: *mut u8, bytes: usize) {
        // SAFETY: the memory is the heap's alone and for ever: the static block, which is added once,
        // or frames that were allocated for it and are never freed. It is mapped and writable.
        self.0.push(unsafe { Heap::new(start, bytes) });
    }
}

// SAFETY: memory comes from `Heap`, which upholds the contract for each block; a pointer goes back to
// the block it came from, found by its address. Nothing panics or unwinds under the lock.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .lock()
            .allocate(layout)
            .map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        let mut blocks = self.0.lock();
        let owner = blocks
            .0
            .iter_mut()
            .find(|heap| heap.bottom() <= place && place < heap.top());
        if let (Some(heap), Some(place)) = (owner, NonNull::new(place)) {
            // SAFETY: the caller passes what `alloc` gave, with its layout; the block is found by address.
            unsafe { heap.deallocate(place, layout) };
        }
    }
}
