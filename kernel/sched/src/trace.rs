//! A run of the scheduler as data, and the same run again.
//!
//! The scheduler has no clock, no lock and no chance of its own, so its inputs in their order are the
//! whole run. A [`Step`] is one input with what came of it; the kernel records steps when the
//! configuration asks for it, and [`Replay`] feeds them to a fresh scheduler and compares. So a strange
//! decision in the field becomes a test on a desk, and a change of policy shows which decisions it changes.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use serde::{Deserialize, Serialize};
use telemetry::Pick;
use units::{CpuId, Nanos, VcpuId};

use crate::event::{Command, Commands, Event, Next};
use crate::scheduler::Scheduler;
use crate::tunables::Tunables;

/// What the scheduler is told or asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// It begins, with these constants.
    Begin(Tunables),
    /// Something happened.
    Event(Event),
    /// A CPU needs work.
    Pick(CpuId),
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What the kernel was told to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Command>,
    /// Whom the CPU runs, for how long, and a checksum of the decision with all its terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<(VcpuId, Nanos, u64)>,
    /// Until when it idles at most, where it found nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Nanos>,
    /// Whether an event was refused.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub refused: bool,
}

/// One input and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number in the run, from 0, without gaps.
    pub step: u64,
    /// When.
    pub at: Nanos,
    /// The input.
    pub input: Input,
    /// The outcome.
    pub outcome: Outcome,
}

/// FNV-1a over text, so that a decision's terms need 8 bytes in a record instead of 400.
struct Checksum(u64);

impl Write for Checksum {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for b in s.bytes() {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

fn checksum(why: &Pick) -> u64 {
    let mut sum = Checksum(0xcbf2_9ce4_8422_2325);
    // Writing to a checksum does not fail.
    let _ = write!(sum, "{why:?}");
    sum.0
}

impl Outcome {
    /// Of an event: the commands that it added to `commands` after the first `before`.
    pub fn of_event(commands: &Commands, before: usize, refused: bool) -> Self {
        Self {
            commands: commands.as_slice().get(before..).unwrap_or(&[]).to_vec(),
            refused,
            ..Self::default()
        }
    }

    /// Of a pick.
    pub fn of_pick(commands: &Commands, next: &Next) -> Self {
        let (run, idle) = match next {
            Next::Run { vcpu, slice, why } => (Some((*vcpu, *slice, checksum(why))), None),
            Next::Idle { until } => (None, *until),
        };
        Self {
            commands: commands.as_slice().to_vec(),
            run,
            idle,
            refused: false,
        }
    }
}

/// Why a run does not repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step.
    pub step: u64,
    /// What is different, as a sentence.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}", self.step, self.what)
    }
}

impl core::error::Error for Difference {}

/// A run that is being repeated.
#[derive(Debug, Default)]
pub struct Replay {
    sched: Option<Scheduler>,
    next: u64,
    /// Picks that were repeated.
    pub picks: u64,
    /// Commands that were repeated.
    pub commands: u64,
}

impl Replay {
    /// Repeats one step.
    ///
    /// # Errors
    /// [`Difference`] if steps are missing or out of order, or the outcome is another.
    pub fn step(&mut self, step: &Step) -> Result<(), Difference> {
        let differs = |what: String| Difference {
            step: step.step,
            what,
        };
        if step.step != self.next {
            return Err(differs(alloc::format!(
                "step {} was expected; records are missing",
                self.next
            )));
        }
        self.next += 1;
        if let Input::Begin(tunables) = &step.input {
            self.sched = Some(Scheduler::new(*tunables));
            return Ok(());
        }
        let Some(sched) = &mut self.sched else {
            return Err(differs("the run does not begin with its constants".into()));
        };
        let mut out = Commands::new();
        let now = match &step.input {
            Input::Pick(cpu) => {
                let next = sched.pick(*cpu, step.at, &mut out);
                self.picks += 1;
                Outcome::of_pick(&out, &next)
            }
            Input::Event(event) => {
                let refused = sched.handle(step.at, event.clone(), &mut out).is_err();
                Outcome::of_event(&out, 0, refused)
            }
            Input::Begin(_) => Outcome::default(),
        };
        self.commands += now.commands.len() as u64;
        if now == step.outcome {
            return Ok(());
        }
        Err(differs(alloc::format!(
            "{:?} gave {:?} when it was recorded and gives {now:?} now",
            step.input,
            step.outcome
        )))
    }

    /// The scheduler as it is after the steps so far; `None` before the first.
    pub const fn scheduler(&self) -> Option<&Scheduler> {
        self.sched.as_ref()
    }

    /// Steps repeated so far.
    pub const fn steps(&self) -> u64 {
        self.next
    }
}
