//! One test for each way in which firmware is wrong.

use super::descriptions::{Description, Domain, Firmware, MIB, check, range};
use crate::build::{self, Affinity, Attributes, Interrupt};
use crate::*;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;
use units::{ApicId, CpuId, Hpa, NodeId, ProximityDomain};

fn sentences(discovery: &Discovery) -> Vec<String> {
    discovery.quirks.iter().map(ToString::to_string).collect()
}

/// Discovers, expects exactly one sentence and returns the machine.
fn with_quirk(firmware: &Firmware, sentence: &str) -> Machine {
    let discovery = firmware.discover();
    assert_eq!(sentences(&discovery), [sentence]);
    discovery.machine
}

fn four() -> Firmware {
    Description::row(4).firmware()
}

fn interrupts() -> Vec<Interrupt> {
    (0..8)
        .map(|apic| Interrupt::Cpu {
            apic,
            uid: apic,
            flags: 1,
        })
        .collect()
}

fn affinities() -> Vec<Affinity> {
    let cpus = (0..8).map(|apic| Affinity::Cpu {
        apic,
        domain: u32::from(apic) / 2,
    });
    let memory = (0..4u32).map(|domain| Affinity::Memory {
        start: u64::from(domain) * 512 * MIB,
        bytes: 512 * MIB,
        domain,
    });
    cpus.chain(memory).collect()
}

#[test]
fn a_right_description_is_taken_literally() {
    let discovery = four().discover();
    assert_eq!(discovery.quirks, []);
    let machine = discovery.machine;
    assert_eq!(machine.nodes.len(), 4);
    assert_eq!(machine.nodes[2].cpus, [CpuId(4), CpuId(5)]);
    assert_eq!(machine.nodes[2].memory_bytes(), 512 * MIB);
    assert_eq!(
        (
            machine.distance(NodeId(0), NodeId(3)),
            machine.latency_ns(NodeId(0), NodeId(3))
        ),
        (28, 230)
    );
    assert_eq!(machine.latency_source, LatencySource::Hmat);
    assert_eq!(machine.bandwidth_mb_s(NodeId(0), NodeId(1)), Some(20_000));
    assert_eq!(
        machine.nearest(NodeId(2)),
        [NodeId(2), NodeId(1), NodeId(3), NodeId(0)]
    );
    assert_eq!(machine.node_of(Hpa(512 * MIB)), Some(NodeId(1)));
    assert_eq!(machine.node_of(Hpa(4 * 512 * MIB)), None);
    assert_eq!(
        (
            machine.cpus[5].package,
            machine.cpus[5].core,
            machine.cpus[5].llc
        ),
        (2, 5, 2)
    );
    assert_eq!(
        machine.cpu_by_apic(ApicId(7)).map(|cpu| cpu.id),
        Some(CpuId(7))
    );
    assert_eq!(machine.distance(NodeId(0), NodeId(9)), UNREACHABLE);
}

#[test]
fn without_tables_there_is_one_node_and_one_cpu() {
    let shape = CpuidShape {
        bsp_apic_id: ApicId(3),
        ..CpuidShape::default()
    };
    let usable = [range(MIB, 63 * MIB)];
    let discovery = discover(&Tables::default(), &shape, &usable);
    check(&discovery, &usable, ApicId(3));
    assert_eq!(
        sentences(&discovery),
        [
            "Firmware has no MADT; only the boot processor is used.",
            "Firmware has no SRAT; all processors and memory are node 0."
        ]
    );
    assert_eq!(discovery.machine.nodes[0].memory_bytes(), 63 * MIB);
    assert_eq!(discovery.machine.lapic_address, Hpa(0xfee0_0000));
}

