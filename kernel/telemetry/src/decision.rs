//! The terms inside a decision: what the scheduler summed and what the planner weighed.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use serde::{Deserialize, Serialize};
use units::{CpuId, Credits, Nanos, NodeId, PerMille, Score, VcpuId};

/// Priority class, highest first. A lower class keeps a floor of each CPU (`sched`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Runs before the others.
    High,
    /// Where machines are unless configured otherwise.
    #[default]
    Normal,
    /// Takes what the others leave, and the floor.
    Low,
}

impl Class {
    /// All classes, highest first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        })
    }
}

/// The sum by which one vCPU was compared with the others of its class on one CPU.
///
/// `key = (remaining - credit - bonus + penalty) x 256 / weight`; the smallest key among those
/// with `credit >= 0` runs. All in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Priority class.
    pub class: Class,
    /// Weight, 256 being ordinary.
    pub weight: u32,
    /// What the CPU owes the vCPU (its lag): earned by waiting, paid by running.
    pub credit: Credits,
    /// What is left of its current request.
    pub remaining: Nanos,
    /// Virtual deadline against the queue's present, `remaining - credit`, at weight 256.
    pub deadline: Credits,
    /// What proximity adds: positive where the vCPU's memory is nearer than on average.
    pub bonus: Credits,
    /// What expected cache misses take.
    pub penalty: Credits,
    /// The compared sum.
    pub key: Credits,
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "class {}, weight {}: deadline {} (remaining {} - credit {}) - proximity {} + cache {} = key {}",
            self.class,
            self.weight,
            self.deadline,
            self.remaining,
            self.credit,
            self.bonus,
            self.penalty,
            self.key
        )
    }
}

/// The vCPU that would have run instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Its sum.
    pub terms: Terms,
}

/// One pick of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pick {
    /// The CPU that asked.
    pub cpu: CpuId,
    /// Who runs.
    pub vcpu: VcpuId,
    /// For how long, unless something happens.
    pub slice: Nanos,
    /// Its sum.
    pub terms: Terms,
    /// vCPUs that could have run on this CPU, the chosen one included.
    pub runnable: u16,
    /// The best of the others, if there was one.
    pub alternative: Option<Rival>,
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} runs {} for {}: {}",
            self.cpu, self.vcpu, self.slice, self.terms
        )?;
        match &self.alternative {
            Some(rival) => {
                write!(
                    f,
                    "; next best of {} is {}: {}",
                    self.runnable, rival.vcpu, rival.terms
                )
            }
            None => f.write_str("; nobody else could run here"),
        }
    }
}

/// Why a vCPU changed its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum MoveReason {
    /// It woke, and another CPU was the better place.
    WakeUp,
    /// A CPU without work took it from a queue where it waited.
    IdlePull {
        /// How long it had waited.
        waited: Nanos,
    },
    /// Load was evened out.
    Balance {
        /// Load of the CPU it left, in thousandths of a CPU's fair load.
        from_load: u32,
        /// Load of the CPU it joined.
        to_load: u32,
    },
    /// It had received less than others beyond what one queue can even out.
    Fairness {
        /// What it was owed machine-wide.
        owed: Credits,
    },
    /// The planner named its machine's node.
    Preferred {
        /// Proximity where it was.
        from: Score,
        /// Proximity where it goes.
        to: Score,
    },
    /// Its CPU left its affinity, or the operator asked.
    Affinity,
    /// A neighbour of its machine spun and left it its slice.
    Donated {
        /// Who.
        by: VcpuId,
    },
    /// It had come for a slice that was left to it, and goes back to its own CPU.
    Visited,
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WakeUp => f.write_str("it woke up and this CPU was the better place"),
            Self::IdlePull { waited } => {
                write!(f, "the CPU was idle and the vCPU had waited {waited}")
            }
            Self::Balance { from_load, to_load } => {
                write!(f, "to even out load {from_load} against {to_load}")
            }
            Self::Fairness { owed } => write!(f, "it was owed {owed} of CPU time"),
            Self::Preferred { from, to } => {
                write!(f, "its memory is nearer there: proximity {from} -> {to}")
            }
            Self::Affinity => f.write_str("its affinity asks for it"),
            Self::Donated { by } => write!(f, "{by} spun and left it its slice"),
            Self::Visited => f.write_str("it had come for a slice and goes home"),
        }
    }
}

