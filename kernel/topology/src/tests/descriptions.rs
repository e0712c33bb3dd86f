//! A machine described in a few lines, its tables, and what must hold of any discovery.

use crate::build::{self, Affinity, Attributes, Interrupt};
use crate::{CpuidShape, Discovery, PhysRange, Tables, discover};
use std::vec::Vec;
use units::{ApicId, Hpa};

/// One node as firmware describes it.
#[derive(Clone, Debug)]
pub(super) struct Domain {
    pub(super) number: u32,
    pub(super) apics: Vec<u32>,
    pub(super) memory: Vec<(u64, u64)>,
}

/// A machine as firmware describes it.
#[derive(Clone, Debug)]
pub(super) struct Description {
    pub(super) domains: Vec<Domain>,
    /// By index of `domains`.
    pub(super) distances: Vec<Vec<u8>>,
    /// By index of `domains`, in ns; empty for no HMAT.
    pub(super) latencies: Vec<Vec<u16>>,
}

/// The bytes of its tables.
#[derive(Clone, Debug)]
pub(super) struct Firmware {
    pub(super) madt: Vec<u8>,
    pub(super) srat: Vec<u8>,
    pub(super) slit: Vec<u8>,
    pub(super) hmat: Option<Vec<u8>>,
    pub(super) usable: Vec<PhysRange>,
    pub(super) shape: CpuidShape,
}

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn range(start: u64, bytes: u64) -> PhysRange {
    PhysRange {
        start: Hpa(start),
        end: Hpa(start + bytes),
    }
}

impl Description {
    /// `count` nodes of two CPUs and 512 MiB, numbered 0 to `count - 1`, in a row.
    pub(super) fn row(count: u32) -> Self {
        let domain = |n: u32| Domain {
            number: n,
            apics: std::vec![2 * n, 2 * n + 1],
            memory: std::vec![(u64::from(n) * 512 * MIB, 512 * MIB)],
        };
        let away = |a: u32, b: u32| a.abs_diff(b);
        Self {
            domains: (0..count).map(domain).collect(),
            distances: (0..count)
                .map(|a| (0..count).map(|b| 10 + 6 * away(a, b) as u8).collect())
                .collect(),
            latencies: (0..count)
                .map(|a| (0..count).map(|b| 80 + 50 * away(a, b) as u16).collect())
                .collect(),
        }
    }

    pub(super) fn firmware(&self) -> Firmware {
        let mut interrupts = Vec::new();
        let mut affinities = Vec::new();
        let mut usable = Vec::new();
        for domain in &self.domains {
            for apic in &domain.apics {
                if let Ok(narrow) = u8::try_from(*apic) {
                    interrupts.push(Interrupt::Cpu {
                        apic: narrow,
                        uid: narrow,
                        flags: 1,
                    });
                    affinities.push(Affinity::Cpu {
                        apic: narrow,
                        domain: domain.number,
                    });
                } else {
                    interrupts.push(Interrupt::X2Cpu {
                        apic: *apic,
                        uid: *apic,
                        flags: 1,
                    });
                    affinities.push(Affinity::X2Cpu {
                        apic: *apic,
                        domain: domain.number,
                    });
                }
            }
            for (start, bytes) in &domain.memory {
                affinities.push(Affinity::Memory {
                    start: *start,
                    bytes: *bytes,
                    domain: domain.number,
                });
                usable.push(range(*start, *bytes));
            }
        }
        let index = |number: u32| {
            self.domains
                .iter()
                .position(|domain| domain.number == number)
        };
        let localities = self
            .domains
            .iter()
            .map(|domain| domain.number + 1)
            .max()
            .unwrap_or(0);
        let distance = |from: u32, to: u32| match (index(from), index(to)) {
            (Some(from), Some(to)) => self.distances[from][to],
            _ if from == to => 10,
            _ => 255,
        };
        let numbers = |of: &dyn Fn(&Domain) -> bool| -> Vec<(usize, u32)> {
            self.domains
                .iter()
                .enumerate()
                .filter(|(_, domain)| of(domain))
                .map(|(i, domain)| (i, domain.number))
                .collect()
        };
        let initiators = numbers(&|domain| !domain.apics.is_empty());
        let targets = numbers(&|domain| !domain.memory.is_empty());
        let hmat = (!self.latencies.is_empty()).then(|| {
            let pairs = initiators
                .iter()
                .flat_map(|(i, _)| targets.iter().map(|(t, _)| (*i, *t)));
            let matrix =
                |data_type, unit, value: &dyn Fn(usize, usize) -> u16| Attributes::Matrix {
                    flags: 0,
                    data_type,
                    unit,
                    initiators: initiators.iter().map(|(_, number)| *number).collect(),
                    targets: targets.iter().map(|(_, number)| *number).collect(),
                    values: pairs.clone().map(|(i, t)| value(i, t)).collect(),
                };
            build::hmat(&[
                matrix(0, 1000, &|i, t| self.latencies[i][t]),
                matrix(3, 100, &|i, t| 400 / (1 + i.abs_diff(t) as u16)),
            ])
        });
        let first = self.domains.iter().find_map(|domain| domain.apics.first());
        Firmware {
            madt: build::madt(&interrupts),
            srat: build::srat(&affinities),
            slit: build::slit(localities, distance),
            hmat,
            usable,
            shape: CpuidShape {
                bsp_apic_id: ApicId(first.copied().unwrap_or(0)),
                smt_shift: 0,
                llc_shift: 1,
                package_shift: 1,
            },
        }
    }
}