#[test]
fn without_an_srat_all_is_node_0() {
    let firmware = four();
    let tables = Tables {
        madt: Some(&firmware.madt),
        ..Tables::default()
    };
    let discovery = discover(&tables, &firmware.shape, &firmware.usable);
    assert_eq!(
        sentences(&discovery),
        ["Firmware has no SRAT; all processors and memory are node 0."]
    );
    assert_eq!(discovery.machine.nodes.len(), 1);
    assert_eq!(discovery.machine.nodes[0].cpus.len(), 8);
    assert_eq!(discovery.machine.nodes[0].memory_bytes(), 2048 * MIB);
}

#[test]
fn a_wrong_checksum_discards_all_but_the_madt() {
    let mut firmware = four();
    firmware.srat[47] ^= 1;
    let machine = with_quirk(
        &firmware,
        "SRAT adds up to 0x01 instead of 0; it is ignored: all processors and memory are node 0.",
    );
    assert_eq!((machine.nodes.len(), machine.cpus.len()), (1, 8));
    let mut firmware = four();
    firmware.madt[9] = firmware.madt[9].wrapping_add(5);
    let machine = with_quirk(
        &firmware,
        "MADT adds up to 0x05 instead of 0; it is used, for want of another list of processors.",
    );
    assert_eq!((machine.nodes.len(), machine.cpus.len()), (4, 8));
    let mut firmware = four();
    firmware.slit[9] = firmware.slit[9].wrapping_add(1);
    let machine = with_quirk(
        &firmware,
        "SLIT adds up to 0x01 instead of 0; it is ignored: all remote distances are 20.",
    );
    assert_eq!(machine.distance(NodeId(0), NodeId(1)), 20);
}

#[test]
fn frames_that_are_no_tables_are_ignored() {
    for (bytes, sentence) in [
        (
            &b"SRA"[..],
            "SRAT has 3 bytes, too few for a header; it is ignored: all processors and memory are node 0.",
        ),
        (
            &build::table(b"SSDT", 1, &[])[..],
            "SRAT starts with \"SSDT\"; it is ignored: all processors and memory are node 0.",
        ),
        (
            &four().srat[..60],
            "SRAT claims 336 bytes, but 60 are there; it is ignored: all processors and memory are node 0.",
        ),
    ] {
        let firmware = Firmware {
            srat: bytes.to_vec(),
            ..four()
        };
        assert_eq!(with_quirk(&firmware, sentence).nodes.len(), 1);
    }
    let mut firmware = four();
    firmware.srat.extend([0xff; 100]);
    assert_eq!(
        firmware.discover().quirks,
        [],
        "bytes behind a table are not its business"
    );
    let mut firmware = four();
    firmware.madt.truncate(44 + 3 * 8 + 5);
    let discovery = firmware.discover();
    assert_eq!(discovery.machine.cpus.len(), 3);
    assert_eq!(
        sentences(&discovery)[..2],
        [
            "MADT claims 108 bytes, but 73 are there; what is there is used.",
            "MADT, offset 68: an entry of 8 bytes has only 5 left in the table; it is ignored."
        ]
    );
}

#[test]
fn entries_of_a_wrong_length_do_not_derail_the_walk() {
    let mut firmware = four();
    // The second processor's affinity claims no length: the rest cannot be walked.
    firmware.srat[48 + 16 + 1] = 0;
    build::seal(&mut firmware.srat);
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery)[0],
        "SRAT, offset 64: an entry claims a length of 0; the rest of the table is ignored."
    );
    // One processor's domain is left; all memory joins node 0, and the others their package or node 0.
    assert_eq!(discovery.machine.nodes.len(), 1);

    let mut body = build::madt(&[Interrupt::Cpu {
        apic: 0,
        uid: 0,
        flags: 1,
    }])[36..]
        .to_vec();
    body.extend([9, 4, 0, 0]);
    body.extend([0, 8, 1, 1, 1, 0, 0, 0]);
    let firmware = Firmware {
        madt: build::table(b"APIC", 5, &body),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery)[0],
        "MADT, offset 52: an entry of type 9 has 4 bytes and needs 16; it is ignored."
    );
    assert_eq!(discovery.machine.cpus.len(), 2);
}

