//! The shape of an emulated NUMA machine, and the QEMU options that make one.
//!
//! The defaults model four sockets in a row, where a hop costs more the further it goes: SLIT 10,
//! 16, 22, 32 and 80, 130, 180, 260 ns (a shape seen on glueless four-socket servers).

/// One proximity domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Logical CPUs; 0 makes a memory-only node.
    pub cpus: u32,
    /// Memory in MiB; 0 makes a CPU-only node.
    pub memory_mib: u32,
}

/// What firmware's HMAT says about one pair of initiator and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Access latency in nanoseconds.
    pub latency_ns: u32,
    /// Access bandwidth in MiB/s.
    pub bandwidth_mib_s: u32,
}

/// A machine for the emulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The nodes, numbered as they stand.
    pub nodes: Vec<Node>,
    /// SLIT: `distances[from][to]`; empty for a machine without a SLIT.
    pub distances: Vec<Vec<u8>>,
    /// HMAT: `latencies[initiator][target]`; empty for a machine without HMAT entries.
    pub latencies: Vec<Vec<Latency>>,
    /// QEMU's CPU model with its features.
    pub cpu: String,
    /// Bochs' CPU model.
    pub bochs_cpu: String,
    /// Firmware does not say which node anything is in: there is no SRAT.
    pub undescribed: bool,
}

/// SLIT distance, latency and bandwidth by number of hops; further hops cost what the last one costs.
const BY_HOPS: [(u8, Latency); 8] = [
    (
        10,
        Latency {
            latency_ns: 80,
            bandwidth_mib_s: 40960,
        },
    ),
    (
        16,
        Latency {
            latency_ns: 130,
            bandwidth_mib_s: 20480,
        },
    ),
    (
        22,
        Latency {
            latency_ns: 180,
            bandwidth_mib_s: 15360,
        },
    ),
    (
        32,
        Latency {
            latency_ns: 260,
            bandwidth_mib_s: 10240,
        },
    ),
    (
        38,
        Latency {
            latency_ns: 310,
            bandwidth_mib_s: 8192,
        },
    ),
    (
        44,
        Latency {
            latency_ns: 360,
            bandwidth_mib_s: 7168,
        },
    ),
    (
        50,
        Latency {
            latency_ns: 410,
            bandwidth_mib_s: 6144,
        },
    ),
    (
        56,
        Latency {
            latency_ns: 460,
            bandwidth_mib_s: 5120,
        },
    ),
];

impl Machine {
    /// AMD's EPYC with nested paging. MONITOR is off because its MWAIT faults in the emulator.
    pub const CPU: &str = "EPYC,+svm,+x2apic,-monitor";

    /// A processor whose VT-x has all that Perigee knows: accessed and dirty bits in its tables, PML, VPID, unrestricted guests.
    pub const BOCHS_CPU: &str = "corei7_skylake_x";

    /// One without XSAVEC, XSAVES, AVX-512 and PML, for Linux in Bochs 2.7. On the other, two of three runs there had a program
    /// whose thread-local variables, which libc copies by registers of AVX-512, were zero; 3.0 says to have mended XSAVEC
    /// and XSAVES, by which Linux keeps such registers, and no program was seen to die there.
    pub const BOCHS_CPU_FOR_LINUX: &str = "corei7_haswell_4770";

    /// `nodes` equal nodes in a row, `cpus` and `memory_mib` each.
    pub fn row(nodes: usize, cpus: u32, memory_mib: u32) -> Self {
        Self::of(vec![Node { cpus, memory_mib }; nodes])
    }

    /// These nodes in a row.
    pub fn of(nodes: Vec<Node>) -> Self {
        let hop = |from: usize, to: usize| BY_HOPS[from.abs_diff(to).min(BY_HOPS.len() - 1)];
        let all = 0..nodes.len();
        let distances = all
            .clone()
            .map(|from| all.clone().map(|to| hop(from, to).0).collect())
            .collect();
        let latencies = all
            .clone()
            .map(|from| all.clone().map(|to| hop(from, to).1).collect())
            .collect();
        Self {
            nodes,
            distances,
            latencies,
            cpu: Self::CPU.into(),
            bochs_cpu: Self::BOCHS_CPU.into(),
            undescribed: false,
        }
    }

    /// The same machine with these SLIT distances and no HMAT (which would contradict them).
    pub fn with_distances(mut self, distances: Vec<Vec<u8>>) -> Self {
        self.distances = distances;
        self.latencies.clear();
        self
    }