impl Firmware {
    pub(super) fn discover(&self) -> Discovery {
        let tables = Tables {
            madt: Some(&self.madt),
            srat: Some(&self.srat),
            slit: Some(&self.slit),
            hmat: self.hmat.as_deref(),
            pptt: None,
        };
        let discovery = discover(&tables, &self.shape, &self.usable);
        check(&discovery, &self.usable, self.shape.bsp_apic_id);
        discovery
    }
}

/// What the crate promises whatever the bytes.
pub(super) fn check(discovery: &Discovery, usable: &[PhysRange], bsp: ApicId) {
    let machine = &discovery.machine;
    let nodes = machine.nodes.len();
    assert!((1..=crate::MAX_NODES).contains(&nodes), "{nodes} nodes");
    for (index, node) in machine.nodes.iter().enumerate() {
        assert_eq!(node.id.index(), index);
        assert!(
            node.has_cpus() || node.has_memory() || nodes == 1,
            "{} is empty",
            node.id
        );
        assert!(
            node.cpus
                .iter()
                .all(|cpu| machine.cpus[cpu.index()].node == node.id)
        );
    }
    assert!(
        machine
            .nodes
            .windows(2)
            .all(|pair| pair[0].domain < pair[1].domain)
    );

    assert!((1..=crate::MAX_CPUS).contains(&machine.cpus.len()));
    assert_eq!(machine.cpus[0].apic, bsp);
    for (index, cpu) in machine.cpus.iter().enumerate() {
        assert_eq!(cpu.id.index(), index);
        assert!(machine.nodes[cpu.node.index()].cpus.contains(&cpu.id));
    }
    let mut apics: Vec<ApicId> = machine.cpus.iter().map(|cpu| cpu.apic).collect();
    apics.sort();
    apics.dedup();
    assert_eq!(apics.len(), machine.cpus.len(), "APIC IDs are unique");

    let pieces = &machine.memory;
    assert!(
        pieces
            .iter()
            .all(|piece| piece.range.bytes() > 0 && piece.node.index() < nodes)
    );
    assert!(
        pieces
            .windows(2)
            .all(|pair| pair[0].range.end <= pair[1].range.start),
        "ascending and disjoint"
    );
    let whole = crate::memory_map::normalised(usable);
    let bytes: u64 = whole.iter().map(|range| range.bytes()).sum();
    assert_eq!(
        pieces.iter().map(|piece| piece.range.bytes()).sum::<u64>(),
        bytes,
        "every byte once"
    );
    assert_eq!(machine.memory_bytes(), bytes);
    for range in &whole {
        assert!(
            machine.node_of(range.start).is_some()
                && machine.node_of(Hpa(range.end.0 - 1)).is_some()
        );
    }

    for a in &machine.nodes {
        assert_eq!(machine.distance(a.id, a.id), 10);
        for b in &machine.nodes {
            assert!((10..=255).contains(&machine.distance(a.id, b.id)));
            assert!(machine.latency_ns(a.id, a.id) > 0);
            assert!(machine.latency_ns(a.id, a.id) <= machine.latency_ns(a.id, b.id));
        }
        let order = machine.nearest(a.id);
        assert_eq!(order[0], a.id);
        assert_eq!(order.len(), nodes);
        assert!(
            order
                .windows(2)
                .skip(1)
                .all(|p| machine.distance(a.id, p[0]) <= machine.distance(a.id, p[1]))
        );
    }
    let report = discovery.report();
    assert_eq!(
        (report.nodes.len(), report.cpus.len(), report.quirks.len()),
        (nodes, machine.cpus.len(), discovery.quirks.len())
    );
    assert!(
        report.quirks.iter().all(|sentence| sentence.ends_with('.')),
        "{:?}",
        report.quirks
    );
}
