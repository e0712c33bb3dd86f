//! Where a machine's memory is *used*, and how near each processor is to that.
//!
//! # The problem
//! A machine owns memory on several nodes and runs on several nodes. Where its memory lies is
//! known; which of it matters is not. Moving a machine towards memory that it never touches is
//! work for nothing, and most memory is of that kind.
//!
//! # The idea
//! The processor sets an *accessed* bit in the nested page tables on the first touch of each
//! page. The kernel reads and clears those bits where a [`Sampler`] asks it to, many times a second and at little
//! cost; what the sampler finds is handed on as a stream of [`LeafSample`]s, each with the rate at which it is
//! touched, together with where the machine's vCPUs ran meanwhile ([`Window`]). From that a [`Footprint`] keeps
//!
//! * the matrix `F[k][n]`: how often node `k` touched memory of node `n`; it fades with a half-life
//!   of [`Tunables::half_life`], and each pass adds the new rates;
//! * the heat of every page that was touched lately, hottest first on demand;
//! * how much evidence there is: below [`Tunables::min_touches`] there is no opinion, above it the
//!   lower end of a confidence interval is used, never the point estimate.
//!
//! [`proximity`] turns the matrix and the host's latencies into one number per node between 0
//! and 1: how near that node is to what the machine touches. The scheduler and the planner read
//! nothing else.
//!
//! # What an accessed bit does not say
//! It says *touched in this interval*, not how often: a page that a timer tick grazes looks like a
//! page in an inner loop, and a 2 MiB leaf with one such page looks like one that holds nothing else. So intervals are
//! short and many, and what counts is the rate that hits prove ([`rate`]); touched leaves are looked at
//! page by page now and then ([`lens`]); what stopped guests were about to touch says how touches divide among
//! nodes ([`operands`]); and a machine that ran less than [`Tunables::idle_run`] of one CPU is idle: its
//! background touches are not recorded and there is no opinion about it. Memory that was not touched weighs
//! exactly nothing, however much there is.
//!
//! # What left the caches
//! Only that costs anything. Where the processor counts reads of near and of far memory, they correct how a node's touches divide
//! between the two, and where they contradict there is less confidence ([`counters`]). Without counters nothing changes.
//!
//! # How busy memories and links are
//! The same matrix says how traffic divides among them; where processors count what leaves their caches, that says how much there
//! is ([`load`]).
//!
//! # Whose touch was it?
//! With one nested root for the whole machine the bit does not tell who touched; touches are
//! attributed to nodes by where the machine ran ([`Attribution::ByRunTime`]). With one root per
//! node the bit itself tells ([`Attribution::ByRoot`], [`accessors`]): touches through a root are divided among the nodes that
//! use it, by run time, which is one node alone if it has a root of its own. What is hot, and how much in all, is the same
//! either way.
//!
//! # Who of the machine was it?
//! The same looks say which vCPU touched what, and so which vCPUs work on the same memory: each such group has a matrix and
//! scores of its own ([`groups`]).
//!
//! # Invariants
//! * Untouched memory, an idle machine and an empty pass leave every share and score unchanged or
//!   without opinion.
//! * A node that is farther from all touched memory than another never scores higher.
//! * All arithmetic is in integers and saturates; no input makes it panic.
//!
//! # Where to read next
//! [`sampler`] for what is looked at, [`tracker`] for a pass, [`latency`] for the score, [`evidence`] for confidence.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod accessors;
pub mod counters;
pub mod evidence;
mod fading;
pub mod groups;
pub mod latency;
pub mod lens;
pub mod load;
pub mod matrix;
pub mod operands;
pub mod pages;
pub mod port;
pub mod rate;
pub mod region;
pub mod regions;
mod remembered;
pub mod roots;
pub mod sample;
pub mod sampler;
mod share;
pub mod touched;
mod tracker;
pub mod tunables;

pub use counters::DramReads;
pub use evidence::wilson_lower;
pub use groups::Groups;
pub use latency::{Latencies, LatencyError, proximity};
pub use matrix::Matrix;
pub use operands::Operands;
pub use pages::{PageHits, PageLooks};
pub use sample::{Attribution, Coverage, LeafSample, Window};
pub use sampler::Sampler;
pub use tracker::{Footprint, HotPage, PassSummary, TOUCH};
pub use tunables::Tunables;
