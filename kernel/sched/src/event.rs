//! What the kernel tells the scheduler, and what the scheduler asks of the kernel.

use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};
use telemetry::{Class, MoveReason, Pick};
use units::{CpuId, Nanos, NodeId, PerMille, Score, VcpuId, VmId};

/// Where a processor sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuPlace {
    /// Its node.
    pub node: NodeId,
    /// Any number that CPUs with the same last-level cache share.
    pub llc: u32,
    /// Any number that the hardware threads of one core share.
    pub core: u32,
}

/// Where a vCPU may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affinity {
    /// Anywhere.
    #[default]
    Any,
    /// On these CPUs.
    Cpus(Vec<CpuId>),
    /// On the CPUs of these nodes.
    Nodes(Vec<NodeId>),
}

impl Affinity {
    /// Whether it admits this CPU.
    pub fn allows(&self, cpu: CpuId, place: &CpuPlace) -> bool {
        match self {
            Self::Any => true,
            Self::Cpus(cpus) => cpus.contains(&cpu),
            Self::Nodes(nodes) => nodes.contains(&place.node),
        }
    }
}

/// What a new vCPU asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuSpec {
    /// Its share against others of its class; [`crate::DEFAULT_WEIGHT`] is ordinary, 0 counts as 1.
    pub weight: u32,
    /// At most this much, in thousandths of one CPU, for all vCPUs of its machine together; None is no limit. The last one
    /// that was told of a machine's vCPUs holds.
    pub cap: Option<PerMille>,
    /// Its priority class.
    pub class: Class,
    /// Where it may run.
    pub affinity: Affinity,
    /// Node where it starts, if that has a CPU it may use.
    pub home: Option<NodeId>,
}

impl Default for VcpuSpec {
    fn default() -> Self {
        Self {
            weight: crate::DEFAULT_WEIGHT,
            cap: None,
            class: Class::Normal,
            affinity: Affinity::Any,
            home: None,
        }
    }
}

/// What happened in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A processor is ready to pick.
    CpuOnline {
        /// Which.
        cpu: CpuId,
        /// Where it sits.
        place: CpuPlace,
    },
    /// A vCPU exists. It does not run before its first [`Event::Wake`].
    VcpuAdded {
        /// Which.
        vcpu: VcpuId,
        /// What it asks for.
        spec: VcpuSpec,
    },
    /// A vCPU is gone. If it is inside the guest, its CPU is kicked; it is not picked again.
    VcpuRemoved {
        /// Which.
        vcpu: VcpuId,
    },
    /// A halted vCPU has something to do. Harmless when it has not halted.
    Wake {
        /// Which.
        vcpu: VcpuId,
    },
    /// A vCPU halts until woken. Sent by the CPU it ran on, after it left the guest.
    Block {
        /// Which.
        vcpu: VcpuId,
    },
    /// A vCPU gives up the rest of its request (hypercall).
    Yield {
        /// Which.
        vcpu: VcpuId,
    },
    /// A vCPU spins (PAUSE-loop exit): what it waits for may be held by a neighbour of its machine
    /// that was preempted. Sent by the CPU it ran on, after the charge. See [`crate::donate`].
    Spin {
        /// Which.
        vcpu: VcpuId,
    },
    /// A vCPU has run for `ran` since the last charge or since it was picked. Sent before
    /// `Block`, `Yield` and every pick; a charge beyond the time that has passed is lowered to it.
    Charge {
        /// On this CPU.
        cpu: CpuId,
        /// Which.
        vcpu: VcpuId,
        /// Time in the guest and in handling its exits.
        ran: Nanos,
    },
    /// The kernel worked for a machine besides running it: it looked at what it touches, or moved its pages. The machine pays
    /// for that.
    Overhead {
        /// Which.
        vm: VmId,
        /// CPU time.
        took: Nanos,
    },
    /// How near each node is to what a machine touches, by node number; empty is no opinion.
    ///
    /// Not sent for machines whose mode forbids vCPU moves: scores weigh in what an idle CPU
    /// takes and in balance, not only in the order of a queue.
    ProximityUpdated {
        /// Whose.
        vm: VmId,
        /// One score per node.
        scores: Vec<Score>,
    },
    /// How near each node is to what one vCPU touches, by node number, where that is not what its machine touches; empty: its
    /// machine's scores hold for it. Not sent for machines whose mode forbids vCPU moves.
    VcpuProximity {
        /// Whose.
        vcpu: VcpuId,
        /// One score per node.
        scores: Vec<Score>,
    },
    /// From now on so much of the bonus for proximity is given ([`crate::Tunables::proximity_per_mille`]).
    BonusWeighed {
        /// The part.
        part: PerMille,
    },
    /// From now on a spinning vCPU leaves its slice to a preempted neighbour, or only yields ([`crate::Tunables::donate`]).
    Donating {
        /// Whether it does.
        on: bool,
    },
    /// What memory costs a vCPU, as a PMU tells. Without one nothing is lost to misses, and how much
    /// distance matters is not known, which counts as all.
    CachePenalty {
        /// Which.
        vcpu: VcpuId,
        /// Part of its run time in which it waits for memory: so much does distance matter to it.
        stall: Score,
        /// What its next slice is expected to lose to misses.
        penalty: Nanos,
        /// What it takes to fill another last-level cache with its working set.
        refill: Nanos,
    },
    /// The planner wants a machine's vCPUs on a node, as soon as it has room; None withdraws it.
    PreferredNode {
        /// Whose.
        vm: VmId,
        /// Where.
        node: Option<NodeId>,
    },
    /// A vCPU's share, limit, class or affinity changed.
    Respecified {
        /// Which.
        vcpu: VcpuId,
        /// What it asks for now; `home` has no effect.
        spec: VcpuSpec,
    },
    /// No vCPU of a machine runs until it is resumed.
    Paused {
        /// Which.
        vm: VmId,
    },
    /// A paused machine goes on.
    Resumed {
        /// Which.
        vm: VmId,
    },
}

