//! What the kernel understood of a machine is the machine that the emulator was asked for.
//!
//! The judge compares the kernel's topology record with the [`Machine`] that made the emulator's
//! command line. It reads no ACPI table: between the two lie QEMU's table writer, the firmware, the loader
//! and the kernel's parsers, and every one of them has to be right.
//!
//! No VM runs here; a machine without VMs powers off at once. Besides the shapes that are known to be
//! troublesome, random machines are drawn from a seed: every third has an HMAT, every third has override
//! tables that number its domains sparsely and out of order.

use std::time::Duration;

use telemetry::Topology;
use topology::build::{self, Affinity};

use super::random::Random;
use crate::{Emulator, Evidence, Latency, Machine, Node, Outcome, Scenario, Tier};

/// Random machines of a full run, and of a quick one.
const RANDOM: u64 = 20;
const RANDOM_QUICK: u64 = 3;
/// A boot takes seconds; whoever shares the host with others waits longer.
const LIMIT: Duration = Duration::from_secs(600);

/// The trials of this file.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let node = |cpus, memory_mib| Node { cpus, memory_mib };
    let shapes = [
        Scenario::full(
            "topology-one-node",
            "the kernel's topology is that of a machine with one node",
            judge,
        )
        .on(Machine::row(1, 2, 512)),
        Scenario::full("topology-two-nodes", "the same with two nodes", judge)
            .on(Machine::row(2, 2, 512)),
        Scenario::quick("topology-eight-nodes", "the same with eight nodes", judge)
            .on(Machine::row(8, 1, 256)),
        Scenario::quick(
            "topology-memory-less-node",
            "the same with a node that has CPUs only",
            judge,
        )
        .on(Machine::of(vec![node(2, 512), node(2, 0), node(1, 256)])),
        Scenario::quick(
            "topology-cpu-less-node",
            "the same with a node that has memory only",
            judge,
        )
        .on(Machine::of(vec![node(2, 512), node(0, 256), node(1, 256)])),
        Scenario::quick(
            "topology-asymmetric",
            "the same where the way there and the way back differ",
            judge,
        )
        .on(Machine::row(4, 1, 256).with_distances(vec![
            vec![10, 21, 33, 90],
            vec![17, 10, 25, 41],
            vec![30, 12, 10, 254],
            vec![80, 44, 11, 10],
        ])),
    ];
    let random = (1..=RANDOM).map(|number| random(number, seed));
    shapes
        .into_iter()
        .map(|scenario| scenario.within(LIMIT))
        .chain(random)
        .collect()
}

fn judge(evidence: &Evidence) -> Result<(), String> {
    judge_numbered(evidence, |node| node)
}

/// Judges a run whose node `n` is the proximity domain `domain(n)`.
fn judge_numbered(evidence: &Evidence, domain: impl Fn(u32) -> u32) -> Result<(), String> {
    if evidence.outcome != Outcome::Clean {
        return Err(format!(
            "the run ended otherwise than cleanly: {}",
            evidence.outcome
        ));
    }
    let seen = evidence
        .topology()
        .ok_or("the kernel recorded no topology")?;
    let apics = evidence.machine.apics(evidence.emulator);
    equal(&evidence.machine, &apics, domain, seen)
}