#[test]
fn doubtful_processors() {
    let mut listed = interrupts();
    listed.push(Interrupt::X2Cpu {
        apic: 3,
        uid: 9,
        flags: 1,
    });
    let firmware = Firmware {
        madt: build::madt(&listed),
        ..four()
    };
    let machine = with_quirk(
        &firmware,
        "MADT, offset 108: apic3 is listed twice; the first entry counts.",
    );
    assert_eq!(machine.cpus[3].uid, 3);

    listed = interrupts();
    listed.push(Interrupt::Cpu {
        apic: 255,
        uid: 9,
        flags: 1,
    });
    listed.push(Interrupt::Cpu {
        apic: 255,
        uid: 10,
        flags: 0,
    });
    let firmware = Firmware {
        madt: build::madt(&listed),
        ..four()
    };
    with_quirk(
        &firmware,
        "MADT, offset 108: an enabled processor has the broadcast address 0xff; it is ignored.",
    );

    let mut firmware = four();
    firmware.shape.bsp_apic_id = ApicId(40);
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "MADT does not list the boot processor apic40; it is added as cpu0.",
            "SRAT gives apic40 no domain; it joins node0."
        ]
    );
    assert_eq!(discovery.machine.cpus.len(), 9);

    // x2APIC 255 is one processor, not all of them.
    listed = interrupts();
    listed.push(Interrupt::X2Cpu {
        apic: 255,
        uid: 9,
        flags: 1,
    });
    let mut places = affinities();
    places.push(Affinity::X2Cpu {
        apic: 255,
        domain: 2,
    });
    let firmware = Firmware {
        madt: build::madt(&listed),
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(discovery.quirks, []);
    assert_eq!(discovery.machine.cpus[8].node, NodeId(2));

    let many: Vec<Interrupt> = (0..1200)
        .map(|apic| Interrupt::X2Cpu {
            apic,
            uid: apic,
            flags: 1,
        })
        .collect();
    let firmware = Firmware {
        madt: build::madt(&many),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(discovery.machine.cpus.len(), MAX_CPUS);
    assert_eq!(
        sentences(&discovery)[0],
        "MADT lists 1200 enabled processors, but 1024 are supported; the rest stays off."
    );
    assert!(
        sentences(&discovery)
            .last()
            .is_some_and(|last| last.ends_with("more oddities of the firmware are not listed."))
    );
}

#[test]
fn the_boot_processor_is_cpu_0_and_the_others_keep_their_order() {
    let mut firmware = four();
    firmware.shape.bsp_apic_id = ApicId(5);
    let machine = firmware.discover().machine;
    let apics: Vec<u32> = machine.cpus.iter().map(|cpu| cpu.apic.0).collect();
    assert_eq!(apics, [5, 0, 1, 2, 3, 4, 6, 7]);
    assert_eq!(machine.nodes[2].cpus, [CpuId(0), CpuId(5)]);
}

#[test]
fn a_processor_without_a_node_joins_its_package() {
    let mut places = affinities();
    places.remove(5);
    places.remove(0);
    let firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SRAT gives apic0 no domain; it joins node0.",
            "SRAT gives apic5 no domain; it joins node2."
        ]
    );
    assert_eq!(discovery.machine.cpus[5].node, NodeId(2));
}

#[test]
fn a_processor_has_one_domain_and_must_exist() {
    let mut places = affinities();
    places.push(Affinity::X2Cpu { apic: 1, domain: 3 });
    places.push(Affinity::Cpu {
        apic: 77,
        domain: 1,
    });
    let firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SRAT puts apic1 into pxm0 and pxm3; the first counts.",
            "SRAT puts apic77 into pxm1, but MADT does not list it; the entry is ignored."
        ]
    );
    assert_eq!(discovery.machine.cpus[1].node, NodeId(0));
}

