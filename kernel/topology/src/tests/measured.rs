//! Which measurements are believed, and what is said of the others.

use super::descriptions::Description;
use crate::measured::{Doubt, Measurements, REPEATS, is_contradicted, judge};
use crate::{LatencySource, Machine};
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;
use units::NodeId;

/// Every repeat of every pair says `ps(from, to)`.
fn steady(nodes: usize, ps: impl Fn(usize, usize) -> u32) -> Measurements {
    let row = |k: usize| (0..nodes).map(|n| std::vec![ps(k, n); REPEATS]).collect();
    Measurements {
        read_ps: (0..nodes).map(row).collect(),
        read_mb_s: Vec::new(),
    }
}

/// Nodes in a row whose firmware says so, and what is measured there: 90 ns and 40 more for each step.
fn row(nodes: u32) -> (Machine, Measurements) {
    let machine = Description::row(nodes).firmware().discover().machine;
    let far = |k: usize, n: usize| 90_000 + 40_000 * k.abs_diff(n) as u32;
    (machine, steady(nodes as usize, far))
}

#[test]
fn what_nothing_speaks_against_is_used() {
    let (machine, mut measured) = row(3);
    // Disturbed twice: three of five are enough.
    measured.read_ps[0][1][1] = 900_000;
    measured.read_ps[0][1][4] = 133_000;
    measured.read_mb_s = std::vec![std::vec![std::vec![20_000, 19_500, 9_000, 19_800, 3]; 3]; 3];
    let verdict = judge(&machine, &measured);
    assert_eq!(verdict.doubts, []);
    let m = verdict.machine;
    assert_eq!(m.latency_source, LatencySource::Measured);
    assert_eq!(
        m.latency_rows(),
        [[90, 130, 170], [130, 90, 130], [170, 130, 90]]
    );
    assert_eq!(m.bandwidth_mb_s(NodeId(2), NodeId(0)), Some(20_000));
    assert_eq!(m.distance_rows(), machine.distance_rows());
}

/// The only doubt about such a measurement, and that firmware's figures stay.
fn doubt(machine: &Machine, measured: &Measurements) -> Doubt {
    let verdict = judge(machine, measured);
    assert_eq!(verdict.machine.latency_source, machine.latency_source);
    assert_eq!(verdict.machine.latency_rows(), machine.latency_rows());
    assert!(verdict.to_string().contains("are not used"), "{verdict}");
    assert_eq!(verdict.doubts.len(), 1, "{verdict:?}");
    verdict.doubts[0]
}

#[test]
fn one_objection_is_enough() {
    let (machine, good) = row(2);
    let (zero, one) = (NodeId(0), NodeId(1));

    let mut unsteady = good.clone();
    unsteady.read_ps[1][0] = std::vec![130_000, 137_000, 130_000, 137_000, 137_000];
    let said = doubt(&machine, &unsteady);
    assert_eq!(
        said.to_string(),
        "repeats from node1 to node0 say 130.0 to 137.0 ns"
    );

    let mut few = good.clone();
    few.read_ps[1][0].truncate(2);
    assert_eq!(
        doubt(&machine, &few),
        Doubt::Missing {
            from: one,
            to: zero
        }
    );

    let mut flat = good.clone();
    flat.read_ps[0][1] = std::vec![90_000; REPEATS];
    assert!(matches!(
        doubt(&machine, &flat),
        Doubt::Order { nearer, farther, .. } if (nearer, farther) == (zero, one)
    ));

    let mut upside_down = good;
    upside_down.read_ps[0][1] = std::vec![80_000; REPEATS];
    let said = judge(&machine, &upside_down);
    assert!(
        matches!(said.doubts[0], Doubt::LocalNotLeast { node, other, .. } if (node, other) == (zero, one))
    );
    assert!(said.to_string().contains("and 1 more objections"), "{said}");
}

#[test]
fn a_repeat_alone_can_speak_against_firmware() {
    let (machine, mut measured) = row(2);
    measured.read_ps[1][0][3] = 91_000;
    let against = |repeat| is_contradicted(&machine, &measured, repeat);
    assert_eq!([2, 3, 4, 9].map(against), [false, true, false, false]);
    measured.read_ps[1][0].truncate(0);
    measured.read_ps[1][0].push(91_000);
    let verdict = judge(&machine, &measured);
    assert!(matches!(verdict.doubts[..], [Doubt::Order { .. }]));
}

#[test]
fn nothing_measured_changes_nothing() {
    let (machine, _) = row(2);
    let verdict = judge(&machine, &Measurements::default());
    assert_eq!(verdict.machine, machine);
    assert_eq!(verdict.doubts.len(), 4);
}

#[test]
fn the_order_is_asked_for_only_where_firmware_has_one() {
    let (mut machine, mut measured) = row(3);
    // node1 and node2 are nearly as far from node0 by firmware's figures.
    machine.latencies_ns = std::vec![80, 130, 140, 130, 80, 130, 140, 130, 80];
    measured.read_ps[0][2] = std::vec![125_000; REPEATS];
    assert_eq!(judge(&machine, &measured).doubts, []);
    machine.latencies_ns[2] = 143;
    assert!(matches!(
        judge(&machine, &measured).doubts[..],
        [Doubt::Order { .. }]
    ));
    machine.latency_source = LatencySource::Default;
    assert_eq!(judge(&machine, &measured).doubts, []);
}

proptest! {
    #[test]
    fn the_local_one_is_the_least_whatever_was_measured(
        nodes in 1u32..5,
        with_memory in any::<u8>(),
        cells in proptest::collection::vec(proptest::collection::vec(0u32..300_000, 0..7), 16),
        steady_ps in proptest::collection::vec(0u32..300_000, 16),
        is_steady in any::<bool>(),
    ) {
        let mut machine = Description::row(nodes).firmware().discover().machine;
        for (n, node) in machine.nodes.iter_mut().enumerate() {
            if with_memory >> n & 1 == 0 {
                node.memory.clear();
            }
        }
        let n = nodes as usize;
        let mut measured = steady(n, |k, n| steady_ps[k * 4 + n]);
        if !is_steady {
            measured.read_ps = (0..n).map(|k| (0..n).map(|m| cells[k * 4 + m].clone()).collect()).collect();
        }
        measured.read_mb_s = measured.read_ps.clone();
        let verdict = judge(&machine, &measured);
        for (k, row) in verdict.machine.latency_rows().iter().enumerate() {
            prop_assert!(row.iter().all(|ns| *ns >= row[k] && *ns > 0), "{row:?}");
        }
        prop_assert_eq!(
            verdict.machine.latency_source == LatencySource::Measured,
            verdict.doubts.is_empty() && machine.nodes.iter().any(|node| node.has_memory())
        );
        prop_assert!(!verdict.to_string().is_empty());
    }
}