/// Whether the kernel saw this machine, whose CPUs have these APIC ids and nodes, and node `n` of which is the proximity
/// domain `domain(n)`.
fn equal(
    machine: &Machine,
    apics: &[(u32, usize)],
    domain: impl Fn(u32) -> u32,
    seen: &Topology,
) -> Result<(), String> {
    if seen.nodes.len() != machine.nodes.len() {
        return Err(format!(
            "{} nodes were built, the kernel sees {}",
            machine.nodes.len(),
            seen.nodes.len()
        ));
    }
    // The kernel's number of each node, found by its domain.
    let mut place = Vec::new();
    for (node, wanted) in (0..).map(&domain).take(machine.nodes.len()).enumerate() {
        let found = seen.nodes.iter().position(|n| n.pxm.0 == wanted);
        place.push(
            found.ok_or_else(|| {
                format!("node {node}, domain {wanted}, is not among the kernel's")
            })?,
        );
    }
    cpus(apics, &place, seen)?;
    memory(machine, &place, seen)?;
    let scale = |d: &u8| u32::from(*d);
    if !machine.distances.is_empty() {
        let built = |from: usize, to: usize| machine.distances[from].get(to).map(scale);
        matrix("distance", &place, &seen.distances, built)?;
    }
    let usable =
        |from: usize, to: usize| machine.nodes[from].cpus > 0 && machine.nodes[to].memory_mib > 0;
    if !machine.latencies.is_empty() {
        if !seen.latency_source.contains("HMAT") {
            return Err(format!(
                "there is an HMAT, the kernel's latencies come from {:?}",
                seen.latency_source
            ));
        }
        matrix("latency", &place, &seen.latency_ns, |from, to| {
            usable(from, to).then(|| machine.latencies[from][to].latency_ns)
        })?;
    } else if !machine.distances.is_empty() {
        let built = |from: usize, to: usize| machine.distances[from].get(to).map(|d| 10 * scale(d));
        matrix("latency", &place, &seen.latency_ns, built)?;
    }
    Ok(())
}

/// Every pair for which `built` has a figure has the same one in the kernel's matrix.
fn matrix(
    what: &str,
    place: &[usize],
    seen: &[Vec<u32>],
    built: impl Fn(usize, usize) -> Option<u32>,
) -> Result<(), String> {
    for from in 0..place.len() {
        for to in 0..place.len() {
            let Some(wanted) = built(from, to) else {
                continue;
            };
            let found = seen
                .get(place[from])
                .and_then(|row| row.get(place[to]))
                .copied();
            if found != Some(wanted) {
                return Err(format!(
                    "{what} from node {from} to node {to} is {wanted}, the kernel sees {found:?}"
                ));
            }
        }
    }
    Ok(())
}

fn cpus(apics: &[(u32, usize)], place: &[usize], seen: &Topology) -> Result<(), String> {
    let mut built: Vec<(u32, usize)> = apics
        .iter()
        .map(|&(apic, node)| (apic, place[node]))
        .collect();
    let mut found: Vec<(u32, usize)> = seen
        .cpus
        .iter()
        .map(|c| (c.apic.0, usize::from(c.node.0)))
        .collect();
    built.sort_unstable();
    found.sort_unstable();
    if built != found {
        return Err(format!(
            "CPUs by APIC id and the kernel's node are {built:?}, the kernel sees {found:?}"
        ));
    }
    Ok(())
}

/// Firmware keeps this much at most, of all nodes together.
const KEPT_MIB: u64 = 64;

/// No node has more memory than it was given, and all together lack no more than firmware may keep.
fn memory(machine: &Machine, place: &[usize], seen: &Topology) -> Result<(), String> {
    let mut kept = 0;
    for (id, node) in machine.nodes.iter().enumerate() {
        let (built, found) = (
            u64::from(node.memory_mib) << 20,
            seen.nodes[place[id]].memory_bytes,
        );
        kept += built.saturating_sub(found);
        if found > built || kept > KEPT_MIB << 20 {
            return Err(format!(
                "node {id} has {} MiB, the kernel sees {} bytes; {} MiB are missing so far",
                node.memory_mib,
                found,
                kept >> 20
            ));
        }
    }
    Ok(())
}

