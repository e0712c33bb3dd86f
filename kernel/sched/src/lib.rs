//! Who runs, where, and for how long: fair by credit, near by proximity, bounded by Q.
//!
//! # The problem
//! A machine runs best near the memory that it touches; its owner paid for a share of the
//! processors. A scheduler that simply adds "how near" to "how much is owed" lets the near ones
//! run and the far ones starve: with weights of eight times 1 and one of 16, the largest sum of
//! credit and bonus leaves a vCPU 53 ms behind. One that looks at shares alone never comes near.
//!
//! # The idea
//! Every vCPU that wants to run earns *credit* in proportion to its weight while its CPU runs
//! others of its class, and pays one nanosecond of credit for each nanosecond that it runs. What
//! the queue earns it pays, so credits sum to zero: a vCPU's credit is exactly its lag behind
//! the ideal fluid share. Only vCPUs with `credit >= 0` are *eligible*; among them the smallest
//!
//! `key = (remaining request - credit - bonus + penalty) / weight`
//!
//! runs, which is earliest eligible virtual deadline first (Stoica and Abdel-Wahab 1995; Linux 6.6) with
//! the deadline brought forward by proximity and pushed back by cache misses. Because `|bonus| +
//! penalty <= Q/10` acts like a slightly shorter or longer request, it changes the *order* among
//! those who are owed time and never *whether* they get it: `|lag| <= Q`.
//!
//! Above that stand three priority classes, where lower ones keep a floor of 5 %, and limits
//! (caps). Below it stands work conservation: a CPU without work takes a waiting vCPU from
//! another one, from a far node only after a delay that grows with the proximity it would lose, never
//! more than 5 ms.
//!
//! # Who calls
//! `handle(now, event, &mut commands)` for everything that happens, `pick(cpu, now, &mut
//! commands)` when a CPU needs work. Before a CPU picks, it has left its last vCPU for good: all
//! state is in memory, so that another CPU may enter it. Time is an argument; there is no clock, no lock, no
//! hash order, so a recorded run replays to identical commands. The kernel executes commands and
//! verifies them.
//!
//! # Invariants (each a property test)
//! * A vCPU is never on two CPUs: between a pick and the next pick of the same CPU nobody else gets it.
//! * Inside a queue and class, credits sum to 0 but for entry and exit, and `|lag| <= Q`, however members come and go:
//!   the argument is in `guard`.
//! * Work is conserved within 5 ms; nobody who may run starves.
//!
//! # Where to read next
//! [`queue`] for the arithmetic, `ledger` for who is charged, `guard` for the bound, [`pick`] for the decision, [`place`] for wake-ups, [`pull`] for idle
//! CPUs, [`balance`], [`even`] and [`gate`] for moves, [`smt`] for hardware threads, [`donate`] for those
//! that spin, `limits` for caps, `own` for vCPUs whose memory is elsewhere than their machine's, [`trace`] for a run as data. This is the only crate that moves vCPUs: the planner (`migrate`) names a preferred
//! node and this crate goes there when it has room.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod balance;
pub mod cores;
mod donate;
mod entitle;
pub mod even;
pub mod event;
pub mod gate;
mod guard;
pub mod latency;
mod ledger;
mod limits;
mod own;
pub mod pick;
pub mod place;
pub mod pull;
mod purse;
pub mod queue;
mod repack;
pub mod report;
mod round;
pub mod scheduler;
mod score;
pub mod smt;
pub mod swap;
pub mod table;
pub mod trace;
pub mod tunables;
pub mod vcpu;
pub mod waiting;

pub use event::{Affinity, Command, Commands, CpuPlace, Event, Next, Refusal, VcpuSpec};
pub use report::{CpuReport, Explanation, State, VcpuReport};
pub use scheduler::Scheduler;
pub use telemetry::Class;
pub use tunables::{DEFAULT_WEIGHT, GateTunables, MAX_WEIGHT, Tunables};
