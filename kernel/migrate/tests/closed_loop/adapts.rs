//! Thresholds follow the load there and back, and moves that are of no use end.

use crate::common::Load;
use crate::lab::{Lab, PAGE, SECONDS, row};
use migrate::Tunables;
use migrate::adapt::{MEMORY, Settings};
use telemetry::{Dial, Event as Said};
use units::*;

/// What each dial was turned to, in order.
fn turned(lab: &Lab, dial: Dial) -> Vec<u16> {
    let of = |event: &Said| match event {
        Said::Adapted { dial: d, to, .. } if *d == dial => Some(*to),
        _ => None,
    };
    lab.told.iter().filter_map(of).collect()
}

fn frozen(lab: &mut Lab) {
    lab.planner.set_tunables(Tunables {
        adapt: false,
        ..*lab.planner.tunables()
    });
}

/// Two VMs of two vCPUs that sleep most of the time, on eight CPUs.
fn quiet() -> Lab {
    let mut lab = Lab::new(row());
    let load = Load::Bursts {
        run: Nanos::from_millis(2),
        sleep: Nanos::from_millis(6),
    };
    for name in ["one", "two"] {
        lab.vm_with(name, 0, &[(0, 8)], |p, _| p < 4, load, None);
    }
    lab
}

#[test]
fn a_step_of_cpu_load_turns_the_dials_there_and_back_once() {
    let mut lab = quiet();
    lab.run(SECONDS(5));
    assert!(lab.told.is_empty(), "{:?}", lab.told);
    let before = *lab.planner.adapter().settings();
    assert_eq!(before, Settings::default());
    // From a tenth of the CPUs to all of them.
    lab.burn(8);
    lab.run(SECONDS(3));
    assert!(lab.planner.adapter().inputs().cpu > PerMille(950));
    let busy = *lab.planner.adapter().settings();
    assert_eq!(busy.interval_times, 2);
    assert_eq!((busy.budget, busy.bonus), (PerMille(500), PerMille(500)));
    assert!(busy.hot_step > before.hot_step);
    lab.rest();
    lab.run(SECONDS(5));
    assert!(lab.planner.adapter().inputs().cpu < PerMille(300));
    assert_eq!(*lab.planner.adapter().settings(), before);
    for dial in Dial::ALL {
        assert_eq!(
            turned(&lab, dial).len(),
            2,
            "{dial} flutters: {:?}",
            lab.told
        );
    }
    let said = lab.told[0].to_string();
    assert!(said.contains("was") && said.contains("CPUs"), "{said}");
}

#[test]
fn a_step_of_memory_load_turns_them_the_documented_way_and_closes_the_ways_to_it() {
    let mut lab = quiet();
    lab.run(SECONDS(2));
    lab.memory_load[3] = Some(PerMille(800));
    lab.run(SECONDS(2));
    let busy = *lab.planner.adapter().settings();
    assert_eq!(busy.interval_times, 1, "looks are no load on memory");
    assert_eq!((busy.budget, busy.bonus), (PerMille(250), PerMille(1000)));
    assert_eq!(busy.hot_step, 8);
    let passable = |lab: &Lab, to| lab.planner.adapter().passable(NodeId(1), NodeId(to));
    assert!(!passable(&lab, 3) && passable(&lab, 2));
    // Between the two values nothing changes, however it swings.
    for load in [610, 690, 605, 699] {
        lab.memory_load[3] = Some(PerMille(load));
        lab.run(SECONDS(1));
        assert_eq!(*lab.planner.adapter().settings(), busy);
    }
    lab.memory_load[3] = Some(PerMille(MEMORY.close.0 - 100));
    lab.run(SECONDS(2));
    assert_eq!(*lab.planner.adapter().settings(), Settings::default());
    assert!(passable(&lab, 3));
    assert_eq!(turned(&lab, Dial::Budget), [250, 1000]);
}

#[test]
fn pages_stay_while_the_memory_they_would_come_from_is_busy_and_come_afterwards() {
    let mut lab = Lab::new(row());
    let pin = Some(vec![NodeId(0)]);
    let beta = lab.vm_with("beta", 0, &[(3, 48)], |_, _| true, Load::Busy, pin);
    lab.memory_load[3] = Some(PerMille(900));
    lab.run(SECONDS(6));
    assert_eq!(lab.bytes_moved, 0);
    assert!(
        lab.sentences().contains("is busy, so pages stay"),
        "{}",
        lab.sentences()
    );
    lab.memory_load[3] = Some(PerMille(300));
    lab.run(SECONDS(8));
    assert!(lab.local(beta, 5) >= 990, "{}", lab.sentences());
}