/// One random machine of a run with this seed.
fn random(number: u64, seed: u64) -> Scenario {
    let mut random = Random::new(seed.wrapping_add(number << 32));
    // With at most two CPUs a node has the same APIC ids in every emulator, which override tables name; and no more than
    // Bochs can have.
    let (nodes, most) = match number.is_multiple_of(3) {
        true => (random.between(1, 6), 2),
        false => (random.between(1, 8), 3),
    };
    let mut node = |id| loop {
        let node = Node {
            cpus: random.between(u32::from(id == 0), most),
            memory_mib: match random.between(0, 5) {
                0 if id > 0 => 0,
                _ => 16 * random.between(if id == 0 { 16 } else { 4 }, 20),
            },
        };
        if node.cpus > 0 || node.memory_mib > 0 {
            break node;
        }
    };
    let shape: Vec<Node> = (0..nodes).map(&mut node).collect();
    let all = || 0..shape.len();
    let mut distance = |from, to| {
        if from == to {
            10
        } else {
            random.between(11, 254) as u8
        }
    };
    let distances = all()
        .map(|from| all().map(|to| distance(from, to)).collect())
        .collect();
    let machine = Machine::of(shape.clone()).with_distances(distances);
    let about =
        |what: &str| format!("the kernel's topology is that of a random machine with {what}");
    let name = format!("topology-random-{number:02}");
    let scenario = match number % 3 {
        0 => {
            let domains = sparse(shape.len(), &mut random);
            let (srat, slit) = tables(&machine, &domains);
            Scenario::full(
                &name,
                &about("sparse domains by override tables"),
                move |e| judge_numbered(e, |node| domains[node as usize]),
            )
            .table("srat.aml", srat)
            .table("slit.aml", slit)
            .on(machine)
        }
        1 => Scenario::full(&name, &about("a SLIT"), judge)
            .on_bochs(machine.clone().trimmed_for_bochs())
            .on(machine),
        _ => {
            let latencies = latencies(shape.len(), &mut random);
            let machine = Machine {
                latencies,
                ..machine
            };
            Scenario::full(&name, &about("a SLIT and an HMAT"), judge)
                .on_bochs(machine.clone().trimmed_for_bochs())
                .on(machine)
        }
    };
    let mut scenario = scenario.seeded(seed).within(LIMIT);
    if number <= RANDOM_QUICK {
        scenario.tier = Tier::Quick;
    }
    scenario
}

/// Latencies where local memory is the nearest, as an HMAT must have it to be believed.
fn latencies(nodes: usize, random: &mut Random) -> Vec<Vec<Latency>> {
    let row = |from: usize, random: &mut Random| {
        let local = random.between(50, 120);
        let pair = |to: usize| Latency {
            latency_ns: if from == to {
                local
            } else {
                local + random.between(1, 400)
            },
            bandwidth_mib_s: 512 * random.between(2, 80),
        };
        (0..nodes).map(pair).collect()
    };
    (0..nodes).map(|from| row(from, random)).collect()
}

