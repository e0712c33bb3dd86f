//! vCPUs whose memory is elsewhere than their machine's go to where it is.

mod common;

use common::{Load, Sim, vcpu};
use sched::*;
use units::*;

const NEAR: Score = Score::ONE;
const FAR: Score = Score::ZERO;

/// A machine with two vCPUs that always run, both at home on node 0 if there is room; as a whole it touches both nodes alike.
fn machine(per_node: u32) -> Sim {
    let mut sim = Sim::new(2, per_node, 1);
    for index in 0..2 {
        let spec = VcpuSpec {
            home: Some(NodeId(0)),
            ..VcpuSpec::default()
        };
        sim.add(vcpu(0, index), spec, Load::Busy);
    }
    sim.event(Event::ProximityUpdated {
        vm: VmId(0),
        scores: vec![Score(NEAR.0 / 2); 2],
    });
    sim.run(Nanos::from_secs(2));
    sim
}

fn own(sim: &mut Sim, index: u16, scores: [Score; 2]) {
    sim.event(Event::VcpuProximity {
        vcpu: vcpu(0, index),
        scores: scores.to_vec(),
    });
}

/// Where they are after some seconds, and how many moves that took.
fn ends(sim: &mut Sim) -> ([u16; 2], usize) {
    let before = sim.moves.len();
    sim.run(Nanos::from_secs(5));
    let nodes = [0, 1].map(|index| sim.node(vcpu(0, index)).0);
    (nodes, sim.moves.len() - before)
}

#[test]
fn two_of_one_machine_change_places_if_each_has_its_memory_where_the_other_runs() {
    let mut sim = machine(1);
    let (first, second) = (sim.node(vcpu(0, 0)), sim.node(vcpu(0, 1)));
    assert_ne!(first, second, "there is one CPU to a node");
    assert_eq!(ends(&mut sim).1, 0, "as a whole it is as near everywhere");
    let mut near = [FAR; 2];
    near[second.index()] = NEAR;
    own(&mut sim, 0, near);
    near.reverse();
    own(&mut sim, 1, near);
    assert_eq!(
        ends(&mut sim),
        ([second.0, first.0], 2),
        "one change of places"
    );
    assert_eq!(ends(&mut sim).1, 0, "and there they stay: {:?}", sim.moves);
}

#[test]
fn one_goes_to_a_cpu_that_is_idle_and_the_other_stays() {
    let mut sim = machine(2);
    own(&mut sim, 0, [NEAR, FAR]);
    own(&mut sim, 1, [FAR, NEAR]);
    assert_eq!(ends(&mut sim), ([0, 1], 1));
    own(
        &mut sim,
        0,
        [Score(NEAR.0 / 100 * 52), Score(NEAR.0 / 100 * 48)],
    );
    own(
        &mut sim,
        1,
        [Score(NEAR.0 / 100 * 52), Score(NEAR.0 / 100 * 48)],
    );
    assert_eq!(
        ends(&mut sim).1,
        0,
        "what is not worth a move is not wished for"
    );
}

#[test]
fn its_own_wish_comes_before_its_machines_and_ends_with_its_scores() {
    let mut sim = machine(2);
    own(&mut sim, 1, [FAR, NEAR]);
    sim.event(Event::PreferredNode {
        vm: VmId(0),
        node: Some(NodeId(0)),
    });
    assert_eq!(ends(&mut sim), ([0, 1], 1));
    let why = sim.sched.why(sim.now, vcpu(0, 1)).expect("it is there");
    assert_eq!(why.preferred, Some(NodeId(1)));
    sim.event(Event::VcpuProximity {
        vcpu: vcpu(0, 1),
        scores: Vec::new(),
    });
    assert_eq!(ends(&mut sim), ([0, 0], 1), "its machine's preferred node");
}

/// Scores that differ by so many thousandths, node 1 being nearer.
fn nearer_to_1(by: u32) -> [Score; 2] {
    let half = NEAR.0 / 2000 * by;
    [Score(NEAR.0 / 2 - half), Score(NEAR.0 / 2 + half)]
}

#[test]
fn a_wish_that_is_hardly_one_leaves_the_machines() {
    let mut sim = machine(2);
    let mut scores = nearer_to_1(60);
    scores.reverse();
    own(&mut sim, 1, scores);
    sim.event(Event::PreferredNode {
        vm: VmId(0),
        node: Some(NodeId(1)),
    });
    assert_eq!(ends(&mut sim).0, [1, 1]);
}

#[test]
fn scores_that_waver_move_nobody_to_and_fro() {
    let mut sim = machine(2);
    sim.event(Event::PreferredNode {
        vm: VmId(0),
        node: Some(NodeId(0)),
    });
    for i in 0..20 {
        own(&mut sim, 1, nearer_to_1(if i % 2 == 0 { 120 } else { 80 }));
        sim.run(Nanos::from_millis(1500));
    }
    assert_eq!(sim.moves.len(), 1, "{:?}", sim.moves);
}

#[test]
fn a_vcpu_that_is_not_there_has_no_scores() {
    let mut sim = machine(1);
    let mut out = Commands::new();
    let event = Event::VcpuProximity {
        vcpu: vcpu(0, 2),
        scores: vec![NEAR, FAR],
    };
    let refused = sim.sched.handle(sim.now, event, &mut out);
    assert_eq!(refused, Err(Refusal::UnknownVcpu(vcpu(0, 2))));
}
