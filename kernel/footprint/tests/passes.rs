//! Passes over synthetic accessed bits: what is seen, and what must weigh nothing.

use footprint::*;
use proptest::prelude::*;
use units::*;

const SECOND: Nanos = Nanos::from_secs(1);
/// Each node has a root of its own.
const OWN: [NodeId; 4] = [NodeId(0), NodeId(1), NodeId(2), NodeId(3)];

/// A machine whose 2 MiB pages lie on `nodes[i]`; `hot(i)` says whether page `i` is touched.
fn leaves(nodes: &[u16], hot: impl Fn(usize) -> bool) -> Vec<LeafSample> {
    nodes
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let gpa = Gpa(i as u64 * PageSize::Size2M.bytes());
            LeafSample::shared(gpa, PageSize::Size2M, NodeId(*n), hot(i), hot(i))
        })
        .collect()
}

/// One vCPU that ran all the time on `node` of four.
fn busy_on(node: usize) -> [Nanos; 4] {
    let mut run = [Nanos::ZERO; 4];
    run[node] = SECOND;
    run
}

fn window(run_time: &[Nanos]) -> Window<'_> {
    Window {
        length: SECOND,
        run_time,
        attribution: Attribution::ByRunTime,
        coverage: Coverage::EveryLeaf,
        operands: None,
    }
}

fn ring() -> Latencies {
    Latencies::from_fn(4, |k, n| match k.0.abs_diff(n.0) {
        0 => 80,
        2 => 260,
        _ => 130,
    })
}

/// One whose passes weigh half after each other.
fn new() -> Footprint {
    let tunables = Tunables {
        half_life: SECOND,
        ..Tunables::default()
    };
    Footprint::new(4, tunables)
}

#[test]
fn most_pages_on_one_node_but_most_accesses_on_another_gives_the_other() {
    let mut f = new();
    let nodes: Vec<u16> = (0..128).map(|i| if i < 96 { 3 } else { 1 }).collect();
    for _ in 0..3 {
        // 2 of 96 pages on node 3 are touched, 30 of 32 on node 1.
        f.record(
            &window(&busy_on(0)),
            leaves(&nodes, |i| !(2..98).contains(&i)),
        );
    }
    assert_eq!(f.home(), Some(NodeId(1)));
    assert!(f.resident()[3] > f.resident()[1]);
    assert!(f.shares()[1].0 > 900, "{:?}", f.shares());
    let scores = f.proximity(&ring());
    assert_eq!(
        scores
            .iter()
            .enumerate()
            .max_by_key(|(_, s)| **s)
            .map(|(k, _)| k),
        Some(1)
    );
}

#[test]
fn untouched_memory_weighs_nothing() {
    let (mut with, mut without) = (new(), new());
    let all: Vec<u16> = (0..128).map(|i| if i < 96 { 3 } else { 0 }).collect();
    for _ in 0..4 {
        with.record(&window(&busy_on(0)), leaves(&all, |i| i >= 96));
        let local = leaves(&all, |i| i >= 96).split_off(96);
        without.record(&window(&busy_on(0)), local);
    }
    assert_eq!(with.matrix(), without.matrix());
    assert_eq!(with.proximity(&ring()), without.proximity(&ring()));
    assert_eq!(with.proximity(&ring())[0], Score::ONE);
    assert!(with.hot(|n| n == NodeId(3)).is_empty());
}

#[test]
fn an_idle_machine_has_no_opinion_however_its_timer_grazes_memory() {
    let mut f = new();
    let nodes = [3u16; 128];
    let mut run = [Nanos::ZERO; 4];
    run[0] = Nanos::from_millis(30);
    for _ in 0..20 {
        let summary = f.record(&window(&run), leaves(&nodes, |i| i % 4 == 0));
        assert!(summary.idle);
        assert_eq!(summary.touched, 32);
    }
    assert_eq!(f.confidence(), PerMille(0));
    assert_eq!(f.home(), None);
    assert_eq!(f.proximity(&ring()), vec![Score::ONE; 4]);
    assert_eq!(f.age(), Nanos::ZERO);
}

#[test]
fn becoming_idle_withdraws_the_opinion_at_once() {
    let mut f = new();
    for _ in 0..3 {
        f.record(&window(&busy_on(0)), leaves(&[3; 64], |_| true));
    }
    assert!(f.confidence().0 > 900);
    f.record(&window(&[Nanos::ZERO; 4]), leaves(&[3; 64], |_| true));
    assert_eq!(f.confidence(), PerMille(0));
}

