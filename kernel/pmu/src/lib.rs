//! Performance counters: what a virtual CPU's memory accesses cost, counted by the processor.
//!
//! # The problem
//! Accessed bits say which pages are touched. They do not say which touches left the caches, and only distance that
//! leaves the caches costs anything. Processors count exactly that, each family by events of its own, in a handful of
//! registers that wrap, that firmware may be using, and that other hypervisors pretend to have.
//!
//! # The idea
//! * [`detect`] says from raw CPUID values what there is ([`Unit`]), or why there is nothing ([`Absent`]): a sentence,
//!   not an error. Whoever has no counters goes on as if this crate did not exist.
//! * [`events`] are tables, one for each family, with each event's encoding and the document that gives it.
//! * A [`Plan`] divides the events into groups that fit into the counters that may be used ([`Quota`]).
//! * A [`Bank`] is one physical CPU's counters. What firmware uses it leaves alone; whether the others count at all it
//!   tries. Registers are reached through an [`MsrPort`], so that the same code runs on a processor, on a
//!   simulated PMU in host tests, and on one that is injected into the booted kernel.
//! * A [`Course`] is a virtual CPU's place in the rotation of groups. It goes with the virtual CPU from CPU to CPU.
//! * A [`bandwidth::Meter`] is what goes through a last-level cache to memory, whoever causes it.
//! * A [`Tally`] is what was counted, and for how much of the time: `count x enabled / running` is the estimate.
//!
//! # What a virtual CPU's counts are
//! Counters are never given a virtual CPU's earlier value. Each stay on a CPU begins with reading them and ends with
//! reading them again; the difference, modulo the counters' width, is added to the virtual CPU's tally. So there is nothing
//! to restore, a move from CPU to CPU changes nothing, and nobody ever sees another's counts. They run while the
//! guest does: where the processor tells guest from host (AMD's GuestOnly) by itself, elsewhere by one register that
//! is written around each entry.
//!
//! # How wrong an estimate can be
//! With more groups than fit at a time each is counted for a part of the time. If the true rate of an event
//! stays between `low` and `high`, the estimate is off by at most `(high - low) x unobserved time`, and by 1 for rounding:
//! a steady program is estimated exactly, whatever the rotation (tested against a counter of 128 bits that never stops).
//!
//! # Invariants (each a test)
//! * Without counters, and on a port that refuses, nothing is counted and nothing is written twice.
//! * Registers that were in use before keep their values.
//! * No interrupt is ever asked for: overflow is noticed when counters are read.
//!
//! # Where to read next
//! [`unit`], [`events`], [`plan`], [`bank`], [`tally`], [`stall`] for what counts mean to a scheduler;
//! [`bandwidth`] stands for itself.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod bandwidth;
pub mod bank;
pub mod events;
pub mod plan;
pub mod port;
pub mod registers;
#[cfg(feature = "simulated")]
pub mod simulated;
pub mod stall;
pub mod tally;
pub mod unit;

pub use bank::{Bank, Course};
pub use events::{Event, Kind};
pub use plan::{Plan, Quota};
pub use port::{Fault, MsrPort};
pub use stall::Latency;
pub use tally::{Reading, Tally};
pub use unit::{Absent, CpuidLeaf, CpuidValues, Unit, detect};