/// What the kernel must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Interrupt a CPU so that it picks again. Harmless when it was about to.
    Kick {
        /// Which.
        cpu: CpuId,
    },
    /// A vCPU changed its CPU: it will be entered at `to` next. It is in no guest at this
    /// moment; the kernel checks that and says so loudly if not.
    Migrate {
        /// Which.
        vcpu: VcpuId,
        /// Where it ran or waited.
        from: CpuId,
        /// Where it goes.
        to: CpuId,
        /// Why.
        reason: MoveReason,
    },
}

/// Commands of one call, in the order in which they are to be executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands(Vec<Command>);

impl Commands {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }
    /// Adds one; a second kick of the same CPU is dropped.
    pub(crate) fn push(&mut self, command: Command) {
        if !(matches!(command, Command::Kick { .. }) && self.0.contains(&command)) {
            self.0.push(command);
        }
    }
    /// Takes them out; the allocation stays for the next call.
    pub fn drain(&mut self) -> impl Iterator<Item = Command> + '_ {
        self.0.drain(..)
    }
    /// A look at them.
    pub fn as_slice(&self) -> &[Command] {
        &self.0
    }
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a CPU does next.
#[must_use = "a CPU that ignores its pick runs nothing, or the wrong vCPU"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter this vCPU.
    Run {
        /// Which.
        vcpu: VcpuId,
        /// Leave it after this time at the latest, and pick again.
        slice: Nanos,
        /// The decision with its terms.
        why: Pick,
    },
    /// Nothing to run. Sleep until an interrupt, but pick again at `until`.
    Idle {
        /// When a limit ends or a waiting vCPU may be taken from another CPU; None: not known.
        until: Option<Nanos>,
    },
}

/// Why an event was not acted upon. The scheduler's state is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The event names a vCPU that was never added or is gone.
    UnknownVcpu(VcpuId),
    /// The event names a CPU that is not online.
    UnknownCpu(CpuId),
    /// A vCPU was added twice.
    DuplicateVcpu(VcpuId),
    /// A CPU came online twice.
    DuplicateCpu(CpuId),
    /// A CPU's number is beyond [`crate::table::MAX_CPUS`].
    CpuOutOfRange(CpuId),
    /// A CPU charged for a vCPU that it does not run.
    NotRunningHere(VcpuId, CpuId),
    /// No CPU that is online may run the vCPU.
    NowhereToRun(VcpuId),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVcpu(v) => {
                write!(f, "scheduler: {v} does not exist; the event was ignored")
            }
            Self::UnknownCpu(c) => write!(f, "scheduler: {c} is not online; the event was ignored"),
            Self::DuplicateVcpu(v) => {
                write!(f, "scheduler: {v} exists already; it was not added again")
            }
            Self::DuplicateCpu(c) => {
                write!(f, "scheduler: {c} is online already; its place was kept")
            }
            Self::CpuOutOfRange(c) => {
                write!(
                    f,
                    "scheduler: {c} is beyond the largest number; it stays unused"
                )
            }
            Self::NotRunningHere(v, c) => {
                write!(
                    f,
                    "scheduler: {c} charged for {v}, which it does not run; nothing was charged"
                )
            }
            Self::NowhereToRun(v) => {
                write!(
                    f,
                    "scheduler: no online CPU is in the affinity of {v}; it was not added"
                )
            }
        }
    }
}

impl core::error::Error for Refusal {}