#[test]
fn few_touches_are_no_opinion_and_more_are_surer() {
    let mut f = new();
    let mut last = 0;
    for pass in 1..=12 {
        f.record(&window(&busy_on(0)), leaves(&[3; 64], |i| i < 4));
        let now = f.confidence().0;
        assert_eq!(now == 0, pass < 8, "pass {pass}: {now}");
        assert!(now >= last);
        last = now;
    }
    assert!(f.share_at_least(NodeId(3)) < Score::ONE);
}

#[test]
fn the_matrix_fades_and_adds() {
    let mut f = new();
    let mut run = [Nanos::ZERO; 4];
    run[0] = Nanos::from_millis(750);
    run[1] = Nanos::from_millis(250);
    f.record(&window(&run), leaves(&[3; 8], |_| true));
    assert_eq!(f.matrix().get(NodeId(0), NodeId(3)), 6 * TOUCH);
    assert_eq!(f.matrix().get(NodeId(1), NodeId(3)), 2 * TOUCH);
    f.record(&window(&run), leaves(&[3; 8], |i| i < 4));
    assert_eq!(
        f.matrix().get(NodeId(0), NodeId(3)),
        6 * TOUCH / 2 + 3 * TOUCH
    );
    assert_eq!(f.locality(), Some(Score::ZERO));
}

#[test]
fn with_a_root_per_node_the_bit_tells_who() {
    let mut f = new();
    let run = [
        Nanos::from_millis(500),
        Nanos::from_millis(500),
        Nanos::ZERO,
        Nanos::ZERO,
    ];
    let mut all = leaves(&[0, 0, 1, 1], |_| true);
    for (i, leaf) in all.iter_mut().enumerate() {
        leaf.accessed = if i < 2 { 0b01 } else { 0b10 };
    }
    f.record(
        &Window {
            attribution: Attribution::ByRoot { root_of: &OWN },
            ..window(&run)
        },
        all,
    );
    assert_eq!(f.matrix().rows()[0], [2 * TOUCH, 0, 0, 0]);
    assert_eq!(f.matrix().rows()[1], [0, 2 * TOUCH, 0, 0]);
    assert_eq!(f.locality(), Some(Score::ONE));
}

#[test]
fn rates_are_what_weighs_and_hits_are_what_it_rests_on() {
    let mut f = new();
    let sample = |page: u64, node, heat, hits| {
        let gpa = Gpa(page * PageSize::Size2M.bytes());
        LeafSample::sampled(gpa, PageSize::Size2M, NodeId(node), heat, hits)
    };
    // Ten granules of node 3 that are grazed, one of node 1 that is worked on.
    let grazed = (0..10).map(|i| sample(i, 3, TOUCH / 2, 1));
    let worked = [sample(20, 1, 400 * TOUCH, 10)];
    f.record(&window(&busy_on(0)), grazed.chain(worked));
    assert_eq!(f.home(), Some(NodeId(1)));
    assert_eq!(f.matrix().by_memory(), [0, 400 * TOUCH, 0, 5 * TOUCH]);
    assert_eq!(f.hot(|_| true).first().map(|p| p.gpa), Some(Gpa(20 << 21)));
    assert!(f.confidence().0 > 0);
    f.set_settled(false);
    assert_eq!((f.confidence(), f.home()), (PerMille(0), None));
}

#[test]
fn looks_decide_between_nodes_and_bits_between_their_pages() {
    let mut f = new();
    // A kernel starts on node 3 and touches everything; then two pages of node 1 are all that matters.
    let nodes: Vec<u16> = (0..128).map(|i| if i < 126 { 3 } else { 1 }).collect();
    let mut pass = |looks: [u32; 2], hot: fn(usize) -> bool| {
        let mut operands = Operands::new(4);
        for (node, n) in [(3, looks[0]), (1, looks[1])] {
            (0..n).for_each(|_| operands.look(NodeId(0), [(NodeId(node), 300)]));
        }
        let busy = busy_on(0);
        let window = Window {
            operands: Some(&operands),
            ..window(&busy)
        };
        f.record(&window, leaves(&nodes, hot));
        (f.home(), f.shares()[1].0, f.hot(|_| true)[0].node)
    };
    pass([200, 0], |_| true);
    let (home, share, hottest) = pass([10, 190], |i| i % 9 == 0 || i > 125);
    assert_eq!((home, hottest), (Some(NodeId(1)), NodeId(1)));
    assert!((580..640).contains(&share), "{share}");
    let (_, share, _) = pass([10, 190], |i| i % 9 == 0 || i > 125);
    assert!((780..820).contains(&share), "{share}");
    let heat = |node| {
        f.hot(|n| n == NodeId(node))
            .iter()
            .map(|p| p.heat)
            .sum::<u64>()
    };
    let by_memory = f.matrix().by_memory();
    assert!(heat(1).abs_diff(by_memory[1]) < 500 && heat(3).abs_diff(by_memory[3]) < 500);
}

