//! The scheduler and its one lock, whose price is known.
//!
//! Run queues are per CPU and a CPU reaches another only through its deferred-work word and an interrupt, but all decisions
//! are made one after the other. That is what makes a recorded run replay to the identical commands, and what lets one CPU take from
//! another's queue without a protocol that would have to be proved. A decision of a thousand vCPUs on 64 CPUs takes about
//! two microseconds, so the lock is held for a thirtieth of the time; on 1,024 CPUs for half and more (`numasim cost` prints it for other
//! sizes). There CPUs begin to wait for each other, and larger hosts would need a scheduler for each part of the
//! machine with a balance between those.
//!
//! How long the lock is held and waited for on this host, `latency` tells. Each CPU counts for itself, and only who
//! asks reads all of them.

use crate::arch::{percpu, time};
use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut};
use sched::Scheduler;
use spin::{Mutex, MutexGuard};
use telemetry::Histogram;
use units::Nanos;

/// How often one CPU, or all of them, took the lock, and for how long.
#[derive(Clone, Debug, Default)]
pub struct Times {
    waited: Histogram,
    held: Histogram,
}

impl Times {
    fn merge(&mut self, other: &Self) {
        self.waited.merge(&other.waited);
        self.held.merge(&other.held);
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |h: &Histogram| {
            let (p50, p99) = (h.quantile(500), h.quantile(990));
            alloc::format!("p50 {p50}, p99 {p99}, longest {}", h.longest())
        };
        write!(
            f,
            "the scheduler's lock was taken {} times; waited for {}; held {}",
            self.held.count(),
            of(&self.waited),
            of(&self.held)
        )
    }
}

/// The scheduler behind its lock.
#[derive(Debug)]
pub struct Locked {
    sched: Mutex<Scheduler>,
    times: Vec<Mutex<Times>>,
}

impl Locked {
    /// For so many CPUs.
    pub fn new(sched: Scheduler, cpus: usize) -> Self {
        Self {
            sched: Mutex::new(sched),
            times: (0..cpus).map(|_| Mutex::default()).collect(),
        }
    }

    /// Waits for the lock and takes it.
    pub fn lock(&self) -> Held<'_> {
        let asked = time::now();
        let sched = self.sched.lock();
        let since = time::now();
        let count = Count {
            times: self.times.get(percpu::current().cpu.index()),
            waited: since.since(asked),
            since,
        };
        Held {
            sched,
            _count: count,
        }
    }

    /// What all CPUs counted.
    pub fn times(&self) -> Times {
        let mut all = Times::default();
        self.times.iter().for_each(|of| all.merge(&of.lock()));
        all
    }
}

/// The lock is held.
#[derive(Debug)]
pub struct Held<'a> {
    sched: MutexGuard<'a, Scheduler>,
    /// After the guard, so that nobody waits for the counting.
    _count: Count<'a>,
}

impl Deref for Held<'_> {
    type Target = Scheduler;
    fn deref(&self) -> &Scheduler {
        &self.sched
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Scheduler {
        &mut self.sched
    }
}

/// Counts when the lock is free again.
#[derive(Debug)]
struct Count<'a> {
    times: Option<&'a Mutex<Times>>,
    waited: Nanos,
    since: Nanos,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        let held = time::now().since(self.since);
        if let Some(times) = self.times {
            let mut times = times.lock();
            times.waited.add(self.waited);
            times.held.add(held);
        }
    }
}
