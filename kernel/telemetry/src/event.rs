//! The events of a run.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use units::{
    ApicId, CpuId, Nanos, NodeId, PageSize, PerMille, ProximityDomain, Score, VcpuId, VmId,
};

use crate::counter::CounterValue;
use crate::decision::{Alternative, Choice, Dial, Hold, MoveReason, Pick};
use crate::touched::{HotRange, PageRange};

/// A node as the kernel understood it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Dense number.
    pub node: NodeId,
    /// The proximity domain that firmware gave it.
    pub pxm: ProximityDomain,
    /// Memory that belongs to it, in bytes; 0 for a node of CPUs only.
    pub memory_bytes: u64,
}

/// A processor as the kernel understood it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReport {
    /// Dense number.
    pub cpu: CpuId,
    /// Its node.
    pub node: NodeId,
    /// Its local APIC.
    pub apic: ApicId,
}

/// The machine as the kernel understood it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// All nodes, by number.
    pub nodes: Vec<NodeReport>,
    /// All processors, by number.
    pub cpus: Vec<CpuReport>,
    /// Relative distances as in SLIT, row = from, 10 = local.
    pub distances: Vec<Vec<u32>>,
    /// Latencies that policy uses, in nanoseconds, row = accessing node.
    pub latency_ns: Vec<Vec<u32>>,
    /// Where the latencies come from, such as "HMAT" or "SLIT x 10 ns".
    pub latency_source: String,
    /// Whether what the processors measured at boot is used, and why not; empty if nothing was measured.
    #[serde(default)]
    pub measured: String,
    /// What was wrong or odd in the firmware's tables and what was done instead, one sentence each.
    pub quirks: Vec<String>,
}

/// vCPUs of a machine that work on the same memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Which, ascending.
    pub vcpus: Vec<u16>,
    /// The nodes whose memory they touch most, largest first, each with its share of all that they touch.
    pub primary: Vec<(NodeId, PerMille)>,
    /// How sure.
    pub confidence: PerMille,
}

/// How a machine came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum OffReason {
    /// The guest switched it off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// It did what cannot be continued.
    Fault {
        /// What, as a sentence.
        what: String,
    },
    /// The operator stopped it.
    Stopped,
    /// A test kernel wrote this value to its exit port.
    TestExit {
        /// The value; 0 is success.
        value: u32,
    },
}

/// The value by which kvm-unit-tests says that all its tests were skipped: 77 in the status that a process gets.
const TEST_SKIPPED: u32 = 77 >> 1;

/// What a test kernel's exit value says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestVerdict {
    /// All is well.
    Passed,
    /// Nothing could be tested on this machine.
    Skipped,
    /// Something is wrong.
    Failed,
}

impl TestVerdict {
    /// The verdict behind a value of the exit port.
    #[must_use]
    pub const fn of(value: u32) -> Self {
        match value {
            0 => Self::Passed,
            TEST_SKIPPED => Self::Skipped,
            _ => Self::Failed,
        }
    }

    /// In one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// The exit status that QEMU's `isa-debug-exit` makes of a value, by which such tests are usually known.
#[must_use]
pub const fn test_status(value: u32) -> u64 {
    (value as u64) << 1 | 1
}

/// A step in a machine's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum VmEvent {
    /// Memory claimed, devices built.
    Created {
        /// Number of vCPUs.
        vcpus: u16,
        /// Guest memory in bytes.
        memory_bytes: u64,
        /// Node where it was placed.
        home: NodeId,
        /// Guest memory on each node, in bytes.
        memory_by_node: Vec<u64>,
    },
    /// Its first vCPU may run.
    Started,
    /// The operator paused it.
    Paused,
    /// The operator let it go on.
    Resumed,
    /// It ended.
    Off(OffReason),
}

/// How the whole run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Every machine powered off by itself or was stopped by the operator.
    Clean,
    /// A machine failed.
    GuestFailed {
        /// Names of those that did.
        vms: Vec<String>,
    },
    /// The hypervisor itself failed.
    Panicked,
}

