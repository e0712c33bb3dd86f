//! A strict model of processors, for protocols that must not rely on luck.
//!
//! Emulators are kinder than hardware: they flush every translation at a world switch, cache no
//! upper table, and never fetch a translation that nobody asked for. A page move that forgets a
//! flush passes there and loses a write in the field. The processors here do everything that the
//! manuals permit and nothing that they do not promise:
//!
//! * a [`Cpu`] has a tagged TLB and paging-structure caches, fills both speculatively, evicts at random,
//!   and drops an entry otherwise only when a flush that covers it is carried out on that CPU;
//! * A and D are set by locked operations that recheck presence; a store through a cached
//!   translation without D walks again;
//! * a walk may start from a cached upper entry, and then sets no A above it;
//! * two cached translations of one address with different sizes are a machine check, here a panic;
//! * one that logs its writes names a page when it changes D from 0 to 1, at no other store, and to a
//!   buffer of its own;
//! * a flush request is taken between two accesses, never inside one (SDM 3A 4.10.5: an initiator must
//!   wait for the acknowledgement).
//!
//! The table code under test is the kernel's, byte for byte: it runs over a
//! [`TableMemory`](memory::table::TableMemory) whose every operation is a scheduling point of `shuttle`, which
//! explores interleavings at random from a seed and can replay a failing one.
//!
//! Memory is sequentially consistent here but for words that are made [`Buffered`]: a store to one may wait in
//! its CPU's store buffer while later loads of that CPU are carried out, until a fence or until it drains by itself.
//!
//! `tests/` holds the protocols: each runs once as it is in the kernel and must survive, and
//! several times with one step broken and must be caught.
#![forbid(unsafe_code)]

mod buffer;
mod caught;
mod cpu;
mod machine;

pub use buffer::{Buffered, Stores};
pub use caught::{first_failure, is_stale};
pub use cpu::{Access, Cpu};
pub use machine::{Broadcast, Machine, Reach};
