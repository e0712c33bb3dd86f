//! vCPUs of a VM that work on memory of their own, where there is more than one such group.

use super::table::Table;
use crate::virt::Backend;
use crate::vm::Hypervisor;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use footprint::groups::Group;
use footprint::{Footprint, Latencies};

/// "0, 2"
fn names(group: &Group) -> String {
    let vcpus: Vec<String> = group.vcpus.iter().map(u16::to_string).collect();
    vcpus.join(", ")
}

/// Where each group's memory is, by how much it is touched.
pub fn touches(footprint: &Footprint) -> String {
    let groups = footprint.groups();
    if groups.groups().is_empty() {
        return String::new();
    }
    let mut table = Table::new([
        "vCPUs with memory of their own",
        "touch mostly",
        "confidence",
    ]);
    for (i, group) in groups.groups().iter().enumerate() {
        let primary = groups.matrix(i).primaries();
        let primary = primary
            .iter()
            .map(|(node, share)| format!("{node}: {share}"));
        let primary: Vec<String> = primary.collect();
        table.row([
            names(group),
            primary.join(", "),
            groups.confidence(i).to_string(),
        ]);
    }
    table.to_string()
}

/// How near the CPUs of each node are to what each group touches.
pub fn near<B: Backend>(
    hv: &Hypervisor<B>,
    footprint: &Footprint,
    latencies: &Latencies,
) -> String {
    let groups = footprint.groups();
    if groups.groups().is_empty() {
        return String::new();
    }
    let mut table = Table::new(["vCPUs with memory of their own", "node", "proximity"]);
    for (i, group) in groups.groups().iter().enumerate() {
        let scores = groups.proximity(i, latencies);
        for (node, score) in hv.machine.nodes.iter().zip(scores) {
            if node.has_cpus() {
                table.row([names(group), node.id.to_string(), score.to_string()]);
            }
        }
    }
    table.to_string()
}
