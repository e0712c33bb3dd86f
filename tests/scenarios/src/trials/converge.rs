//! The planner in the long run: as good as the better of its means, again after a change, at rest where nothing can be gained, and
//! with a plain word where something is in the way.
//!
//! What came near is counted by the observer outside. All VMs of a comparison run at the same time, so that a busy
//! host slows all of them.

use std::time::Duration;

use telemetry::{Choice, Event, MoveReason};
use units::{Nanos, NodeId};

use super::GO;
use super::counted::{Counted, local};
use crate::{Evidence, Machine, Scenario, Tier, Vm, machine::Node};

/// Modes that are compared, each with the VM that has it, the tag of its workload and the node of its memory.
const COMPARED: [(&str, &str, u64, &str); 3] = [
    ("both", "auto", 2, "[1]"),
    ("cpus", "vcpu-only", 3, "[2]"),
    ("pages", "pages-only", 4, "[3]"),
];
/// Part of the better of the two, in percent, that both together must reach.
const NEARLY: u64 = 95;
/// What is touched all the time where there is no room for it.
const HOT_MIB: u64 = 64;
/// Local accesses, in percent, that count as all.
const NEAR: u64 = 95;
/// Local accesses, in percent, below which a workload has gone elsewhere.
const FAR: u64 = 80;

/// Those that are judged by what the observer outside counts: in Bochs there is none.
const COUNTED: [&str; 4] = [
    "auto-is-as-good-where-vcpus-pay",
    "auto-is-as-good-where-pages-pay",
    "a-phase-shift-is-followed",
    "a-busy-node-gets-no-vcpus",
];

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let trials = [
        compared(
            Scenario::full(
                "auto-is-as-good-where-vcpus-pay",
                "three VMs are as far from their memory, whose node has a CPU for each: auto is within 5 % of the better of vcpu-only and pages-only",
                |e| as_good_as_the_better(e, |choice| matches!(choice, Choice::MoveVcpus { .. })),
            ),
            "\"auto\"",
        ),
        compared(
            Scenario::full(
                "auto-is-as-good-where-pages-pay",
                "the same where vCPUs may not leave their node",
                |e| as_good_as_the_better(e, |choice| matches!(choice, Choice::MovePages { .. })),
            ),
            "{ nodes = [0] }",
        ),
        Scenario::full(
            "a-phase-shift-is-followed",
            "a workload that goes from one half of its memory, on node 1, to the other on node 3 is near both times",
            shift_is_followed,
        )
        .on(Machine::row(4, 1, 512))
        .vm(two_halves("--touch-only-node 0 --shift 22")),
        Scenario::full(
            "shared-by-two-nodes-settles",
            "two vCPUs that must stay on two nodes touch the same pages alike: after half a minute next to nothing moves",
            settles,
        )
        .on(Machine::row(2, 1, 512))
        .vm(
            Vm::probe("shared", "touch layout=hot seed=5 mib=24 seconds=75 cpus=2")
                .set("cpus", "2")
                .set("memory_nodes", "[0]"),
        )
        .type_after("PROBE window closed", GO),
        Scenario::full(
            "a-busy-node-gets-no-vcpus",
            "where the CPU beside a VM's memory is taken by a neighbour, pages come to the vCPU and the neighbour keeps its CPU",
            |e| {
                came_by_pages(e)?;
                keeps_its_cpu(e)
            },
        )
        .on(Machine::row(2, 1, 512))
        .vm(far("both", "2", "[1]").set("cpu_affinity", "\"auto\""))
        .vm(
            Vm::probe("neighbour", "count seconds=50")
                .set("memory", "\"34M\"")
                .set("cpu_affinity", "{ nodes = [1] }"),
        )
        .type_after("[both] WORKLOAD t=2 ", "vm both mode auto\r"),
        Scenario::full(
            "a-full-node-is-refused",
            "where the node of a VM's CPU has no memory left, most of its pages stay, Perigee says so, and an order by hand is refused as well",
            refused,
        )
        .on(Machine::row(2, 1, 512))
        .vm(far_away("both", HOT_MIB, "2", "[1]").set("cpu_affinity", "{ nodes = [0] }"))
        .vm(
            Vm::probe("filler", "idle seconds=5 ms=1000")
                .set("memory", "\"488M\"")
                .set("memory_nodes", "[0]")
                .set("start_node", "0"),
        )
        .type_after("[both] WORKLOAD t=2 ", "memory\rvm both mode auto\r")
        .type_after("[both] WORKLOAD t=20 ", "migrate both 0\r")
        // It fills the node until the other is through.
        .type_after("[both] GUEST-RESULT", "\u{1}2g\u{1}0"),
    ];
    let observed = |mut trial: Scenario| {
        if COUNTED.contains(&trial.name.as_str()) {
            trial.bochs_tier = Tier::Gap;
        }
        trial.observed("").within(Duration::from_secs(600))
    };
    trials.into_iter().map(observed).collect()
}

