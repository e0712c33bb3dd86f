//! The machine comes up, understands itself, and guests live on it.

use telemetry::{Choice, Event, Topology};
use units::NodeId;

use crate::{Evidence, Machine, Outcome, Scenario, Vm};

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::quick(
            "boots-four-nodes",
            "the kernel sees four nodes with the CPUs, memory and distances they have",
            |e| {
                ended_cleanly(e)?;
                topology_matches(
                    &e.machine,
                    e.topology().ok_or("the kernel recorded no topology")?,
                )
            },
        ),
        Scenario::full(
            "distances-measured",
            "where each node is nearest to its own memory, the latencies that the processors measure are used",
            measured,
        )
        .in_bochs_only()
        .on(Machine::row(2, 1, 256))
        .sabotaged("far-is-slow")
        .vm(Vm::probe("alpha", "count seconds=2"))
        .type_after("COUNT ms=1", "topology\r")
        .quick_in_bochs(),
        Scenario::quick(
            "two-linux-guests",
            "two unmodified Linux guests with two CPUs each check their memory and power off",
            |e| e.every_guest_is_well(2),
        )
        .on_bochs(Machine::row(4, 1, 256))
        .vm(Vm::linux("alpha"))
        .vm(Vm::linux("beta")
            .set("memory_nodes", "[3]")
            .set("start_node", "0")),
        // It did: QEMU gave an injected interrupt once more when its processor's thread was called for something else.
        Scenario::quick(
            "interrupts-come-once",
            "a Linux guest gets no interrupt twice where the emulator stops and goes on three hundred times",
            |e| e.every_guest_is_well(2),
        )
        .vm(Vm::linux("once").workload("--mib 4 --seconds 12"))
        .stops_after("WORKLOAD t=1", 300),
        Scenario::full(
            "two-small-guests",
            "two small Linux guests on two nodes; the one that is far from its memory is brought together with it",
            |e| {
                e.every_guest_is_well(1)?;
                came_together(e, "beta")
            },
        )
        .on(Machine::row(2, 1, 256))
        .vm(small("alpha", 4))
        .vm(small("beta", 8)
            .set("memory_nodes", "[1]")
            .set("start_node", "0")),
    ]
}

/// Far memory takes three times as long there, and nothing else is different.
fn measured(e: &Evidence) -> Result<(), String> {
    ended_cleanly(e)?;
    let seen = e.topology().ok_or("the kernel recorded no topology")?;
    let ns = |k: usize, n: usize| seen.latency_ns.get(k).and_then(|row| row.get(n)).copied();
    let three_times = |k: usize, n: usize| match (ns(k, k), ns(k, n)) {
        (Some(near), Some(far)) => (28..=32).contains(&(far * 10 / near.max(1))),
        _ => false,
    };
    if seen.latency_source != "measured at boot" || !three_times(0, 1) || !three_times(1, 0) {
        return Err(format!(
            "latencies {:?} come from {}: {}",
            seen.latency_ns, seen.latency_source, seen.measured
        ));
    }
    let said = [
        "latency in ns (measured at boot)",
        "measured latencies are used",
    ];
    match said.iter().find(|part| e.line(part).is_none()) {
        Some(part) => Err(format!("the operator was not told {part:?}")),
        None => Ok(()),
    }
}

fn small(name: &str, seconds: u32) -> Vm {
    Vm::linux(name)
        .set("cpus", "1")
        .set("memory", "\"96M\"")
        .workload(&format!("--mib 8 --seconds {seconds}"))
}

/// Pages of this VM, or its virtual CPU, went where the other was, and the record says why.
fn came_together(evidence: &Evidence, vm: &str) -> Result<(), String> {
    let went = evidence.events().any(|event| match event {
        Event::PagesMoved {
            name,
            from: NodeId(1),
            to: NodeId(0),
            bytes,
            reason,
            ..
        } => name == vm && *bytes > 0 && reason.contains("to node0"),
        Event::Plan {
            name,
            chosen: Choice::MoveVcpus { to: NodeId(1), .. },
            ..
        } => name == vm,
        _ => false,
    });
    match went {
        true => Ok(()),
        false => Err(format!("{vm} and its memory stayed apart")),
    }
}

fn ended_cleanly(evidence: &Evidence) -> Result<(), String> {
    match &evidence.outcome {
        Outcome::Clean => Ok(()),
        other => Err(format!("the run ended otherwise than cleanly: {other}")),
    }
}

/// Firmware keeps a little of each node's memory for itself, and q35 hides some below 4 GiB.
const MEMORY_TOLERANCE_MIB: u64 = 64;

/// Whether what the kernel understood is what was built.
///
/// # Errors
/// The first difference.
pub fn topology_matches(machine: &Machine, seen: &Topology) -> Result<(), String> {
    if seen.nodes.len() != machine.nodes.len() {
        return Err(format!(
            "{} nodes were built, the kernel sees {}",
            machine.nodes.len(),
            seen.nodes.len()
        ));
    }
    for (id, node) in machine.nodes.iter().enumerate() {
        let cpus = seen
            .cpus
            .iter()
            .filter(|cpu| usize::from(cpu.node.0) == id)
            .count();
        if cpus != node.cpus as usize {
            return Err(format!(
                "node {id} has {} CPUs, the kernel sees {cpus}",
                node.cpus
            ));
        }
        let mib = seen.nodes.get(id).map_or(0, |n| n.memory_bytes >> 20);
        let built = u64::from(node.memory_mib);
        if mib > built || mib + MEMORY_TOLERANCE_MIB < built {
            return Err(format!("node {id} has {built} MiB, the kernel sees {mib}"));
        }
    }
    let built: Vec<Vec<u32>> = machine
        .distances
        .iter()
        .map(|row| row.iter().map(|d| u32::from(*d)).collect())
        .collect();
    if !built.is_empty() && built != seen.distances {
        return Err(format!(
            "distances are {built:?}, the kernel sees {:?}",
            seen.distances
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::{CpuReport, NodeReport};
    use units::{ApicId, CpuId, ProximityDomain};

    fn seen() -> Topology {
        let node = |n| NodeReport {
            node: NodeId(n),
            pxm: ProximityDomain(n.into()),
            memory_bytes: 500 << 20,
        };
        let cpu = |c| CpuReport {
            cpu: CpuId(c),
            node: NodeId(c as u16),
            apic: ApicId(c),
        };
        Topology {
            nodes: vec![node(0), node(1)],
            cpus: vec![cpu(0), cpu(1)],
            distances: vec![vec![10, 16], vec![16, 10]],
            ..Topology::default()
        }
    }

    #[test]
    fn only_the_machine_that_was_built_is_accepted() {
        let machine = Machine::row(2, 1, 512);
        assert_eq!(topology_matches(&machine, &seen()), Ok(()));
        let differs = |change: fn(&mut Topology)| {
            let mut other = seen();
            change(&mut other);
            topology_matches(&machine, &other).expect_err("differs")
        };
        assert!(differs(|t| t.cpus[1].node = NodeId(0)).contains("CPUs"));
        assert!(differs(|t| t.nodes[1].memory_bytes = 300 << 20).contains("MiB"));
        assert!(differs(|t| t.distances[0][1] = 20).contains("distances"));
        assert!(differs(|t| t.nodes.truncate(1)).contains("nodes"));
    }
}
