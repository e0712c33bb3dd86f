//! Scheduler, footprint and planner together on a synthetic machine of four nodes.
//!
//! The machine is the scheduler's own test harness; memory is a list of 2 MiB pages per machine and
//! a rule that says which are touched when. Every 200 ms a pass sees the touched pages, the planner
//! plans, and its orders are carried out: preferred nodes by the real scheduler, page moves at once.
//! Local-access ratio is counted here, from where vCPUs ran and where touched pages lay.

mod adapts;
#[path = "../../../sched/tests/common/mod.rs"]
mod common;
mod follows;
mod groups;
mod lab;
mod stays;
