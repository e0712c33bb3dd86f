//! What to move, and whether it pays: vCPUs to their memory or pages to their vCPUs.
//!
//! # The problem
//! A machine whose vCPUs are far from the memory that they touch loses time with every access.
//! Two things can be brought together: moving a vCPU is cheap and moves all its accesses at once,
//! but needs CPU time on the other node and may leave other memory behind; moving pages works
//! where the CPUs are fixed or the memory is scattered, but costs a copy and a pause for each page.
//! Doing either too eagerly costs more than it saves, and the oldest failure in the field is a
//! machine that is moved back and forth every few seconds.
//!
//! # The idea
//! For every machine with a fresh footprint the [`Planner`] prices each possible target:
//!
//! * *benefit* = latency saved per access x assumed accesses per second of run time,
//! * *cost* = vCPUs x price of a vCPU move, or bytes x price of copying,
//! * it *pays* if benefit x min(age of the pattern, 10 s) > gamma x cost.
//!
//! An option is compared together with what it prepares: vCPUs that move get the hot pages that
//! stay behind sent after them, as far as those pay. Among the options that save at least nine
//! tenths of what the best one saves, the one that pays back soonest is taken. Evidence must agree
//! in two consecutive passes, in twice as many after each return to a node that was left within
//! a minute; such a return must also pay twice as much; an order is given time to settle; page orders draw from a token bucket for each machine and pair of nodes, hottest first, and each page in
//! the order must pay for itself.
//!
//! Every outcome is a [`Decision`] whose event holds the numbers and a sentence. Letting things
//! be is a decision too, with its reason ([`telemetry::Hold`]).
//!
//! What follows is judged: pages that were moved are followed for a while, and a machine whose pages were of no use where
//! they went keeps them. Thresholds, budget and the scheduler's bonus follow the load.
//!
//! # Who acts
//! Nobody here. [`Action::PreferNode`] goes to the scheduler, which alone moves vCPUs and does so when
//! the node has room. [`Action::MovePages`] goes to the kernel's page-move protocol; what became of
//! each page comes back through [`Planner::handle`].
//!
//! # Invariants (tested)
//! * Nothing is decided for a machine that is off, idle, unknown, on a flat host, or whose remote
//!   memory is not touched.
//! * No order exceeds the target's free memory or the budget.
//! * The same inputs give the same decisions: no clock, no hash order, no randomness.
//!
//! # Where to read next
//! [`price`] for benefit and cost, [`planner`] for evidence and choice, [`view`] for the inputs, [`adapt`] for thresholds that
//! follow the load.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod adapt;
pub mod budget;
pub mod order;
mod place;
pub mod planner;
pub mod price;
mod sentence;
pub mod tally;
pub mod tunables;
mod useful;
pub mod view;

pub use order::{Action, Decision, Event, MoveOutcome, MoveResult, PageOrder};
pub use planner::Planner;
pub use tally::Tally;
pub use tunables::Tunables;
pub use view::{HostView, LinkView, Mode, NodeView, VcpuView, VmView};
