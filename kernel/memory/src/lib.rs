//! Memory: whose frame it is, who maps it, who touched it, and how it moves.
//!
//! A NUMA hypervisor asks four questions about every 4 KiB of a machine, and each has a module:
//!
//! * **Which node's frame do I get?** [`buddy`] keeps one allocator for each node. The order of
//!   fallback is the caller's (nearest first), and an allocation says which node served it, so that
//!   a spill is a counted event and never a surprise. [`buddy::Claim`] takes many frames or none.
//! * **Who maps it?** [`table`] is one radix-table walker for host paging, AMD's nested tables and
//!   Intel's extended tables. The three differ in a few bits, so they are three small
//!   [`table::TableFormat`]s; the memory that tables live in is a [`table::TableMemory`], the direct
//!   map in the kernel and a `Vec` of atomics in tests.
//! * **Who touched it?** [`harvest`] reads and clears the accessed and dirty bits that processors set, [`probe`] one of them,
//!   and [`written`] asks for the dirty ones where a processor's log may save the search.
//! * **How does it move under a running guest?** [`page_move`] is a chain of type states, so that a
//!   wrong order (installing the new frame before the old one's translations are gone, say) does
//!   not compile. [`apart`] notes what must stay together meanwhile.
//!
//! Nothing here holds a lock, reads a clock or panics on what it is told. Bodies are ordinary safe
//! Rust over atomics, and therefore run unchanged under property tests.
//!
//! # Invariants
//!
//! 1. A frame is in exactly one place: absent, on a free list, in a claim, or allocated. A second
//!    free, a foreign frame and a wrong size are error values and change nothing.
//! 2. Processors read tables at any moment, so an entry changes by one atomic operation, a new
//!    table is complete before it is linked, and a leaf never changes its frame or its size
//!    without having been absent, and flushed, in between.
//! 3. Hardware's A and D updates are never overwritten: entries change by exchange or
//!    compare-exchange, and what was read is what is judged.
//! 4. A table frame is reused only after the flush that follows its unlinking, because a walker may
//!    still write A into it. What must be flushed is a [`table::Flush`] that cannot be ignored.
//! 5. An operation that fails leaves the table and every allocator as it found them.
//!
//! Start with [`buddy::Frames`] and [`table::RadixTable`]; then [`page_move`] for the
//! protocol that the whole hypervisor is about.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod apart;
pub mod buddy;
pub mod entry;
pub mod harvest;
pub mod inventory;
pub mod mtrr;
mod page_bits;
pub mod page_move;
pub mod probe;
pub mod replica;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;
pub mod written;
