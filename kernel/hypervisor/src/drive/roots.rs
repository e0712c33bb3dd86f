//! Page tables on the nodes that walk them: what [`footprint::roots`] wishes for is done, and told.

use super::record::record;
use crate::virt::Backend;
use crate::vm::{RootChange, Vm};
use config::Roots;
use footprint::roots::{RootPolicy, RootWish};
use telemetry::Event;
use units::{Nanos, NodeId};

/// A pass over one VM, which has run for so long on each node since the last one.
pub fn pass<B: Backend>(
    vm: &Vm<B>,
    policy: &mut RootPolicy,
    rule: Roots,
    length: Nanos,
    run_time: &[Nanos],
) {
    if rule != Roots::Auto {
        return;
    }
    for wish in policy.observe(length, run_time, |node| vm.ram.has_own_root(node)) {
        let RootWish { node, own, .. } = wish;
        let done = match own {
            true => vm.ram.add_root(node),
            false => vm.ram.drop_root(node),
        };
        match done {
            RootChange::Done => tell(vm, node, own, &wish),
            // The next span says the same if it is still so.
            RootChange::Later => {}
            RootChange::Refused(why) => log::warn!("{}: {why}", vm.name),
        }
    }
}

/// [`Roots::Every`]: each node that has memory, before the VM runs.
pub fn give_all<B: Backend>(vm: &Vm<B>, nodes: impl Iterator<Item = NodeId>) {
    for node in nodes.filter(|node| !vm.ram.has_own_root(*node)) {
        match vm.ram.add_root(node) {
            RootChange::Done => tell(vm, node, true, &"the configuration wants it"),
            RootChange::Later => log::warn!("{}: {node} gets no page tables of its own", vm.name),
            RootChange::Refused(why) => log::warn!("{}: {why}", vm.name),
        }
    }
}

/// The VM has ended and has no memory: one root is enough for its next life, which may be elsewhere.
pub fn end<B: Backend>(vm: &Vm<B>, rule: Roots) {
    if rule != Roots::Auto {
        return;
    }
    for node in vm.ram.nodes_with_roots().into_iter().skip(1) {
        if let RootChange::Done = vm.ram.drop_root(node) {
            tell(vm, node, false, &"its VM has ended");
        }
    }
}

fn tell<B: Backend>(vm: &Vm<B>, node: NodeId, own: bool, reason: &impl alloc::string::ToString) {
    let tables = vm.ram.with_table(memory::replica::Replicas::table_frames);
    record(Event::RootChanged {
        vm: vm.id,
        name: vm.name.clone(),
        node,
        own,
        table_bytes: tables * units::PAGE_BYTES,
        reason: reason.to_string(),
    });
}
