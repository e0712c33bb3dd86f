//! Shares, lag, limits, classes and work conservation, in a simulated machine.

mod common;

use common::{Load, Rng, Sim, adversary, cases, vcpu};
use proptest::prelude::*;
use sched::*;
use units::*;

/// Relative difference in thousandths.
fn off_by(actual: u64, expected: u64) -> u64 {
    actual.abs_diff(expected) * 1000 / expected.max(1)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases(12)) })]

    #[test]
    fn no_cpu_idles_beyond_the_limit_while_something_waits(
        nodes in 1u16..4, per_node in 1u32..4, seed: u64, n in 1u16..14,
    ) {
        let worst = idle_case(nodes, per_node, n, seed);
        prop_assert!(worst <= Nanos::from_millis(5), "idle for {worst}");
    }

    #[test]
    fn nobody_starves(seed: u64, n in 2u16..10) {
        let mut sim = Sim::new(2, 1, seed);
        let mut rng = Rng(seed);
        let mut all = Vec::new();
        for i in 0..n {
            let class = [Class::High, Class::Normal, Class::Low][rng.below(3) as usize];
            let weight = 64 + rng.below(1000) as u32;
            let spec = VcpuSpec { class, weight, ..VcpuSpec::default() };
            sim.add(vcpu(i, 0), spec, Load::Busy);
            all.push((class, u64::from(weight)));
        }
        sim.run_with(Nanos::from_secs(10), |sim| adversary(sim, n, 2));
        for (i, (class, weight)) in all.iter().enumerate() {
            let v = vcpu(i as u16, 0);
            // At worst its whole class shares one CPU with it, and of that the floor if there is a higher one.
            let shared: u64 = all.iter().filter(|(c, _)| c == class).map(|(_, w)| w).sum();
            let floor = if all.iter().any(|(c, _)| c < class) { 20 } else { 1 };
            // In each turn it earns what it paid for the last request and then waits for its deadline, at the latest until it
            // presses: 5 + 6 ms of credit. And its class has its turns, too.
            let turn = (11_000_000 * shared / weight + 10_000_000) * floor;
            prop_assert!(sim.longest_wait(v).0 < turn, "{v} waited {} of {turn}", sim.longest_wait(v));
            let turns = 10_000_000_000 / turn;
            prop_assert!(sim.ran(v).0 >= turns * 5_000_000, "{v} ran {} in {turns} turns", sim.ran(v));
        }
    }

    #[test]
    fn weights_are_kept_on_one_cpu(weights in proptest::collection::vec(1u32..=16, 2..9), seed: u64) {
        let mut sim = Sim::new(1, 1, seed);
        for (i, w) in weights.iter().enumerate() {
            sim.busy(vcpu(i as u16, 0), w * 64);
        }
        let vms = weights.len() as u16;
        let start = sim.now;
        sim.run_with(start + Nanos::from_secs(10), |sim| adversary(sim, vms, 1));
        let total: u32 = weights.iter().sum();
        for (i, w) in weights.iter().enumerate() {
            let expected = 10_000_000_000 * u64::from(*w) / u64::from(total);
            // 2 %, or one quantum where 2 % of a small share is less than that.
            let ran = sim.ran(vcpu(i as u16, 0)).0;
            let quantum = ran.abs_diff(expected) <= 10_000_000;
            prop_assert!(quantum || off_by(ran, expected) <= 20, "weight {w}: {ran} of {expected}");
        }
    }

    #[test]
    fn caps_are_kept(cap in 50u16..900, seed: u64, rivals in 0u16..3) {
        let mut sim = Sim::new(1, 1, seed);
        let spec = VcpuSpec { cap: Some(PerMille(cap)), weight: 4096, ..VcpuSpec::default() };
        sim.add(vcpu(0, 0), spec, Load::Busy);
        for i in 0..rivals {
            sim.busy(vcpu(1 + i, 0), 16);
        }
        sim.run(Nanos::from_secs(10));
        let expected = 10_000_000 * u64::from(cap);
        prop_assert!(off_by(sim.ran(vcpu(0, 0)).0, expected) <= 10, "{} of {expected}", sim.ran(vcpu(0, 0)).0);
        if rivals > 0 {
            let others: u64 = (0..rivals).map(|i| sim.ran(vcpu(1 + i, 0)).0).sum();
            prop_assert!(off_by(others, 10_000_000_000 - expected) <= 10, "the rest goes to the others");
        }
    }

    #[test]
    fn what_the_kernel_does_for_a_machine_counts_against_its_cap(cap in 200u16..900, tenths in 1u64..10, seed: u64) {
        let mut sim = Sim::new(1, 1, seed);
        let spec = VcpuSpec { cap: Some(PerMille(cap)), ..VcpuSpec::default() };
        sim.add(vcpu(0, 0), spec, Load::Busy);
        // Up to nine hundredths of a CPU.
        let took = Nanos::from_micros(100 * tenths);
        sim.run_with(Nanos::from_secs(10), |sim| {
            sim.event(Event::Overhead { vm: VmId(0), took });
            sim.now + Nanos::from_millis(10)
        });
        let expected = 10_000_000 * u64::from(cap) - took.0 * 1000;
        let ran = sim.ran(vcpu(0, 0)).0;
        prop_assert!(off_by(ran, expected) <= 10, "{ran} of {expected}");
    }

    #[test]
    fn a_cap_is_for_all_vcpus_of_a_machine_together(
        percent in 5u64..600, vcpus in 1u16..8, cpus in 1u32..7, sleepers in any::<bool>(), seed: u64,
    ) {
        let mut sim = Sim::new(1, cpus, seed);
        let spec = VcpuSpec {
            cap: Some(PerMille(percent as u16 * 10)),
            weight: 4096,
            ..VcpuSpec::default()
        };
        for i in 0..vcpus {
            sim.add(vcpu(0, i), spec.clone(), Load::Busy);
        }
        // Some of the same machine that hardly run neither gain nor lose the others anything.
        if sleepers {
            let load = Load::Bursts { run: Nanos::from_micros(100), sleep: Nanos::from_millis(30) };
            (vcpus..vcpus + 2).for_each(|i| sim.add(vcpu(0, i), spec.clone(), load));
        }
        // A rival of little weight keeps all CPUs busy.
        (0..cpus as u16).for_each(|i| sim.busy(vcpu(1 + i, 0), 1));
        sim.run(Nanos::from_secs(10));
        let known = if sleepers { vcpus + 2 } else { vcpus };
        let all: u64 = (0..known).map(|i| sim.ran(vcpu(0, i)).0).sum();
        let cap = 100_000_000 * percent;
        prop_assert!(all <= cap + cap / 100, "{all} of {cap}");
        // Where its vCPUs could use twice the cap and CPUs are plenty, they use all of it, each its part.
        if u64::from(vcpus) * 50 >= percent && u64::from(cpus) * 50 >= percent {
            prop_assert!(off_by(all, cap) <= 10, "{all} of {cap}");
            let busy: Vec<u64> = (0..vcpus).map(|i| sim.ran(vcpu(0, i)).0).collect();
            let fair = all / u64::from(vcpus);
            let least = busy.iter().min().copied().unwrap_or(0);
            prop_assert!(least >= fair * 8 / 10, "{busy:?}: one lives on the others' waiting");
        }
    }

    #[test]
    fn a_cap_that_a_machine_does_not_use_does_not_hold_its_vcpus(seed: u64) {
        // All four together use about 15 % of a CPU; a quarter of 50 % each would hold them again and again.
        let ran = |cap| {
            let mut sim = Sim::new(1, 2, seed);
            let spec = VcpuSpec { cap, ..VcpuSpec::default() };
            let load = Load::Bursts { run: Nanos::from_micros(800), sleep: Nanos::from_millis(20) };
            (0..4).for_each(|i| sim.add(vcpu(0, i), spec.clone(), load));
            sim.run(Nanos::from_secs(10));
            (0..4).map(|i| sim.ran(vcpu(0, i)).0).sum::<u64>()
        };
        let (free, capped) = (ran(None), ran(Some(PerMille(500))));
        prop_assert!(off_by(capped, free) <= 30, "{capped} of {free}");
    }
}

