//! The best static placement, by trying all of them.
//!
//! For small machines: each VM with its vCPUs and all its memory on one node with CPUs, or spread over all; every
//! combination is judged by a fluid model (CPU time by weight with each vCPU clamped to one CPU, latency
//! at the load that results) and the best geometric mean over VMs, each by its weight, wins. It shares the hardware's formulas
//! with the simulation and nothing with any policy. It moves nothing and knows everything from the
//! start; a policy that starts badly and learns can only come near. It may also be beaten: a policy may
//! spread one VM over two nodes, or follow phases.

use crate::machine::Machine;
use crate::scenario::Scenario;
use crate::workload::{Kind, OVERLAP};
use crate::world::queueing;

/// Combinations beyond which nothing is tried.
const MOST: usize = 300_000;

/// Throughput of each VM at the best placement, in the units of [`crate::measure::Outcome`]; None if there are
/// too many.
pub fn best(s: &Scenario) -> Option<Vec<f64>> {
    let nodes: Vec<usize> = s.machine.cpu_nodes().collect();
    let choices = nodes.len() + 1;
    let all = choices.checked_pow(u32::try_from(s.vms.len()).ok()?)?;
    if all > MOST {
        return None;
    }
    let entitled = s.entitled();
    let mut best: Option<(f64, Vec<f64>)> = None;
    for code in 0..all {
        let mut rest = code;
        let placed: Vec<Option<usize>> = s
            .vms
            .iter()
            .map(|_| {
                let choice = rest % choices;
                rest /= choices;
                nodes.get(choice).copied()
            })
            .collect();
        let speeds = fluid(s, &nodes, &placed);
        let logs = speeds.iter().map(|x| x.max(1e-9).ln());
        let score: f64 = logs.zip(&entitled).map(|(log, part)| log * part).sum();
        if best.as_ref().is_none_or(|(b, _)| score > *b) {
            best = Some((score, speeds));
        }
    }
    best.map(|(_, speeds)| speeds)
}

/// Part of the time in which a vCPU wants to run at a given slowdown.
fn duty(kind: Kind, slow: f64) -> f64 {
    kind.rhythm()
        .map_or(1.0, |(work, sleep)| work * slow / (work * slow + sleep))
}

/// Throughput of each VM when VM `i` is on node `placed[i]`, or everywhere.
fn fluid(s: &Scenario, nodes: &[usize], placed: &[Option<usize>]) -> Vec<f64> {
    let m = &s.machine;
    let on = |i: usize| placed[i].map_or_else(|| nodes.to_vec(), |n| vec![n]);
    let mut latency = m.latency.clone();
    let mut slow = vec![1.0; s.vms.len()];
    let mut share = vec![0.0; s.vms.len()];
    for _ in 0..6 {
        for (i, slow) in slow.iter_mut().enumerate() {
            let of = on(i);
            let ns: f64 = of
                .iter()
                .flat_map(|k| of.iter().map(move |n| (*k, *n)))
                .map(|(k, n)| latency[k][n])
                .sum();
            let ns = ns / (of.len() * of.len()) as f64;
            *slow = 1.0 + s.vms[i].kind.misses() / 1000.0 * ns / OVERLAP;
        }
        shares(s, nodes, placed, &slow, &mut share);
        latency = loaded(s, m, &on, &slow, &share);
    }
    (0..s.vms.len())
        .map(|i| {
            let work = 1e9 * share[i] / slow[i];
            match (s.vms[i].kind.rhythm(), s.vms[i].kind.lock()) {
                (Some((burst, _)), _) => work / burst,
                // The lock lets one inside at a time.
                (_, Some((outside, inside))) => {
                    (work / (outside + inside)).min(1e9 / (inside * slow[i]))
                }
                _ => work,
            }
        })
        .collect()
}

