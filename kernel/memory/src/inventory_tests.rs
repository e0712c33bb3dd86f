extern crate std;
use super::*;
use crate::buddy::Frames;
use proptest::prelude::*;
use std::{vec, vec::Vec};

const GIB: u64 = 1 << 18;

fn range(start: u64, end: u64) -> FrameRange {
    FrameRange {
        start: Frame(start),
        end: Frame(end),
    }
}
fn now(start: u64, end: u64) -> Source {
    Source {
        range: range(start, end),
        ready: Ready::Now,
    }
}
fn later(start: u64, end: u64) -> Source {
    Source {
        range: range(start, end),
        ready: Ready::Later(7),
    }
}
fn span(node: u16, start: u64, end: u64) -> NodeSpan {
    NodeSpan {
        range: range(start, end),
        node: NodeId(node),
    }
}

#[test]
fn bytes_become_whole_frames() {
    assert_eq!(FrameRange::inside(0x1001, 0x2fff), range(2, 4));
    assert_eq!(FrameRange::around(0x1001, 0x2fff), range(1, 4));
    assert!(FrameRange::inside(0x1001, 0x10).is_empty());
    assert_eq!(FrameRange::around(u64::MAX, 2).end, Frame(1 << 52));
}

#[test]
fn a_range_over_two_nodes_is_split_and_each_half_describes_itself() {
    let found = Inventory::new(
        &[now(0, 2 * GIB)],
        &[],
        &[span(0, 0, GIB), span(1, GIB, 2 * GIB)],
    );
    let zones: Vec<_> = found
        .zones
        .iter()
        .map(|z| (z.node, z.range, z.metadata_node))
        .collect();
    assert_eq!(
        zones,
        [
            (NodeId(0), range(0, GIB), NodeId(0)),
            (NodeId(1), range(GIB, 2 * GIB), NodeId(1))
        ]
    );
    for zone in &found.zones {
        assert_eq!(zone.metadata.frames(), GIB * 8 / 4096);
        assert_eq!(zone.metadata.and(&zone.range), zone.metadata);
        let free: u64 = zone.pieces.iter().map(|p| p.range.frames()).sum();
        assert_eq!(free + zone.metadata.frames(), GIB);
    }
}

#[test]
fn memory_of_no_node_goes_to_the_nearest_and_is_reported() {
    let found = Inventory::new(
        &[now(0, 3 * GIB)],
        &[],
        &[span(4, 0, GIB), span(9, GIB + GIB / 2, 2 * GIB)],
    );
    assert_eq!(
        found.homeless,
        [range(GIB, GIB + GIB / 2), range(2 * GIB, 3 * GIB)]
    );
    let node_at = |frame| {
        let in_zone = |z: &&ZonePlan| z.range.start.0 <= frame && frame < z.range.end.0;
        found.zones.iter().find(in_zone).map(|z| z.node)
    };
    assert_eq!(node_at(GIB + 1), Some(NodeId(4)));
    assert_eq!(node_at(3 * GIB - 1), Some(NodeId(9)));
    let flat = Inventory::new(&[now(0, GIB)], &[], &[]);
    assert!(
        flat.homeless.is_empty(),
        "without affinity nothing is out of place"
    );
    assert_eq!(flat.zones[0].node, NodeId(0));
}

#[test]
fn excluded_frames_are_in_no_piece_and_no_metadata() {
    let hole = range(100, 200);
    let found = Inventory::new(&[now(0, GIB)], &[hole, range(0, 50)], &[]);
    let zone = &found.zones[0];
    assert_eq!(zone.range, range(50, GIB));
    assert!(zone.pieces.iter().all(|p| p.range.and(&hole).is_empty()));
    assert!(zone.metadata.and(&hole).is_empty());
}

#[test]
fn a_large_hole_ends_a_zone_and_a_small_one_does_not() {
    let small = Inventory::new(&[now(0, 1000), now(2000, 30_000)], &[], &[]);
    assert_eq!(small.zones.len(), 1);
    let large = Inventory::new(&[now(0, 3 * GIB), now(4 * GIB, 6 * GIB)], &[], &[]);
    assert_eq!(large.zones.len(), 2);
    let huge = Inventory::new(&[now(0, 3 << 28)], &[], &[]);
    assert_eq!(huge.zones.len(), 3);
}

#[test]
fn metadata_moves_to_the_node_or_the_machine_when_a_zone_is_occupied() {
    let spans = [span(0, 0, GIB), span(1, GIB, 8 * GIB)];
    let found = Inventory::new(
        &[now(0, GIB), later(2 * GIB, 3 * GIB), now(5 * GIB, 6 * GIB)],
        &[],
        &spans,
    );
    assert_eq!(found.zones[1].metadata_node, NodeId(1));
    assert!(found.zones[1].metadata.start.0 >= 5 * GIB);
    let found = Inventory::new(&[now(0, GIB), later(2 * GIB, 3 * GIB)], &[], &spans);
    assert_eq!(
        (found.zones[1].node, found.zones[1].metadata_node),
        (NodeId(1), NodeId(0))
    );
    let found = Inventory::new(&[later(0, GIB)], &[], &spans);
    assert_eq!((found.zones.len(), found.lost), (0, vec![range(0, GIB)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every frame of every source is in exactly one place, and the allocator accepts the zones.
    #[test]
    fn no_frame_is_lost_or_twice(
        starts in prop::collection::btree_set(0u64..200, 2..10),
        nodes in prop::collection::vec((0u64..100, 1u64..100, 0u16..4), 0..5),
        holes in prop::collection::vec((0u64..200, 1u64..20), 0..4),
        kinds in any::<u16>(),
    ) {
        const UNIT: u64 = 4096; // frames: the smallest hole is 16 MiB, so zones both join and part
        let edges: Vec<u64> = starts.into_iter().map(|s| s * UNIT).collect();
        let sources: Vec<Source> = edges
            .windows(2)
            .enumerate()
            .filter(|(i, _)| i % 3 != 2)
            .map(|(i, w)| if kinds >> i & 1 == 0 { now(w[0], w[1]) } else { later(w[0], w[1]) })
            .collect();
        let spans: Vec<NodeSpan> = nodes.iter().map(|(s, l, n)| span(*n, s * UNIT, (s + l) * UNIT)).collect();
        let holes: Vec<FrameRange> = holes.iter().map(|(s, l)| range(s * UNIT, (s + l) * UNIT)).collect();
        let found = Inventory::new(&sources, &holes, &spans);

        let mut places: Vec<FrameRange> = found.lost.clone();
        for zone in &found.zones {
            places.push(zone.metadata);
            places.extend(zone.pieces.iter().map(|p| p.range));
            prop_assert!(zone.pieces.iter().all(|p| p.range.and(&zone.range) == p.range));
        }
        places.sort_unstable_by_key(|r| r.start);
        prop_assert!(places.windows(2).all(|w| w[0].end <= w[1].start), "{places:?}");
        let total: u64 = places.iter().map(FrameRange::frames).sum();
        let expected: u64 = sources.iter().flat_map(|s| subtract(s.range, &holes)).map(|r| r.frames()).sum();
        prop_assert_eq!(total, expected);

        let mut frames = Frames::new();
        for zone in &found.zones {
            let metadata = vec![FrameMeta::default(); zone.range.frames() as usize].leak();
            prop_assert_eq!(frames.add_zone(zone.node, zone.range.start, metadata), Ok(()));
            for piece in &zone.pieces {
                prop_assert_eq!(frames.release(piece.range.start, piece.range.frames()), Ok(()));
            }
        }
    }
}
