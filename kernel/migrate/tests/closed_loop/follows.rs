//! What pays is done: vCPUs go to their memory, or pages come.

use crate::common::Load;
use crate::lab::{Lab, PAGE, SECONDS, row};
use migrate::*;
use telemetry::{Event as Said, Hold};
use units::*;

#[test]
fn a_machine_far_from_its_memory_ends_local_by_itself() {
    let mut lab = Lab::new(row());
    let alpha = lab.vm("alpha", 1, &[(1, 128)], |p, _| p < 48);
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(Nanos::from_millis(400));
    assert_eq!(lab.local(beta, 2), 0, "it starts remote");
    lab.run(SECONDS(4));
    assert_eq!(lab.vcpus_on(beta), [3, 3]);
    assert!(lab.local(beta, 5) >= 990, "{}", lab.local(beta, 5));
    assert!(lab.local(alpha, 20) >= 990, "alpha is left alone");
    assert_eq!(
        lab.bytes_moved, 0,
        "moving two vCPUs is cheaper than 96 MiB"
    );
    assert_eq!(lab.far_moves(), 2, "{:?}", lab.sim.moves);
    let orders = lab.orders();
    // The scheduler may have got there by proximity alone before the planner asked.
    for d in &orders {
        assert_eq!(d.vm, VmId(beta as u16));
        let text = d.event.to_string();
        for part in [
            "beta runs on node0",
            "100 % of its accesses go to node3",
            "260 vs 80 ns",
            "pays back in",
        ] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert!(matches!(&d.event, Said::Plan { alternatives, .. } if alternatives.len() > 1));
    }
    let passes = orders.len();
    lab.run(SECONDS(20));
    assert_eq!(
        lab.orders().len(),
        passes,
        "and that is all: {}",
        lab.sentences()
    );
}

#[test]
fn where_vcpus_are_pinned_the_pages_come() {
    let mut lab = Lab::new(row());
    let pin = Some(vec![NodeId(0)]);
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [0, 0]);
    assert!(
        lab.local(beta, 5) >= 990,
        "{}\n{}",
        lab.local(beta, 5),
        lab.sentences()
    );
    assert_eq!(lab.bytes_moved, 48 * PAGE, "only what is touched");
}

#[test]
fn counted_reads_decide_whether_memory_is_worth_moving() {
    let run = |reads_per_s: Option<u64>| {
        let mut lab = Lab::new(row());
        let pin = Some(vec![NodeId(0)]);
        let beta = lab.vm_with("beta", 0, &[(3, 48)], |_, _| true, Load::Busy, pin);
        lab.vms[beta].reads_per_s = reads_per_s;
        lab.run(SECONDS(8));
        (lab.bytes_moved, lab.local(beta, 5), lab.sentences())
    };
    let (without, local, _) = run(None);
    assert!(without > 0 && local > 990);
    // What waits for memory gets it near: as often as is taken where nothing counts.
    let (bytes, local, said) = run(Some(8_000_000));
    assert!(bytes == without && local > 990, "{said}");
    // What lives in its caches touches as many pages and gains nothing.
    let (bytes, _, said) = run(Some(1_000_000 / 8));
    assert_eq!(bytes, 0, "{said}");
}

#[test]
fn slow_moves_are_waited_for_and_go_on_without_new_evidence() {
    let mut lab = Lab::new(row());
    lab.copying_takes = Nanos::from_millis(200);
    let pin = Some(vec![NodeId(0)]);
    // Two orders' worth, the first of which takes longer than an order may be silent.
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
    lab.run(SECONDS(15));
    assert_eq!(lab.bytes_moved, 48 * PAGE, "{}", lab.sentences());
    assert_eq!(lab.orders().len(), 2, "{}", lab.sentences());
    let waited = lab.holds(beta).into_iter();
    let waited = waited.filter(|h| matches!(h, Hold::Waiting { .. }));
    assert_eq!(waited.count(), 1, "{}", lab.sentences());
}

