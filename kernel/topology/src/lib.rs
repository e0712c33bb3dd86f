//! ACPI bytes become a [`Machine`]: nodes, processors, memory, distances.
//!
//! Everything that is NUMA about Perigee rests on what firmware says in five tables, and firmware
//! is often wrong: it forgets processors, lets ranges overlap, numbers its domains 0, 4 and 1000, or
//! writes a distance matrix that makes remote memory nearer than local. So this crate never
//! fails and never panics. [`discover`] takes whatever bytes there are and always gives a machine
//! that can be run; what was odd comes back beside it as [`Quirk`]s, each a sentence that says
//! what was wrong, where, and what was done instead.
//!
//! | table | what is taken from it |
//! |---|---|
//! | MADT | processors, I/O APICs, interrupt overrides, NMI sources |
//! | SRAT | which proximity domain a processor or a range of memory belongs to |
//! | SLIT | relative distances |
//! | HMAT | latencies, bandwidths, memory-side caches, the initiator of a memory-only domain |
//! | PPTT | cores, packages, last-level caches, where CPUID does not say |
//!
//! # Invariants, whatever the bytes
//! * Node numbers are dense, in ascending order of proximity domain, and there is at least one node.
//!   Every node has a processor or usable memory.
//! * Processor numbers are dense; 0 is the one that runs this code. Every processor has a node.
//! * Every usable byte has a node, and no range appears twice.
//! * Distances are positive, the local one is 10 and the least of its row. Latencies likewise have
//!   their minimum on the diagonal.
//!
//! # What is done with doubtful input
//! A table with a wrong checksum is ignored, because wrong locality is worse than none; only the
//! MADT is used nevertheless, for there is no other source of processors. What comes first in a
//! table wins over what contradicts it later. A processor without a node joins its package, memory
//! without a node joins the nearest range.
//!
//! Read next: `discover.rs` for how the tables are joined, [`machine`] for the result, [`quirk`] for
//! everything that can be wrong. [`measured`] judges what the processors measure later.
//! [`fadt`], [`spcr`] and [`s5`] are small parsers for power-off,
//! timer and console. `build` (feature of the same name) writes tables: override files for a machine whose
//! firmware has none, and the tests' input.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod cores;
mod discover;
mod distance;
pub mod fadt;
pub mod hmat;
pub mod machine;
mod madt;
pub mod measured;
mod memory_map;
mod pptt;
pub mod quirk;
pub mod s5;
mod sentence;
mod slit;
pub mod spcr;
mod srat;
mod table;

#[cfg(any(test, feature = "build"))]
pub mod build;

pub use cores::CpuidShape;
pub use discover::{Discovery, MAX_CPUS, MAX_NODES, Tables, discover};
pub use hmat::Hmat;
pub use machine::{
    Cpu, InterruptOverride, IoApic, LatencySource, LocalNmi, Machine, MemoryRange, NmiSource, Node,
    OfflineCpu, PhysRange, Polarity, Trigger, UNREACHABLE,
};
pub use quirk::{Quirk, Severity, TableId};
pub use s5::sleep_type_s5;

#[cfg(test)]
mod tests;
