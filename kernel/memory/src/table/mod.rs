//! Radix tables: host paging, AMD nested paging and Intel extended paging by one walker.
//!
//! All three are trees of 4 levels with 512 entries of 8 bytes, and differ in what the bits of an
//! entry mean. A [`TableFormat`] says that ([`HostFormat`], [`NptFormat`], [`EptFormat`]), a
//! [`TableMemory`] holds the entries, and [`RadixTable`] does the walking, mapping and changing.
//!
//! # Who may do what at the same time
//! Processors walk a table, and set A and D in it, at any moment. Software changes it through
//! `&mut RadixTable`, so the owner's lock (one for each VM) excludes two writers, and a
//! writer and a harvest, by the borrow checker's word.
//!
//! # Absent, present, frozen
//! An entry is empty (zero), present, or *frozen*: absent for the processor, with a software mark and
//! all its other bits kept. A frozen entry is on its way to another frame or another leaf size; a
//! guest that faults on it waits. Operations on a frozen range are refused as
//! [`TableError::Frozen`].
//!
//! A leaf may be *watched*: its D is a mover's evidence, see `watch`.
//!
//! # Flushes
//! Every change returns a [`Flush`]; where something may be reused only after the flush (a frame, a
//! table), it comes wrapped in a type that gives it out only after [`Shootdown`]: [`Unmapped`],
//! [`Splitting`], [`Collapsing`], and the states of [`crate::page_move`].
//!
//! # No empty tables
//! Apart from the root, a linked table maps something: `unmap` unlinks what became empty, and
//! `map_range` allocates every table it needs before it links the first.

mod address;
mod amd64;
mod change;
mod ept;
mod error;
mod flush;
mod format;
mod leaves;
mod level;
mod map;
mod pages;
mod radix;
mod resize;
mod store;
mod watch;

pub use address::{TableAddress, Va};
pub use amd64::{HostFormat, NptFormat, PAT};
pub use change::Unmapped;
pub use ept::EptFormat;
pub use error::TableError;
pub use flush::{Flush, NoProcessor, Shootdown};
pub use format::{Attributes, MemoryType, Rights, TableFormat};
pub use leaves::Leaves;
pub use level::Level;
pub use pages::Pages;
pub(crate) use radix::{Entry, Slot};
pub use radix::{LargeLeaves, Leaf, Lookup, RadixTable};
pub use resize::{CollapseReady, Collapsing, SplitReady, Splitting};
pub use store::{LINE, LINES, TableMemory};
pub(crate) use watch::Ticket;

/// Entries in a table.
pub const ENTRIES: usize = 512;
const _: () = assert!(
    ENTRIES as u64 * 8 == units::PAGE_BYTES,
    "a table fills a 4 KiB frame"
);
