//! The emulators, each with one vendor's virtualization, and how a [`Machine`] looks in each.
//!
//! QEMU has AMD-V, and its firmware describes the machine in ACPI tables of its own. Bochs has VT-x, and
//! under it firmware publishes no tables at all: there the loader takes ours, which are made here
//! from the same [`Machine`].

use std::fmt;

use topology::build::{self, Affinity, Attributes, Interrupt};

use crate::{Machine, Override};

/// An emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Emulator {
    /// QEMU's software emulation: AMD-V with nested paging.
    Qemu,
    /// Bochs: VT-x with extended page tables.
    Bochs,
}

impl Emulator {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 2] = [Self::Qemu, Self::Bochs];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }

    /// As its makers write it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::Bochs => "Bochs",
        }
    }

    /// From the command line.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.name() == name)
    }
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "AMD-V in QEMU",
            Self::Bochs => "VT-x in Bochs",
        })
    }
}

/// Where Bochs' I/O APIC is; its APIC id follows those of the CPUs.
const IO_APIC: u32 = 0xfec0_0000;
/// Below this Bochs' machines have memory; between here and 4 GiB lie devices.
const BOCHS_MEMORY_MIB: u32 = 3072;
/// Bochs ends itself with "too many registered timers" when all devices want more than 64; each CPU wants three, and with 15
/// it was too many.
const BOCHS_CPUS: u32 = 12;

impl Machine {
    /// APIC id and node of every CPU.
    ///
    /// QEMU gives each core of a socket the next number and begins each socket at a multiple of a power of two; Bochs counts.
    pub fn apics(&self, emulator: Emulator) -> Vec<(u32, usize)> {
        let (cores, stride) = match (emulator, self.cores_of_a_socket()) {
            (Emulator::Qemu, cores) => (cores, cores.next_power_of_two()),
            (Emulator::Bochs, _) => (1, 1),
        };
        let nodes = self.nodes.iter().enumerate();
        let node_of = nodes.flat_map(|(id, node)| (0..node.cpus).map(move |_| id));
        (0..)
            .zip(node_of)
            .map(|(i, node)| (i / cores * stride + i % cores, node))
            .collect()
    }

    /// The same nodes, each with no more CPUs than Bochs can have of it.
    pub fn trimmed_for_bochs(mut self) -> Self {
        let most = (BOCHS_CPUS / self.nodes.len().max(1) as u32).max(1);
        for node in &mut self.nodes {
            node.cpus = node.cpus.min(most);
        }
        self
    }

    /// Why this machine cannot be built in Bochs, as a sentence.
    pub fn check_for_bochs(&self) -> Result<(), String> {
        if self.memory_mib() > BOCHS_MEMORY_MIB {
            return Err(format!(
                "{} MiB are more than the {BOCHS_MEMORY_MIB} that Bochs gives a machine here",
                self.memory_mib()
            ));
        }
        if self.cpus() > BOCHS_CPUS {
            return Err(format!(
                "{} CPUs are more than the {BOCHS_CPUS} that Bochs has timers for",
                self.cpus()
            ));
        }
        Ok(())
    }

    /// The ACPI tables that make this machine out of Bochs' flat one: MADT, SRAT, SLIT, HMAT.
    pub fn bochs_tables(&self) -> Vec<Override> {
        let apics = self.apics(Emulator::Bochs);
        let mut interrupts: Vec<Interrupt> = (0..)
            .zip(&apics)
            .map(|(uid, (apic, _))| Interrupt::Cpu {
                apic: *apic as u8,
                uid,
                flags: 1,
            })
            .collect();
        interrupts.push(Interrupt::IoApic {
            id: apics.len() as u8,
            address: IO_APIC,
            gsi_base: 0,
        });
        let cpus = apics.iter().map(|(apic, node)| Affinity::Cpu {
            apic: *apic as u8,
            domain: *node as u32,
        });
        let mut affinities: Vec<Affinity> = cpus.collect();
        let mut start = 0;
        for (domain, node) in (0..).zip(&self.nodes) {
            let bytes = u64::from(node.memory_mib) << 20;
            if bytes > 0 {
                affinities.push(Affinity::Memory {
                    start,
                    bytes,
                    domain,
                });
            }
            start += bytes;
        }
        let mut tables = vec![("madt.aml", build::madt(&interrupts))];
        if !self.undescribed {
            tables.push(("srat.aml", build::srat(&affinities)));
        }
        if !self.distances.is_empty() {
            let distance = |from: u32, to: u32| self.distances[from as usize][to as usize];
            let slit = build::slit(self.nodes.len() as u32, distance);
            tables.push(("slit.aml", slit));
        }
        if !self.latencies.is_empty() {
            tables.push(("hmat.aml", self.hmat()));
        }
        let table = |(name, bytes): (&str, Vec<u8>)| Override {
            name: name.into(),
            bytes,
        };
        tables.into_iter().map(table).collect()
    }