/// As many different domains below 64, in any order.
fn sparse(nodes: usize, random: &mut Random) -> Vec<u32> {
    let mut domains = Vec::new();
    while domains.len() < nodes {
        let domain = random.between(0, 63);
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    domains
}

/// SRAT and SLIT of this machine with these domains.
fn tables(machine: &Machine, domains: &[u32]) -> (Vec<u8>, Vec<u8>) {
    let mut affinities: Vec<Affinity> = machine
        .apics(Emulator::Qemu)
        .into_iter()
        .map(|(apic, node)| Affinity::X2Cpu {
            apic,
            domain: domains[node],
        })
        .collect();
    // All of it lies below q35's hole (see `memory_stays_below_the_hole`), node after node.
    let mut start = 0;
    for (node, domain) in machine.nodes.iter().zip(domains) {
        let bytes = u64::from(node.memory_mib) << 20;
        if bytes > 0 {
            affinities.push(Affinity::Memory {
                start,
                bytes,
                domain: *domain,
            });
        }
        start += bytes;
    }
    let localities = domains.iter().max().map_or(1, |most| most + 1);
    let node_of = |domain: u32| domains.iter().position(|d| *d == domain);
    let slit = build::slit(localities, |from, to| match (node_of(from), node_of(to)) {
        _ if from == to => 10,
        (Some(from), Some(to)) => machine.distances[from][to],
        _ => 20,
    });
    (build::srat(&affinities), slit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::{CpuReport, NodeReport};
    use units::{ApicId, CpuId, NodeId, ProximityDomain};

    /// What a kernel would record that understands `machine`, whose domains are ascending.
    fn understood(machine: &Machine, domain: impl Fn(u32) -> u32) -> Topology {
        let nodes = (0..).zip(&machine.nodes).map(|(id, node)| NodeReport {
            node: NodeId(id),
            pxm: ProximityDomain(domain(id.into())),
            memory_bytes: u64::from(node.memory_mib) << 20,
        });
        let cpus = (0..)
            .zip(machine.apics(Emulator::Qemu))
            .map(|(id, (apic, node))| CpuReport {
                cpu: CpuId(id),
                node: NodeId(node as u16),
                apic: ApicId(apic),
            });
        let rows = |f: &dyn Fn(usize, usize) -> u32| -> Vec<Vec<u32>> {
            let all = || 0..machine.nodes.len();
            all().map(|a| all().map(|b| f(a, b)).collect()).collect()
        };
        let hmat = !machine.latencies.is_empty();
        Topology {
            nodes: nodes.collect(),
            cpus: cpus.collect(),
            distances: rows(&|a, b| machine.distances[a][b].into()),
            latency_ns: rows(&|a, b| match hmat {
                true => machine.latencies[a][b].latency_ns,
                false => u32::from(machine.distances[a][b]) * 10,
            }),
            latency_source: if hmat { "HMAT" } else { "SLIT x 10 ns" }.into(),
            measured: String::new(),
            quirks: Vec::new(),
        }
    }

    #[test]
    fn only_the_machine_that_was_built_is_accepted() {
        let machine = Machine::row(3, 3, 256);
        let twice = |node| 2 * node;
        let seen = understood(&machine, twice);
        assert_eq!(
            equal(&machine, &machine.apics(Emulator::Qemu), twice, &seen),
            Ok(())
        );
        let differs = |change: fn(&mut Topology)| {
            let mut other = seen.clone();
            change(&mut other);
            equal(&machine, &machine.apics(Emulator::Qemu), twice, &other).expect_err("differs")
        };
        assert!(differs(|t| t.cpus[1].node = NodeId(2)).contains("CPUs"));
        assert!(differs(|t| t.cpus[8].apic = ApicId(8)).contains("APIC"));
        assert!(differs(|t| t.nodes[1].memory_bytes += 1).contains("MiB"));
        assert!(
            differs(|t| t.nodes.iter_mut().for_each(|n| n.memory_bytes -= 30 << 20))
                .contains("missing")
        );
        assert!(differs(|t| t.distances[0][1] += 1).contains("distance"));
        assert!(differs(|t| t.distances[2][1] += 1).contains("distance"));
        assert!(differs(|t| t.latency_ns[2][0] += 1).contains("latency"));
        assert!(differs(|t| t.latency_source = "SLIT".into()).contains("HMAT"));
        assert!(differs(|t| t.nodes[2].pxm = ProximityDomain(2)).contains("domain 4"));
        assert!(differs(|t| t.nodes.truncate(2)).contains("nodes"));
        let by_distance = machine.clone().with_distances(machine.distances.clone());
        assert!(
            equal(
                &by_distance,
                &by_distance.apics(Emulator::Qemu),
                twice,
                &seen
            )
            .is_err_and(|why| why.contains("latency"))
        );
    }

    #[test]
    fn nodes_are_found_by_their_domain() {
        let machine = Machine::of(vec![
            Node {
                cpus: 1,
                memory_mib: 256,
            },
            Node {
                cpus: 2,
                memory_mib: 128,
            },
        ]);
        let mut seen = understood(&machine, |node| node);
        seen.nodes.reverse();
        seen.nodes
            .iter_mut()
            .for_each(|n| n.pxm = ProximityDomain(9 - n.pxm.0));
        seen.cpus
            .iter_mut()
            .for_each(|c| c.node = NodeId(1 - c.node.0));
        for rows in [&mut seen.distances, &mut seen.latency_ns] {
            rows.reverse();
            rows.iter_mut().for_each(|row| row.reverse());
        }
        assert_eq!(
            equal(
                &machine,
                &machine.apics(Emulator::Qemu),
                |node| 9 - node,
                &seen
            ),
            Ok(())
        );
        assert!(
            equal(
                &machine,
                &machine.apics(Emulator::Qemu),
                |node| 8 + node,
                &seen
            )
            .is_err()
        );
    }

    #[test]
    fn memory_stays_below_the_hole() {
        for seed in 0..200 {
            let scenario = random(seed, seed);
            assert!(
                scenario.machine.memory_mib() <= 2816,
                "{:?}",
                scenario.machine
            );
            assert_eq!(scenario.machine.check(), Ok(()));
        }
    }

    #[test]
    fn a_seed_makes_the_same_machine_again() {
        assert_eq!(random(3, 7).machine, random(3, 7).machine);
        assert_eq!(random(3, 7).overrides, random(3, 7).overrides);
        assert_ne!(random(3, 7).machine, random(3, 8).machine);
    }
}
