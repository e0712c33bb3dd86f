//! Tables that are missing, damaged or too short.

use super::*;

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