#[test]
fn the_first_of_two_overlapping_ranges_counts() {
    let mut places = affinities();
    places.push(Affinity::Memory {
        start: 256 * MIB,
        bytes: 4096 * MIB,
        domain: 1,
    });
    let mut firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    firmware.usable.push(range(2048 * MIB, 100 * MIB));
    let discovery = firmware.discover();
    let said = sentences(&discovery);
    assert_eq!(said.len(), 4);
    assert_eq!(
        said[3],
        "SRAT gives 0x10000000 to 0x20000000 to pxm0 and again to pxm1; the first counts."
    );
    let machine = discovery.machine;
    let bytes: Vec<u64> = machine
        .nodes
        .iter()
        .map(|node| node.memory_bytes() / MIB)
        .collect();
    assert_eq!(bytes, [512, 612, 512, 512]);
}

#[test]
fn an_overlap_in_the_middle_leaves_both_ends() {
    let places = [
        Affinity::Cpu { apic: 0, domain: 0 },
        Affinity::Memory {
            start: 100 * MIB,
            bytes: 100 * MIB,
            domain: 1,
        },
        Affinity::Memory {
            start: 0,
            bytes: 300 * MIB,
            domain: 0,
        },
    ];
    let mut firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    firmware.madt = build::madt(&[Interrupt::Cpu {
        apic: 0,
        uid: 0,
        flags: 1,
    }]);
    firmware.hmat = None;
    firmware.usable = vec![range(0, 300 * MIB)];
    let machine = firmware.discover().machine;
    assert_eq!(
        machine.nodes[0].memory,
        [range(0, 100 * MIB), range(200 * MIB, 100 * MIB)]
    );
    assert_eq!(machine.nodes[1].memory, [range(100 * MIB, 100 * MIB)]);
}

#[test]
fn memory_without_a_node_joins_the_nearest_range() {
    let mut firmware = four();
    let mut places = affinities();
    places.remove(9);
    firmware.srat = build::srat(&places);
    firmware.usable = vec![
        range(0, 600 * MIB),
        range(900 * MIB, 1148 * MIB),
        range(4096 * MIB, MIB),
    ];
    let discovery = firmware.discover();
    let said: Vec<String> = sentences(&discovery)
        .into_iter()
        .filter(|said| said.starts_with("SRAT gives the memory"))
        .collect();
    assert_eq!(
        said,
        [
            "SRAT gives the memory 0x20000000 to 0x25800000 no domain; it joins node0.",
            "SRAT gives the memory 0x38400000 to 0x40000000 no domain; it joins node2.",
            "SRAT gives the memory 0x100000000 to 0x100100000 no domain; it joins node3.",
        ]
    );
}

#[test]
fn ranges_without_bytes_or_with_too_many() {
    let mut places = affinities();
    places.push(Affinity::Memory {
        start: 7 * MIB,
        bytes: 0,
        domain: 2,
    });
    places.push(Affinity::Memory {
        start: 1 << 40,
        bytes: u64::MAX,
        domain: 3,
    });
    places.push(Affinity::Disabled { domain: 9 });
    let firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SRAT has a range of pxm2 at 0x700000 with no bytes; it is ignored.",
            "SRAT has a range of pxm3 at 0x10000000000 whose 0xffffffffffffffff bytes pass the end of the address space; it is cut there."
        ]
    );
    assert_eq!(
        discovery.machine.node_of(Hpa(1 << 41)),
        Some(NodeId(3)),
        "claimed, though not usable"
    );
}