/// The longest time for which a CPU was idle while something that it may run waited.
fn idle_case(nodes: u16, per_node: u32, n: u16, seed: u64) -> Nanos {
    let mut sim = Sim::new(nodes, per_node, seed);
    let mut rng = Rng(seed ^ 1);
    for i in 0..n {
        let affinity = match rng.below(4) {
            0 => Affinity::Nodes(vec![NodeId(rng.below(nodes.into()) as u16)]),
            1 => Affinity::Cpus(vec![CpuId(
                rng.below((u32::from(nodes) * per_node).into()) as u32
            )]),
            _ => Affinity::Any,
        };
        let class = [Class::High, Class::Normal, Class::Low][rng.below(3) as usize];
        let load = match rng.below(3) {
            0 => Load::Busy,
            _ => Load::Bursts {
                run: Nanos::from_millis(30),
                sleep: Nanos::from_millis(30),
            },
        };
        let spec = VcpuSpec {
            affinity,
            class,
            weight: 1 + rng.below(1000) as u32,
            ..VcpuSpec::default()
        };
        sim.add(vcpu(i % 3, i), spec, load);
    }
    sim.run_with(Nanos::from_secs(2), |sim| adversary(sim, 3, nodes.into()));
    sim.worst_idle
}

#[test]
fn a_cap_of_whole_cpus_is_divided_as_evenly_as_any_other() {
    // As much comes in as one CPU uses: who ran alone once kept what the two in line waited for.
    for percent in [99, 100, 101, 110] {
        let mut sim = Sim::new(1, 2, 1);
        let spec = VcpuSpec {
            cap: Some(PerMille(percent * 10)),
            weight: 4096,
            ..VcpuSpec::default()
        };
        (0..3).for_each(|i| sim.add(vcpu(0, i), spec.clone(), Load::Busy));
        (0..2).for_each(|i| sim.busy(vcpu(1 + i, 0), 1));
        sim.run(Nanos::from_secs(10));
        for i in 0..3 {
            let (ran, fair) = (sim.ran(vcpu(0, i)).0, 100_000_000 * u64::from(percent) / 3);
            assert!(off_by(ran, fair) <= 60, "{percent} %: {ran} of {fair}");
        }
    }
}

