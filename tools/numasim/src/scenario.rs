//! Scenarios: a machine and its VMs, from a TOML file or from a seed.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::machine::{Machine, Shape};
use crate::rng::Rng;
use crate::workload::{Kind, VmSpec};

/// A machine with its VMs.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// The hardware.
    pub machine: Machine,
    /// The VMs.
    pub vms: Vec<VmSpec>,
    /// Simulated time after the warm-up, in ns.
    pub time: u64,
    /// Simulated time before anything is counted, in ns.
    pub warm_up: u64,
    /// Of chance.
    pub seed: u64,
}

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    machine: Shape,
    #[serde(default = "ten")]
    seconds: f64,
    #[serde(default = "two")]
    warm_up: f64,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    vm: Vec<VmTable>,
}

const fn ten() -> f64 {
    10.0
}
const fn two() -> f64 {
    2.0
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmTable {
    kind: Kind,
    /// How many like this one.
    #[serde(default = "one")]
    count: usize,
    #[serde(default = "one")]
    vcpus: usize,
    #[serde(default = "ordinary")]
    weight: u32,
    /// MiB of memory.
    #[serde(default = "mib")]
    memory: usize,
    /// Node where vCPUs start.
    #[serde(default)]
    start: usize,
    /// Nodes that hold the memory, in turn.
    #[serde(default)]
    memory_nodes: Vec<usize>,
    /// Part of the misses, 0 to 1, that go to pages that all of its vCPUs use; else what is usual of its kind.
    shared: Option<f64>,
}

const fn one() -> usize {
    1
}
const fn ordinary() -> u32 {
    256
}
const fn mib() -> usize {
    128
}

impl Scenario {
    /// Reads a file's text.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let file: File = toml::from_str(text).with_context(|| format!("{name} is no scenario"))?;
        let machine = file
            .machine
            .build()
            .with_context(|| format!("[machine] of {name}"))?;
        let mut vms = Vec::new();
        for (i, vm) in file.vm.iter().enumerate() {
            let nodes = if vm.memory_nodes.is_empty() {
                vec![vm.start]
            } else {
                vm.memory_nodes.clone()
            };
            let no_cpus = machine.node_cpus.get(vm.start).is_none_or(Vec::is_empty);
            if no_cpus || nodes.iter().any(|n| *n >= machine.nodes()) {
                bail!(
                    "{name}: VM {} names a node that the machine has not, or that has no CPUs",
                    i + 1
                );
            }
            if vm.vcpus == 0 || vm.memory < 2 || vm.weight == 0 {
                bail!(
                    "{name}: VM {} needs a vCPU, 2 MiB and a weight at least",
                    i + 1
                );
            }
            let shared = vm.shared.unwrap_or(vm.kind.shared());
            if !(0.0..=1.0).contains(&shared) {
                bail!(
                    "{name}: VM {} shares {shared} of its misses, not 0 to 1",
                    i + 1
                );
            }
            let spec = VmSpec {
                shared,
                kind: vm.kind,
                vcpus: vm.vcpus,
                weight: vm.weight,
                start: vm.start,
                pages: (0..vm.memory / 2).map(|p| nodes[p % nodes.len()]).collect(),
            };
            vms.extend(std::iter::repeat_n(spec, vm.count));
        }
        if vms.is_empty() {
            bail!("{name} has no [[vm]]: there is nothing to run");
        }
        let scenario = Self {
            name: name.into(),
            machine,
            vms,
            time: (file.seconds * 1e9) as u64,
            warm_up: (file.warm_up * 1e9) as u64,
            seed: file.seed,
        };
        scenario.check()?;
        Ok(scenario)
    }

    /// Whether the memory fits.
    fn check(&self) -> Result<()> {
        for node in 0..self.machine.nodes() {
            let used: usize = self
                .vms
                .iter()
                .map(|vm| vm.pages.iter().filter(|n| **n == node).count())
                .sum();
            if used > self.machine.pages[node] {
                bail!(
                    "{}: node {node} has {} pages, but VMs start with {used} there",
                    self.name,
                    self.machine.pages[node]
                );
            }
        }
        Ok(())
    }

    /// What each VM is entitled to: its weight times its vCPUs.
    pub fn entitled(&self) -> Vec<f64> {
        let of = |vm: &VmSpec| f64::from(vm.weight) * vm.vcpus as f64;
        self.vms.iter().map(of).collect()
    }

    /// A random machine of 2 to 8 nodes with a random mix.
    ///
    /// VMs start as they do in the field: most on one node with their memory, some with their memory on
    /// another node (placed when that was the free one), some spread.
    pub fn random(seed: u64, seconds: f64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ 0x1405_7b7e_f767_814f);
        let shapes = ["two-socket", "two-socket", "ring", "snc", "far", "glueless"];
        let shape = Shape {
            shape: shapes[rng.below(shapes.len())].into(),
            nodes: 4,
            cores: 2 + rng.below(5),
            threads: 1 + usize::from(rng.below(3) == 0),
            llcs: 1 + rng.below(2),
            gib: 8,
        };
        let machine = shape.build().expect("all these shapes are known");
        // From half loaded to twice overcommitted.
        let capacity = machine.cpus.len() as f64;
        let target = capacity * rng.range(0.5, 2.0);
        let nodes: Vec<usize> = machine.cpu_nodes().collect();
        let mut vms = Vec::new();
        let mut load = 0.0;
        while load < target {
            let kind = Kind::ALL[rng.below(Kind::ALL.len())];
            let most = 4.min(machine.node_cpus[0].len());
            let vcpus = 1 + rng.below(most);
            load += vcpus as f64
                * match kind {
                    Kind::Bursty => 0.5,
                    Kind::Sleeper => 0.05,
                    _ => 1.0,
                };
            let start = nodes[rng.below(nodes.len())];
            let pages = 32 + rng.below(96);
            let elsewhere = rng.below(machine.nodes());
            let layout = rng.below(10);
            let node = |p: usize| match layout {
                0..6 => start,
                6..8 => elsewhere,
                _ => p % machine.nodes(),
            };
            vms.push(VmSpec {
                kind,
                vcpus,
                weight: [128, 256, 256, 512][rng.below(4)],
                start,
                pages: (0..pages).map(node).collect(),
                shared: kind.shared(),
            });
        }
        Self {
            name: format!("seed {seed}: {}, {} VMs", machine.name, vms.len()),
            machine,
            vms,
            time: (seconds * 1e9) as u64,
            warm_up: 2_000_000_000,
            seed,
        }
    }

    /// A large host: 64 nodes, 1,024 CPUs, `vms` VMs of which three quarters have nothing to do, as on a host that is sold
    /// ten times over; the rest asks for nearly twice the CPUs that there are.
    pub fn large(vms: usize, seconds: f64) -> Self {
        let shape = Shape {
            shape: "mesh".into(),
            nodes: 64,
            cores: 8,
            threads: 2,
            llcs: 1,
            gib: 64,
        };
        let machine = shape.build().expect("a mesh is known");
        let mut rng = Rng(64);
        let spec = |i: usize| {
            let kind = match rng.below(20) {
                0 => Kind::Memory,
                1 => Kind::Cpu,
                2 => Kind::Bursty,
                3 | 4 => Kind::Sleeper,
                _ => Kind::Idle,
            };
            let start = i % 64;
            let memory = if rng.below(5) == 0 {
                rng.below(64)
            } else {
                start
            };
            VmSpec {
                kind,
                vcpus: 1 + rng.below(2),
                weight: 256,
                start,
                pages: vec![memory; 16],
                shared: kind.shared(),
            }
        };
        Self {
            name: format!("{vms} VMs on 64 nodes"),
            machine,
            vms: (0..vms).map(spec).collect(),
            time: (seconds * 1e9) as u64,
            warm_up: 0,
            seed: 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_a_scenario_and_mistakes_become_sentences() {
        let text = "seconds = 1.5\n[machine]\nshape = \"ring\"\n[[vm]]\nkind = \"memory\"\ncount = 3\nstart = 1\nmemory_nodes = [2, 3]\n";
        let s = Scenario::parse("x", text).expect("right");
        assert_eq!(
            (s.vms.len(), s.machine.nodes(), s.time),
            (3, 4, 1_500_000_000)
        );
        assert_eq!(s.vms[0].pages[..3], [2, 3, 2]);
        for (wrong, word) in [
            ("[machine]\nshape = \"ring\"\n", "no [[vm]]"),
            (
                "[machine]\nshape = \"ring\"\n[[vm]]\nkind = \"cpu\"\nstart = 9\n",
                "names a node",
            ),
            (
                "[machine]\nshape = \"ring\"\n[[vm]]\nkind = \"cpu\"\nmemory = 99999\n",
                "VMs start with",
            ),
            ("[machine]\nshape = \"ring\"\nspeed = 3\n", "is no scenario"),
        ] {
            let why = format!("{:#}", Scenario::parse("x", wrong).expect_err("wrong"));
            assert!(why.contains(word), "{why}");
        }
    }
}