#[test]
fn sparse_memoryless_and_cpuless_domains() {
    let mut description = Description::row(4);
    for (domain, number) in description.domains.iter_mut().zip([3, 40, 41, 200]) {
        domain.number = number;
    }
    description.domains[1].memory.clear();
    description.domains[3].apics.clear();
    let discovery = description.firmware().discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SRAT numbers 4 domains up to pxm200; nodes are numbered from 0 in their order.",
            "node1 (pxm40) has no memory; its processors are served by the nearest node that has.",
            "node3 (pxm200) has memory, but no processor; all its accesses are remote."
        ]
    );
    assert!(
        discovery
            .quirks
            .iter()
            .all(|quirk| quirk.severity() == Severity::Note)
    );
    let machine = discovery.machine;
    assert_eq!(machine.nodes[3].domain, ProximityDomain(200));
    assert_eq!(machine.distance(NodeId(0), NodeId(3)), 28);
    assert_eq!(machine.latency_source, LatencySource::Hmat);
    assert_eq!(
        (
            machine.latency_ns(NodeId(2), NodeId(0)),
            machine.latency_ns(NodeId(0), NodeId(3))
        ),
        (180, 230)
    );
}

#[test]
fn domains_with_nothing_are_no_nodes() {
    let mut places = affinities();
    places.push(Affinity::Memory {
        start: 1 << 40,
        bytes: MIB,
        domain: 9,
    });
    places.push(Affinity::Initiator { domain: 11 });
    places.push(Affinity::Port { domain: 1 });
    let firmware = Firmware {
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SRAT names pxm9, which has neither a running processor nor usable memory; it is no node.",
            "SRAT names pxm11, which has neither a running processor nor usable memory; it is no node."
        ]
    );
    assert_eq!(discovery.machine.nodes.len(), 4);
}

#[test]
fn too_many_domains_join_their_neighbours() {
    let mut description = Description::row(2);
    description.latencies.clear();
    description.domains = (0..70)
        .map(|n: u32| Domain {
            number: n,
            apics: vec![n],
            memory: vec![(u64::from(n) * MIB, MIB)],
        })
        .collect();
    description.distances = (0..70)
        .map(|a| (0..70).map(|b| if a == b { 10 } else { 21 }).collect())
        .collect();
    let discovery = description.firmware().discover();
    let machine = &discovery.machine;
    assert_eq!(machine.nodes.len(), MAX_NODES);
    assert_eq!(
        machine.nodes[63].memory_bytes(),
        7 * MIB,
        "the last kept node is nearest"
    );
    assert_eq!(
        sentences(&discovery)[0],
        "SRAT has 70 domains in use, but 64 nodes are supported; what belongs to the others joins a neighbour."
    );
}

#[test]
fn before_revision_2_domains_have_8_bits() {
    let mut places = affinities();
    if let Some(Affinity::Memory { domain, .. }) = places.last_mut() {
        *domain = 0xabcd_0003;
    }
    let mut srat = build::srat(&places);
    srat[8] = 1;
    build::seal(&mut srat);
    assert_eq!(Firmware { srat, ..four() }.discover().quirks, []);
}

#[test]
fn absurd_distances_are_repaired() {
    let matrix = [
        [10, 9, 16, 22],
        [16, 12, 255, 16],
        [22, 0, 10, 16],
        [10, 22, 16, 10],
    ];
    let slit = build::slit(4, |from, to| matrix[from as usize][to as usize]);
    let firmware = Firmware { slit, ..four() };
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "SLIT says 9 from pxm0 to pxm1, less than the local 10; 20 is used.",
            "SLIT says 12 for the distance of pxm1 to itself; 10 is used.",
            "SLIT calls pxm2 unreachable from pxm1 (255); it is kept as the farthest.",
            "SLIT says 0 from pxm2 to pxm1, less than the local 10; 20 is used.",
        ]
    );
    assert_eq!(
        discovery.machine.distance_rows(),
        [
            [10, 20, 16, 22],
            [16, 10, 255, 16],
            [22, 20, 10, 16],
            [10, 22, 16, 10]
        ]
    );
    assert_eq!(
        discovery.machine.nearest(NodeId(1)).last(),
        Some(&NodeId(2))
    );
}

