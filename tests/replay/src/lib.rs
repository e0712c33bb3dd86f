//! Recorded runs of the scheduler, repeated on the host.
//!
//! The kernel writes a record for every step of its scheduler when its configuration says `trace = true`
//! in `[host]`. [`replay`] takes the lines of such a run (other records among them are passed over), puts
//! the steps in their order, and feeds them to the same crate on the host: every command and every pick,
//! with all terms of the decision, must come out as it did in the emulator.
#![forbid(unsafe_code)]

mod flips;

pub use flips::{Flip, flipped_by_penalties};

use sched::trace::{Replay, Step};
use telemetry::Event;

/// What was repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// Steps, all of them.
    pub steps: u64,
    /// Picks among them.
    pub picks: u64,
    /// Commands that came out.
    pub commands: u64,
}

/// Repeats the run in these lines of telemetry.
///
/// # Errors
/// A sentence that names the first step that is missing, unreadable, or comes out differently. A last
/// line that was torn when the machine was switched off is passed over.
pub fn replay<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Repeated, String> {
    let events = lines
        .into_iter()
        .filter_map(|line| telemetry::from_line(line).ok())
        .map(|record| record.event);
    replay_events(events)
}

/// The same of records that were read already.
///
/// # Errors
/// See [`replay`].
pub fn replay_events(events: impl IntoIterator<Item = Event>) -> Result<Repeated, String> {
    let mut run = Replay::default();
    for step in &steps_of(events)? {
        run.step(step).map_err(|e| e.to_string())?;
    }
    Ok(Repeated {
        steps: run.steps(),
        picks: run.picks,
        commands: run.commands,
    })
}

/// The steps among these records, in their order.
fn steps_of(events: impl IntoIterator<Item = Event>) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for event in events {
        if let Event::Schedule { step } = event {
            let step: Step = serde_json::from_str(&step)
                .map_err(|e| format!("a step is unreadable: {e} in {step}"))?;
            steps.push(step);
        }
    }
    // CPUs write their lines after they have left the lock, so neighbours may change places.
    steps.sort_by_key(|s| s.step);
    if steps.is_empty() {
        return Err("there is no step of a scheduler in it".into());
    }
    Ok(steps)
}
