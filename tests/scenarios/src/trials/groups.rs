//! vCPUs of one VM that work on memory of their own, each on the other's node, end beside it.
//!
//! As one, the VM touches both nodes alike, and no place is better than another. The observer outside counts before and after.

use std::time::Duration;

use telemetry::{Event, GroupReport};

use super::GO;
use super::observed::Observed;
use crate::{Evidence, Machine, Scenario, Tier, Vm};

const NAME: &str = "probe";
const CLOSED: &str = "PROBE window closed";
/// Local accesses, in percent: fewer is far, at least so many is near.
const FAR: u64 = 20;
const NEAR: u64 = 90;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    // Nothing moves in the first window. (In the layout "mix" each touches the other's half as well, so much that they are one
    // group.)
    let words = "touch layout=halves seed=7 mib=64 seconds=4 cpus=2 windows=2 pause=30";
    let mut trial = Scenario::full(
        "each-to-its-memory",
        "two vCPUs of a VM, each with its memory beside the other one, are recognised and end near",
        apart,
    )
    .on(Machine::row(2, 1, 512))
    .vm(Vm::probe(NAME, words)
        .set("cpus", "2")
        .set("start_node", "0")
        .set(
            "memory_nodes",
            "[{ node = 1, size = \"64M\" }, { node = 0 }]",
        )
        .set("mode", "\"off\""))
    .type_after(CLOSED, &format!("vm {NAME} mode auto\r"))
    .type_after(CLOSED, &format!("footprint {NAME}\rproximity {NAME}\r{GO}"))
    .observed("pages=guests,linear=128")
    .within(Duration::from_secs(600));
    // Nobody counts from outside there.
    trial.bochs_tier = Tier::Gap;
    vec![trial]
}

/// Both far in the first window and near in the second, and the kernel knows why.
fn apart(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(2)?;
    let windows = Observed::windows(e)?;
    let [before, after] = &windows[..] else {
        return Err(format!(
            "the guest should have opened two windows, not {}",
            windows.len()
        ));
    };
    let (before, after) = (local(&before.matrix), local(&after.matrix));
    if before >= FAR || after < NEAR {
        return Err(format!(
            "{before} % of accesses were local at first, {after} % at the end"
        ));
    }
    knows_groups(e)
}

/// Percentage of accesses from the node that holds the memory.
fn local(matrix: &[Vec<u64>]) -> u64 {
    let all: u64 = matrix.iter().flatten().sum();
    let own = matrix.iter().enumerate().filter_map(|(k, row)| row.get(k));
    own.sum::<u64>() * 100 / all.max(1)
}

/// Some footprint names the two vCPUs apart, each with memory on a node of its own; and the operator is shown them.
fn knows_groups(e: &Evidence) -> Result<(), String> {
    let told = e.events().any(|event| match event {
        Event::Footprint { name, groups, .. } if name == NAME => are_two(groups),
        _ => false,
    });
    if !told {
        return Err("no footprint tells the two vCPUs apart".into());
    }
    let shown = e.line("vCPUs with memory of their own");
    shown
        .map(|_| ())
        .ok_or_else(|| "the operator is not shown the groups".into())
}

/// One vCPU each, and the nodes that they touch most are two.
fn are_two(groups: &[GroupReport]) -> bool {
    let [first, second] = groups else {
        return false;
    };
    let node = |group: &GroupReport| group.primary.first().map(|(node, _)| *node);
    first.vcpus == [0] && second.vcpus == [1] && node(first) != node(second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use units::{Nanos, NodeId, PerMille, VmId};

    fn evidence(groups: &[(&[u16], u16)], line: &str) -> Evidence {
        let event = Event::Footprint {
            vm: VmId(0),
            name: NAME.into(),
            pass: 1,
            matrix: Vec::new(),
            shares: Vec::new(),
            resident: Vec::new(),
            confidence: PerMille(900),
            groups: groups
                .iter()
                .map(|(vcpus, node)| GroupReport {
                    vcpus: vcpus.to_vec(),
                    primary: vec![(NodeId(*node), PerMille(900))],
                    confidence: PerMille(900),
                })
                .collect(),
        };
        Evidence::clean(&[NAME], &[line]).with(Nanos::ZERO, event)
    }

    #[test]
    fn groups_are_two_with_one_vcpu_and_a_node_each() {
        let shown = "vCPUs with memory of their own  touch mostly";
        let judged = |groups: &[_]| knows_groups(&evidence(groups, shown)).is_ok();
        assert!(judged(&[(&[0], 1), (&[1], 0)]) && judged(&[(&[0], 0), (&[1], 1)]));
        assert!(!judged(&[]) && !judged(&[(&[0], 1), (&[1], 1)]));
        assert!(!judged(&[(&[0, 1], 0), (&[2], 1)]));
        assert!(knows_groups(&evidence(&[(&[0], 1), (&[1], 0)], "else")).is_err());
        assert_eq!(local(&[vec![3, 1], vec![1, 5]]), 80);
        assert_eq!(local(&[]), 0);
    }
}
