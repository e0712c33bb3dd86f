//! Perigee's policies on machines that no test laboratory has.
//!
//! A deterministic discrete-event simulator around `sched`, `footprint` and `migrate`, unchanged: what the
//! kernel tells them a simulated host tells them here, and what they command happens to it. The host has
//! nodes, caches, hardware threads, controllers and links of finite bandwidth whose latency grows with
//! load ([`machine`], [`world`]); its VMs compute, miss their caches, sleep, take locks and share memory
//! ([`workload`]). The same scenario runs under four baselines ([`baseline`]) and under our own
//! scheduler without knowledge of nodes; small ones are compared
//! with the best static placement, found by trying all ([`optimum`]).
//!
//! What it is good for: comparing policies, finding where ours loses, sizes from 1 to 64 nodes. What it
//! is not: a prediction of nanoseconds. Its costs are round numbers, in one place each, and only
//! ratios between policies on the same scenario mean anything.
//!
//! Read [`engine`] for how time passes, [`compare`] for a run, [`report`] for what comes out.
#![forbid(unsafe_code)]

pub mod baseline;
pub mod compare;
pub mod engine;
mod lock;
pub mod looks;
pub mod machine;
pub mod measure;
pub mod optimum;
pub mod perigee;
pub mod policy;
pub mod report;
pub mod rng;
pub mod scenario;
pub mod svg;
pub mod workload;
pub mod world;