#[test]
fn more_to_move_than_can_be_moved_raises_the_hot_threshold_step_by_step_and_it_comes_back() {
    let mut lab = Lab::new(row());
    lab.link = 4 << 20;
    let pin = Some(vec![NodeId(0)]);
    // 96 MiB would pay; 10 s of the budget are 40 MiB.
    lab.vm_with("beta", 0, &[(3, 48)], |_, _| true, Load::Busy, pin);
    lab.run(SECONDS(30));
    let steps = turned(&lab, Dial::HotThreshold);
    let apart = |pair: &[u16]| pair[0].abs_diff(pair[1]) == 1;
    assert!(
        steps.first() == Some(&1) && steps.windows(2).all(apart),
        "{steps:?}"
    );
    assert_eq!(
        lab.planner.adapter().settings().hot_step,
        0,
        "all has been moved"
    );
    let peaks = steps
        .windows(3)
        .filter(|w| w[1] > w[0] && w[1] > w[2])
        .count();
    assert!(peaks <= 1, "it flutters: {steps:?}");
}

/// A machine whose pages lie on node 3, and that touches eight others of them every four seconds: each time they have come, they
/// are left.
fn wanderer(adapt: bool) -> (Lab, usize) {
    let mut lab = Lab::new(row());
    if !adapt {
        frozen(&mut lab);
    }
    let pin = Some(vec![NodeId(0)]);
    let touched = |page: usize, now: Nanos| page / 8 == now.as_millis() as usize / 4_000 % 32;
    let vm = lab.vm_with("beta", 0, &[(3, 256)], touched, Load::Busy, pin);
    (lab, vm)
}

#[test]
fn moves_that_are_of_no_use_end_and_cost_no_more() {
    let moved = |adapt| {
        let (mut lab, _) = wanderer(adapt);
        lab.run(SECONDS(120));
        lab
    };
    let (lab, always) = (moved(true), moved(false));
    assert!(
        lab.bytes_moved * 2 < always.bytes_moved,
        "{} MiB with, {} MiB without",
        lab.bytes_moved >> 20,
        always.bytes_moved >> 20
    );
    let off = lab
        .told
        .iter()
        .find(|e| matches!(e, Said::Usefulness { on: false, .. }));
    let said = off.expect("it is told").to_string();
    assert!(
        said.contains("beta: ") && said.contains("were of use"),
        "{said}"
    );
    assert!(
        lab.sentences().contains("so they stay until"),
        "{}",
        lab.sentences()
    );
}

#[test]
fn a_handful_of_useless_pages_stops_nothing() {
    // As a guest that boots on six pages of which it then wants none, works where it is, and turns to others.
    let mut lab = Lab::new(row());
    let touched = |page: usize, now: Nanos| match now.as_millis() {
        0..6_000 => page < 6,
        6_000..30_000 => (32..48).contains(&page),
        _ => (8..24).contains(&page),
    };
    let vm = lab.vm_with(
        "beta",
        0,
        &[(3, 32), (0, 32)],
        touched,
        Load::Busy,
        Some(vec![NodeId(0)]),
    );
    lab.run(SECONDS(30));
    assert!(lab.bytes_moved >= 6 * PAGE, "{}", lab.sentences());
    assert!(
        lab.told
            .iter()
            .all(|e| !matches!(e, Said::Usefulness { .. })),
        "{:?}",
        lab.told
    );
    lab.run(SECONDS(20));
    assert!(lab.local(vm, 5) >= 990, "{}", lab.sentences());
}

#[test]
fn moves_begin_again_once_they_are_of_use() {
    let (mut lab, vm) = wanderer(true);
    lab.run(SECONDS(120));
    let before = lab.bytes_moved;
    lab.vms[vm].touched = Box::new(|page, _| page >= 240);
    lab.run(SECONDS(300));
    let on = lab
        .told
        .iter()
        .any(|e| matches!(e, Said::Usefulness { on: true, .. }));
    assert!(on, "{:?}", lab.told);
    assert!(
        lab.bytes_moved >= before + 14 * PAGE,
        "{} of 16",
        (lab.bytes_moved - before) / PAGE
    );
    assert!(lab.local(vm, 5) >= 990, "{}", lab.local(vm, 5));
}
