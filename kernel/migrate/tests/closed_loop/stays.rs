//! What does not pay, may not be or cannot be, is left alone and said.

use crate::common::Load;
use crate::lab::{Lab, PAGE, SECONDS, row};
use footprint::Latencies;
use migrate::*;
use telemetry::Hold;
use units::*;

#[test]
fn accesses_decide_and_not_bytes() {
    // Most memory on node 3, all accesses to node 1.
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 0, &[(3, 96), (1, 32)], |p, _| p >= 96);
    lab.run(SECONDS(5));
    assert_eq!(lab.vcpus_on(beta), [1, 1]);
    assert!(lab.local(beta, 5) >= 990);
    assert_eq!(lab.bytes_moved, 0);
}

#[test]
fn off_means_nothing_at_all() {
    let mut lab = Lab::new(row());
    // The kernel sends no scores for such a machine either; the scheduler would follow them.
    let pin = Some(vec![NodeId(0)]);
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
    lab.vms[beta].mode = Mode::Off;
    lab.run(SECONDS(10));
    lab.assert_nothing_moved();
    assert!(lab.decisions.is_empty());
}

#[test]
fn an_idle_machine_is_left_alone() {
    let mut lab = Lab::new(row());
    let ticks = Load::Bursts {
        run: Nanos::from_micros(200),
        sleep: Nanos::from_millis(8),
    };
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p % 8 == 0, ticks, None);
    lab.run(SECONDS(20));
    lab.assert_nothing_moved();
    assert!(
        lab.holds(beta).iter().all(|h| *h == Hold::Idle),
        "{}",
        lab.sentences()
    );
}

#[test]
fn equal_distances_move_nothing() {
    let mut lab = Lab::new(Latencies::from_fn(4, |_, _| 100));
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(SECONDS(10));
    lab.assert_nothing_moved();
    assert!(lab.holds(beta).iter().all(|h| *h == Hold::Flat));
}

#[test]
fn remote_but_untouched_memory_moves_nothing() {
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 0, &[(3, 96), (0, 32)], |p, _| p >= 96);
    lab.run(SECONDS(10));
    lab.assert_nothing_moved();
    assert!(matches!(
        lab.holds(beta).last(),
        Some(Hold::Near {
            proximity: Score::ONE,
            ..
        })
    ));
}

#[test]
fn modes_do_what_they_say() {
    let run = |mode| {
        let mut lab = Lab::new(row());
        // Pinned for the scheduler, free for the planner: what it orders is seen, not followed.
        let pin = Some(vec![NodeId(0)]);
        let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
        lab.vms[beta].cpu_nodes = None;
        lab.vms[beta].mode = mode;
        lab.run(SECONDS(3));
        let vcpus = lab
            .orders()
            .iter()
            .any(|d| d.action == Action::PreferNode(NodeId(3)));
        (vcpus, lab.bytes_moved > 0, lab.sentences())
    };
    let (vcpus, pages, said) = run(Mode::DryRun);
    assert!(
        !vcpus && !pages && said.contains("dry run: beta runs on node0"),
        "{said}"
    );
    assert!(said.contains("move 2 vCPUs to node3"), "{said}");
    let (vcpus, pages, _) = run(Mode::VcpuOnly);
    assert!(vcpus && !pages);
    let (vcpus, pages, _) = run(Mode::PagesOnly);
    assert!(!vcpus && pages);
    let (vcpus, pages, said) = run(Mode::Auto);
    assert!(
        vcpus && pages,
        "first the cheap way; when that does not come about, pages:\n{said}"
    );
}

#[test]
fn no_room_anywhere_is_said_and_nothing_breaks() {
    let mut lab = Lab::new(row());
    for (name, node) in [
        ("gamma", 3),
        ("delta", 3),
        ("epsilon", 1),
        ("zeta", 1),
        ("eta", 2),
        ("theta", 2),
    ] {
        let pin = Some(vec![NodeId(node)]);
        lab.vm_with(name, node, &[(node, 64)], |p, _| p < 40, Load::Busy, pin);
    }
    lab.total = [16 << 20, 256 << 20, 256 << 20, 512 << 20];
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [0, 0]);
    // What fits was moved, then the refusal was said.
    assert!(lab.bytes_moved <= 16 << 20);
    let refused = lab
        .holds(beta)
        .iter()
        .any(|h| matches!(h, Hold::NoRoom { .. }));
    assert!(refused, "{}", lab.sentences());
}

#[test]
fn full_memory_is_said_where_only_pages_could_come() {
    let mut lab = Lab::new(row());
    lab.total = [8 << 20, 0, 0, 512 << 20];
    let pin = Some(vec![NodeId(0)]);
    lab.vm_with("beta", 0, &[(3, 64)], |_, _| true, Load::Busy, pin);
    lab.run(SECONDS(10));
    assert!(lab.bytes_moved <= 8 << 20, "{} bytes", lab.bytes_moved);
    let said = lab.sentences();
    assert!(said.contains(": its memory is full"), "{said}");
}

#[test]
fn memory_that_is_nearly_full_is_said_to_be() {
    // There is room for one page of 128, which alone is worth no move.
    let mut lab = Lab::new(row());
    lab.total = [2 * PAGE, 0, 0, 512 << 20];
    let pin = Some(vec![NodeId(0)]);
    lab.vm_with("beta", 0, &[(3, 128)], |_, _| true, Load::Busy, pin);
    lab.run(SECONDS(10));
    assert_eq!(lab.bytes_moved, 0, "{}", lab.sentences());
    let said = lab.sentences();
    assert!(said.contains(": its memory is full"), "{said}");
}

#[test]
fn pages_that_cannot_be_moved_are_not_tried_all_the_time() {
    let mut lab = Lab::new(row());
    lab.fails = true;
    let pin = Some(vec![NodeId(0)]);
    lab.vm_with("beta", 0, &[(3, 32)], |_, _| true, Load::Busy, pin);
    lab.run(SECONDS(60));
    let tried: usize = lab
        .orders()
        .iter()
        .map(|d| match &d.action {
            Action::MovePages(orders) => orders.len(),
            _ => 0,
        })
        .sum();
    assert!(
        (32..=32 * 7).contains(&tried),
        "{tried} attempts in a minute"
    );
}

#[test]
fn the_copy_budget_is_obeyed() {
    let mut lab = Lab::new(row());
    lab.link = 8 << 20;
    let pin = Some(vec![NodeId(0)]);
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |_, _| true, Load::Busy, pin);
    for second in 1..=10u64 {
        lab.run(SECONDS(1));
        assert!(
            lab.bytes_moved <= (8 << 20) * second + (4 << 20),
            "{} B",
            lab.bytes_moved
        );
    }
    assert!(
        lab.bytes_moved >= 60 << 20,
        "and it is used: {}",
        lab.bytes_moved
    );
    assert!(
        lab.holds(beta)
            .iter()
            .any(|h| matches!(h, Hold::Budget { .. }))
    );
}