#[test]
fn a_matrix_of_the_wrong_size() {
    let mut firmware = four();
    firmware.slit[36..44].copy_from_slice(&(1u64 << 63).to_le_bytes());
    build::seal(&mut firmware.slit);
    let machine = with_quirk(
        &firmware,
        "SLIT claims 9223372036854775808 localities, whose matrix does not fit into its 60 bytes; it is ignored: all remote distances are 20.",
    );
    assert_eq!(machine.distance(NodeId(0), NodeId(3)), 20);
    for (claimed, sentence) in [
        (
            5u64,
            "SLIT claims 5 localities, whose matrix does not fit into its 60 bytes; it is ignored: all remote distances are 20.",
        ),
        (
            1 << 32,
            "SLIT claims 4294967296 localities, whose matrix does not fit into its 60 bytes; it is ignored: all remote distances are 20.",
        ),
    ] {
        firmware.slit[36..44].copy_from_slice(&claimed.to_le_bytes());
        build::seal(&mut firmware.slit);
        with_quirk(&firmware, sentence);
    }
    let small = Firmware {
        slit: build::slit(3, |a, b| if a == b { 10 } else { 30 }),
        ..four()
    };
    let machine = with_quirk(
        &small,
        "SLIT has 3 localities and no row for pxm3; its remote distances are 20.",
    );
    assert_eq!(
        (
            machine.distance(NodeId(0), NodeId(1)),
            machine.distance(NodeId(0), NodeId(3))
        ),
        (30, 20)
    );
    let mut long = four();
    long.slit.extend([7, 7]);
    build::seal(&mut long.slit);
    with_quirk(
        &long,
        "SLIT has 2 bytes behind its matrix; they are ignored.",
    );
}

#[test]
fn an_hmat_counts_only_if_it_is_whole_and_believable() {
    let mut description = Description::row(3);
    description.latencies[1] = vec![100, 120, 130];
    let machine = with_quirk(
        &description.firmware(),
        "HMAT says 120 ns for local memory of pxm1 and 100 ns for remote; all latencies are estimated from distances.",
    );
    assert_eq!(machine.latency_source, LatencySource::Slit);
    assert_eq!(
        machine.latency_rows(),
        [[100, 160, 220], [160, 100, 160], [220, 160, 100]]
    );
    description.latencies[1] = vec![100, 80, 0xffff];
    let machine = with_quirk(
        &description.firmware(),
        "HMAT has no latency from pxm1 to pxm2; all latencies are estimated from distances.",
    );
    assert_eq!(machine.latency_source, LatencySource::Slit);
    assert_eq!(
        machine.bandwidth_mb_s(NodeId(0), NodeId(0)),
        Some(40_000),
        "bandwidths stand on their own"
    );
}

#[test]
fn all_kinds_of_hmat_structures() {
    let matrix = |flags, data_type, unit, values: Vec<u16>| Attributes::Matrix {
        flags,
        data_type,
        unit,
        initiators: vec![0],
        targets: vec![0, 1],
        values,
    };
    let mut description = Description::row(2);
    description.domains[1].apics.clear();
    let mut firmware = description.firmware();
    firmware.hmat = Some(build::hmat(&[
        Attributes::Domain {
            memory: 1,
            initiator: 0,
        },
        matrix(1, 0, 1, vec![5, 5]),
        matrix(0, 1, 500, vec![160, 301]),
        matrix(0, 2, 1000, vec![70, 170]),
        matrix(0, 4, 1, vec![900, 0]),
        matrix(0, 5, 2, vec![400, 300]),
        matrix(9, 0, 1, vec![1, 1]),
        matrix(0, 6, 1, vec![1, 1]),
        matrix(0, 0, 0, vec![1, 1]),
        matrix(0, 0, 1, vec![1]),
        Attributes::Cache {
            memory: 1,
            bytes: 16 * MIB,
            attributes: 0x0040_0111,
        },
    ]));
    let discovery = firmware.discover();
    assert_eq!(
        sentences(&discovery),
        [
            "node1 (pxm1) has memory, but no processor; all its accesses are remote.",
            "HMAT, offset 320: a matrix is about an unknown memory hierarchy; the structure is ignored.",
            "HMAT, offset 368: a matrix has an unknown data type; the structure is ignored.",
            "HMAT, offset 416: a matrix has a base unit of 0; the structure is ignored.",
            "HMAT, offset 464: the lists of a latency or bandwidth matrix do not fit into it; the structure is ignored.",
        ]
    );
    let machine = discovery.machine;
    assert_eq!(machine.nodes[1].initiator, Some(NodeId(0)));
    assert_eq!(
        (
            machine.latency_ns(NodeId(0), NodeId(0)),
            machine.latency_ns(NodeId(0), NodeId(1))
        ),
        (80, 170)
    );
    assert_eq!(
        (
            machine.bandwidth_mb_s(NodeId(0), NodeId(0)),
            machine.bandwidth_mb_s(NodeId(0), NodeId(1))
        ),
        (Some(800), Some(600))
    );
    let hmat = machine.hmat.expect("read");
    assert_eq!(hmat.matrices.len(), 5);
    assert_eq!(
        (
            hmat.caches[0].levels,
            hmat.caches[0].level,
            hmat.caches[0].line_bytes
        ),
        (1, 1, 64)
    );
}

