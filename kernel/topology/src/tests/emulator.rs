//! The tables of real (emulated) machines; `tables/README.md` says which.

use super::descriptions::{MIB, check, range};
use crate::fadt;
use crate::{
    CpuidShape, LatencySource, Polarity, Severity, Tables, Trigger, UNREACHABLE, discover,
    sleep_type_s5,
};
use std::string::{String, ToString};
use std::vec::Vec;
use units::{ApicId, CpuId, Hpa, NodeId, ProximityDomain};

#[test]
fn four_nodes_in_a_row() {
    let tables = Tables {
        madt: Some(include_bytes!("tables/four.apic")),
        srat: Some(include_bytes!("tables/four.srat")),
        slit: Some(include_bytes!("tables/four.slit")),
        hmat: Some(include_bytes!("tables/four.hmat")),
        pptt: None,
    };
    let usable = [range(0, 0xa_0000), range(MIB, 383 * MIB)];
    let shape = CpuidShape {
        bsp_apic_id: ApicId(0),
        smt_shift: 0,
        llc_shift: 1,
        package_shift: 1,
    };
    let discovery = discover(&tables, &shape, &usable);
    check(&discovery, &usable, ApicId(0));
    assert_eq!(discovery.quirks, []);
    let machine = discovery.machine;
    assert_eq!(
        machine
            .cpus
            .iter()
            .map(|cpu| cpu.node.0)
            .collect::<Vec<_>>(),
        [0, 0, 1, 1, 2, 2, 3, 3]
    );
    assert_eq!(
        machine
            .cpus
            .iter()
            .map(|cpu| cpu.package)
            .collect::<Vec<_>>(),
        [0, 0, 1, 1, 2, 2, 3, 3]
    );
    assert_eq!(
        machine
            .nodes
            .iter()
            .map(|node| node.memory_bytes() / MIB)
            .collect::<Vec<_>>(),
        [95, 96, 96, 96]
    );
    assert_eq!(machine.distance_rows()[0], [10, 16, 22, 32]);
    assert_eq!(machine.latency_source, LatencySource::Hmat);
    assert_eq!(machine.latency_rows()[3], [260, 180, 130, 80]);
    assert_eq!(machine.bandwidth_mb_s(NodeId(0), NodeId(3)), Some(10_240));
    assert_eq!(machine.nodes[2].initiator, Some(NodeId(2)));
    assert_eq!(machine.hmat.expect("read").caches[1].size_bytes, 16 * MIB);
    assert_eq!(machine.io_apics[0].address, Hpa(0xfec0_0000));
    assert_eq!((machine.overrides[0].irq, machine.overrides[0].gsi), (0, 2));
    assert_eq!(
        (machine.overrides[1].polarity, machine.overrides[1].trigger),
        (Polarity::High, Trigger::Level)
    );
}

#[test]
fn nodes_without_memory_or_processors() {
    let tables = Tables {
        madt: Some(include_bytes!("tables/odd.apic")),
        srat: Some(include_bytes!("tables/odd.srat")),
        slit: Some(include_bytes!("tables/odd.slit")),
        ..Tables::default()
    };
    let usable = [range(MIB, 287 * MIB)];
    let discovery = discover(&tables, &CpuidShape::default(), &usable);
    check(&discovery, &usable, ApicId(0));
    assert!(
        discovery
            .quirks
            .iter()
            .all(|quirk| quirk.severity() == Severity::Note)
    );
    let said: Vec<String> = discovery.quirks.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "node1 (pxm1) has no memory; its processors are served by the nearest node that has.",
            "node2 (pxm2) has memory, but no processor; all its accesses are remote.",
            "SLIT calls pxm3 unreachable from pxm0 (255); it is kept as the farthest.",
        ]
    );
    let machine = discovery.machine;
    assert_eq!(
        machine
            .nodes
            .iter()
            .map(|node| node.domain)
            .collect::<Vec<_>>(),
        [0, 1, 2, 3].map(ProximityDomain)
    );
    assert_eq!(machine.nodes[1].cpus, [CpuId(1)]);
    assert_eq!(
        machine.nodes[3].cpus,
        [CpuId(2)],
        "the fourth CPU is not plugged in"
    );
    assert_eq!(
        machine.distance_rows(),
        [
            [10, 11, 30, UNREACHABLE],
            [44, 10, 12, 13],
            [23, 24, 10, 14],
            [21, 22, 254, 10]
        ]
    );
    assert_eq!(machine.nearest(NodeId(1)), [1, 2, 3, 0].map(NodeId));
    assert_eq!(machine.latency_source, LatencySource::Slit);
}

#[test]
fn power_off_and_timer() {
    for (fadt, dsdt) in [
        (
            &include_bytes!("tables/four.facp")[..],
            &include_bytes!("tables/four.dsdt")[..],
        ),
        (
            &include_bytes!("tables/odd.facp")[..],
            &include_bytes!("tables/odd.dsdt")[..],
        ),
    ] {
        let fadt = fadt::parse(fadt).expect("valid");
        assert_eq!(
            fadt.pm1a_control.map(|register| register.address),
            Some(0x604)
        );
        assert_eq!(
            fadt.pm_timer
                .map(|timer| (timer.register.address, timer.bits)),
            Some((0x608, 24))
        );
        assert_eq!(
            fadt.reset
                .map(|(register, value)| (register.address, value)),
            Some((0xcf9, 0x0f))
        );
        assert_eq!(sleep_type_s5(dsdt), Some((0, 0)));
    }
}
