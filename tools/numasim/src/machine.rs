//! Machines: nodes with CPUs, controllers and links of finite bandwidth.
//!
//! A machine is a graph. Each node has a controller; links join nodes (or a node and its far
//! memory); an access goes the way of least latency and loads its controller and every link on it.
//! The shapes are those that servers have, with latencies as published for them (80 to 90 ns at home,
//! 130 to 140 to a neighbouring socket, about 50 more for a second hop, 250 to far memory).

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// One processor.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Its node.
    pub node: usize,
    /// Its last-level cache.
    pub llc: usize,
    /// Its core.
    pub core: usize,
    /// The other thread of its core.
    pub sibling: Option<usize>,
}

/// A way between two nodes.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    ends: (usize, usize),
    /// What it adds to an access, in ns.
    ns: f64,
    /// Bytes per ns.
    pub bandwidth: f64,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What it is called.
    pub name: String,
    /// All processors.
    pub cpus: Vec<Cpu>,
    /// The processors of each node; none for far memory.
    pub node_cpus: Vec<Vec<usize>>,
    /// Latency without load in ns, row = accessing node.
    pub latency: Vec<Vec<f64>>,
    /// Bytes per ns of each node's controller.
    pub controller: Vec<f64>,
    /// All links.
    pub links: Vec<Link>,
    /// Links of the way between two nodes.
    pub routes: Vec<Vec<Vec<usize>>>,
    /// Memory of each node in pages of 2 MiB.
    pub pages: Vec<usize>,
}

/// What a machine is made by.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// `single`, `two-socket`, `ring`, `glueless`, `snc`, `far`, or `mesh`.
    pub shape: String,
    /// Nodes with CPUs; shapes with a fixed number ignore it.
    #[serde(default = "four")]
    pub nodes: usize,
    /// Cores of each node.
    #[serde(default = "four")]
    pub cores: usize,
    /// Hardware threads of each core.
    #[serde(default = "one")]
    pub threads: usize,
    /// Last-level caches of each node.
    #[serde(default = "one")]
    pub llcs: usize,
    /// GiB of each node.
    #[serde(default = "four")]
    pub gib: usize,
}

const fn four() -> usize {
    4
}
const fn one() -> usize {
    1
}

impl Shape {
    /// The machine.
    ///
    /// # Errors
    /// A sentence when the shape is unknown or a number makes no machine.
    pub fn build(&self) -> Result<Machine> {
        if !(1..=64).contains(&self.nodes) || self.cores == 0 || !(1..=2).contains(&self.threads) {
            bail!(
                "a machine has 1 to 64 nodes, at least one core in each, and 1 or 2 threads a core"
            );
        }
        let n = self.nodes;
        let socket = |a, b| Link {
            ends: (a, b),
            ns: 55.0,
            bandwidth: 4.0 * self.cores as f64,
        };
        let inside = |a, b| Link {
            ends: (a, b),
            ns: 12.0,
            bandwidth: 16.0 * self.cores as f64,
        };
        let mut far = 0;
        let (nodes, links): (usize, Vec<Link>) = match self.shape.as_str() {
            "single" => (1, Vec::new()),
            "two-socket" => (2, vec![socket(0, 1)]),
            "ring" => (
                n,
                (0..n)
                    .filter(|_| n > 1)
                    .map(|i| socket(i, (i + 1) % n))
                    .collect(),
            ),
            // Eight sockets with three links each: a ring with its diameters, two hops at most.
            "glueless" => {
                let ring = (0..8).map(|i| socket(i, (i + 1) % 8));
                (8, ring.chain((0..4).map(|i| socket(i, i + 4))).collect())
            }
            // Two sockets of n/2 clusters: near inside, one socket link between each pair.
            "snc" => {
                let half = (n / 2).max(1);
                let mut links = Vec::new();
                for s in 0..2 {
                    for a in 0..half {
                        links.extend((a + 1..half).map(|b| inside(s * half + a, s * half + b)));
                    }
                }
                links.extend((0..half).map(|a| socket(a, half + a)));
                (2 * half, links)
            }
            // Two sockets, each with memory that has no CPUs behind it.
            "far" => {
                far = 2;
                let behind = |a, b| Link {
                    ends: (a, b),
                    ns: 170.0,
                    bandwidth: 2.0 * self.cores as f64,
                };
                (2, vec![socket(0, 1), behind(0, 2), behind(1, 3)])
            }
            // Groups of four fully joined nodes, the groups in a ring of double links.
            "mesh" => {
                let mut links = Vec::new();
                for a in 0..n {
                    links.extend((a + 1..n).filter(|b| a / 4 == b / 4).map(|b| socket(a, b)));
                }
                let groups = n.div_ceil(4);
                for g in 0..groups {
                    for i in 0..4 {
                        let (a, b) = (g * 4 + i, (g + 1) % groups * 4 + i);
                        if groups > 1 && a < n && b < n && a != b {
                            links.push(socket(a, b));
                        }
                    }
                }
                (n, links)
            }
            other => bail!(
                "{other:?} is no shape; there are single, two-socket, ring, glueless, snc, far and mesh"
            ),
        };
        Ok(self.assemble(nodes, far, links))
    }

