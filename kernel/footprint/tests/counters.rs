//! What performance counters change of a footprint, and that their absence changes nothing.

use footprint::*;
use proptest::prelude::*;
use units::*;

const SECOND: Nanos = Nanos::from_secs(1);

fn leaf(page: usize, node: u16, heat: u64) -> LeafSample {
    let gpa = Gpa(page as u64 * PageSize::Size2M.bytes());
    LeafSample::sampled(gpa, PageSize::Size2M, NodeId(node), heat, 20)
}

/// A pass of a machine with 64 pages on node 0 and 64 on node 1, whose vCPU ran on node 0; `near` and `far` is the heat of each.
fn pass(f: &mut Footprint, near: u64, far: u64) {
    let run_time = [SECOND, Nanos::ZERO];
    let window = Window {
        length: SECOND,
        run_time: &run_time,
        attribution: Attribution::ByRunTime,
        coverage: Coverage::TouchedLeaves {
            resident: &[128 << 20, 128 << 20],
        },
        operands: None,
    };
    let heat = |page: usize| if page < 64 { near } else { far };
    f.record(
        &window,
        (0..128).map(|page| leaf(page, u16::from(page >= 64), heat(page))),
    );
}

fn counted(near: u64, far: u64) -> DramReads {
    let mut reads = DramReads::new(2);
    reads.add(NodeId(0), near, far);
    reads
}

fn latencies() -> Latencies {
    Latencies::from_fn(2, |k, n| if k == n { 80 } else { 240 })
}

#[test]
fn counters_that_contradict_the_bits_change_footprint_score_and_confidence() {
    let new = || Footprint::new(2, Tunables::default());
    let (mut bits, mut both) = (new(), new());
    for _ in 0..12 {
        // By its bits it touches near memory nine times of ten; by counters it reads far memory nine times of ten.
        pass(&mut bits, 9 * TOUCH, TOUCH);
        both.count(&counted(100_000, 900_000));
        pass(&mut both, 9 * TOUCH, TOUCH);
    }
    assert_eq!(bits.home(), Some(NodeId(0)));
    assert_eq!(both.home(), Some(NodeId(1)));
    let far = both.shares()[1];
    assert!((895..=900).contains(&far.0), "{far}");
    assert!(bits.proximity(&latencies())[0] > bits.proximity(&latencies())[1]);
    assert!(both.proximity(&latencies())[0] < both.proximity(&latencies())[1]);
    // They are 0.8 apart, of which twelve passes of eight remember most, and half is lost.
    let doubt = f64::from(both.doubt().0) / 1000.0;
    assert!((0.60..=0.70).contains(&doubt), "{doubt}");
    let expected = f64::from(bits.confidence().0) * (1.0 - doubt / 2.0);
    assert!(
        (f64::from(both.confidence().0) - expected).abs() < 3.0,
        "{} {expected}",
        both.confidence()
    );
    assert_eq!(bits.doubt(), PerMille(0));
    // Bits that agree again bring confidence back.
    for _ in 0..60 {
        both.count(&counted(900_000, 100_000));
        pass(&mut both, 9 * TOUCH, TOUCH);
    }
    assert!(both.confidence() >= bits.confidence() && both.home() == Some(NodeId(0)));
}

#[test]
fn what_is_counted_while_a_machine_idles_is_not_its_next_passes() {
    let mut f = Footprint::new(2, Tunables::default());
    f.count(&counted(0, 1 << 30));
    let idle = Window {
        length: SECOND,
        run_time: &[Nanos::ZERO, Nanos::ZERO],
        attribution: Attribution::ByRunTime,
        coverage: Coverage::TouchedLeaves {
            resident: &[1 << 20, 1 << 20],
        },
        operands: None,
    };
    f.record(&idle, []);
    pass(&mut f, TOUCH, 0);
    assert_eq!((f.shares()[1], f.doubt()), (PerMille(0), PerMille(0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Absent counters change nothing: what is told, down to the last bit, is what a footprint says that was never told of them.
    #[test]
    fn absence_changes_nothing(
        passes in prop::collection::vec((0u64..1 << 40, 0u64..1 << 40, any::<bool>()), 1..20), zero_nodes in 0usize..4,
    ) {
        let mut without = Footprint::new(2, Tunables::default());
        let mut absent = Footprint::new(2, Tunables::default());
        for (near, far, settled) in passes {
            absent.count(&DramReads::new(zero_nodes));
            for f in [&mut without, &mut absent] {
                f.set_settled(settled);
                pass(f, near, far);
            }
            prop_assert_eq!(without.matrix(), absent.matrix());
            prop_assert_eq!(without.confidence(), absent.confidence());
            prop_assert_eq!(without.share_at_least(NodeId(1)), absent.share_at_least(NodeId(1)));
            prop_assert_eq!(without.hot(|_| true), absent.hot(|_| true));
            prop_assert_eq!(without.proximity(&latencies()), absent.proximity(&latencies()));
            prop_assert_eq!((without.home(), without.age()), (absent.home(), absent.age()));
        }
    }

    #[test]
    fn more_counted_far_reads_never_make_far_memory_weigh_less(
        near in 1u64..1 << 40, far in 1u64..1 << 40, reads in 1u64..1 << 40, part in 0u64..=100, more in 0u64..=100,
    ) {
        let share = |percent: u64| {
            let mut f = Footprint::new(2, Tunables::default());
            let far_reads = reads / 100 * percent;
            f.count(&counted(reads - far_reads, far_reads));
            pass(&mut f, near, far);
            f.shares()[1]
        };
        let more = (part + more).min(100);
        // Of a thousandth, which rounding may take.
        prop_assert!(share(part).0 <= share(more).0 + 1);
    }
}