#[test]
fn a_moved_page_takes_its_history_along() {
    let mut f = new();
    for _ in 0..6 {
        f.record(&window(&busy_on(0)), leaves(&[3; 64], |_| true));
    }
    let before = f.confidence();
    // All pages were moved; the next pass sees them on node 0, whether touched or not.
    f.record(&window(&busy_on(0)), leaves(&[0; 64], |_| false));
    assert_eq!(f.home(), Some(NodeId(0)));
    assert!(f.shares()[0].0 >= 990, "{:?}", f.shares());
    assert!(f.confidence().0 + 20 >= before.0);
    // The same by being told. What the machine does is as old as it was.
    let age = f.age();
    for i in 0..64u64 {
        f.relocated(Gpa(i << 21), NodeId(2));
    }
    assert!(f.shares()[2].0 >= 990, "{:?}", f.shares());
    f.record(&window(&busy_on(0)), leaves(&[2; 64], |_| true));
    assert_eq!((f.home(), f.age()), (Some(NodeId(2)), age + SECOND));
}

#[test]
fn touched_leaves_alone_are_enough() {
    let nodes: Vec<u16> = (0..128).map(|i| (i % 4) as u16).collect();
    let (mut every, mut some) = (new(), new());
    let resident = [64u64 << 20; 4];
    for pass in 0..5 {
        let all = leaves(&nodes, |i| i % (3 + pass) == 0);
        let touched: Vec<_> = all.iter().copied().filter(|l| l.accessed != 0).collect();
        every.record(&window(&busy_on(1)), all);
        let coverage = Coverage::TouchedLeaves {
            resident: &resident,
        };
        some.record(
            &Window {
                coverage,
                ..window(&busy_on(1))
            },
            touched,
        );
    }
    assert_eq!(every.matrix(), some.matrix());
    assert_eq!(every.resident(), some.resident());
    assert_eq!(every.hot(|_| true), some.hot(|_| true));
}

#[test]
fn the_hottest_come_first() {
    let mut f = new();
    for pass in 0..8 {
        f.record(
            &window(&busy_on(0)),
            leaves(&[3; 16], |i| i == 7 || (i == 2 && pass % 2 == 1)),
        );
    }
    let hot: Vec<u64> = f.hot(|_| true).iter().map(|p| p.gpa.0 >> 21).collect();
    assert_eq!(hot, [7, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn any_pass_is_survived_and_sums_agree(
        passes in proptest::collection::vec(
            (proptest::collection::vec((0u64..64, 0u16..6, any::<u64>(), 0usize..3), 0..80),
             proptest::collection::vec(any::<u64>(), 0..6), any::<bool>(), any::<bool>(), any::<u64>()),
            1..6),
    ) {
        let mut f = new();
        for (samples, run, by_root, every, length) in passes {
            let samples: Vec<LeafSample> = samples
                .iter()
                .map(|&(page, node, accessed, size)| {
                    let size = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][size];
                    LeafSample { gpa: Gpa(page * size.bytes()), size, node: NodeId(node), accessed, heat: accessed, hits: accessed as u32, dirty: page % 2 == 0 }
                })
                .collect();
            let run: Vec<Nanos> = run.into_iter().map(Nanos).collect();
            let resident = [1u64; 9];
            f.record(&Window {
                length: Nanos(length),
                run_time: &run,
                attribution: if by_root { Attribution::ByRoot { root_of: &OWN } } else { Attribution::ByRunTime },
                coverage: if every { Coverage::EveryLeaf } else { Coverage::TouchedLeaves { resident: &resident } },
                operands: None,
            }, samples);
            let shares: u32 = f.shares().iter().map(|s| u32::from(s.0)).sum();
            prop_assert!(shares == 0 || (996..=1004).contains(&shares), "{shares}");
            prop_assert!(f.proximity(&ring()).iter().all(|s| *s <= Score::ONE));
            prop_assert!(f.hot(|_| true).windows(2).all(|w| w[0].heat >= w[1].heat));
        }
    }
}
