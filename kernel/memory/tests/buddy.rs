//! The buddy allocators against a model that is a set of free frames.
//!
//! The model knows nothing about lists: a block of order k can be allocated in a zone exactly if
//! some aligned run of 2^k frames is free there, which holds only if buddies merge completely.

use memory::buddy::{Allocation, Claim, FrameError, FrameMeta, FrameState, Frames, Order, Want};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use units::{Frame, NodeId, PageSize};

/// Zones as (node, base, span): unaligned, several on a node, one node without memory.
const ZONES: [(u16, u64, usize); 4] = [
    (0, 3, 700),
    (0, 0x1000, 1024),
    (1, 0x2000 - 5, 517),
    (3, 0x4000, 64),
];
const NODES: u16 = 4;

#[derive(Clone, Debug)]
enum Op {
    Release {
        zone: usize,
        offset: u64,
        frames: u64,
    },
    Allocate {
        node: u16,
        log2: u32,
        fallback: bool,
    },
    Free {
        which: usize,
    },
    FreeAnything {
        frame: u64,
        log2: u32,
    },
    Split {
        which: usize,
        log2: u32,
    },
    Join {
        which: usize,
        log2: u32,
    },
    Claim {
        node: u16,
        log2: u32,
        count: u64,
    },
    Draw {
        which: usize,
    },
    Return {
        which: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let log2 = 0..11u32;
    prop_oneof![
        2 => (0..ZONES.len(), 0..1100u64, 0..400u64).prop_map(|(zone, offset, frames)| Op::Release { zone, offset, frames }),
        6 => (0..NODES + 1, log2.clone(), any::<bool>()).prop_map(|(node, log2, fallback)| Op::Allocate { node, log2, fallback }),
        4 => any::<usize>().prop_map(|which| Op::Free { which }),
        2 => (0..0x4100u64, log2.clone()).prop_map(|(frame, log2)| Op::FreeAnything { frame, log2 }),
        1 => (any::<usize>(), log2.clone()).prop_map(|(which, log2)| Op::Split { which, log2 }),
        1 => (any::<usize>(), log2).prop_map(|(which, log2)| Op::Join { which, log2 }),
        1 => (0..NODES, 0..4u32, 0..40u64).prop_map(|(node, log2, count)| Op::Claim { node, log2, count }),
        2 => any::<usize>().prop_map(|which| Op::Draw { which }),
        1 => any::<usize>().prop_map(|which| Op::Return { which }),
    ]
}

fn order(log2: u32) -> Order {
    Order::new(log2).expect("below 19")
}

/// Free frames of each zone, and who owns the others.
#[derive(Default)]
struct Model {
    free: [BTreeSet<u64>; ZONES.len()],
    present: [BTreeSet<u64>; ZONES.len()],
    allocated: BTreeMap<u64, Order>,
    claims: Vec<Claim>,
}

impl Model {
    fn zone_of(&self, frame: u64) -> usize {
        let inside =
            |&(_, base, span): &(u16, u64, usize)| (base..base + span as u64).contains(&frame);
        ZONES
            .iter()
            .position(inside)
            .expect("the allocator gave a frame of a zone")
    }
    fn can_allocate(&self, node: u16, order: Order) -> bool {
        (0..ZONES.len())
            .filter(|&zone| ZONES[zone].0 == node)
            .any(|zone| {
                let (_, base, span) = ZONES[zone];
                let first = base.next_multiple_of(order.frames());
                (first..(base + span as u64).saturating_sub(order.frames() - 1))
                    .step_by(order.frames() as usize)
                    .any(|start| {
                        self.free[zone].range(start..start + order.frames()).count() as u64
                            == order.frames()
                    })
            })
    }
    fn take(&mut self, frame: u64, order: Order) {
        assert_eq!(
            frame % order.frames(),
            0,
            "blocks are aligned by physical address"
        );
        let zone = self.zone_of(frame);
        for f in frame..frame + order.frames() {
            assert!(
                self.free[zone].remove(&f),
                "frame {f:#x} was handed out twice"
            );
        }
    }
    fn put(&mut self, frame: u64, order: Order) {
        let zone = self.zone_of(frame);
        self.free[zone].extend(frame..frame + order.frames());
    }
    fn owned(&mut self, block: &Allocation) {
        self.allocated.insert(block.frame().0, block.order());
    }
    fn pick(&self, which: usize) -> Option<(u64, Order)> {
        let nth = which.checked_rem(self.allocated.len())?;
        self.allocated.iter().nth(nth).map(|(f, o)| (*f, *o))
    }
}

fn free(frames: &mut Frames<'_>, frame: u64, order: Order) -> Result<(), FrameError> {
    let block = frames.take_back(Frame(frame), order)?;
    let mut zeroed = 0;
    let scrubbed = block.scrub(|_, pages| zeroed = pages);
    assert_eq!(zeroed, order.frames());
    frames.free(scrubbed)
}

fn step(frames: &mut Frames<'_>, model: &mut Model, op: Op) {
    match op {
        Op::Release {
            zone,
            offset,
            frames: count,
        } => {
            let (_, base, span) = ZONES[zone];
            let range = base + offset..base + offset + count;
            let inside = range.end <= base + span as u64 && offset < span as u64;
            let fresh = model.present[zone].range(range.clone()).next().is_none();
            let released = frames.release(Frame(range.start), count);
            assert_eq!(
                released.is_ok(),
                count == 0 || inside && fresh,
                "{released:?}"
            );
            if released.is_ok() {
                model.present[zone].extend(range.clone());
                model.free[zone].extend(range);
            }
        }
        Op::Allocate {
            node,
            log2,
            fallback,
        } => {
            let order = order(log2);
            let others = if fallback {
                vec![NodeId(1), NodeId(0), NodeId(9)]
            } else {
                vec![]
            };
            let expected = [node]
                .into_iter()
                .chain(others.iter().map(|n| n.0))
                .find(|n| model.can_allocate(*n, order));
            match frames.allocate(NodeId(node), order, &others) {
                Ok(block) => {
                    assert_eq!(Some(block.node().0), expected);
                    assert_eq!(block.fell_back(), block.node().0 != node);
                    assert_eq!(frames.node_of(block.frame()), Some(block.node()));
                    model.take(block.frame().0, order);
                    model.owned(&block);
                }
                Err(refusal) => assert_eq!(expected, None, "{refusal}"),
            }
        }
        Op::Free { which } => {
            if let Some((frame, order)) = model.pick(which) {
                free(frames, frame, order).expect("it was allocated");
                model.allocated.remove(&frame);
                model.put(frame, order);
                assert!(
                    free(frames, frame, order).is_err(),
                    "a second free is an error"
                );
            }
        }
        Op::FreeAnything { frame, log2 } => {
            let known = model.allocated.get(&frame) == Some(&order(log2));
            assert_eq!(frames.take_back(Frame(frame), order(log2)).is_ok(), known);
        }
        Op::Split { which, log2 } => {
            if let Some((frame, from)) = model.pick(which) {
                let to = order(log2);
                assert_eq!(frames.split(Frame(frame), from, to).is_ok(), to <= from);
                if to <= from {
                    for part in (frame..frame + from.frames()).step_by(to.frames() as usize) {
                        model.allocated.insert(part, to);
                    }
                }
            }
        }
        Op::Join { which, log2 } => {
            if let Some((frame, from)) = model.pick(which) {
                let to = order(log2);
                let parts = (frame..frame + to.frames()).step_by(from.frames() as usize);
                let fits = from <= to
                    && frame.is_multiple_of(to.frames())
                    && parts
                        .clone()
                        .all(|part| model.allocated.get(&part) == Some(&from));
                assert_eq!(frames.join(Frame(frame), from, to).is_ok(), fits);
                if fits {
                    for part in parts {
                        model.allocated.remove(&part);
                    }
                    model.allocated.insert(frame, to);
                }
            }
        }
        Op::Claim { node, log2, count } => {
            let before = frames.counters(NodeId(node));
            match frames.claim(NodeId(node), order(log2), count) {
                Ok(claim) => {
                    assert_eq!(claim.remaining(), count);
                    model.claims.push(claim);
                }
                Err(_) => {
                    let after = frames.counters(NodeId(node));
                    assert_eq!(
                        before.map(|c| (c.free, c.claimed, c.allocations)),
                        after.map(|c| (c.free, c.claimed, c.allocations))
                    );
                    let enough = (0..ZONES.len())
                        .filter(|z| ZONES[*z].0 == node)
                        .map(|z| model.free[z].len() as u64)
                        .sum::<u64>();
                    assert!(
                        log2 > 0 || enough < count + model.claimed_on(node),
                        "single frames cannot be too fragmented"
                    );
                }
            }
        }
        Op::Draw { which } => {
            if let Some(nth) = which.checked_rem(model.claims.len()) {
                let claim = &mut model.claims[nth];
                let left = claim.remaining();
                match frames.draw(claim).expect("our own claim") {
                    Some(block) => {
                        assert_eq!((block.order(), block.node()), (claim.order(), claim.node()));
                        assert_eq!(claim.remaining() + 1, left);
                        model.take_from_claim(&block);
                    }
                    None => assert_eq!(left, 0),
                }
            }
        }
        Op::Return { which } => {
            if let Some(nth) = which.checked_rem(model.claims.len()) {
                frames.return_claim(model.claims.swap_remove(nth));
            }
        }
    }
}

impl Model {
    fn claimed_on(&self, node: u16) -> u64 {
        let on_node = self.claims.iter().filter(|claim| claim.node().0 == node);
        on_node
            .map(|claim| claim.remaining() * claim.order().frames())
            .sum()
    }
    fn take_from_claim(&mut self, block: &Allocation) {
        self.owned(block);
    }
    /// Frames in claims are not free, although the model does not know which they are until they
    /// are drawn: learn them from the allocator, and check their number.
    fn learn_claims(&mut self, frames: &Frames<'_>) {
        for (zone, (_, base, span)) in ZONES.into_iter().enumerate() {
            let mut inside = None;
            self.free[zone].clear();
            for frame in base..base + span as u64 {
                match frames.state(Frame(frame)).expect("in a zone") {
                    FrameState::Free(order) => inside = Some((frame + order.frames(), true)),
                    FrameState::Allocated(order) | FrameState::Claimed(order) => {
                        inside = Some((frame + order.frames(), false));
                    }
                    FrameState::Absent => inside = None,
                    FrameState::Inner => {}
                }
                if let Some((end, true)) = inside {
                    assert!(frame < end, "an inner frame belongs to a block");
                    self.free[zone].insert(frame);
                }
            }
        }
    }
}

fn check(frames: &Frames<'_>, model: &Model) {
    for node in 0..NODES {
        let zones: Vec<usize> = (0..ZONES.len())
            .filter(|&zone| ZONES[zone].0 == node)
            .collect();
        let count = |sets: &[BTreeSet<u64>]| {
            zones
                .iter()
                .map(|&zone| sets[zone].len() as u64)
                .sum::<u64>()
        };
        let counters = frames.counters(NodeId(node)).expect("the node exists");
        assert_eq!(counters.free, count(&model.free));
        assert_eq!(counters.total, count(&model.present));
        assert_eq!(counters.claimed, model.claimed_on(node));
        let listed: u64 = (0..=18)
            .map(|k| frames.nodes()[node as usize].free_blocks(order(k)) << k)
            .sum();
        assert_eq!(listed, counters.free, "every free frame is on a list");
        let owned: u64 = model
            .allocated
            .iter()
            .filter(|(f, _)| ZONES[model.zone_of(**f)].0 == node)
            .map(|(_, o)| o.frames())
            .sum();
        assert_eq!(
            counters.total,
            counters.free + counters.claimed + owned,
            "no frame is lost"
        );
    }
    for (&frame, &order) in &model.allocated {
        assert_eq!(frames.state(Frame(frame)), Ok(FrameState::Allocated(order)));
    }
}

fn machine() -> Frames<'static> {
    let mut frames = Frames::new();
    for (node, base, span) in ZONES {
        let metadata = vec![FrameMeta::default(); span].leak();
        frames
            .add_zone(NodeId(node), Frame(base), metadata)
            .expect("zones do not overlap");
    }
    frames
}

