//! Moves go where they should: to the preferred node, to idle CPUs, to another's place, and nowhere else.

mod common;

use common::{Load, Sim, vcpu};
use sched::*;
use telemetry::MoveReason;
use units::*;

#[test]
fn the_preferred_node_is_where_vcpus_end() {
    let mut sim = Sim::new(4, 2, 1);
    for i in 0..2 {
        let spec = VcpuSpec {
            home: Some(NodeId(0)),
            ..VcpuSpec::default()
        };
        sim.add(vcpu(1, i), spec, Load::Busy);
    }
    sim.run(Nanos::from_secs(1));
    assert!((0..2).all(|i| sim.node(vcpu(1, i)) == NodeId(0)), "home");
    assert!(
        sim.moves.is_empty(),
        "nothing asks for a move: {:?}",
        sim.moves
    );
    sim.event(Event::PreferredNode {
        vm: VmId(1),
        node: Some(NodeId(3)),
    });
    sim.run(Nanos::from_millis(100));
    assert!((0..2).all(|i| sim.node(vcpu(1, i)) == NodeId(3)));
    assert_eq!(sim.moves.len(), 2, "one move each: {:?}", sim.moves);
    assert!(
        sim.moves
            .iter()
            .all(|m| matches!(m.4, MoveReason::Preferred { .. }))
    );
    assert_ne!(sim.moves[0].3, sim.moves[1].3, "each to a CPU of its own");
    sim.run(Nanos::from_secs(5));
    assert_eq!(sim.moves.len(), 2, "and there they stay: {:?}", sim.moves);
}

#[test]
fn a_full_preferred_node_is_waited_for() {
    let mut sim = Sim::new(2, 1, 1);
    sim.add(
        vcpu(0, 0),
        VcpuSpec {
            home: Some(NodeId(1)),
            ..VcpuSpec::default()
        },
        Load::Busy,
    );
    sim.add(
        vcpu(1, 0),
        VcpuSpec {
            home: Some(NodeId(0)),
            ..VcpuSpec::default()
        },
        Load::Busy,
    );
    sim.run(Nanos::from_secs(1));
    sim.event(Event::PreferredNode {
        vm: VmId(1),
        node: Some(NodeId(1)),
    });
    sim.run(Nanos::from_secs(1));
    assert_eq!(
        sim.node(vcpu(1, 0)),
        NodeId(0),
        "two on one CPU would be worse"
    );
    sim.event(Event::Paused { vm: VmId(0) });
    sim.run(Nanos::from_secs(1));
    assert_eq!(sim.node(vcpu(1, 0)), NodeId(1), "now there is room");
}

#[test]
fn affinity_holds_against_preference() {
    let mut sim = Sim::new(2, 2, 1);
    let affinity = Affinity::Nodes(vec![NodeId(0)]);
    sim.add(
        vcpu(0, 0),
        VcpuSpec {
            affinity,
            ..VcpuSpec::default()
        },
        Load::Busy,
    );
    sim.event(Event::PreferredNode {
        vm: VmId(0),
        node: Some(NodeId(1)),
    });
    sim.run(Nanos::from_secs(1));
    assert_eq!(sim.node(vcpu(0, 0)), NodeId(0));
    let affinity = Affinity::Nodes(vec![NodeId(1)]);
    sim.event(Event::Respecified {
        vcpu: vcpu(0, 0),
        spec: VcpuSpec {
            affinity,
            ..VcpuSpec::default()
        },
    });
    sim.run(Nanos::from_secs(1));
    assert_eq!(
        sim.node(vcpu(0, 0)),
        NodeId(1),
        "a changed affinity moves it"
    );
}

#[test]
fn an_idle_cpu_takes_what_waits_and_far_ones_take_longer() {
    let wait = |far_score: Score| {
        let mut sim = Sim::new(2, 1, 1);
        let no_balance = Tunables {
            balance_period: Nanos::MAX,
            ..Tunables::default()
        };
        sim.sched.set_tunables(no_balance);
        let here = VcpuSpec {
            affinity: Affinity::Cpus(vec![CpuId(0)]),
            ..VcpuSpec::default()
        };
        for i in 0..2 {
            let scores = vec![Score::ONE, far_score];
            sim.event(Event::ProximityUpdated {
                vm: VmId(i),
                scores,
            });
            sim.add(vcpu(i, 0), here.clone(), Load::Busy);
        }
        sim.run(Nanos::from_secs(1));
        assert!(sim.moves.is_empty());
        sim.event(Event::Respecified {
            vcpu: vcpu(1, 0),
            spec: VcpuSpec::default(),
        });
        sim.run(Nanos::from_secs(1));
        match sim.moves.first() {
            Some((_, _, _, CpuId(1), MoveReason::IdlePull { waited })) => *waited,
            other => panic!("{other:?}"),
        }
    };
    let (near, far) = (wait(Score::ONE), wait(Score::from_per_mille(300)));
    assert_eq!(near, Nanos::from_micros(500));
    assert!(
        far > Nanos::from_millis(3) && far <= Nanos::from_millis(5),
        "{far}"
    );
}

