//! What happened, when, and why: the events of a run.
//!
//! Perigee's claim is not only that a machine ends up near its memory but that a person can see
//! why. So every decision of a policy and every step of a machine's life is an [`Event`]: a value
//! with the numbers that led to it and a [`Display`](core::fmt::Display) of one sentence that an
//! operator reads.
//! The same value travels three ways:
//!
//! * to the console, as its sentence;
//! * into a per-CPU [`Ring`], where `why` and a fault report find the last few;
//! * over the second serial port, as a [`Record`]: one line of JSON, written by the kernel and
//!   read by the tools with the same types ([`wire`]).
//!
//! This crate sits beside `units` and defines vocabulary only. The policy crates return these
//! types (a pick of the scheduler *is* a [`Pick`]), the kernel stamps and sends them; nothing
//! here decides, locks or reads a clock.
//!
//! # Invariants
//! * A record is one line: its JSON never contains a raw line break, whatever a guest put into a
//!   string (JSON escapes it), so a reader can always resynchronise at the next line.
//! * `seq` grows by one per record of a run, so a reader sees a lost line.
//! * What is frequent ([`Event::Pick`], [`Event::VcpuMoved`]) owns no heap memory; what owns
//!   strings is rare.
//! * A [`Counter`] only grows; a rate is the difference of two dumps.
//!
//! # Where to read next
//! [`event`] for the events, [`decision`] for the terms inside scheduler and planner events,
//! [`counter`] for the numbers, [`wire`] for the line format.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod counter;
pub mod decision;
pub mod event;
pub mod histogram;
pub mod ring;
mod sentence;
pub mod touched;
pub mod wire;

pub use counter::{Counter, CounterValue, Counters};
pub use decision::{Alternative, Choice, Class, Dial, Hold, MoveReason, Pick, Rival, Terms};
pub use event::{
    CpuReport, Event, GroupReport, NodeReport, OffReason, Outcome, TestVerdict, Topology, VmEvent,
    test_status,
};
pub use histogram::Histogram;
pub use ring::Ring;
pub use wire::{Record, WireError, from_line, to_line, write_line};
