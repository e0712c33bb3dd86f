//! What the planner looks at: the host and its machines at one moment.

use footprint::{Footprint, Latencies};
use units::{NodeId, PerMille, VcpuId, VmId};

/// What the planner may do for a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    #[default]
    Auto,
    /// Decide and explain, move nothing.
    DryRun,
    /// Move vCPUs only.
    VcpuOnly,
    /// Move pages only.
    PagesOnly,
    /// Nothing, and say nothing.
    Off,
}

/// One node of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Which.
    pub node: NodeId,
    /// CPUs online; 0 for memory only.
    pub cpus: u16,
    /// CPU time that its vCPUs ask for, in thousandths of one CPU.
    pub demand: u32,
    /// Memory that may be allocated, in bytes.
    pub free_bytes: u64,
    /// All its memory, in bytes.
    pub total_bytes: u64,
    /// What is read from its memory and written to it, as a part of what the controller can do; None where that is not
    /// known, which counts as not busy.
    pub memory_load: Option<PerMille>,
}

impl NodeView {
    /// Use of its CPUs in thousandths if `more` came; None without CPUs.
    pub fn use_with(&self, more: u32) -> Option<u32> {
        self.demand
            .saturating_add(more)
            .checked_div(u32::from(self.cpus))
    }
}

/// The way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkView {
    /// The node whose CPUs access.
    pub from: NodeId,
    /// The node whose memory is accessed.
    pub to: NodeId,
    /// What goes over it, as a part of what it can carry; None where that is not known.
    pub load: Option<PerMille>,
}

/// The host.
#[derive(Clone, Copy, Debug)]
pub struct HostView<'a> {
    /// Latencies between nodes, loaded where load is known.
    pub latencies: &'a Latencies,
    /// All nodes.
    pub nodes: &'a [NodeView],
    /// Ways between nodes whose load is known.
    pub links: &'a [LinkView],
    /// What copying may use of the slowest link, in bytes per second (10 % of it, or
    /// `u64::MAX` where bandwidth is not known).
    pub link_bytes_per_s: u64,
}

impl HostView<'_> {
    /// One node.
    pub fn node(&self, node: NodeId) -> Option<&NodeView> {
        self.nodes.iter().find(|n| n.node == node)
    }
}

/// One vCPU of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuView {
    /// Which.
    pub vcpu: VcpuId,
    /// Where it is now.
    pub node: NodeId,
    /// Part of time in which it wants to run.
    pub demand: PerMille,
}

/// One machine.
#[derive(Clone, Copy, Debug)]
pub struct VmView<'a> {
    /// Which.
    pub vm: VmId,
    /// Its name, for the sentences.
    pub name: &'a str,
    /// What may be done for it.
    pub mode: Mode,
    /// Its footprint after the last pass.
    pub footprint: &'a Footprint,
    /// Its vCPUs.
    pub vcpus: &'a [VcpuView],
    /// Nodes where its vCPUs may run; None = all.
    pub cpu_nodes: Option<&'a [NodeId]>,
    /// Nodes where its memory may lie; None = all.
    pub memory_nodes: Option<&'a [NodeId]>,
}

impl VmView<'_> {
    /// Whether all its vCPUs may run on `node`.
    pub fn may_run_on(&self, node: NodeId) -> bool {
        self.cpu_nodes.is_none_or(|nodes| nodes.contains(&node))
    }
    /// Whether its memory may lie on `node`.
    pub fn may_lie_on(&self, node: NodeId) -> bool {
        self.memory_nodes.is_none_or(|nodes| nodes.contains(&node))
    }
}