    /// The same machine with firmware that has no SRAT, and nothing else about nodes.
    pub fn without_srat(mut self) -> Self {
        self.distances.clear();
        self.latencies.clear();
        self.undescribed = true;
        self
    }

    /// The same machine with another CPU model in Bochs.
    pub fn with_bochs_cpu(mut self, model: &str) -> Self {
        self.bochs_cpu = model.into();
        self
    }

    /// The same machine for Linux in this version of Bochs.
    pub fn for_linux_in_bochs(self, version: &str) -> Self {
        if version.starts_with("2.7") && self.bochs_cpu == Self::BOCHS_CPU {
            self.with_bochs_cpu(Self::BOCHS_CPU_FOR_LINUX)
        } else {
            self
        }
    }

    /// The same machine with another CPU model in QEMU.
    pub fn with_cpu(mut self, cpu: &str) -> Self {
        self.cpu = cpu.into();
        self
    }

    /// Logical CPUs of all nodes.
    pub fn cpus(&self) -> u32 {
        self.nodes.iter().map(|n| n.cpus).sum()
    }

    /// Memory of all nodes in MiB.
    pub fn memory_mib(&self) -> u32 {
        self.nodes.iter().map(|n| n.memory_mib).sum()
    }

    /// A node with CPUs that is nearest to `node`: QEMU asks each node for the one its accesses come from.
    pub(crate) fn initiator(&self, node: usize) -> usize {
        let distance = |from: usize| {
            self.distances
                .get(from)
                .and_then(|row| row.get(node))
                .copied()
                .unwrap_or(u8::MAX)
        };
        (0..self.nodes.len())
            .filter(|n| self.nodes[*n].cpus > 0)
            .min_by_key(|n| (*n != node, distance(*n), *n))
            .unwrap_or(0)
    }

