//! Page tables of a VM's own on the nodes that run it, and on no others.

use std::time::Duration;

use telemetry::Event;
use units::{Nanos, NodeId};

use crate::{Evidence, Machine, Scenario, Vm};

const NAME: &str = "stamps";

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let one = Vm::micro(NAME, "stamps", "turns=1")
        .set("cpus", "2")
        .set("memory", "\"16M\"")
        .set("start_node", "0")
        .set("memory_nodes", "[0]")
        .set("cpu_affinity", "{ cpus = [0, 2] }")
        .set("mode", "\"off\"");
    let trial = Scenario::full(
        "tables-follow-their-cpus",
        "a node that runs a VM gets page tables of its own after ten seconds, and loses them after an idle minute",
        come_and_go,
    );
    // Ctrl-A and the VM's digit, what it is to do, and back.
    let say = |key: char| format!("\u{1}1{key}\u{1}0");
    vec![
        trial
            .on(Machine::row(2, 2, 256))
            .vm(one)
            .type_after("node1 has page tables of its own now", &say('a'))
            .type_after("node1 has no page tables of its own any more", &say('q'))
            .within(Duration::from_secs(600))
            .within_in_bochs(Duration::from_secs(1800)),
    ]
}

fn come_and_go(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(2)?;
    let changes: Vec<(NodeId, bool, Nanos)> = e
        .records
        .iter()
        .filter_map(|r| match &r.what.event {
            Event::RootChanged { node, own, .. } => Some((*node, *own, r.what.at_ns)),
            _ => None,
        })
        .collect();
    let [(NodeId(1), true, came), (NodeId(1), false, went)] = changes[..] else {
        return Err(format!("roots came and went otherwise: {changes:?}"));
    };
    let (came, stayed) = (came.as_millis() / 1000, went.since(came).as_millis() / 1000);
    if !(10..20).contains(&came) || !(60..90).contains(&stayed) {
        return Err(format!(
            "node1 got page tables after {came} s and lost them {stayed} s later"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use units::VmId;

    fn evidence(changes: &[(u16, bool, u64)]) -> Evidence {
        let lines = [
            "[stamps] GUEST-UP cpus=2 kernel=stamps",
            "[stamps] GUEST-RESULT ok pages=1 turns=1",
        ];
        let run = Evidence::clean(&[NAME], &lines);
        changes.iter().fold(run, |run, (node, own, second)| {
            let event = Event::RootChanged {
                vm: VmId(0),
                name: NAME.into(),
                node: NodeId(*node),
                own: *own,
                table_bytes: 0,
                reason: String::new(),
            };
            run.with(Nanos::from_secs(*second), event)
        })
    }

    #[test]
    fn roots_come_and_go_once_and_in_time() {
        let judged = |changes: &[_]| come_and_go(&evidence(changes));
        assert_eq!(judged(&[(1, true, 11), (1, false, 75)]), Ok(()));
        assert!(judged(&[]).is_err() && judged(&[(1, true, 11)]).is_err());
        assert!(judged(&[(0, true, 11), (0, false, 75)]).is_err());
        assert!(
            judged(&[(1, true, 4), (1, false, 75)]).is_err(),
            "too early"
        );
        assert!(
            judged(&[(1, true, 11), (1, false, 30)]).is_err(),
            "too early"
        );
        assert!(judged(&[(1, true, 11), (1, false, 75), (1, true, 80)]).is_err());
    }
}
