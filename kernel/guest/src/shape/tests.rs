use super::*;
use alloc::string::ToString;
use alloc::vec;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn node(memory_bytes: u64, vcpus: &[u16]) -> VirtualNode {
    VirtualNode {
        memory_bytes,
        vcpus: vcpus.to_vec(),
    }
}

fn flat_distances(n: usize) -> Vec<Vec<u8>> {
    (0..n)
        .map(|i| (0..n).map(|j| if i == j { 10 } else { 20 }).collect())
        .collect()
}

#[test]
fn a_small_machine_has_a_pc_s_memory_map() {
    let shape = VmShape::simple(2, 64 * MIB).expect("a valid shape");
    let map: Vec<_> = shape
        .memory
        .e820()
        .iter()
        .map(|e| (e.gpa.0, e.bytes, e.kind))
        .collect();
    assert_eq!(
        map,
        [
            (0, 0xA_0000, E820Kind::Ram),
            (0xC_0000, 0x4_0000, E820Kind::Reserved),
            (0x10_0000, 63 * MIB, E820Kind::Ram)
        ]
    );
    assert_eq!(shape.memory.bytes(), 64 * MIB - 0x2_0000);
    assert!(shape.memory.region_of(Gpa(0xB_8000)).is_none());
}

#[test]
fn memory_beyond_3_gib_moves_above_4_gib() {
    let shape = VmShape::simple(1, 5 * GIB).expect("a valid shape");
    let last = *shape.memory.regions().last().expect("regions");
    assert_eq!((last.gpa, last.bytes), (FOUR_GIB, 2 * GIB));
    assert_eq!(
        shape.memory.ram_end_from(HIGH_RAM_BASE),
        Some(DEVICE_HOLE_BASE)
    );
    assert!(shape.memory.region_of(DEVICE_HOLE_BASE).is_none());
    assert!(
        shape
            .memory
            .region_of(devices::layout::IOAPIC_BASE)
            .is_none()
    );
    assert!(
        shape
            .memory
            .region_of(devices::layout::LAPIC_BASE)
            .is_none()
    );
}

#[test]
fn a_node_may_span_the_device_hole() {
    let nodes = vec![
        node(2 * GIB, &[0]),
        node(2 * GIB, &[1]),
        node(0, &[2]),
        node(GIB, &[]),
    ];
    let shape = VmShape::new(nodes, flat_distances(4), 1).expect("a valid shape");
    let of = |n: u16| -> Vec<_> {
        shape
            .memory
            .regions()
            .iter()
            .filter(|r| r.node == n)
            .map(|r| (r.gpa.0, r.bytes))
            .collect()
    };
    assert_eq!(of(1), [(2 * GIB, GIB), (4 * GIB, GIB)]);
    assert_eq!(of(2), []);
    assert_eq!(of(3), [(5 * GIB, GIB)]);
    // Contiguous RAM is one line for the guest, whichever nodes hold it.
    assert_eq!(shape.memory.e820().len(), 4);
}

#[test]
fn apic_identifiers_are_unique_and_group_by_package() {
    let nodes = vec![node(64 * MIB, &[0, 3, 4]), node(64 * MIB, &[1, 2])];
    let shape = VmShape::new(nodes, flat_distances(2), 2).expect("a valid shape");
    let ids: Vec<u32> = (0..5).map(|v| shape.apic_id(v)).collect();
    // Two threads a core: 0 and 3 share one; 4 is alone; 1 and 2 share one of the second package.
    assert_eq!(ids, [0, 8, 9, 1, 2]);
    assert_eq!(shape.node_of(2), 1);
    let single = VmShape::simple(3, 64 * MIB).expect("a valid shape");
    assert_eq!(
        (0..3).map(|v| single.apic_id(v)).collect::<Vec<_>>(),
        [0, 1, 2]
    );
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let refused = |nodes, distances, threads| {
        VmShape::new(nodes, distances, threads).expect_err("no such machine")
    };
    let cases = [
        (refused(vec![], vec![], 1), "nodes"),
        (
            refused(vec![node(64 * MIB, &[])], flat_distances(1), 1),
            "vCPUs",
        ),
        (
            refused(vec![node(64 * MIB + 4096, &[0])], flat_distances(1), 1),
            "multiple",
        ),
        (
            refused(vec![node(2 * MIB, &[0])], flat_distances(1), 1),
            "memory",
        ),
        (
            refused(vec![node(64 * MIB, &[1])], flat_distances(1), 1),
            "vCPU 0",
        ),
        (
            refused(vec![node(64 * MIB, &[0, 0])], flat_distances(1), 1),
            "vCPU 0",
        ),
        (
            refused(vec![node(64 * MIB, &[0])], flat_distances(2), 1),
            "distances",
        ),
        (
            refused(vec![node(64 * MIB, &[0])], vec![vec![11]], 1),
            "distance",
        ),
        (
            refused(vec![node(64 * MIB, &[0])], flat_distances(1), 0),
            "threads",
        ),
        (
            refused(
                vec![node(!(MEMORY_GRANULE - 1), &[0]); 2],
                flat_distances(2),
                1,
            ),
            "vCPU",
        ),
        (
            refused(
                vec![node(MAX_MEMORY_BYTES + 2 * MIB, &[0])],
                flat_distances(1),
                1,
            ),
            "memory",
        ),
    ];
    for (error, word) in cases {
        let text = error.to_string();
        assert!(text.contains(word) && text.ends_with("not built"), "{text}");
    }
}