#[test]
fn no_cpu_idles_where_six_look_at_eight() {
    assert!(idle_case(3, 2, 8, 4201499093405427183) <= Nanos::from_millis(5));
}

#[test]
fn one_vcpu_cannot_use_more_than_one_cpu() {
    // 8 x 1 + 16 on two CPUs: the heavy one gets a CPU, the light ones share the other.
    let mut sim = Sim::new(1, 2, 1);
    for i in 0..8 {
        sim.busy(vcpu(i, 0), 64);
    }
    sim.busy(vcpu(8, 0), 16 * 64);
    sim.run(Nanos::from_secs(2));
    let before: Vec<u64> = (0..9).map(|i| sim.ran(vcpu(i, 0)).0).collect();
    sim.run(Nanos::from_secs(10));
    let ran = |i: u16| sim.ran(vcpu(i, 0)).0 - before[usize::from(i)];
    assert!(off_by(ran(8), 10_000_000_000) <= 20, "{}", ran(8));
    for i in 0..8 {
        assert!(off_by(ran(i), 1_250_000_000) <= 20, "{i}: {}", ran(i));
    }
}

#[test]
fn weights_1_2_4_on_four_cpus() {
    let mut sim = Sim::new(1, 4, 7);
    let weights = [1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4u64];
    for (i, w) in weights.iter().enumerate() {
        sim.busy(vcpu(i as u16, 0), (w * 64) as u32);
    }
    sim.run(Nanos::from_secs(1));
    let before: Vec<u64> = (0..12).map(|i| sim.ran(vcpu(i, 0)).0).collect();
    sim.run(Nanos::from_secs(10));
    for (i, w) in weights.iter().enumerate() {
        let ran = sim.ran(vcpu(i as u16, 0)).0 - before[i];
        assert!(
            off_by(ran, 40_000_000_000 * w / 28) <= 20,
            "weight {w}: {ran}"
        );
    }
}

