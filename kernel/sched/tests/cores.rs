//! Hardware threads: one machine on a core at a time, nobody left out, no core crowded for nothing.

mod common;

use common::{Load, Rng, Sim, cases, vcpu};
use proptest::prelude::*;
use sched::*;
use units::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases(12)) })]

    /// The harness asserts at every pick that no core runs two machines.
    #[test]
    fn a_core_runs_one_machine_and_nobody_starves(cores in 1u32..5, n in 2u16..14, seed: u64) {
        let mut sim = Sim::with(1, 2 * cores, 2, Tunables::default(), seed);
        let mut rng = Rng(seed);
        for i in 0..n {
            let load = match rng.below(3) {
                0 => Load::Bursts { run: Nanos::from_millis(20), sleep: Nanos::from_millis(20) },
                1 => Load::Spins { run: Nanos::from_millis(7) },
                _ => Load::Busy,
            };
            sim.add(vcpu(i % 4, i), VcpuSpec::default(), load);
        }
        sim.run(Nanos::from_secs(4));
        for i in 0..n {
            let v = vcpu(i % 4, i);
            prop_assert!(sim.ran(v) >= Nanos::from_millis(40), "{v} ran {}", sim.ran(v));
            prop_assert!(sim.longest_wait(v) < Nanos::from_secs(1), "{v} waited {}", sim.longest_wait(v));
        }
    }
}

#[test]
fn two_machines_share_one_core_by_halves() {
    let mut sim = Sim::with(1, 2, 2, Tunables::default(), 1);
    for i in 0..4 {
        sim.busy(vcpu(i / 2, i), 256);
    }
    sim.run(Nanos::from_secs(10));
    let ran = |vm: u16| sim.ran(vcpu(vm, 2 * vm)).0 + sim.ran(vcpu(vm, 2 * vm + 1)).0;
    let (a, b) = (ran(0), ran(1));
    assert!(a.abs_diff(b) < (a + b) / 10, "{a} and {b}");
    assert!(a + b > 16_000_000_000, "both threads are used: {}", a + b);
    assert!(
        kept_idle(&sim) > 0,
        "one machine waited for the other's core"
    );
}

/// How often CPUs stayed idle for another machine's sake.
fn kept_idle(sim: &Sim) -> u64 {
    sim.sched.cpus().map(|c| c.kept_idle).sum()
}

#[test]
fn machines_that_may_share_fill_all_threads() {
    let tunables = Tunables {
        share_cores: true,
        ..Tunables::default()
    };
    let mut sim = Sim::with(1, 2, 2, tunables, 1);
    for i in 0..2 {
        sim.busy(vcpu(i, 0), 256);
    }
    sim.run(Nanos::from_secs(1));
    for i in 0..2 {
        assert!(
            sim.ran(vcpu(i, 0)).0 > 990_000_000,
            "{}",
            sim.ran(vcpu(i, 0))
        );
    }
    assert_eq!(kept_idle(&sim), 0);
}

#[test]
fn a_crowded_core_gives_to_an_empty_one() {
    let tunables = Tunables {
        share_cores: true,
        ..Tunables::default()
    };
    let mut sim = Sim::with(1, 4, 2, tunables, 1);
    let first = VcpuSpec {
        affinity: Affinity::Cpus(vec![CpuId(0), CpuId(1)]),
        ..VcpuSpec::default()
    };
    for i in 0..2 {
        sim.add(vcpu(0, i), first.clone(), Load::Busy);
    }
    sim.run(Nanos::from_millis(100));
    assert!(sim.moves.is_empty(), "they may not leave: {:?}", sim.moves);
    for i in 0..2 {
        sim.event(Event::Respecified {
            vcpu: vcpu(0, i),
            spec: VcpuSpec::default(),
        });
    }
    sim.run(Nanos::from_millis(200));
    let core = |i| sim.sched.vcpu(vcpu(0, i)).expect("known").cpu.0 / 2;
    assert_ne!(core(0), core(1), "a core each");
    assert_eq!(sim.moves.len(), 1, "by one move: {:?}", sim.moves);
}

/// Neither can go to the other's thread, so no thread can choose for both.
#[test]
fn machines_that_are_bound_to_a_thread_each_share_the_core() {
    let mut sim = Sim::with(1, 2, 2, Tunables::default(), 1);
    let bound = |cpus: u32| VcpuSpec {
        affinity: Affinity::Cpus(vec![CpuId(cpus)]),
        ..VcpuSpec::default()
    };
    sim.add(vcpu(0, 0), bound(1), Load::Busy);
    for vm in 1..3 {
        sim.add(vcpu(vm, 0), bound(0), Load::Busy);
    }
    sim.run(Nanos::from_secs(6));
    for vm in 0..3 {
        let v = vcpu(vm, 0);
        assert!(
            sim.ran(v) > Nanos::from_millis(1400) && sim.longest_wait(v) < Nanos::from_millis(200),
            "{v} ran {}, waited {}",
            sim.ran(v),
            sim.longest_wait(v)
        );
    }
}

fn shared() -> Tunables {
    Tunables {
        share_cores: true,
        ..Tunables::default()
    }
}