    fn assemble(&self, nodes: usize, far: usize, links: Vec<Link>) -> Machine {
        let mut cpus = Vec::new();
        let mut node_cpus = vec![Vec::new(); nodes + far];
        for (node, list) in node_cpus.iter_mut().enumerate().take(nodes) {
            for core in 0..self.cores {
                let first = cpus.len();
                for thread in 0..self.threads {
                    list.push(cpus.len());
                    cpus.push(Cpu {
                        node,
                        llc: node * self.llcs + core * self.llcs / self.cores,
                        core: node * self.cores + core,
                        sibling: (self.threads == 2).then_some(first + 1 - thread),
                    });
                }
            }
        }
        let (latency, routes) = ways(nodes + far, &links);
        let controller =
            (0..nodes + far).map(|n| self.cores as f64 * if n < nodes { 3.0 } else { 1.0 });
        Machine {
            name: format!("{} {}x{}x{}", self.shape, nodes, self.cores, self.threads),
            cpus,
            node_cpus,
            latency,
            controller: controller.collect(),
            links,
            routes,
            pages: vec![self.gib * 512; nodes + far],
        }
    }
}

/// Ways of least latency between all nodes (Floyd and Warshall), and their latencies.
fn ways(n: usize, links: &[Link]) -> (Vec<Vec<f64>>, Vec<Vec<Vec<usize>>>) {
    let mut ns = vec![vec![f64::INFINITY; n]; n];
    let mut routes = vec![vec![Vec::new(); n]; n];
    for (i, row) in ns.iter_mut().enumerate() {
        row[i] = 0.0;
    }
    for (i, link) in links.iter().enumerate() {
        let (a, b) = link.ends;
        if link.ns < ns[a][b] {
            (ns[a][b], ns[b][a]) = (link.ns, link.ns);
            (routes[a][b], routes[b][a]) = (vec![i], vec![i]);
        }
    }
    for m in 0..n {
        for a in 0..n {
            for b in 0..n {
                if ns[a][m] + ns[m][b] + 1e-9 < ns[a][b] {
                    ns[a][b] = ns[a][m] + ns[m][b];
                    let route: Vec<usize> =
                        routes[a][m].iter().chain(&routes[m][b]).copied().collect();
                    routes[a][b] = route;
                }
            }
        }
    }
    for row in &mut ns {
        for x in row.iter_mut() {
            *x += 80.0;
        }
    }
    (ns, routes)
}

impl Machine {
    /// Number of nodes, far memory included.
    pub fn nodes(&self) -> usize {
        self.pages.len()
    }
    /// Nodes with CPUs.
    pub fn cpu_nodes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes()).filter(|n| !self.node_cpus[*n].is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(shape: &str, nodes: usize) -> Machine {
        let s = Shape {
            shape: shape.into(),
            nodes,
            cores: 2,
            threads: 1,
            llcs: 1,
            gib: 1,
        };
        s.build().expect("a known shape")
    }

    #[test]
    fn distances_are_those_of_the_shapes() {
        assert_eq!(
            shape("two-socket", 2).latency,
            [[80.0, 135.0], [135.0, 80.0]]
        );
        assert_eq!(shape("ring", 4).latency[0], [80.0, 135.0, 190.0, 135.0]);
        let glueless = shape("glueless", 8);
        for a in 0..8 {
            let near = glueless.latency[a]
                .iter()
                .filter(|ns| **ns == 135.0)
                .count();
            assert_eq!(near, 3, "three links each");
            assert!(
                glueless.latency[a].iter().all(|ns| *ns <= 190.0),
                "two hops at most"
            );
        }
        assert_eq!(shape("snc", 4).latency[0], [80.0, 92.0, 135.0, 147.0]);
        let far = shape("far", 2);
        assert_eq!(far.latency[0], [80.0, 135.0, 250.0, 305.0]);
        assert_eq!(far.cpu_nodes().count(), 2);
        let mesh = shape("mesh", 64);
        assert!(mesh.latency.iter().flatten().all(|ns| ns.is_finite()));
    }

    #[test]
    fn a_wrong_shape_is_refused_with_the_right_ones() {
        let wrong = Shape {
            shape: "torus".into(),
            nodes: 4,
            cores: 1,
            threads: 1,
            llcs: 1,
            gib: 1,
        };
        let why = wrong.build().expect_err("unknown").to_string();
        assert!(why.contains("glueless"), "{why}");
    }
}
