//! The scheduler's inputs, one after the other, and their record.
//!
//! All calls of the scheduler go through here, under its lock. With `trace = true` each becomes a step
//! with its number, taken under the same lock, so that the order of the record is the order of the run;
//! the line itself is written after the lock is free.

use super::record;
use crate::arch::time;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use sched::trace::{Input, Outcome, Step};
use sched::{Commands, Event, Next, Refusal, Scheduler, Tunables};
use telemetry::Event as Told;
use units::{CpuId, Nanos};

static TRACED: AtomicBool = AtomicBool::new(false);
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Steps of one holding of the lock, to be written once it is free.
#[derive(Debug, Default)]
pub struct Trace(Vec<Step>);

impl Trace {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    fn note(
        &mut self,
        at: Nanos,
        input: impl FnOnce() -> Input,
        outcome: impl FnOnce() -> Outcome,
    ) {
        if TRACED.load(Relaxed) {
            self.0.push(Step {
                step: STEPS.fetch_add(1, Relaxed),
                at,
                input: input(),
                outcome: outcome(),
            });
        }
    }

    /// Writes what was noted. The scheduler's lock is free.
    pub fn write(self) {
        for step in self.0 {
            // Our own types serialise; should one not, the replay says which step is missing.
            let step = serde_json::to_string(&step).unwrap_or_else(|_| String::new());
            record(Told::Schedule { step });
        }
    }
}

/// A scheduler with these constants. Called once, before any other CPU runs.
pub fn begin(tunables: Tunables, traced: bool) -> Scheduler {
    TRACED.store(traced, Relaxed);
    let mut trace = Trace::new();
    trace.note(time::now(), || Input::Begin(tunables), Outcome::default);
    trace.write();
    Scheduler::new(tunables)
}

/// Tells the scheduler; what it wants done is returned.
///
/// # Errors
/// Its refusal.
pub fn handle(
    sched: &mut Scheduler,
    now: Nanos,
    event: Event,
    trace: &mut Trace,
) -> Result<Commands, Refusal> {
    let mut commands = Commands::new();
    let told = TRACED.load(Relaxed).then(|| event.clone());
    let result = sched.handle(now, event, &mut commands);
    if let Some(event) = told {
        trace.note(
            now,
            || Input::Event(event),
            || Outcome::of_event(&commands, 0, result.is_err()),
        );
    }
    result.map(|()| commands)
}

/// Asks it.
pub fn pick(sched: &mut Scheduler, cpu: CpuId, now: Nanos, trace: &mut Trace) -> (Next, Commands) {
    let mut commands = Commands::new();
    let next = sched.pick(cpu, now, &mut commands);
    trace.note(
        now,
        || Input::Pick(cpu),
        || Outcome::of_pick(&commands, &next),
    );
    (next, commands)
}
