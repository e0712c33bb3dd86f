//! Ranges of memory that overlap, have no node or no bytes.

use super::*;

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
