//! SLIT and HMAT that are too small, too large or absurd.

use super::*;

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
