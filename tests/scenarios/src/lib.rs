//! Trials that put the whole hypervisor into an emulated machine, and what a trial is made of.
//!
//! A trial that trusts an exit status proves little: a hypervisor that runs no guest exits nicely
//! too. So every trial here carries a *judge*: a function over the evidence that the run left
//! behind, which is what the guests themselves printed, what the kernel recorded, and what an
//! observer outside Perigee counted. The judge returns a sentence when it is not convinced.
//!
//! A [`Scenario`] says
//! * on which [`Machine`] it runs: nodes, CPUs, memory, distances, latencies;
//! * which [`Vm`]s it starts and how, and which ACPI tables replace the firmware's;
//! * what happens from outside and after which line: keys, an NMI ([`Step`]);
//! * how long it may take, and whether it belongs to the quick set or only to `--full`;
//! * how it is judged, from [`Evidence`].
//!
//! Nothing in this crate starts a process: `cargo xtask test` reads [`all`], boots each machine,
//! collects the evidence and calls the judge. That keeps trials short, free of I/O, and testable
//! themselves: a judge is run against made-up evidence in its own unit test.
//!
//! To add a trial: write a file in `src/trials/`, give it a `pub fn scenarios(seed) -> Vec<Scenario>`,
//! name it in `src/trials/mod.rs`. Read [`trials::boot`] first. Trials that cannot run somewhere
//! for a reason that is known and accepted stand in `permitted-skips.toml`; no other skip passes.
#![forbid(unsafe_code)]

mod emulator;
mod evidence;
mod flat;
mod guests;
mod machine;
mod scenario;
pub mod selftest;
mod tiny;
pub mod trials;

pub use emulator::Emulator;
pub use evidence::{Evidence, GuestResult, Outcome, Stamped};
pub use flat::image as flat_kernel;
pub use guests::{GuestKernel, Vm};
pub use machine::{Latency, Machine, Node};
pub use scenario::{Action, FileChange, Override, Scenario, Step, Tier};

/// Every scenario there is, in the order in which they run. `seed` feeds the random ones; each prints it.
pub fn all(seed: u64) -> Vec<Scenario> {
    trials::all(seed)
}