#[test]
fn three_equals_share_two_cpus() {
    let mut sim = Sim::new(1, 2, 3);
    for i in 0..3 {
        sim.busy(vcpu(i, 0), 256);
    }
    sim.run(Nanos::from_secs(10));
    for i in 0..3 {
        let ran = sim.ran(vcpu(i, 0)).0;
        assert!(off_by(ran, 6_666_666_666) <= 20, "{i}: {ran}");
    }
}

#[test]
fn a_lower_class_keeps_its_floor_and_no_more() {
    let mut sim = Sim::new(1, 1, 3);
    for (i, class) in [Class::High, Class::Normal, Class::Low]
        .into_iter()
        .enumerate()
    {
        sim.add(
            vcpu(i as u16, 0),
            VcpuSpec {
                class,
                ..VcpuSpec::default()
            },
            Load::Busy,
        );
    }
    sim.run(Nanos::from_secs(20));
    for i in 1..3 {
        let share = sim.ran(vcpu(i, 0)).0 * 1000 / 20_000_000_000;
        assert!(
            (45..=55).contains(&share),
            "class {i} got {share} per mille"
        );
    }
}

#[test]
fn a_run_repeats_to_the_same_moves() {
    let run = || {
        let mut sim = Sim::new(2, 2, 99);
        for i in 0..9 {
            let load = Load::Bursts {
                run: Nanos::from_millis(9),
                sleep: Nanos::from_millis(9),
            };
            sim.add(vcpu(i % 3, i), VcpuSpec::default(), load);
        }
        sim.run_with(Nanos::from_secs(1), |sim| adversary(sim, 3, 2));
        (
            sim.moves.clone(),
            (0..9).map(|i| sim.ran(vcpu(i % 3, i))).collect::<Vec<_>>(),
        )
    };
    assert_eq!(run(), run());
}

#[test]
fn weights_are_kept_where_exchanges_of_two_do_not_even_out_load() {
    // Twelve on four CPUs, of weights that divide evenly in one way only. How they come decides where exchanges end.
    for seed in 0..8 {
        let mut sim = Sim::new(1, 4, seed);
        let weight = |i: u16| 128 << (i / 4);
        for i in 0..12 {
            sim.busy(vcpu(i, 0), weight(i));
            sim.run(Nanos::from_millis(37 + seed));
        }
        sim.run(Nanos::from_secs(10));
        let ran = |sim: &Sim| -> Vec<u64> { (0..12).map(|i| sim.ran(vcpu(i, 0)).0).collect() };
        let (before, moved) = (ran(&sim), sim.moves.len());
        sim.run(Nanos::from_secs(10));
        for (i, (before, after)) in (0..).zip(before.iter().zip(ran(&sim))) {
            let fair = 40_000_000_000 * u64::from(weight(i)) / 3584;
            assert!(
                (after - before).abs_diff(fair) * 50 <= fair,
                "seed {seed}: vm{i} ran {} of {fair} ns",
                after - before
            );
        }
        let moves = sim.moves.len() - moved;
        assert!(moves <= 40, "seed {seed}: {moves} moves in ten seconds");
    }
}