/// What a planner may do for one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Choice {
    /// Bring the vCPUs to a node.
    MoveVcpus {
        /// Where to.
        to: NodeId,
        /// How many would move.
        vcpus: u16,
    },
    /// Bring pages to a node.
    MovePages {
        /// Where to.
        to: NodeId,
        /// How much would move.
        bytes: u64,
    },
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MoveVcpus { to, vcpus } => {
                write!(
                    f,
                    "move {vcpus} vCPU{} to {to}",
                    if vcpus == 1 { "" } else { "s" }
                )
            }
            Self::MovePages { to, bytes } => {
                write!(f, "move {} MiB to {to}", bytes.div_ceil(1 << 20))
            }
        }
    }
}

/// A choice with its price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// What would be done.
    pub choice: Choice,
    /// Proximity gained.
    pub gain: Score,
    /// Time saved for each second the machine runs, in nanoseconds.
    pub benefit_ns_per_s: u64,
    /// One-time cost.
    pub cost: Nanos,
    /// Cost divided by benefit.
    pub pays_back: Nanos,
    /// Why it was not taken; empty for the chosen one.
    pub refused: String,
}

impl fmt::Display for Alternative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: gain {}, cost {}, pays back in {}",
            self.choice, self.gain, self.cost, self.pays_back
        )?;
        if !self.refused.is_empty() {
            write!(f, " ({})", self.refused)?;
        }
        Ok(())
    }
}

/// Why the planner left a machine where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "hold", rename_all = "snake_case")]
pub enum Hold {
    /// Its mode forbids every move.
    Off,
    /// It hardly runs, so where its memory lies costs nothing.
    Idle,
    /// All distances of the host are equal.
    Flat,
    /// Too few observed accesses for an opinion.
    Unsure,
    /// Nothing possible gains enough.
    Near {
        /// Proximity now.
        proximity: Score,
        /// What the best choice would add.
        gain: Score,
    },
    /// A gain was seen, but not in enough passes yet.
    Waiting {
        /// Passes that agree.
        seen: u8,
        /// Passes needed.
        needed: u8,
    },
    /// It would not pay back in time.
    Unprofitable {
        /// Saved within the horizon.
        benefit: Nanos,
        /// What it must exceed: cost times the damping factor.
        threshold: Nanos,
    },
    /// A gain exists, but CPU time or memory on the target is missing, or affinity forbids it.
    NoRoom {
        /// The node that has none.
        node: NodeId,
    },
    /// The byte budget is used up for now.
    Budget {
        /// When it will suffice for a page.
        until: Nanos,
    },
    /// Moves of its pages were of no use, so they stay until a few are tried again.
    Useless {
        /// Part of those followed that were of use.
        useful: PerMille,
        /// When a few are tried again.
        until: Nanos,
    },
    /// An order is under way.
    Settling {
        /// When it is judged.
        until: Nanos,
    },
    /// It would act, but the mode says to explain only.
    DryRun,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("migration is off for it"),
            Self::Idle => f.write_str("it is idle"),
            Self::Flat => f.write_str("every node is equally far from every other"),
            Self::Unsure => f.write_str("too few of its accesses have been seen"),
            Self::Near { proximity, gain } => {
                write!(
                    f,
                    "its proximity is {proximity} and no move adds more than {gain}"
                )
            }
            Self::Waiting { seen, needed } => {
                write!(f, "{seen} of {needed} passes agree so far")
            }
            Self::Unprofitable { benefit, threshold } => {
                write!(
                    f,
                    "a move would save {benefit} in time and must save {threshold}"
                )
            }
            Self::NoRoom { node } => write!(f, "{node} has no room for it"),
            Self::Budget { until } => write!(f, "its copy budget is used up until {until}"),
            Self::Useless { useful, until } => write!(
                f,
                "{useful} of its pages that were moved were of use, so they stay until {until}"
            ),
            Self::Settling { until } => write!(f, "the last order is judged at {until}"),
            Self::DryRun => f.write_str("dry run"),
        }
    }
}

/// A threshold that follows the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dial {
    /// Time between two looks, in multiples of what the sampler wants.
    Interval,
    /// By how much more than its price a page must pay to be moved, in steps of a quarter.
    HotThreshold,
    /// Part of the copy budget that may be used, in thousandths.
    Budget,
    /// Strength of the scheduler's bonus for proximity, in thousandths.
    Bonus,
}

impl Dial {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Interval,
        Self::HotThreshold,
        Self::Budget,
        Self::Bonus,
    ];

    /// A value of this dial with its unit.
    pub fn show(self, value: u16) -> String {
        match self {
            Self::Interval => format!("{value} times what the sampler wants"),
            Self::HotThreshold => format!("step {value} of 15"),
            Self::Budget | Self::Bonus => PerMille(value).to_string(),
        }
    }
}

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interval => "time between looks",
            Self::HotThreshold => "hot threshold",
            Self::Budget => "copy budget",
            Self::Bonus => "proximity bonus",
        })
    }
}