#[test]
fn waking_up_changes_nodes_for_preference_and_not_for_a_score() {
    let mut sim = Sim::new(2, 1, 1);
    let blinks = Load::Bursts {
        run: Nanos::from_millis(2),
        sleep: Nanos::from_millis(2),
    };
    sim.add(
        vcpu(0, 0),
        VcpuSpec {
            home: Some(NodeId(0)),
            ..VcpuSpec::default()
        },
        blinks,
    );
    for i in 0..20 {
        let scores = if i % 2 == 0 {
            [Score::ZERO, Score::ONE]
        } else {
            [Score::ONE, Score::ZERO]
        };
        sim.event(Event::ProximityUpdated {
            vm: VmId(0),
            scores: scores.to_vec(),
        });
        sim.run(Nanos::from_millis(100));
    }
    assert!(sim.moves.is_empty(), "{:?}", sim.moves);
    sim.event(Event::PreferredNode {
        vm: VmId(0),
        node: Some(NodeId(1)),
    });
    sim.run(Nanos::from_millis(100));
    assert_eq!(sim.node(vcpu(0, 0)), NodeId(1));
    assert_eq!(sim.moves.len(), 1);
}

#[test]
fn who_needs_a_full_node_more_changes_places_with_who_needs_it_less() {
    let end = |stalls: [u16; 2]| {
        // Two nodes of one CPU; both machines have their memory on node 0, and each its own CPU.
        let mut sim = Sim::new(2, 1, 1);
        for (vm, stall) in (0u16..).zip(stalls) {
            let spec = VcpuSpec {
                home: Some(NodeId(vm)),
                ..VcpuSpec::default()
            };
            sim.add(vcpu(vm, 0), spec, Load::Busy);
            let scores = vec![Score::ONE, Score::ZERO];
            sim.event(Event::ProximityUpdated {
                vm: VmId(vm),
                scores,
            });
            sim.event(Event::CachePenalty {
                vcpu: vcpu(vm, 0),
                stall: Score::from_per_mille(stall),
                penalty: Nanos::ZERO,
                refill: Nanos::ZERO,
            });
        }
        sim.run(Nanos::from_secs(10));
        ([0, 1].map(|vm| sim.node(vcpu(vm, 0)).0), sim.moves.len())
    };
    assert_eq!(
        end([50, 600]),
        ([1, 0], 2),
        "the second stalls more: one swap"
    );
    assert_eq!(end([600, 50]), ([0, 1], 0), "the first does, and is there");
    assert_eq!(end([600, 600]), ([0, 1], 0), "equals stay");
}

#[test]
fn two_machines_that_both_lie_across_two_nodes_get_one_each() {
    // Both have their memory on node 0, and one CPU of each node has a vCPU of each.
    let mut sim = Sim::new(2, 2, 5);
    let at = |cpu| VcpuSpec {
        affinity: Affinity::Cpus(vec![CpuId(cpu)]),
        ..VcpuSpec::default()
    };
    for vm in 0..2u16 {
        for index in 0..2u16 {
            let spec = at(u32::from(index) * 2 + u32::from(vm));
            sim.add(vcpu(vm, index), spec, Load::Busy);
        }
        let scores = vec![Score::ONE, Score(Score::ONE.0 / 2)];
        sim.event(Event::ProximityUpdated {
            vm: VmId(vm),
            scores,
        });
    }
    sim.run(Nanos::from_millis(100));
    for vm in 0..2u16 {
        for index in 0..2u16 {
            sim.event(Event::Respecified {
                vcpu: vcpu(vm, index),
                spec: VcpuSpec::default(),
            });
        }
    }
    sim.run(Nanos::from_secs(5));
    for vm in 0..2u16 {
        assert_eq!(sim.node(vcpu(vm, 0)), sim.node(vcpu(vm, 1)), "vm{vm}");
    }
    assert_ne!(sim.node(vcpu(0, 0)), sim.node(vcpu(1, 0)));
    let crossed = |m: &&(Nanos, VcpuId, CpuId, CpuId, MoveReason)| m.2.0 / 2 != m.3.0 / 2;
    let moves = sim.moves.iter().filter(crossed).count();
    assert_eq!(
        moves, 2,
        "one change of places, and no more: {:?}",
        sim.moves
    );
}

#[test]
fn who_sleeps_is_not_sent_about() {
    // Its machine is wanted on node 1, where each CPU is busy most of the time. Whenever it wakes, the idle one where it ran last
    // serves it better.
    let mut sim = Sim::new(2, 2, 1);
    for i in 0..2 {
        let there = VcpuSpec {
            affinity: Affinity::Nodes(vec![NodeId(1)]),
            ..VcpuSpec::default()
        };
        let load = Load::Bursts {
            run: Nanos::from_millis(8),
            sleep: Nanos::from_millis(2),
        };
        sim.add(vcpu(0, i), there, load);
    }
    let home = VcpuSpec {
        home: Some(NodeId(0)),
        ..VcpuSpec::default()
    };
    let sleeps = Load::Bursts {
        run: Nanos::from_micros(150),
        sleep: Nanos::from_millis(5),
    };
    sim.add(vcpu(1, 0), home, sleeps);
    sim.event(Event::CachePenalty {
        vcpu: vcpu(1, 0),
        stall: Score::from_per_mille(200),
        penalty: Nanos::ZERO,
        refill: Nanos::ZERO,
    });
    sim.run(Nanos::from_secs(1));
    sim.event(Event::PreferredNode {
        vm: VmId(1),
        node: Some(NodeId(1)),
    });
    sim.run(Nanos::from_secs(10));
    let of_it = sim.moves.iter().filter(|m| m.1 == vcpu(1, 0));
    assert!(
        of_it.clone().count() <= 40,
        "{:?}",
        of_it.collect::<Vec<_>>()
    );
}