/// Something that happened. Its `Display` is one sentence for an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The kernel reached a phase of its start.
    BootPhase {
        /// Name of the phase, such as `smp`.
        name: String,
    },
    /// The machine was understood.
    Topology(Topology),
    /// A machine's life went on.
    Vm {
        /// Its number.
        vm: VmId,
        /// Its name.
        name: String,
        /// What happened.
        #[serde(flatten)]
        what: VmEvent,
    },
    /// A vCPU changed its CPU.
    VcpuMoved {
        /// Which.
        vcpu: VcpuId,
        /// From this CPU,
        from: CpuId,
        /// of this node,
        from_node: NodeId,
        /// to this CPU,
        to: CpuId,
        /// of this node,
        to_node: NodeId,
        /// because of this.
        reason: MoveReason,
    },
    /// Pages of a machine changed their node.
    PagesMoved {
        /// Whose.
        vm: VmId,
        /// Its name.
        name: String,
        /// From this node.
        from: NodeId,
        /// To this node.
        to: NodeId,
        /// Leaves that moved.
        leaves: u32,
        /// Size of each.
        leaf: PageSize,
        /// Bytes moved.
        bytes: u64,
        /// Leaves that could not be moved.
        failed: u32,
        /// Leaves that the machine wrote to while they were copied.
        written: u32,
        /// Bytes that were copied once more for that.
        copied_again: u64,
        /// Median time for which a guest could not touch a page.
        pause_p50: Nanos,
        /// Longest such time.
        pause_max: Nanos,
        /// Why it was ordered.
        reason: String,
    },
    /// A node has page tables of a machine's own, or has them no more.
    RootChanged {
        /// Whose.
        vm: VmId,
        /// Its name.
        name: String,
        /// Where.
        node: NodeId,
        /// It has them now.
        own: bool,
        /// Bytes of all page tables that the machine has now.
        table_bytes: u64,
        /// Why.
        reason: String,
    },
    /// A threshold was turned, because the load has changed.
    Adapted {
        /// Which.
        dial: Dial,
        /// What it was.
        from: u16,
        /// What it is now; in the unit of [`Dial`].
        to: u16,
        /// What it follows, and how that was.
        reason: String,
    },
    /// Moving a machine's pages is off because it was of no use, or on again.
    Usefulness {
        /// Whose.
        vm: VmId,
        /// Its name.
        name: String,
        /// Pages may move.
        on: bool,
        /// Of the pages that were moved and followed, those that were touched from near afterwards.
        useful: PerMille,
        /// How many were followed.
        followed: u32,
    },
    /// The planner chose.
    Plan {
        /// For this machine.
        vm: VmId,
        /// Its name.
        name: String,
        /// What will be done.
        chosen: Choice,
        /// Everything weighed, the chosen one first.
        alternatives: Vec<Alternative>,
        /// The decision in words.
        sentence: String,
    },
    /// The planner let things be.
    Held {
        /// For this machine.
        vm: VmId,
        /// Its name.
        name: String,
        /// Why.
        why: Hold,
        /// The decision in words.
        sentence: String,
    },
    /// What one pass over accessed bits found.
    Footprint {
        /// Whose.
        vm: VmId,
        /// Its name.
        name: String,
        /// Number of the pass, from 1.
        pass: u64,
        /// Decayed touches, row = accessing node, column = node that holds the memory; 1024 = one.
        matrix: Vec<Vec<u64>>,
        /// Share of the accesses that go to each node's memory.
        shares: Vec<PerMille>,
        /// Memory on each node, touched or not, in bytes.
        resident: Vec<u64>,
        /// How sure, 0 = no opinion.
        confidence: PerMille,
        /// vCPUs that work on memory of their own, if there is more than one such group.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<GroupReport>,
    },
    /// How near each CPU is to what a machine touches.
    Proximity {
        /// Whose.
        vm: VmId,
        /// Its name.
        name: String,
        /// One score per CPU, by CPU number.
        scores: Vec<Score>,
    },
    /// The pages that a machine is thought to touch most, as a tool asked.
    HotPages {
        /// Whose.
        vm: VmId,
        /// Its name.
        name: String,
        /// After this pass.
        pass: u64,
        /// Hottest first.
        ranges: Vec<HotRange>,
        /// Of all pages so many, the hottest, are thought to take four fifths of all touches.
        hot: u64,
        /// Colder ranges that are not told.
        left_out: u64,
        /// Their heat, all together.
        left_out_heat: u64,
        /// The next record does not go on with it.
        last: bool,
    },
    /// What a machine touched between two moments, exactly, as a tool asked.
    Touched {
        /// Which.
        vm: VmId,
        /// Its name.
        name: String,
        /// Pages that were read or written, ascending.
        accessed: Vec<PageRange>,
        /// Pages that were written.
        dirty: Vec<PageRange>,
        /// The next record does not go on with it.
        last: bool,
    },
    /// The scheduler chose.
    Pick(Pick),
    /// One step of the scheduler, for a replay.
    Schedule {
        /// The step as JSON (`sched::trace::Step`): this crate is below the scheduler and does not know
        /// its words.
        step: String,
    },
    /// Counters of one CPU since start.
    Counters {
        /// Which.
        cpu: CpuId,
        /// Those that are not 0.
        values: Vec<CounterValue>,
    },
    /// A guest did what cannot be continued; precedes its `Off`.
    GuestFault {
        /// On this vCPU.
        vcpu: VcpuId,
        /// Name of its machine.
        name: String,
        /// What, as a sentence.
        what: String,
        /// The exit as the processor described it.
        exit: String,
        /// Registers, in reading order.
        registers: Vec<(String, u64)>,
        /// Sentences of the last events of that CPU, oldest first.
        last_events: Vec<String>,
    },
    /// The hypervisor failed.
    Panic {
        /// On this CPU.
        cpu: CpuId,
        /// What and where.
        message: String,
    },
    /// A CPU stopped answering.
    Watchdog {
        /// Which.
        cpu: CpuId,
        /// What it ran.
        running: Option<VcpuId>,
        /// For how long it has not answered.
        silent_for: Nanos,
    },
    /// The run is over; the machine powers off.
    RunEnd(Outcome),
}