    /// What QEMU cannot build, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.cpus() == 0 {
            return Err("a machine needs at least one CPU".into());
        }
        if self.nodes[0].cpus == 0 || self.nodes[0].memory_mib == 0 {
            return Err("node 0 needs CPUs and memory: the firmware starts there".into());
        }
        if self.undescribed && self.nodes.len() > 1 {
            return Err("a machine without an SRAT is built with one node".into());
        }
        if self.nodes.len() > 16 {
            return Err(format!(
                "{} nodes are more than the 16 that this laboratory builds",
                self.nodes.len()
            ));
        }
        let square = |rows: usize, mut widths: Box<dyn Iterator<Item = usize> + '_>| {
            rows == 0 || (rows == self.nodes.len() && widths.all(|w| w == rows))
        };
        if !square(
            self.distances.len(),
            Box::new(self.distances.iter().map(Vec::len)),
        ) || !square(
            self.latencies.len(),
            Box::new(self.latencies.iter().map(Vec::len)),
        ) {
            return Err("distances and latencies need one row and one column for each node".into());
        }
        Ok(())
    }

    /// What the observer plugin must know of this machine: the node of each CPU, the MiB of each node.
    pub fn plugin_args(&self) -> String {
        let cpus = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(id, node)| (0..node.cpus).map(move |_| id.to_string()));
        let memory = self.nodes.iter().map(|node| node.memory_mib.to_string());
        format!(
            "cpus={},nodes={}",
            cpus.collect::<Vec<_>>().join(":"),
            memory.collect::<Vec<_>>().join(":")
        )
    }

    /// Equal nodes are sockets of several cores; otherwise each CPU is a socket, free to lie in any node.
    pub(crate) fn cores_of_a_socket(&self) -> u32 {
        let cores = self.nodes.first().map_or(1, |n| n.cpus).max(1);
        let equal = self.nodes.iter().all(|n| n.cpus == cores);
        if equal { cores } else { 1 }
    }

    /// The QEMU options for CPUs, memory, SLIT and HMAT (everything but firmware and devices).
    pub fn qemu_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut push = |option: &str, value: String| args.extend([format!("-{option}"), value]);
        let hmat = !self.latencies.is_empty();
        push(
            "machine",
            format!("q35,hmat={}", if hmat { "on" } else { "off" }),
        );
        push("cpu", self.cpu.clone());
        push("m", format!("{}M", self.memory_mib()));

        let cores = self.cores_of_a_socket();
        let sockets = self.cpus() / cores;
        push(
            "smp",
            format!("{},sockets={sockets},cores={cores},threads=1", self.cpus()),
        );

        // One `-numa`, and QEMU writes an SRAT.
        if self.undescribed {
            return args;
        }
        for (id, node) in self.nodes.iter().enumerate() {
            let mut numa = format!("node,nodeid={id}");
            if node.memory_mib > 0 {
                push(
                    "object",
                    format!("memory-backend-ram,id=m{id},size={}M", node.memory_mib),
                );
                numa += &format!(",memdev=m{id}");
            }
            if hmat {
                numa += &format!(",initiator={}", self.initiator(id));
            }
            push("numa", numa);
        }
        let mut socket = 0;
        for (id, node) in self.nodes.iter().enumerate() {
            for _ in 0..node.cpus / cores {
                push("numa", format!("cpu,node-id={id},socket-id={socket}"));
                socket += 1;
            }
        }
        for (from, row) in self.distances.iter().enumerate() {
            for (to, distance) in row.iter().enumerate().filter(|(to, _)| *to != from) {
                push("numa", format!("dist,src={from},dst={to},val={distance}"));
            }
        }
        for (from, row) in self
            .latencies
            .iter()
            .enumerate()
            .filter(|(from, _)| self.nodes[*from].cpus > 0)
        {
            for (to, cost) in row.iter().enumerate() {
                let pair = format!("hmat-lb,initiator={from},target={to},hierarchy=memory");
                push(
                    "numa",
                    format!(
                        "{pair},data-type=access-latency,latency={}",
                        cost.latency_ns
                    ),
                );
                push(
                    "numa",
                    format!(
                        "{pair},data-type=access-bandwidth,bandwidth={}M",
                        cost.bandwidth_mib_s
                    ),
                );
            }
        }
        if hmat {
            for id in 0..self.nodes.len() {
                let cache = "size=16M,level=1,associativity=complex,policy=write-back,line=64";
                push("numa", format!("hmat-cache,node-id={id},{cache}"));
            }
        }
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_nodes_are_sockets_of_cores() {
        let args = Machine::row(4, 2, 512).qemu_args().join(" ");
        assert!(
            args.contains("-smp 8,sockets=4,cores=2,threads=1"),
            "{args}"
        );
        assert!(args.contains("-m 2048M"));
        assert!(args.contains("-numa cpu,node-id=3,socket-id=3"));
        assert!(!args.contains("socket-id=4"));
        assert!(args.contains("-numa dist,src=0,dst=3,val=32"));
        assert!(args.contains(
            "initiator=3,target=0,hierarchy=memory,data-type=access-latency,latency=260"
        ));
    }

    #[test]
    fn a_cpu_less_and_a_memory_less_node_are_left_bare() {
        let node = |cpus, memory_mib| Node { cpus, memory_mib };
        let machine = Machine::of(vec![node(2, 512), node(0, 256), node(1, 0)]);
        let args = machine.qemu_args().join(" ");
        assert!(
            args.contains("-smp 3,sockets=3,cores=1,threads=1"),
            "{args}"
        );
        assert!(
            args.contains("-numa node,nodeid=1,memdev=m1,initiator=0"),
            "{args}"
        );
        assert!(args.contains("-numa node,nodeid=2,initiator=2"), "{args}");
        assert!(!args.contains("cpu,node-id=1"));
        assert!(args.contains("-numa cpu,node-id=2,socket-id=2"));
        assert!(!args.contains("hmat-lb,initiator=1"));
        assert_eq!(machine.check(), Ok(()));
        assert_eq!(machine.plugin_args(), "cpus=0:0:2,nodes=512:256:0");
    }

    #[test]
    fn a_machine_that_cannot_start_is_refused_with_a_reason() {
        let headless = Machine::of(vec![
            Node {
                cpus: 0,
                memory_mib: 512,
            },
            Node {
                cpus: 1,
                memory_mib: 512,
            },
        ]);
        assert!(headless.check().is_err_and(|why| why.contains("node 0")));
        let silent = Machine::row(2, 1, 256).without_srat();
        assert!(silent.check().is_err_and(|why| why.contains("one node")));
        let ragged = Machine::row(2, 1, 256).with_distances(vec![vec![10, 20]]);
        assert!(
            ragged
                .check()
                .is_err_and(|why| why.contains("one row and one column"))
        );
    }

    #[test]
    fn linux_gets_a_model_that_bochs_emulates_well() {
        let model = |machine: Machine, version| machine.for_linux_in_bochs(version).bochs_cpu;
        let usual = Machine::row(1, 1, 256);
        assert_eq!(model(usual.clone(), "2.7"), Machine::BOCHS_CPU_FOR_LINUX);
        assert_eq!(model(usual.clone(), "3.0"), Machine::BOCHS_CPU);
        assert_eq!(model(usual.with_bochs_cpu("other"), "2.7"), "other");
    }
}
