//! The main job and its counter-cases: what is far and touched comes near, everything else stays.
//!
//! In QEMU the verdict comes from outside: the emulator plugin counts which CPU node touches which
//! memory node behind the workload's tag, and the workload checks every word of its memory. The kernel's
//! records are read as well, but only for what they must say besides: why something moved, or that
//! nothing was ordered. Bochs has no such observer: there the workload's own record and the kernel's have to do.
//!
//! A guest takes seconds to reach userspace, and Perigee would have mended it by then. So that the
//! plugin sees the time before as well, most trials start with `mode = "off"` and let the operator
//! switch it on once the workload has reported for the second time.

use std::time::Duration;

use telemetry::{Choice, Event, Hold, MoveReason, VmEvent};
use units::NodeId;

use super::counted::{Counted, local};
use crate::{Emulator, Evidence, Machine, Scenario, Vm};

/// The VM of every trial here, and its workload's tag.
const NAME: &str = "far";
const TAG: u64 = 2;
/// Once the workload has reported this, two seconds of its accesses have been counted.
const COUNTED: &str = "WORKLOAD t=2 ";
/// By then a move had time to happen, and the workload still runs: its first report from the tenth second on. On a busy host
/// single reports are left out.
const LATE: &str = "WORKLOAD t=1";
const SWITCH_ON: &str = "vm far mode auto\r";
const LOOK: &str = "footprint far\rproximity far\r";
/// Local accesses, in percent: fewer is far, at least so many is near.
const FAR: u64 = 20;
const NEAR: u64 = 95;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let trials = [
        Scenario::quick(
            "far-vm-ends-local",
            "a VM with its pages on node 3 and its vCPUs on node 0 ends local, and Perigee says why",
            |e| {
                ends_local(e)?;
                vcpus_went_to(e, NodeId(3))?;
                operator_saw(e)
            },
        )
        .vm(far().set("mode", "\"off\""))
        .on_bochs(Machine::row(4, 2, 256))
        .type_after(COUNTED, &format!("{LOOK}{SWITCH_ON}"))
        .type_after(LATE, &format!("{LOOK}why far\r")),
        Scenario::quick(
            "far-vm-ends-local-by-pages",
            "the same where only pages may move: they come to node 0, and no write is lost",
            pages_came,
        )
        .vm(slow().set("mode", "\"off\""))
        .type_after(COUNTED, "vm far mode pages-only\r"),
        Scenario::full(
            "pinned-vm-gets-its-pages",
            "the same where the vCPUs may run on node 0 only: pages come to them",
            pages_came,
        )
        .vm(slow().set("mode", "\"off\"").set("cpu_affinity", "{ nodes = [0] }"))
        .type_after(COUNTED, SWITCH_ON),
        Scenario::full(
            "pages-elsewhere",
            "a VM on node 3 with most of its pages there, all of whose accesses go to node 1, ends at node 1",
            |e| ends_at_node_1(e, NEAR),
        )
        .vm(with_untouched("1", "3").set("start_node", "3").set("mode", "\"off\""))
        .type_after(COUNTED, SWITCH_ON),
        Scenario::full(
            "pages-elsewhere-vnuma",
            "the same with a guest that knows two nodes and binds its workload to the second",
            |e| ends_at_node_1(e, NEAR),
        )
        .vm(bound_to_second("--guest-node 1 --mib 32 --seconds 20 --tag 2"))
        .type_after(COUNTED, SWITCH_ON),
        // Accessed bits alone would say node 3: the guest kernel's pages there are touched in each interval, too.
        Scenario::full(
            "pages-elsewhere-vnuma-small",
            "the same with a workload so small that the guest's kernel touches more regions than it does",
            |e| ends_at_node_1(e, NEAR),
        )
        .vm(bound_to_second("--guest-node 1 --mib 8 --seconds 20 --tag 2"))
        .type_after(COUNTED, SWITCH_ON)
        .type_after(LATE, LOOK),
        Scenario::quick("off-moves-nothing", "with mode = \"off\" a far VM stays far", stays_far)
            .vm(far().set("mode", "\"off\"")),
        Scenario::full("equal-distances-move-nothing", "where every way is equally long, nothing moves", |e| {
            well(e)?;
            nothing_ordered(e)?;
            // An idle CPU may take a waiting vCPU from wherever it likes here: only the pages' place is certain.
            if let Some(counted) = counted(e)? {
                let on_3 = counted.all(|_, memory| memory == 3);
                at_least("accesses to node 3 in all", on_3, 100)?;
            }
            held(e, |why| *why == Hold::Flat)
        })
        .on(Machine::row(4, 2, 512).with_distances(vec![vec![10; 4]; 4]))
        .vm(far()),
        Scenario::full("idle-vm-moves-nothing", "a far VM that idles stays where it is", |e| {
            well(e)?;
            if e.emulator == Emulator::Qemu && Counted::of(e, TAG)?.is_some() {
                return Err("the workload did not idle".into());
            }
            nothing_ordered(e)?;
            switched_on(e)?;
            held(e, |why| *why == Hold::Idle)
        })
        .vm(far().set("mode", "\"off\"").workload("--idle --mib 16 --seconds 12 --tag 2"))
        .type_after(COUNTED, SWITCH_ON)
        // Checking its memory at the end keeps it busy.
        .type_after(LATE, "vm far mode off\r"),
        Scenario::full(
            "untouched-memory-moves-nothing",
            "with 75 % of its memory on node 3 but every access at home on node 0, nothing moves",
            |e| {
                well(e)?;
                nothing_ordered(e)?;
                let on_3 = created(e).and_then(|by_node| {
                    let all: u64 = by_node.iter().sum();
                    Some(by_node.get(3)? * 100 / all.max(1))
                });
                if on_3.is_none_or(|percent| percent < 74) {
                    return Err(format!("{on_3:?} % of the memory lay on node 3"));
                }
                let Some(counted) = counted(e)? else {
                    return Ok(());
                };
                at_least("local accesses at the beginning", counted.first(local), NEAR)?;
                at_least("local accesses at the end", counted.last(local), NEAR)
            },
        )
        .vm(with_untouched("0", "3").set("start_node", "0")),
    ];
    trials
        .into_iter()
        .map(|trial| trial.observed("").within(Duration::from_secs(600)))
        .collect()
}

