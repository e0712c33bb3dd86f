//! Where a VM goes: which node is its home, which nodes hold its memory, and what the guest sees of that.

use super::Vm;
use crate::mm;
use crate::virt::Backend;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use config::NodeShare;
use guest::VmShape;
use guest::shape::{MEMORY_GRANULE, VirtualNode};
use topology::Machine;
use units::{NodeId, PageSize};

/// What a VM placed by itself leaves of each node's memory: table pages of guests and the kernel's heap come
/// from there too.
const HOST_RESERVE_BYTES: u64 = 16 << 20;

/// What other VMs of the run have or will insist on.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Virtual CPUs whose home is a node, by node.
    vcpus: Vec<u32>,
    /// Bytes of a node that a VM still to be built names in its configuration, by node.
    bytes: Vec<u64>,
}

impl Taken {
    /// Nothing.
    pub fn none(machine: &Machine) -> Self {
        Self {
            vcpus: vec![0; machine.nodes.len()],
            bytes: vec![0; machine.nodes.len()],
        }
    }

    /// By VMs that are built, and by those that wait.
    pub fn by<B: Backend>(machine: &Machine, built: &[Vm<B>], waiting: &[config::Vm]) -> Self {
        let none = Self::none(machine);
        let homes = built.iter().map(|vm| (vm.home, u32::from(vm.shape.vcpus)));
        let wishes = waiting
            .iter()
            .filter_map(|vm| Some((vm.start_node?, u32::from(vm.cpus))));
        let mut taken = homes.chain(wishes).fold(none, |mut taken, (node, vcpus)| {
            taken
                .vcpus
                .get_mut(node.index())
                .into_iter()
                .for_each(|sum| *sum += vcpus);
            taken
        });
        for share in waiting.iter().flat_map(|vm| &vm.memory_nodes) {
            taken
                .bytes
                .get_mut(share.node.index())
                .into_iter()
                .for_each(|sum| *sum = sum.saturating_add(share.bytes));
        }
        taken
    }
}

/// Which node holds which part of the guest's memory, in guest-physical order.
pub fn place(
    machine: &Machine,
    config: &config::Vm,
    taken: &Taken,
) -> Result<Vec<NodeShare>, String> {
    if !config.memory_nodes.is_empty() {
        for share in &config.memory_nodes {
            check_node(machine, share.node)?;
        }
        return Ok(config.memory_nodes.clone());
    }
    let room = |node: NodeId| {
        let kept = HOST_RESERVE_BYTES + taken.bytes.get(node.index()).copied().unwrap_or(0);
        mm::free_bytes_in(node, PageSize::Size2M).saturating_sub(kept) / MEMORY_GRANULE
            * MEMORY_GRANULE
    };
    let home = match config.start_node {
        Some(node) => {
            check_node(machine, node)?;
            node
        }
        None => best_home(machine, config, taken, room),
    };
    // The fewest nodes that hold it all: the home, then those that are next to it.
    let mut left = config.memory_bytes;
    let mut shares = Vec::new();
    for node in machine.nearest(home) {
        let bytes = left.min(room(node));
        if bytes > 0 {
            shares.push(NodeShare { node, bytes });
            left -= bytes;
        }
    }
    if left > 0 {
        return Err(format!(
            "{} asks for {} MiB, and {} MiB of that are not free on any node; it was not started",
            config.name,
            config.memory_bytes >> 20,
            left >> 20
        ));
    }
    Ok(shares)
}

/// The node where a VM without wishes begins: one with CPUs and with room for all of it, there the one with the
/// fewest virtual CPUs for each CPU, there the one with most memory.
fn best_home(
    machine: &Machine,
    config: &config::Vm,
    taken: &Taken,
    room: impl Fn(NodeId) -> u64,
) -> NodeId {
    let cost = |node: NodeId| {
        let cpus = machine.cpus.iter().filter(|c| c.node == node).count() as u64;
        let vcpus =
            u64::from(taken.vcpus.get(node.index()).copied().unwrap_or(0)) + u64::from(config.cpus);
        let room = room(node);
        // In thousandths of a CPU, for comparison only; a node without CPUs is the last resort anyway.
        let crowd = vcpus * 1000 / cpus.max(1);
        (
            cpus == 0,
            room < config.memory_bytes,
            crowd,
            core::cmp::Reverse(room),
            node,
        )
    };
    machine
        .nodes
        .iter()
        .map(|n| n.id)
        .min_by_key(|node| cost(*node))
        .unwrap_or_default()
}

pub fn check_node(machine: &Machine, node: NodeId) -> Result<(), String> {
    if node.index() < machine.nodes.len() {
        return Ok(());
    }
    Err(format!(
        "{node} does not exist, the machine has node0 to node{}; the VM was not started",
        machine.nodes.len().saturating_sub(1)
    ))
}

/// What the guest sees: one node, or one for each part of its memory if it is to see them.
pub fn shape(
    machine: &Machine,
    config: &config::Vm,
    placement: &[NodeShare],
) -> Result<VmShape, String> {
    if !config.vnuma || placement.len() < 2 {
        return VmShape::simple(config.cpus, config.memory_bytes).map_err(|e| e.to_string());
    }
    // vCPUs are dealt out in equal runs, as cores are to the sockets of a machine.
    let nodes = placement.len() as u16;
    let first = |i: u16| u32::from(config.cpus) * u32::from(i) / u32::from(nodes);
    let virtual_nodes = (0..nodes)
        .zip(placement)
        .map(|(i, share)| VirtualNode {
            memory_bytes: share.bytes,
            vcpus: (first(i)..first(i + 1)).map(|v| v as u16).collect(),
        })
        .collect();
    let distances =
        placement
            .iter()
            .enumerate()
            .map(|(i, a)| {
                let row = placement.iter().enumerate().map(|(j, b)| {
                    match machine.distance(a.node, b.node) {
                        _ if i == j => 10,
                        d => u8::try_from(d).unwrap_or(u8::MAX).max(11),
                    }
                });
                row.collect()
            })
            .collect();
    VmShape::new(virtual_nodes, distances, 1).map_err(|e| e.to_string())
}
