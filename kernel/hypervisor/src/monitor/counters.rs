//! What the operator is told about performance counters.

use super::report::name;
use super::table::Table;
use crate::counters;
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm};
use alloc::format;
use alloc::string::{String, ToString};
use footprint::Footprint;
use pmu::Kind;
use units::NodeId;

/// What is counted, with the encoding of each event and the document that gives it.
pub fn events() -> String {
    let mut text = counters::describe() + "\n";
    let Ok(plan) = counters::state() else {
        return text;
    };
    let mut table = Table::new([
        "turn", "counts", "event", "umask", "cmask", "name", "source",
    ]);
    for (turn, group) in plan.groups().iter().enumerate() {
        for event in group {
            table.row([
                (turn + 1).to_string(),
                event.kind.to_string(),
                format!("{:#05x}", event.select),
                format!("{:#04x}", event.umask),
                event.cmask.to_string(),
                event.name.to_string(),
                event.source.to_string(),
            ]);
        }
    }
    text.push_str(&table.to_string());
    text
}

/// What was counted of a VM's virtual CPUs since they were made, and how much of their time they wait for memory.
pub fn of_vm<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    if counters::state().is_err() {
        return format!("{}: {}\n", vm.name, counters::describe());
    }
    let mut headings = alloc::vec![String::from("vCPU"), String::from("ran")];
    headings.extend(Kind::ALL.map(|kind| kind.to_string()));
    headings.push("waits for memory".into());
    let mut table = Table::new(headings);
    let tracking = hv.tracking.lock();
    let waits = tracking.of(vm.id).map(|track| &track.waits);
    for vcpu in &vm.vcpus {
        let tally = *vcpu.counted.lock().all();
        let mut row = alloc::vec![
            name(hv, vcpu.id),
            format!("{} ms", tally.enabled().as_millis())
        ];
        row.extend(Kind::ALL.map(|kind| match tally.estimate(kind) {
            Some(count) => count.to_string(),
            None => String::from("-"),
        }));
        row.push(match waits.and_then(|w| w.of(vcpu.id.index)) {
            Some(share) => share.per_mille().to_string(),
            None => String::from("-"),
        });
        table.row(row);
    }
    format!(
        "{}: counted in its run time, scaled from its turns\n{table}",
        vm.name
    )
}

/// What counters say to a footprint.
pub fn opinion(f: &Footprint) -> String {
    if let Err(why) = counters::state() {
        return format!("performance counters are absent: {why}\n");
    }
    let mut text = String::from("counted");
    for (node, (near, far)) in (0..).map(NodeId).zip(f.counted().by_node()) {
        if near | far > 0 {
            text.push_str(&format!(" {near} near and {far} far reads from {node},"));
        }
    }
    if f.counted().is_empty() {
        text.push_str(" no reads");
    }
    format!(
        "{} in the last pass; counters contradict by {}\n",
        text.trim_end_matches(','),
        f.doubt()
    )
}
