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