#[test]
fn interrupt_wiring() {
    let mut listed = interrupts();
    listed.extend([
        Interrupt::IoApic {
            id: 8,
            address: 0xfec0_0000,
            gsi_base: 0,
        },
        Interrupt::Override {
            irq: 0,
            gsi: 2,
            flags: 0,
        },
        Interrupt::Override {
            irq: 9,
            gsi: 9,
            flags: 0b1101,
        },
        Interrupt::NmiSource {
            gsi: 30,
            flags: 0b0101,
        },
        Interrupt::LocalNmi {
            uid: 0xff,
            lint: 1,
            flags: 0,
        },
        Interrupt::X2LocalNmi {
            uid: 4,
            lint: 0,
            flags: 0b1111,
        },
        Interrupt::LapicAddress {
            address: 0x12_fee0_0000,
        },
        Interrupt::Cpu {
            apic: 9,
            uid: 9,
            flags: 2,
        },
        Interrupt::Cpu {
            apic: 10,
            uid: 10,
            flags: 0,
        },
    ]);
    let mut places = affinities();
    places.push(Affinity::Cpu { apic: 9, domain: 3 });
    let firmware = Firmware {
        madt: build::madt(&listed),
        srat: build::srat(&places),
        ..four()
    };
    let discovery = firmware.discover();
    assert_eq!(discovery.quirks, []);
    let machine = discovery.machine;
    assert_eq!(
        machine.io_apics,
        [IoApic {
            id: 8,
            address: Hpa(0xfec0_0000),
            gsi_base: 0
        }]
    );
    assert_eq!(
        machine.overrides[0],
        InterruptOverride {
            irq: 0,
            gsi: 2,
            polarity: Polarity::Bus,
            trigger: Trigger::Bus
        }
    );
    assert_eq!(
        machine.overrides[1],
        InterruptOverride {
            irq: 9,
            gsi: 9,
            polarity: Polarity::High,
            trigger: Trigger::Level
        }
    );
    assert_eq!(
        machine.nmi_sources,
        [NmiSource {
            gsi: 30,
            polarity: Polarity::High,
            trigger: Trigger::Edge
        }]
    );
    assert_eq!(
        machine.local_nmis[0],
        LocalNmi {
            uid: None,
            lint: 1,
            polarity: Polarity::Bus,
            trigger: Trigger::Bus
        }
    );
    assert_eq!(
        machine.local_nmis[1],
        LocalNmi {
            uid: Some(4),
            lint: 0,
            polarity: Polarity::Low,
            trigger: Trigger::Level
        }
    );
    assert_eq!(machine.lapic_address, Hpa(0x12_fee0_0000));
    assert!(machine.has_8259);
    assert_eq!(
        machine.offline,
        [OfflineCpu {
            apic: ApicId(9),
            uid: 9,
            domain: Some(ProximityDomain(3))
        }]
    );
    assert_eq!(machine.cpus.len(), 8);
}