    /// HMAT: each memory with the initiator that QEMU would name, latency in ns and bandwidth in MiB/s for each pair.
    fn hmat(&self) -> Vec<u8> {
        let ids = |has: fn(&crate::Node) -> bool| -> Vec<u32> {
            let nodes = (0..).zip(&self.nodes);
            nodes.filter(|(_, n)| has(n)).map(|(id, _)| id).collect()
        };
        let (initiators, targets) = (ids(|n| n.cpus > 0), ids(|n| n.memory_mib > 0));
        let domains = targets.iter().map(|memory| Attributes::Domain {
            memory: *memory,
            initiator: self.initiator(*memory as usize) as u32,
        });
        let matrix =
            |data_type: u8, unit: u64, of: fn(&crate::Latency) -> u32| Attributes::Matrix {
                flags: 0,
                data_type,
                unit,
                initiators: initiators.clone(),
                targets: targets.clone(),
                values: initiators
                    .iter()
                    .flat_map(|from| targets.iter().map(move |to| (from, to)))
                    .map(|(from, to)| of(&self.latencies[*from as usize][*to as usize]) as u16)
                    .collect(),
            };
        // Units: 1000 ps; 1 MB/s (ACPI 6.5, table 5.146).
        let matrices = [
            matrix(0, 1000, |l| l.latency_ns),
            matrix(3, 1, |l| l.bandwidth_mib_s),
        ];
        build::hmat(&domains.chain(matrices).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;

    #[test]
    fn names_go_both_ways() {
        for emulator in Emulator::ALL {
            assert_eq!(Emulator::parse(emulator.name()), Some(emulator));
        }
        assert_eq!(Emulator::parse("kvm"), None);
    }

    #[test]
    fn apic_ids_are_the_emulator_s() {
        let machine = Machine::row(2, 3, 256);
        let ids = |emulator| -> Vec<u32> {
            let apics = machine.apics(emulator);
            apics.into_iter().map(|(apic, _)| apic).collect()
        };
        assert_eq!(ids(Emulator::Qemu), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids(Emulator::Bochs), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn too_large_a_machine_is_refused_with_a_reason() {
        assert_eq!(Machine::row(4, 2, 512).check_for_bochs(), Ok(()));
        let large = Machine::row(4, 2, 1024).check_for_bochs();
        assert!(large.is_err_and(|why| why.contains("4096 MiB")));
        let crowded = Machine::row(8, 3, 256);
        let why = crowded.check_for_bochs();
        assert!(why.is_err_and(|why| why.contains("24 CPUs")));
        assert_eq!(crowded.trimmed_for_bochs().check_for_bochs(), Ok(()));
    }

    #[test]
    fn the_tables_describe_the_machine() {
        let node = |cpus, memory_mib| Node { cpus, memory_mib };
        let machine = Machine::of(vec![node(2, 256), node(0, 128), node(1, 0)]);
        let tables = machine.bochs_tables();
        let find = |name: &str| {
            let table = tables.iter().find(|t| t.name == name)?;
            Some(table.bytes.as_slice())
        };
        let tables = topology::Tables {
            madt: find("madt.aml"),
            srat: find("srat.aml"),
            slit: find("slit.aml"),
            hmat: find("hmat.aml"),
            pptt: None,
        };
        let memory = [topology::PhysRange {
            start: units::Hpa(0),
            end: units::Hpa(384 << 20),
        }];
        let shape = topology::CpuidShape {
            bsp_apic_id: units::ApicId(0),
            smt_shift: 0,
            llc_shift: 0,
            package_shift: 0,
        };
        let discovery = topology::discover(&tables, &shape, &memory);
        // That nodes lack CPUs or memory is all that is odd.
        assert_eq!(discovery.quirks.len(), 2, "{:?}", discovery.quirks);
        let seen = discovery.report();
        let mib: Vec<u64> = seen.nodes.iter().map(|n| n.memory_bytes >> 20).collect();
        assert_eq!(mib, [256, 128, 0]);
        let nodes: Vec<u16> = seen.cpus.iter().map(|c| c.node.0).collect();
        assert_eq!(nodes, [0, 0, 2]);
        assert_eq!(seen.distances[0], [10, 16, 22]);
        assert_eq!(seen.latency_ns[2][..2], [180, 130]);
        assert!(seen.latency_source.contains("HMAT"));
    }
}