fn cases() -> u32 {
    if cfg!(miri) { 4 } else { 96 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_every_frame_in_exactly_one_place(ops in vec(op(), 1..120)) {
        let mut frames = machine();
        let mut model = Model::default();
        for (zone, (_, base, span)) in ZONES.into_iter().enumerate().skip(1) {
            frames.release(Frame(base), span as u64).expect("a fresh zone");
            model.free[zone].extend(base..base + span as u64);
            model.present[zone].extend(base..base + span as u64);
        }
        for op in ops {
            let claims = matches!(op, Op::Claim { .. } | Op::Return { .. });
            step(&mut frames, &mut model, op);
            if claims {
                model.learn_claims(&frames);
            }
            check(&frames, &model);
        }
        // Everything comes home, and merges.
        while let Some(claim) = model.claims.pop() {
            frames.return_claim(claim);
        }
        for (frame, order) in std::mem::take(&mut model.allocated) {
            free(&mut frames, frame, order).expect("it was allocated");
        }
        model.free = model.present.clone();
        check(&frames, &model);
        for (log2, node) in (0..11).flat_map(|k| (0..NODES).map(move |n| (k, n))) {
            let got = frames.allocate(NodeId(node), order(log2), &[]);
            prop_assert_eq!(got.is_ok(), model.can_allocate(node, order(log2)));
            if let Ok(block) = got {
                frames.free(block.scrub(|_, _| {})).expect("it was allocated");
            }
        }
    }
}

#[test]
fn a_claim_over_nodes_is_all_or_nothing() {
    let mut frames = machine();
    frames.release(Frame(0x1000), 1024).expect("fresh");
    frames.release(Frame(0x4000), 64).expect("fresh");
    let want = |node, count| Want {
        node: NodeId(node),
        order: order(0),
        count,
    };
    let refusal = frames
        .claim_all(&[want(0, 1000), want(3, 65)])
        .expect_err("node 3 has 64 frames");
    assert_eq!((refusal.node, refusal.free), (NodeId(3), 64));
    assert_eq!(
        frames
            .counters(NodeId(0))
            .map(|c| (c.free, c.claimed, c.allocations)),
        Some((1024, 0, 0))
    );
    let mut claims = frames
        .claim_all(&[want(0, 1000), want(3, 64)])
        .expect("that many there are");
    assert!(
        frames.allocate(NodeId(3), PageSize::Size4K, &[]).is_err(),
        "the claim holds all"
    );
    let mut drawn = BTreeSet::new();
    while let Ok(Some(block)) = frames.draw(&mut claims[1]) {
        assert!(drawn.insert(block.into_frame()));
    }
    assert_eq!(drawn.len(), 64);
    for claim in claims {
        frames.return_claim(claim);
    }
    assert_eq!(frames.counters(NodeId(0)).map(|c| c.free), Some(1024));
}

#[test]
fn errors_are_sentences_and_change_nothing() {
    let mut frames = machine();
    frames.release(Frame(0x1000), 1024).expect("fresh");
    let block = frames
        .allocate(NodeId(0), PageSize::Size2M, &[])
        .expect("two fit");
    let at = block.into_frame();
    let before = frames.counters(NodeId(0));
    let inside = Frame(at.0 + 1);
    let free_inside = Frame(0x1000 + 0x201 - (at.0 - 0x1000));
    let small = PageSize::Size4K;
    assert!(matches!(
        frames.take_back(Frame(0x9999), small),
        Err(FrameError::Foreign { .. })
    ));
    assert!(matches!(
        frames.take_back(at, small),
        Err(FrameError::WrongBlock { .. })
    ));
    assert!(matches!(
        frames.take_back(inside, small),
        Err(FrameError::WrongBlock { .. })
    ));
    let error = frames
        .take_back(free_inside, small)
        .expect_err("it is free");
    assert_eq!(error, FrameError::DoubleFree { frame: free_inside });
    assert_eq!(
        error.to_string(),
        "frame 0x1201 is free already; the second free was ignored"
    );
    assert_eq!(frames.counters(NodeId(0)), before);
    assert_eq!(
        frames.add_zone(
            NodeId(0),
            Frame(0x13ff),
            vec![FrameMeta::default(); 2].leak()
        ),
        Err(FrameError::Overlap {
            base: Frame(0x13ff),
            frames: 2
        })
    );
    assert!(
        frames
            .add_zone(NodeId(0), Frame(1 << 40), vec![FrameMeta::default()].leak())
            .is_err()
    );
    assert!(frames.add_zone(NodeId(0), Frame(5), &mut []).is_err());
}

#[test]
fn what_was_split_can_be_joined_and_is_then_freed_whole() {
    let (small, large) = (PageSize::Size4K, PageSize::Size2M);
    let mut meta: Vec<FrameMeta> = (0..1024).map(|_| FrameMeta::default()).collect();
    let mut frames = Frames::new();
    frames
        .add_zone(NodeId(0), Frame(1024), &mut meta)
        .expect("a zone");
    frames.release(Frame(1024), 1024).expect("all of it");
    let block = frames.allocate(NodeId(0), large, &[]).expect("a block");
    let first = block.into_frame();
    frames.split(first, large, small).expect("it is one block");
    assert!(
        frames.take_back(first, large).is_err(),
        "it is 512 pages now"
    );
    frames.join(first, small, large).expect("all are there");
    assert!(
        frames.join(first, small, large).is_err(),
        "it is one already"
    );
    frames.split(first, large, small).expect("it is one block");
    free(&mut frames, first.0 + 7, small.into()).expect("a page of it");
    assert!(
        frames.join(first, small, large).is_err(),
        "one of its pages is gone"
    );
}