/// Pages on node 3, vCPUs on node 0.
fn far() -> Vm {
    Vm::linux(NAME)
        .set("memory_nodes", "[3]")
        .set("start_node", "0")
        .set("memory", "\"128M\"")
        .workload("--mib 16 --seconds 20 --tag 2")
}

/// The same with time for its pages to come, which on a busy host takes a tenth of a second each.
fn slow() -> Vm {
    far().workload("--mib 16 --seconds 30 --tag 2")
}

/// A guest that knows two nodes: its kernel and its vCPUs on node 3, and a workload that takes its memory from node 1.
fn bound_to_second(workload: &str) -> Vm {
    far()
        .set("memory", "\"320M\"")
        .set(
            "memory_nodes",
            "[{ node = 3, size = \"160M\" }, { node = 1 }]",
        )
        .set("vnuma", "true")
        .set("start_node", "3")
        .set("mode", "\"off\"")
        .workload(workload)
}

/// Three quarters of its memory on the node `untouched`, reserved on the guest's command line, so that
/// Linux has them and never touches them. Its kernel at the bottom and what that allocates early, at the
/// top, lie on `home`, as does the rest.
fn with_untouched(home: &str, untouched: &str) -> Vm {
    let shares = format!(
        "[{{ node = {home}, size = \"96M\" }}, {{ node = {untouched}, size = \"384M\" }}, {{ node = {home} }}]"
    );
    far()
        .set("memory", "\"512M\"")
        .set("memory_nodes", &shares)
        .append("console=ttyS0 quiet panic=1 memmap=384M$96M")
        .workload("--mib 24 --seconds 16 --tag 2")
}

/// The guest is content: two CPUs, every word as it must be, a clean end.
fn well(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(2)
}

fn at_least(what: &str, percent: u64, least: u64) -> Result<(), String> {
    if percent >= least {
        return Ok(());
    }
    Err(format!("{what}: {percent} %, expected at least {least} %"))
}

fn below(what: &str, percent: u64, limit: u64) -> Result<(), String> {
    if percent < limit {
        return Ok(());
    }
    Err(format!("{what}: {percent} %, expected less than {limit} %"))
}

/// What the observer outside counted, which must be enough; `None` where there is no observer.
fn counted(e: &Evidence) -> Result<Option<Counted>, String> {
    match e.emulator {
        Emulator::Qemu => Counted::enough(e, TAG).map(Some),
        Emulator::Bochs => Ok(None),
    }
}

/// Far before, near after, as counted outside.
fn ends_local(e: &Evidence) -> Result<(), String> {
    well(e)?;
    switched_on(e)?;
    let Some(counted) = counted(e)? else {
        return Ok(());
    };
    below("local accesses at the beginning", counted.first(local), FAR)?;
    at_least("local accesses at the end", counted.last(local), NEAR)
}

/// Node 1 touches node 1 in the end, and did not in the beginning.
fn ends_at_node_1(e: &Evidence, near: u64) -> Result<(), String> {
    well(e)?;
    switched_on(e)?;
    vcpus_went_to(e, NodeId(1))?;
    let Some(counted) = counted(e)? else {
        return Ok(());
    };
    let from_3 = counted.first(|cpu, memory| (cpu, memory) == (3, 1));
    at_least(
        "accesses from node 3 to node 1 at the beginning",
        from_3,
        100 - FAR,
    )?;
    let at_1 = counted.last(|cpu, memory| (cpu, memory) == (1, 1));
    at_least("accesses from node 1 to node 1 at the end", at_1, near)
}

/// The operator's switch was understood.
fn switched_on(e: &Evidence) -> Result<(), String> {
    let said = e.line("the mode of far is");
    said.map(|_| ())
        .ok_or("Perigee did not switch its mode".into())
}