#[test]
fn what_would_follow_does_not_speak_against_a_step_that_does_most_of_the_good() {
    // A small working set on node 1, and a kernel that grazes twice as many pages on node 3.
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 3, &[(3, 96), (1, 4)], |p, _| !(8..96).contains(&p));
    lab.vms[beta].operands = vec![(NodeId(1), 95), (NodeId(3), 5)];
    lab.run(SECONDS(5));
    let said = lab.sentences();
    assert_eq!(lab.vcpus_on(beta), [1, 1], "{said}");
    let first = lab.orders().first().map(|d| d.action.clone());
    assert_eq!(first, Some(Action::PreferNode(NodeId(1))), "{said}");
}

#[test]
fn after_the_vcpus_the_hot_remainder_follows_as_pages() {
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 0, &[(3, 60), (0, 20), (1, 48)], |p, _| p < 80);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [3, 3], "{}", lab.sentences());
    assert_eq!(lab.bytes_moved, 20 * PAGE, "{}", lab.sentences());
    assert!(lab.local(beta, 5) >= 990);
}

#[test]
fn the_last_tenth_comes_too() {
    // Eleven of twelve accesses are near. One in twelve goes two nodes away, which is less than half of the longest way.
    let mut lab = Lab::new(row());
    let pin = Some(vec![NodeId(0)]);
    let vm = lab.vm_with(
        "beta",
        0,
        &[(0, 22), (2, 40)],
        |p, _| p < 24,
        Load::Busy,
        pin,
    );
    lab.run(SECONDS(10));
    assert!(lab.local(vm, 2) >= 990, "{}", lab.sentences());
}

#[test]
fn a_node_with_busy_cpus_gets_no_vcpus_and_the_pages_come_instead() {
    let mut lab = Lab::new(row());
    for name in ["gamma", "delta"] {
        lab.vm_with(
            name,
            3,
            &[(3, 64)],
            |p, _| p < 40,
            Load::Busy,
            Some(vec![NodeId(3)]),
        );
    }
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [0, 0], "{:?}", lab.sim.moves);
    assert!(lab.local(beta, 5) >= 990, "{}", lab.sentences());
    assert!(
        lab.sentences().contains("its CPUs are busy"),
        "{}",
        lab.sentences()
    );
}

#[test]
fn a_phase_shift_is_followed_and_a_flutter_is_not() {
    // One shift: from node 1 to node 3 after 10 s.
    let mut lab = Lab::new(row());
    let shift = |p: usize, now: Nanos| (p < 64) == (now < Nanos::from_secs(10));
    let beta = lab.vm("beta", 1, &[(1, 64), (3, 64)], shift);
    lab.run(SECONDS(20));
    assert!(lab.local(beta, 10) >= 990, "{}", lab.sentences());

    // Memory use that flips every 400 ms: chasing it would be late each time.
    let mut lab = Lab::new(row());
    let flip = |p: usize, now: Nanos| (p < 64) == (now.as_millis() / 400).is_multiple_of(2);
    lab.vm("beta", 1, &[(1, 64), (3, 64)], flip);
    lab.run(SECONDS(30));
    let before = (lab.orders().len(), lab.far_moves(), lab.bytes_moved);
    lab.run(SECONDS(60));
    let after = (lab.orders().len(), lab.far_moves(), lab.bytes_moved);
    assert!(
        after.0 - before.0 <= 10,
        "{} orders in a minute",
        after.0 - before.0
    );
    assert!(
        after.1 - before.1 <= 20,
        "{} vCPU moves in a minute",
        after.1 - before.1
    );
}

#[test]
fn the_same_run_gives_the_same_decisions() {
    let run = || {
        let mut lab = Lab::new(row());
        lab.vm("alpha", 2, &[(1, 50), (2, 50)], |p, now| {
            (p as u64 + now.as_millis() / 1000).is_multiple_of(3)
        });
        lab.vm("beta", 0, &[(3, 100)], |p, _| p < 40);
        lab.run(SECONDS(5));
        (lab.sentences(), lab.sim.moves.clone())
    };
    assert_eq!(run(), run());
}