/// CPU time of each VM, in CPUs: by weight on its nodes, nobody beyond what it wants.
fn shares(
    s: &Scenario,
    nodes: &[usize],
    placed: &[Option<usize>],
    slow: &[f64],
    share: &mut [f64],
) {
    share.fill(0.0);
    let want = |i: usize| s.vms[i].vcpus as f64 * duty(s.vms[i].kind, slow[i]);
    let spread = nodes.len() as f64;
    for &node in nodes {
        let mut members: Vec<(usize, f64, f64)> = (0..s.vms.len())
            .filter(|i| placed[*i].is_none_or(|n| n == node))
            .map(|i| {
                let part = if placed[i].is_none() {
                    1.0 / spread
                } else {
                    1.0
                };
                let weight = f64::from(s.vms[i].weight) * s.vms[i].vcpus as f64;
                (i, want(i) * part, weight * part)
            })
            .collect();
        let mut left = capacity(&s.machine, node);
        // Who wants least for its weight first: what it leaves is shared among the others.
        members.sort_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)));
        let mut weights: f64 = members.iter().map(|m| m.2).sum();
        for (i, want, weight) in members {
            let got = want.min(left * weight / weights.max(1e-9));
            share[i] += got;
            left -= got;
            weights -= weight;
        }
    }
}

/// CPUs that a node is worth: two threads of a core are worth one and a quarter.
fn capacity(m: &Machine, node: usize) -> f64 {
    let cpus = &m.node_cpus[node];
    let threads = cpus
        .iter()
        .filter(|c| m.cpus[**c].sibling.is_some())
        .count();
    (cpus.len() - threads) as f64 + threads as f64 / 1.6
}

fn loaded(
    s: &Scenario,
    m: &Machine,
    on: &impl Fn(usize) -> Vec<usize>,
    slow: &[f64],
    share: &[f64],
) -> Vec<Vec<f64>> {
    let mut controller = vec![0.0; m.nodes()];
    let mut link = vec![0.0; m.links.len()];
    for i in 0..s.vms.len() {
        let of = on(i);
        let rate = s.vms[i].kind.misses() / 1000.0 * 64.0 * share[i] / slow[i];
        let part = rate / (of.len() * of.len()) as f64;
        for k in &of {
            for n in &of {
                controller[*n] += part;
                m.routes[*k][*n].iter().for_each(|l| link[*l] += part);
            }
        }
    }
    let wait = |bytes: f64, most: f64| queueing(bytes / most);
    let mut latency = m.latency.clone();
    for (k, row) in latency.iter_mut().enumerate() {
        for (n, ns) in row.iter_mut().enumerate() {
            let links: f64 = m.routes[k][n]
                .iter()
                .map(|l| wait(link[*l], m.links[*l].bandwidth))
                .sum();
            *ns += wait(controller[n], m.controller[n]) + links;
        }
    }
    latency
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Shape;
    use crate::workload::VmSpec;

    #[test]
    fn two_memory_hungry_vms_take_a_node_each() {
        let shape = Shape {
            shape: "two-socket".into(),
            nodes: 2,
            cores: 2,
            threads: 1,
            llcs: 1,
            gib: 4,
        };
        let vm = VmSpec {
            kind: Kind::Memory,
            vcpus: 2,
            weight: 256,
            start: 0,
            pages: vec![0; 64],
            shared: Kind::Memory.shared(),
        };
        let s = Scenario {
            name: "pair".into(),
            machine: shape.build().expect("known"),
            vms: vec![vm.clone(), vm],
            time: 0,
            warm_up: 0,
            seed: 0,
        };
        let both = best(&s).expect("few combinations");
        let apart = fluid(&s, &[0, 1], &[Some(0), Some(1)]);
        assert_eq!(both, apart);
        let together = fluid(&s, &[0, 1], &[Some(0), Some(0)]);
        assert!(both[0] > 1.9 * together[0], "two CPUs for four vCPUs");
        let spread = fluid(&s, &[0, 1], &[None, None]);
        assert!(both[0] > spread[0], "local beats spread");
    }
}