/// A plan with a reason in words brought both vCPUs to this node, each with a move that says why.
fn vcpus_went_to(e: &Evidence, node: NodeId) -> Result<(), String> {
    let planned = e.events().any(|event| {
        matches!(event, Event::Plan { name, chosen: Choice::MoveVcpus { to, .. }, sentence, .. }
            if name == NAME && *to == node && sentence.contains(&format!("to {node}")))
    });
    if !planned {
        return Err(format!("no plan says why vCPUs go to {node}"));
    }
    for index in 0..2 {
        let went = e.events().any(|event| {
            matches!(event, Event::VcpuMoved { vcpu, to_node, reason: MoveReason::Preferred { from, to }, .. }
                if vcpu.index == index && *to_node == node && to > from)
        });
        if !went {
            return Err(format!("vCPU {index} did not go to {node} for its memory"));
        }
    }
    Ok(())
}

/// The monitor showed footprint and proximity before and after, and the reason.
fn operator_saw(e: &Evidence) -> Result<(), String> {
    let lines = |what: &str| -> Vec<&str> {
        let lines = e.console.iter().map(|l| l.what.as_str());
        lines.filter(|l| l.contains(what)).collect()
    };
    // The CPUs of each node, with their score.
    for (cpus, score) in [("0-1  node0", "0.000"), ("6-7  node3", "1.000")] {
        let said = lines(cpus);
        if said.len() != 2 || !said.iter().all(|line| line.ends_with(score)) {
            return Err(format!(
                "before and after, proximity of {cpus} is {score}; the operator saw {said:?}"
            ));
        }
    }
    let touches = lines("touched from node");
    let saw = |line: Option<&&str>, node: &str| line.is_some_and(|l| l.contains(node));
    if !saw(touches.first(), "from node0") || !saw(touches.last(), "from node3") {
        return Err(format!(
            "the footprint should go from node 0 to node 3; the operator saw {touches:?}"
        ));
    }
    Ok(())
}

/// Far before, near after, by pages that came from node 3 to node 0 for a reason.
fn pages_came(e: &Evidence) -> Result<(), String> {
    ends_local(e)?;
    if let Some(counted) = counted(e)? {
        let at_0 = counted.last(|cpu, memory| (cpu, memory) == (0, 0));
        at_least("accesses from node 0 to node 0 at the end", at_0, NEAR)?;
    }
    let told: u64 = e
        .events()
        .filter_map(|event| match event {
            Event::PagesMoved {
                name,
                from: NodeId(3),
                to: NodeId(0),
                bytes,
                reason,
                ..
            } if name == NAME && reason.contains("to node0") => Some(*bytes),
            _ => None,
        })
        .sum();
    if told < 15 << 20 {
        return Err(format!(
            "16 MiB are touched, but records tell of {} MiB that came to node 0",
            told >> 20
        ));
    }
    match e.events().find(|event| preferred(event)) {
        Some(moved) => Err(format!("vCPUs should stay, but: {moved}")),
        None => Ok(()),
    }
}

fn preferred(event: &Event) -> bool {
    matches!(
        event,
        Event::VcpuMoved {
            reason: MoveReason::Preferred { .. },
            ..
        }
    )
}

/// Far from the beginning to the end, as counted outside, and nothing was ordered.
fn stays_far(e: &Evidence) -> Result<(), String> {
    well(e)?;
    nothing_ordered(e)?;
    let Some(counted) = counted(e)? else {
        return Ok(());
    };
    let far = |cpu, memory| (cpu, memory) == (0, 3);
    at_least(
        "accesses from node 0 to node 3 at the beginning",
        counted.first(far),
        100 - FAR,
    )?;
    at_least(
        "accesses from node 0 to node 3 at the end",
        counted.last(far),
        100 - FAR,
    )?;
    at_least(
        "accesses from node 0 to node 3 in all",
        counted.all(far),
        100 - FAR,
    )
}

/// No plan, no page and no vCPU moved for proximity.
fn nothing_ordered(e: &Evidence) -> Result<(), String> {
    let ordered = e.events().find(|event| {
        preferred(event) || matches!(event, Event::Plan { .. } | Event::PagesMoved { .. })
    });
    match ordered {
        Some(event) => Err(format!("nothing should move, but: {event}")),
        None => Ok(()),
    }
}

/// The planner looked and said that it let things be for this reason.
fn held(e: &Evidence, reason: impl Fn(&Hold) -> bool) -> Result<(), String> {
    let said = e
        .events()
        .any(|event| matches!(event, Event::Held { name, why, .. } if name == NAME && reason(why)));
    if said {
        Ok(())
    } else {
        Err("the planner never gave the reason for which nothing should move".into())
    }
}

/// The VM's memory on each node when it was built.
fn created(e: &Evidence) -> Option<Vec<u64>> {
    e.events().find_map(|event| match event {
        Event::Vm {
            name,
            what: VmEvent::Created { memory_by_node, .. },
            ..
        } if name == NAME => Some(memory_by_node.clone()),
        _ => None,
    })
}