/// A PPTT of packages with an L3 each, cores with an L1, and two threads a core.
fn pptt(packages: u32, cores: u32) -> Vec<u8> {
    let mut body: Vec<u8> = Vec::new();
    let cache = |body: &mut Vec<u8>, attributes: u8| {
        let at = 36 + body.len() as u32;
        body.extend([1, 24, 0, 0, 0x10, 0, 0, 0]);
        body.extend([0; 13]);
        body.extend([attributes, 64, 0]);
        at
    };
    let processor = |body: &mut Vec<u8>, flags: u32, parent: u32, uid: u32, resources: &[u32]| {
        let at = 36 + body.len() as u32;
        body.extend([0, 20 + 4 * resources.len() as u8, 0, 0]);
        body.extend(
            [flags, parent, uid, resources.len() as u32]
                .into_iter()
                .flat_map(u32::to_le_bytes),
        );
        body.extend(resources.iter().flat_map(|at| at.to_le_bytes()));
        at
    };
    let mut uid = 0;
    for _ in 0..packages {
        let l3 = cache(&mut body, 0b1000);
        let instructions = cache(&mut body, 0b0100);
        let package = processor(&mut body, 1, 0, 0, &[l3]);
        for _ in 0..cores {
            let l1 = cache(&mut body, 0b0000);
            let core = processor(&mut body, 0, package, 0, &[l1, instructions]);
            for _ in 0..2 {
                processor(&mut body, 0b1110, core, uid, &[]);
                uid += 1;
            }
        }
    }
    build::table(b"PPTT", 2, &body)
}

#[test]
fn the_pptt_helps_where_cpuid_is_silent() {
    let firmware = four();
    let found = |pptt: &[u8], shape: CpuidShape| {
        let tables = Tables {
            madt: Some(&firmware.madt),
            srat: Some(&firmware.srat),
            slit: Some(&firmware.slit),
            hmat: None,
            pptt: Some(pptt),
        };
        let discovery = discover(&tables, &shape, &firmware.usable);
        check(&discovery, &firmware.usable, ApicId(0));
        let belongs: Vec<_> = discovery
            .machine
            .cpus
            .iter()
            .map(|cpu| (cpu.core, cpu.llc, cpu.package, cpu.thread))
            .collect();
        (belongs, sentences(&discovery))
    };
    let silent = CpuidShape::default();
    let threads = [
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (1, 0, 0, 0),
        (1, 0, 0, 1),
        (2, 1, 1, 0),
        (2, 1, 1, 1),
        (3, 1, 1, 0),
        (3, 1, 1, 1),
    ];
    assert_eq!(found(&pptt(2, 2), silent), (threads.to_vec(), vec![]));
    let alone: Vec<_> = (0..8).map(|n| (n, n, n, 0)).collect();
    assert_eq!(
        found(&pptt(1, 3), silent),
        (
            alone.clone(),
            vec!["PPTT lacks processor 6; the table is not used.".to_string()]
        )
    );
    let mut circle = pptt(2, 2);
    // The first core (behind a package, its three caches) becomes its own parent.
    let core = 36 + 24 + 24 + 24 + 24;
    circle[core + 8..core + 12].copy_from_slice(&(core as u32).to_le_bytes());
    build::seal(&mut circle);
    let (belongs, said) = found(&circle, silent);
    assert_eq!(belongs, alone);
    assert_eq!(
        said,
        ["PPTT: the parents of processor 0 form a circle or lead nowhere; the table is not used."]
    );
    let shifts = CpuidShape {
        bsp_apic_id: ApicId(0),
        smt_shift: 1,
        llc_shift: 2,
        package_shift: 3,
    };
    let (belongs, said) = found(&circle, shifts);
    assert_eq!(
        (belongs[5], said.len()),
        ((2, 1, 0, 1), 0),
        "CPUID counts first"
    );
}