/// Says that a machine's memory is all on node 0 and how much of their time its vCPUs wait for it.
fn stalls(sim: &mut Sim, vm: u16, per_mille: u16) {
    sim.event(Event::ProximityUpdated {
        vm: VmId(vm),
        scores: vec![Score::ONE, Score::ZERO],
    });
    sim.event(Event::CachePenalty {
        vcpu: vcpu(vm, 0),
        stall: Score::from_per_mille(per_mille),
        penalty: Nanos::ZERO,
        refill: Nanos::ZERO,
    });
}

/// Eight machines of one vCPU each on the eight threads of node 0, whose four cores are full then; node 1 is empty.
fn full_node(stall: Option<u16>) -> Sim {
    let mut sim = Sim::with(2, 8, 2, shared(), 1);
    for vm in 0..8 {
        let home = VcpuSpec {
            home: Some(NodeId(0)),
            ..VcpuSpec::default()
        };
        sim.add(vcpu(vm, 0), home, Load::Busy);
        if let Some(stall) = stall {
            stalls(&mut sim, vm, stall);
        }
    }
    sim
}

fn on_node(sim: &Sim, node: u16) -> usize {
    let there = (0..8).filter(|vm| sim.node(vcpu(*vm, 0)) == NodeId(node));
    there.count()
}

#[test]
fn who_computes_goes_to_another_node_for_a_core_of_its_own() {
    let mut sim = full_node(Some(20));
    sim.run(Nanos::from_secs(4));
    assert_eq!(on_node(&sim, 1), 4, "{:?}", sim.moves);
    assert_eq!(sim.moves.len(), 4, "one move each: {:?}", sim.moves);
}

#[test]
fn who_waits_for_memory_stays_by_it_and_shares_the_core() {
    // With a PMU that says so, and without one.
    for stall in [Some(700), None] {
        let mut sim = full_node(stall);
        if stall.is_none() {
            for vm in 0..8 {
                sim.event(Event::ProximityUpdated {
                    vm: VmId(vm),
                    scores: vec![Score::ONE, Score::ZERO],
                });
            }
        }
        sim.run(Nanos::from_secs(4));
        assert_eq!(on_node(&sim, 0), 8, "{stall:?}: {:?}", sim.moves);
    }
}

#[test]
fn nobody_leaves_a_core_of_his_own_to_be_nearer_to_memory_that_he_hardly_needs() {
    // Node 0 has a busy thread in each core; vm2 has a core of node 1 for itself.
    for (stall, node) in [(50, 1), (700, 0)] {
        let mut sim = Sim::with(2, 4, 2, shared(), 1);
        for vm in 0..3 {
            let bound = VcpuSpec {
                affinity: Affinity::Nodes(vec![NodeId(0)]),
                ..VcpuSpec::default()
            };
            let free = VcpuSpec {
                home: Some(NodeId(1)),
                ..VcpuSpec::default()
            };
            sim.add(vcpu(vm, 0), if vm < 2 { bound } else { free }, Load::Busy);
            stalls(&mut sim, vm, stall);
        }
        sim.run(Nanos::from_secs(1));
        sim.event(Event::PreferredNode {
            vm: VmId(2),
            node: Some(NodeId(0)),
        });
        sim.run(Nanos::from_secs(3));
        assert_eq!(
            sim.node(vcpu(2, 0)),
            NodeId(node),
            "{stall}: {:?}",
            sim.moves
        );
        assert!(sim.moves.len() <= 1, "{stall}: {:?}", sim.moves);
    }
}

#[test]
fn those_who_stall_share_and_those_who_compute_do_not() {
    let computes = |vm: u16| vm == 0 || vm == 2;
    // Six vCPUs on four cores: two pairs share. At first those who compute share with one who stalls each, and the empty core
    // takes only one of the four.
    let mut sim = Sim::with(1, 8, 2, shared(), 1);
    for vm in 0..6 {
        let at = VcpuSpec {
            affinity: Affinity::Cpus(vec![CpuId(u32::from(vm))]),
            ..VcpuSpec::default()
        };
        sim.add(vcpu(vm, 0), at, Load::Busy);
        stalls(&mut sim, vm, if computes(vm) { 10 } else { 800 });
    }
    sim.run(Nanos::from_secs(1));
    for vm in 0..6 {
        sim.event(Event::Respecified {
            vcpu: vcpu(vm, 0),
            spec: VcpuSpec::default(),
        });
    }
    sim.run(Nanos::from_secs(6));
    let core = |vm| sim.sched.vcpu(vcpu(vm, 0)).expect("known").cpu.0 / 2;
    for vm in (0..6).filter(|vm| computes(*vm)) {
        let beside = (0..6).filter(|other| *other != vm && core(*other) == core(vm));
        assert_eq!(beside.count(), 0, "vm{vm} has a core: {:?}", sim.moves);
    }
    let settled = sim.moves.len();
    assert!(settled <= 6, "{:?}", sim.moves);
    sim.run(Nanos::from_secs(6));
    assert_eq!(sim.moves.len(), settled, "and so it stays: {:?}", sim.moves);
}
