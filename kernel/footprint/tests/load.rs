//! What traffic is estimated, what counts put in its place, and what nobody knows.

use footprint::load::{Capacities, Counted, Source, Traffic};
use footprint::*;
use proptest::prelude::*;
use units::*;

const SECOND: Nanos = Nanos::from_secs(1);
const N0: NodeId = NodeId(0);
const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
/// Nothing of a machine is said by this many accesses in a second but what they say themselves.
const ASSUMED: u64 = 2_000_000;

/// A machine on three nodes that ran for `run` of a second on node 0 and touched pages of each node, so many of them.
fn machine(run: Nanos, pages: [u64; 3], reads: Option<(u64, u64)>) -> Footprint {
    let mut f = Footprint::new(3, Tunables::default());
    if let Some((near, far)) = reads {
        let mut reads = DramReads::new(3);
        reads.add(N0, near, far);
        f.count(&reads);
    }
    let window = Window {
        length: SECOND,
        run_time: &[run, Nanos::ZERO, Nanos::ZERO],
        attribution: Attribution::ByRunTime,
        coverage: Coverage::TouchedLeaves {
            resident: &[1 << 30; 3],
        },
        operands: None,
    };
    let nodes = (0u16..)
        .zip(pages)
        .flat_map(|(n, pages)| (0..pages).map(move |_| NodeId(n)));
    let leaf = |(page, node): (u64, NodeId)| {
        let gpa = Gpa(page * PageSize::Size2M.bytes());
        LeafSample::sampled(gpa, PageSize::Size2M, node, TOUCH, 20)
    };
    f.record(&window, (0..).zip(nodes).map(leaf));
    f
}

fn traffic(machines: &[Footprint]) -> Traffic {
    let mut traffic = Traffic::new(vec![true; 3]);
    machines.iter().for_each(|f| traffic.add(f, ASSUMED));
    traffic
}

/// Equal but for what rounding takes.
fn about(is: u64, wanted: u64) {
    assert!(is.abs_diff(wanted) <= 4, "{is} should be {wanted}");
}

#[test]
fn without_counters_assumed_accesses_are_divided_as_touches_are() {
    let t = traffic(&[machine(Nanos::from_millis(500), [50, 30, 20], None)]);
    let all = ASSUMED * 64 / 2;
    about(t.between(N0, N0), all / 10 * 5);
    about(t.between(N0, N1), all / 10 * 3);
    about(t.between(N0, N2), all / 10 * 2);
    assert_eq!(t.between(N1, N0) + t.between(N1, N1), 0);
    assert_eq!(t.source(N0), Source::EstimatedFromBits);
    // Another one on the same node adds to it.
    let twice = machine(SECOND, [0, 10, 0], None);
    let t = traffic(&[machine(Nanos::from_millis(500), [50, 30, 20], None), twice]);
    about(t.at(N1), all / 10 * 3 + ASSUMED * 64);
}

#[test]
fn counted_reads_take_the_place_of_assumed_ones() {
    // So many reads that they alone say how touches divide, too.
    let (near, far) = (3_000_000_000, 1_000_000_000);
    let t = traffic(&[machine(
        Nanos::from_millis(500),
        [50, 50, 0],
        Some((near, far)),
    )]);
    let all = t.at(N0) + t.at(N1) + t.at(N2);
    about(all, (near + far) * 64);
    assert!(t.at(N0).abs_diff(near * 64) < near * 64 / 1000);
    assert_eq!(t.source(N0), Source::EstimatedFromReads);
    assert_eq!(t.source(N1), Source::EstimatedFromBits);
}

#[test]
fn a_machine_that_touches_or_runs_nothing_causes_nothing() {
    let untouched = machine(SECOND, [0, 0, 0], None);
    let halted = machine(Nanos::ZERO, [10, 0, 0], None);
    assert_eq!(traffic(&[untouched, halted]), Traffic::new(vec![true; 3]));
}

#[test]
fn what_is_counted_counts_and_what_goes_elsewhere_is_divided_as_estimated() {
    let mut t = traffic(&[machine(SECOND, [50, 30, 10], None)]);
    let counted = |total, local| Counted { total, local };
    t.correct(N0, counted(Some(9000), Some(1000)));
    assert_eq!(
        [t.between(N0, N0), t.between(N0, N1), t.between(N0, N2)],
        [1000, 6000, 2000]
    );
    assert_eq!(t.sources_at(N2), [Source::Counted]);
    // Nothing was estimated for node 1: evenly.
    t.correct(N1, counted(Some(900), Some(100)));
    assert_eq!(
        [t.between(N1, N0), t.between(N1, N1), t.between(N1, N2)],
        [400, 100, 400]
    );
    // Read one after the other, the near part may seem to be more than all.
    t.correct(N2, counted(Some(900), Some(901)));
    assert_eq!(
        [t.between(N2, N0), t.between(N2, N1), t.between(N2, N2)],
        [0, 0, 900]
    );
}