/// One vCPU on node 0 and 8 MiB elsewhere that are touched all the time; nothing moves until that is asked for.
fn far(name: &str, tag: &str, memory: &str) -> Vm {
    far_away(name, 8, tag, memory)
}

/// The same with so many MiB.
pub(crate) fn far_away(name: &str, mib: u64, tag: &str, memory: &str) -> Vm {
    Vm::linux(name)
        .set("cpus", "1")
        .set("memory", "\"128M\"")
        .set("memory_nodes", memory)
        .set("start_node", "0")
        .set("mode", "\"off\"")
        .workload(&format!("--mib {mib} --seconds 40 --tag {tag}"))
}

/// Three such VMs, one for each mode, on a machine whose other nodes are equally far and have a CPU each.
fn compared(trial: Scenario, affinity: &str) -> Scenario {
    let node = |cpus| Node {
        cpus,
        memory_mib: 384,
    };
    let distance = |from: usize, to: usize| if from == to { 10 } else { 20 };
    let distances = (0..4).map(|from| (0..4).map(|to| distance(from, to)).collect());
    let machine = Machine::of(vec![node(3), node(1), node(1), node(1)]);
    let mut trial = trial.on(machine.with_distances(distances.collect()));
    let mut keys = String::new();
    for (name, mode, tag, memory) in COMPARED {
        // Before, each stays where it starts.
        let vm = far(name, &tag.to_string(), memory).set("cpu_affinity", affinity);
        trial = trial.vm(vm);
        keys.push_str(&format!("vm {name} mode {mode}\r"));
    }
    // Once all three are at it. Each says this once.
    let ready = "WORKLOAD filled";
    let trial = trial.wait_for(ready, 2);
    trial.type_after(ready, &keys)
}

/// What auto chose, and whether its accesses were as near as those of the better of the others, over all the time and at the end.
fn as_good_as_the_better(e: &Evidence, expected: fn(&Choice) -> bool) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let mut shares = Vec::new();
    for (name, _, tag, _) in COMPARED {
        let counted = Counted::enough(e, tag)?;
        shares.push((name, counted.all(local), counted.last(local)));
    }
    let [(_, all, last), others @ ..] = &shares[..] else {
        return Err("nothing was compared".into());
    };
    let better = |of: fn(&(&str, u64, u64)) -> u64| others.iter().map(of).max().unwrap_or(0);
    let (better_all, better_last) = (better(|s| s.1), better(|s| s.2));
    if better_last < NEAR {
        return Err(format!(
            "neither of the two brought its VM near: {shares:?}"
        ));
    }
    if *all * 100 < better_all * NEARLY || *last * 100 < better_last * NEARLY {
        return Err(format!(
            "local accesses in all and at the end, in percent: {shares:?}"
        ));
    }
    let chosen = e.events().find_map(|event| match event {
        Event::Plan { name, chosen, .. } if name == COMPARED[0].0 => Some(*chosen),
        _ => None,
    });
    match chosen {
        Some(choice) if expected(&choice) => Ok(()),
        other => Err(format!("auto chose {other:?}")),
    }
}

/// A guest that knows two nodes, on node 1 and node 3; it runs on node 1.
fn two_halves(words: &str) -> Vm {
    Vm::linux("far")
        .set("cpus", "1")
        .set("memory", "\"256M\"")
        .set(
            "memory_nodes",
            "[{ node = 1, size = \"128M\" }, { node = 3 }]",
        )
        .set("vnuma", "true")
        .set("start_node", "1")
        .workload(&format!("--mib 32 --seconds 44 --tag 2 {words}"))
}

/// Near before the shift and near again at the end, and far in between.
fn shift_is_followed(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let counted = Counted::enough(e, 2)?;
    let (before, far) = around_the_shift(&counted.by_window(local))?;
    let after = counted.last(local);
    if before < NEAR || after < NEAR {
        return Err(format!(
            "{before} % of accesses were local before the shift and {after} % at the end"
        ));
    }
    let on_3 = counted.last(|_, memory| memory == 3);
    if !far && on_3 >= NEAR {
        return Err("the second half was never far: there was nothing to follow".into());
    }
    Ok(())
}

/// Percentage of local accesses in the second half of the time before the shift, and whether the shift was seen. It is where
/// accesses turn far for the first time after they had come near; where they never did, half of the windows were before
/// it. A window is as many accesses as any other, so the shift need not be in their middle.
fn around_the_shift(by_window: &[u64]) -> Result<(u64, bool), String> {
    let near = by_window.iter().position(|share| *share >= NEAR);
    let near = near.ok_or("accesses were never near")?;
    let seen = by_window.iter().skip(near).position(|share| *share < FAR);
    let shift = seen.map_or(by_window.len() / 2, |after| near + after);
    let part = by_window.get(shift / 2..shift).unwrap_or(&[]);
    let mean = part.iter().sum::<u64>() / (part.len() as u64).max(1);
    Ok((mean, seen.is_some()))
}

