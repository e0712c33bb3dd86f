//! Domains with gaps between their numbers, without processors, without memory, or too many.

use super::*;

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