#[test]
fn half_of_a_count_is_completed_by_the_estimate_and_says_so() {
    let estimated = || traffic(&[machine(SECOND, [60, 30, 10], None)]);
    let mut t = estimated();
    t.correct(
        N0,
        Counted {
            total: Some(1000),
            local: None,
        },
    );
    about(t.between(N0, N0), 600);
    about(t.between(N0, N1), 300);
    assert_eq!(t.source(N0), Source::CountedTotal);
    let mut t = estimated();
    t.correct(
        N0,
        Counted {
            total: None,
            local: Some(7),
        },
    );
    assert_eq!(t.between(N0, N0), 7);
    about(t.between(N0, N1), ASSUMED * 64 / 10 * 3);
    assert_eq!(t.source(N0), Source::CountedLocal);
    let mut t = estimated();
    t.correct(N0, Counted::default());
    assert_eq!(t, estimated());
    // With nothing estimated a total is near, and a node that does not exist changes nothing.
    let mut t = Traffic::new(vec![true; 3]);
    t.correct(
        N1,
        Counted {
            total: Some(5),
            local: None,
        },
    );
    t.correct(
        NodeId(7),
        Counted {
            total: Some(5),
            local: None,
        },
    );
    assert_eq!([t.at(N0), t.at(N1), t.at(N2)], [0, 5, 0]);
}

#[test]
fn nothing_goes_to_nodes_without_memory() {
    let counted = Counted {
        total: Some(1000),
        local: Some(400),
    };
    let mut t = Traffic::new(vec![true, false, true]);
    t.correct(N0, counted);
    assert_eq!([t.at(N0), t.at(N1), t.at(N2)], [400, 0, 600]);
    // Where there is no other memory, what is not called near was near as well.
    let mut t = Traffic::new(vec![true, false, false]);
    t.correct(N0, counted);
    assert_eq!([t.at(N0), t.at(N1), t.at(N2)], [1000, 0, 0]);
    let mut t = Traffic::new(vec![true]);
    t.correct(N0, counted);
    assert_eq!(t.at(N0), 1000);
}

/// Node 2 has no processors: others say what its memory can carry. Nobody says what node 1's can, or a way to it.
fn capacities() -> Capacities {
    Capacities::from_fn(3, |from, to| match (from.0, to.0) {
        (0, 0) => Some(40_000),
        (0, 2) => Some(20_000),
        (1, 2) => Some(10_000),
        (0, 1) => Some(0),
        _ => None,
    })
}

#[test]
fn load_is_of_what_can_be_carried_and_unknown_where_nobody_says() {
    let mut t = Traffic::new(vec![true; 3]);
    let counted = |total, local| Counted {
        total: Some(total),
        local: Some(local),
    };
    t.correct(N0, counted(20_000_000_000, 10_000_000_000));
    t.correct(N1, counted(60_000_000_000, 50_000_000_000));
    let c = capacities();
    // 10 of its own and 5 of node 1's, of 40.
    assert_eq!(c.memory_load(&t, N0), Some(PerMille(375)));
    assert_eq!(c.memory_load(&t, N1), None);
    // 5 from each, of 20.
    assert_eq!(c.memory_load(&t, N2), Some(PerMille(500)));
    assert_eq!(c.link_load(&t, N0, N2), Some(PerMille(250)));
    assert_eq!(c.link_load(&t, N1, N2), Some(PerMille(500)));
    assert_eq!(c.link_load(&t, N0, N1), None);
    assert_eq!(c.link_load(&t, N0, N0), None);
    assert_eq!(c.slowest_link(), Some(10_000_000_000));
    assert_eq!(
        Capacities::from_fn(3, |k, n| (k == n).then_some(9)).slowest_link(),
        None
    );
}

proptest! {
    #[test]
    fn what_is_counted_is_neither_lost_nor_invented(
        pages in proptest::array::uniform3(0u64..50),
        total in any::<u64>(),
        local in any::<u64>(),
    ) {
        let mut t = traffic(&[machine(SECOND, pages, None)]);
        t.correct(N0, Counted { total: Some(total), local: Some(local) });
        let all: u128 = [N0, N1, N2].iter().map(|n| u128::from(t.between(N0, *n))).sum();
        prop_assert!(all <= u128::from(total) && all + 2 >= u128::from(total));
        prop_assert_eq!(t.between(N0, N0), local.min(total));
    }
}