/// Moves of pages, and of vCPUs for their memory, that began after this time.
fn moves_after(e: &Evidence, time: Nanos) -> u64 {
    let late = e.records.iter().filter(|r| r.what.at_ns > time);
    let moves = late.filter(|r| match &r.what.event {
        Event::PagesMoved { .. } => true,
        Event::VcpuMoved { reason, .. } => matches!(reason, MoveReason::Preferred { .. }),
        _ => false,
    });
    moves.count() as u64
}

fn settles(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(2)?;
    let up = e
        .events()
        .any(|event| matches!(event, Event::Footprint { .. }));
    let end = e.records.last().map_or(Nanos::ZERO, |r| r.what.at_ns);
    let watched = end.since(Nanos::from_secs(30)).as_millis() / 1000;
    if !up || watched < 30 {
        return Err(format!(
            "it was watched for {watched} s after the first thirty only"
        ));
    }
    let moves = moves_after(e, Nanos::from_secs(30));
    match moves * 60 <= 10 * watched {
        true => Ok(()),
        false => Err(format!(
            "{moves} moves in {watched} s after the first thirty"
        )),
    }
}

/// Far before, near after, by pages.
fn came_by_pages(e: &Evidence) -> Result<(), String> {
    let counted = Counted::enough(e, 2)?;
    let (first, last) = (
        counted.first(local),
        counted.last(|cpu, node| (cpu, node) == (0, 0)),
    );
    if first >= 20 || last < NEAR {
        return Err(format!(
            "{first} % of accesses were local at the beginning, {last} % on node 0 at the end"
        ));
    }
    let pages = e.events().any(
        |event| matches!(event, Event::PagesMoved { name, to: NodeId(0), .. } if name == "both"),
    );
    pages
        .then_some(())
        .ok_or_else(|| "no record tells of its pages".into())
}

/// The neighbour counted as much in the last third of its time as in the first.
fn keeps_its_cpu(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let number = |line: &str, key: &str| {
        let rest = line.split_once(key)?.1;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let counts: Vec<(u64, u64)> = e
        .guest_lines("neighbour")
        .filter(|line| line.what.starts_with("COUNT "))
        .filter_map(|line| Some((number(line.what, "ms=")?, number(line.what, "n=")?)))
        .collect();
    let third = counts.len() / 3;
    let rate = |part: &[(u64, u64)]| match (part.first(), part.last()) {
        (Some(a), Some(b)) if b.0 > a.0 => (b.1 - a.1) * 1000 / (b.0 - a.0),
        _ => 0,
    };
    let (before, after) = (
        rate(&counts[..third.min(counts.len())]),
        rate(counts.get(counts.len() - third..).unwrap_or(&[])),
    );
    // Both CPUs are emulated by threads that the host runs as it likes: less than half would be a vCPU beside it.
    if before == 0 || after * 100 < before * 65 {
        return Err(format!(
            "it counted {before} a second at first and {after} at the end"
        ));
    }
    Ok(())
}

/// The planner moved what there was room for at most and said why not more; what was ordered by hand went as far as there was
/// room, and the rest was told of.
fn refused(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let moves = e.events().filter_map(|event| match event {
        Event::PagesMoved {
            leaves,
            leaf,
            failed,
            reason,
            ..
        } => Some((u64::from(*leaves) * leaf.bytes(), *failed, reason)),
        _ => None,
    });
    let moves: Vec<(u64, u32, &String)> = moves.collect();
    let by_itself = moves.iter().filter(|(.., why)| !why.contains("operator"));
    let came = by_itself.map(|(bytes, ..)| bytes >> 20).sum::<u64>();
    if came >= HOT_MIB / 2 {
        return Err(format!("there was no room, and yet {came} MiB came"));
    }
    let none = e.line("leaves could be moved to node0").is_some();
    if !none && !moves.iter().any(|(_, failed, _)| *failed > 0) {
        return Err(format!("all that was ordered by hand went: {moves:?}"));
    }
    let said = e.line(": its memory is full");
    said.map(|_| ())
        .ok_or_else(|| "the operator was not told that memory is full".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shift_is_where_accesses_turn_far() {
        let run = |parts: &[(u64, usize)]| -> Vec<u64> {
            let parts = parts.iter();
            parts.flat_map(|(share, n)| vec![*share; *n]).collect()
        };
        // Near soon, and the shift early in the series.
        let followed = run(&[(0, 20), (100, 180), (53, 30), (100, 400)]);
        assert_eq!(around_the_shift(&followed), Ok((100, true)));
        // Near only just before it.
        let late = run(&[(0, 180), (100, 20), (53, 30), (100, 400)]);
        assert!(around_the_shift(&late).is_ok_and(|(before, far)| before < NEAR && far));
        assert_eq!(around_the_shift(&run(&[(100, 40)])), Ok((100, false)));
        assert!(around_the_shift(&run(&[(40, 40)])).is_err());
    }
}
