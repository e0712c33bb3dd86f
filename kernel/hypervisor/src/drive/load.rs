//! How busy nodes are: their CPUs, their memory, and the links between them.

use super::sample::Tracking;
use crate::counters::bandwidth;
use crate::mm;
use crate::virt::Backend;
use crate::vm::{Hypervisor, VmState};
use alloc::vec::Vec;
use footprint::load::{Capacities, Traffic};
use migrate::{LinkView, NodeView};
use topology::Machine;
use units::{Nanos, NodeId};

/// What copying pages may take of the slowest link.
const COPY_SHARE: u64 = 10;

/// What the machine's memories and links can carry.
pub fn capacities(machine: &Machine) -> Capacities {
    Capacities::from_fn(machine.nodes.len(), |from, to| {
        machine.bandwidth_mb_s(from, to)
    })
}

/// What goes on now: counted where processors count it, else what running VMs are estimated to cause.
pub fn traffic<B: Backend>(hv: &Hypervisor<B>, tracking: &Tracking, now: Nanos) -> Traffic {
    let nodes = hv.machine.nodes.iter();
    let mut traffic = Traffic::new(nodes.map(|node| node.has_memory()).collect());
    let assumed_per_s = tracking.planner().tunables().accesses_per_s;
    for track in &tracking.vms {
        let runs = hv.vm(track.vm).map(|vm| vm.state()) == Some(VmState::Running);
        if runs {
            traffic.add(&track.footprint, assumed_per_s);
        }
    }
    for node in &hv.machine.nodes {
        traffic.correct(node.id, bandwidth::counted(node.id, now));
    }
    traffic
}

/// The nodes as the planner sees them.
pub fn node_views<B: Backend>(
    hv: &Hypervisor<B>,
    traffic: &Traffic,
    capacities: &Capacities,
) -> Vec<NodeView> {
    let sched = hv.sched.lock();
    let view = |node: NodeId| {
        let cpus = sched.cpus().filter(|c| c.node == node);
        let (count, demand) = cpus.fold((0_u16, 0_u64), |(n, sum), c| {
            (n.saturating_add(1), sum + c.demand)
        });
        NodeView {
            node,
            cpus: count,
            demand: u32::try_from(demand * 1000 / u64::from(u32::from(u16::MAX) + 1))
                .unwrap_or(u32::MAX),
            free_bytes: mm::free_bytes(node),
            total_bytes: hv.machine.node(node).map_or(0, |n| n.memory_bytes()),
            memory_load: capacities.memory_load(traffic, node),
        }
    };
    hv.machine.nodes.iter().map(|n| view(n.id)).collect()
}

/// From each node with CPUs to each other one with memory.
pub fn pairs(machine: &Machine) -> impl Iterator<Item = (NodeId, NodeId)> {
    let readers = machine.nodes.iter().filter(|node| node.has_cpus());
    readers.flat_map(|from| {
        let others = machine.nodes.iter().filter(|to| to.has_memory());
        let others = others.filter(move |to| to.id != from.id);
        others.map(move |to| (from.id, to.id))
    })
}

/// All links whose capacity is known.
pub fn links(machine: &Machine, traffic: &Traffic, capacities: &Capacities) -> Vec<LinkView> {
    let load = |(from, to)| {
        let load = Some(capacities.link_load(traffic, from, to)?);
        Some(LinkView { from, to, load })
    };
    pairs(machine).filter_map(load).collect()
}

/// What copying may use of any link, in bytes per second; no limit where no link's capacity is known.
pub fn copy_bytes_per_s(capacities: &Capacities) -> u64 {
    let slowest = capacities.slowest_link();
    slowest.map_or(u64::MAX, |bytes| bytes / COPY_SHARE)
}
