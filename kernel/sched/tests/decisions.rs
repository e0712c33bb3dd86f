//! Each term of the sum alone flips a pick; refusals say why.

mod common;

use common::{Load, Sim, vcpu};
use sched::*;
use units::*;

/// Two nodes with one CPU each and two ordinary vCPUs of different machines that only cpu0 may
/// run, both awake, nothing picked yet.
fn pair(a: VcpuSpec, b: VcpuSpec) -> (Scheduler, Commands) {
    let mut s = Scheduler::new(Tunables::default());
    let mut out = Commands::new();
    let mut tell = |event| s.handle(Nanos(1), event, &mut out).expect("accepted");
    for n in 0..2u16 {
        let place = CpuPlace {
            node: NodeId(n),
            llc: n.into(),
            core: n.into(),
        };
        tell(Event::CpuOnline {
            cpu: CpuId(n.into()),
            place,
        });
    }
    for (vm, spec) in [(0, a), (1, b)] {
        let spec = VcpuSpec {
            affinity: Affinity::Cpus(vec![CpuId(0)]),
            ..spec
        };
        tell(Event::VcpuAdded {
            vcpu: vcpu(vm, 0),
            spec,
        });
        tell(Event::Wake { vcpu: vcpu(vm, 0) });
    }
    (s, out)
}

fn picked(s: &mut Scheduler, now: Nanos) -> telemetry::Pick {
    match s.pick(CpuId(0), now, &mut Commands::new()) {
        Next::Run { vcpu, why, .. } => {
            assert_eq!(vcpu, why.vcpu);
            why
        }
        Next::Idle { .. } => panic!("both want to run"),
    }
}

fn ordinary() -> VcpuSpec {
    VcpuSpec::default()
}

#[test]
fn all_else_equal_the_first_by_name_runs() {
    let (mut s, _) = pair(ordinary(), ordinary());
    let why = picked(&mut s, Nanos(2));
    assert_eq!(why.vcpu, vcpu(0, 0));
    assert_eq!(why.alternative.map(|r| r.vcpu), Some(vcpu(1, 0)));
    assert_eq!(why.runnable, 2);
}

#[test]
fn priority_alone_flips_the_pick() {
    let (mut s, _) = pair(
        ordinary(),
        VcpuSpec {
            class: Class::High,
            ..ordinary()
        },
    );
    assert_eq!(picked(&mut s, Nanos(2)).vcpu, vcpu(1, 0));
}

#[test]
fn credit_alone_flips_the_pick() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    assert_eq!(picked(&mut s, Nanos(2)).vcpu, vcpu(0, 0));
    // It runs one whole request, so that both stand at the start of one; only credit differs.
    let ran = s.tunables().request;
    let now = Nanos(2) + ran;
    s.handle(
        now,
        Event::Charge {
            cpu: CpuId(0),
            vcpu: vcpu(0, 0),
            ran,
        },
        &mut out,
    )
    .expect("ran");
    let why = picked(&mut s, now);
    assert_eq!(why.vcpu, vcpu(1, 0));
    let rival = why.alternative.expect("the other");
    assert_eq!(why.terms.credit, Credits(2_500_000));
    assert_eq!(rival.terms.credit, Credits(-2_500_000));
    assert_eq!(why.terms.remaining, rival.terms.remaining);
}

#[test]
fn a_cache_penalty_alone_flips_the_pick() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    let penalty = Event::CachePenalty {
        vcpu: vcpu(0, 0),
        stall: Score::ONE,
        penalty: Nanos::from_micros(200),
        refill: Nanos::ZERO,
    };
    s.handle(Nanos(1), penalty, &mut out).expect("known");
    let why = picked(&mut s, Nanos(2));
    assert_eq!(why.vcpu, vcpu(1, 0));
    assert_eq!(
        why.alternative.expect("the other").terms.penalty,
        Credits(200_000)
    );
}

#[test]
fn proximity_alone_flips_the_pick() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    // The memory of the first is on the other node, that of the second here.
    for (vm, scores) in [
        (0, [Score::ZERO, Score::ONE]),
        (1, [Score::ONE, Score::ZERO]),
    ] {
        let event = Event::ProximityUpdated {
            vm: VmId(vm),
            scores: scores.to_vec(),
        };
        s.handle(Nanos(1), event, &mut out).expect("known");
    }
    let why = picked(&mut s, Nanos(2));
    assert_eq!(why.vcpu, vcpu(1, 0));
    assert_eq!(why.terms.bonus, Credits(500_000));
    assert_eq!(
        why.alternative.expect("the other").terms.bonus,
        Credits(-500_000)
    );
}

#[test]
fn proximity_never_beats_debt() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    let _ = picked(&mut s, Nanos(2));
    let now = Nanos(2) + Nanos::from_millis(3);
    let ran = Nanos::from_millis(3);
    s.handle(
        now,
        Event::Charge {
            cpu: CpuId(0),
            vcpu: vcpu(0, 0),
            ran,
        },
        &mut out,
    )
    .expect("ran");
    let near = Event::ProximityUpdated {
        vm: VmId(0),
        scores: vec![Score::ONE, Score::ZERO],
    };
    s.handle(now, near, &mut out).expect("known");
    assert_eq!(
        picked(&mut s, now).vcpu,
        vcpu(1, 0),
        "the first owes 1.5 ms"
    );
}

#[test]
fn a_yield_lets_the_other_run_once() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    assert_eq!(picked(&mut s, Nanos(2)).vcpu, vcpu(0, 0));
    s.handle(Nanos(3), Event::Yield { vcpu: vcpu(0, 0) }, &mut out)
        .expect("known");
    assert_eq!(picked(&mut s, Nanos(3)).vcpu, vcpu(1, 0));
}

#[test]
fn why_prints_the_sum() {
    let (mut s, _) = pair(ordinary(), ordinary());
    let _ = picked(&mut s, Nanos(2));
    let text = s.why(Nanos(9), vcpu(1, 0)).expect("known").to_string();
    for part in [
        "vm1.0 has waited",
        "credit 0 ns",
        "proximity 0 ns",
        "key 5.000 ms",
        "vm0.0 runs there",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    assert_eq!(s.why(Nanos(9), vcpu(7, 0)), None);
}

#[test]
fn removed_vcpus_are_not_picked_and_their_cpu_is_kicked() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    let _ = picked(&mut s, Nanos(2));
    out.drain().for_each(drop);
    s.handle(Nanos(3), Event::VcpuRemoved { vcpu: vcpu(0, 0) }, &mut out)
        .expect("known");
    assert_eq!(out.as_slice(), [Command::Kick { cpu: CpuId(0) }]);
    assert_eq!(picked(&mut s, Nanos(4)).vcpu, vcpu(1, 0));
    assert_eq!(s.vcpu(vcpu(0, 0)), None);
    s.handle(Nanos(5), Event::VcpuRemoved { vcpu: vcpu(1, 0) }, &mut out)
        .expect("known");
    assert_eq!(
        s.pick(CpuId(0), Nanos(6), &mut out),
        Next::Idle { until: None }
    );
}

#[test]
fn a_vcpu_that_wakes_while_its_cpu_leaves_it_is_not_lost() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    let _ = picked(&mut s, Nanos(2));
    s.handle(Nanos(3), Event::Block { vcpu: vcpu(0, 0) }, &mut out)
        .expect("known");
    s.handle(Nanos(3), Event::Wake { vcpu: vcpu(0, 0) }, &mut out)
        .expect("known");
    assert_eq!(
        s.vcpu(vcpu(0, 0)).map(|v| (v.running, v.runnable)),
        Some((true, true))
    );
    let _ = picked(&mut s, Nanos(4));
    s.handle(Nanos(4), Event::VcpuRemoved { vcpu: vcpu(1, 0) }, &mut out)
        .expect("known");
    assert_eq!(picked(&mut s, Nanos(5)).vcpu, vcpu(0, 0));
}

#[test]
fn contradictions_are_refused_with_a_sentence() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    let place = CpuPlace {
        node: NodeId(0),
        llc: 0,
        core: 0,
    };
    let nowhere = VcpuSpec {
        affinity: Affinity::Cpus(vec![CpuId(9)]),
        ..ordinary()
    };
    let one = Nanos(1);
    let cases = [
        (
            Event::CpuOnline {
                cpu: CpuId(0),
                place,
            },
            Refusal::DuplicateCpu(CpuId(0)),
        ),
        (
            Event::Wake { vcpu: vcpu(5, 0) },
            Refusal::UnknownVcpu(vcpu(5, 0)),
        ),
        (
            Event::VcpuAdded {
                vcpu: vcpu(0, 0),
                spec: ordinary(),
            },
            Refusal::DuplicateVcpu(vcpu(0, 0)),
        ),
        (
            Event::VcpuAdded {
                vcpu: vcpu(6, 0),
                spec: nowhere,
            },
            Refusal::NowhereToRun(vcpu(6, 0)),
        ),
        (
            Event::Charge {
                cpu: CpuId(1),
                vcpu: vcpu(0, 0),
                ran: one,
            },
            Refusal::NotRunningHere(vcpu(0, 0), CpuId(1)),
        ),
        (
            Event::Charge {
                cpu: CpuId(4),
                vcpu: vcpu(0, 0),
                ran: one,
            },
            Refusal::UnknownCpu(CpuId(4)),
        ),
    ];
    for (event, refusal) in cases {
        assert_eq!(s.handle(one, event, &mut out), Err(refusal));
        assert!(refusal.to_string().starts_with("scheduler: "), "{refusal}");
    }
    assert_eq!(s.pick(CpuId(8), one, &mut out), Next::Idle { until: None });
}

#[test]
fn a_charge_beyond_the_clock_is_lowered_to_it() {
    let (mut s, mut out) = pair(ordinary(), ordinary());
    let _ = picked(&mut s, Nanos(2));
    let charge = Event::Charge {
        cpu: CpuId(0),
        vcpu: vcpu(0, 0),
        ran: Nanos::MAX,
    };
    s.handle(Nanos(102), charge, &mut out).expect("running");
    assert_eq!(s.vcpu(vcpu(0, 0)).map(|v| v.ran), Some(Nanos(100)));
}

#[test]
fn one_that_runs_for_a_moment_need_not_wait_for_the_protection_of_one_that_computes() {
    let mut sim = Sim::new(1, 1, 3);
    let rivals = 3;
    (0..rivals).for_each(|i| sim.busy(vcpu(i, 0), 256));
    let nap = Load::Bursts {
        run: Nanos::from_micros(100),
        sleep: Nanos::from_millis(10),
    };
    (rivals..rivals + 3).for_each(|i| sim.add(vcpu(i, 0), VcpuSpec::default(), nap));
    sim.run(Nanos::from_secs(2));
    let waits = || (rivals..rivals + 3).map(|i| sim.waits(vcpu(i, 0)));
    let sum: u64 = waits().map(|w| w.0.0).sum();
    let wakes: u64 = waits().map(|w| w.1).sum();
    let mean = Nanos(sum / wakes.max(1));
    assert!(wakes > 500, "{wakes}");
    assert!(mean < Nanos::from_micros(250), "{mean} after a wake-up");
}

#[test]
fn a_wake_up_is_counted_from_there_to_the_cpu() {
    let (mut s, _) = pair(ordinary(), ordinary());
    let tell = |s: &mut Scheduler, now, event| {
        s.handle(Nanos(now), event, &mut Commands::new())
            .expect("accepted");
    };
    let waits = |s: &Scheduler, vm| {
        let waits = s.wake_latency(VmId(vm)).expect("known");
        (waits.count(), waits.longest())
    };
    assert_eq!(picked(&mut s, Nanos(1_001)).vcpu, vcpu(0, 0));
    assert_eq!(waits(&s, 0), (1, Nanos(1_000)));
    let (cpu, first) = (CpuId(0), vcpu(0, 0));
    let charge = |ran| Event::Charge {
        cpu,
        vcpu: first,
        ran: Nanos(ran),
    };
    // Going on is no wake-up, and who sleeps again before it ran waited for nobody.
    tell(&mut s, 2_001, charge(1_000));
    assert_eq!(picked(&mut s, Nanos(2_001)).vcpu, first);
    tell(&mut s, 3_001, charge(1_000));
    tell(&mut s, 3_001, Event::Block { vcpu: first });
    tell(&mut s, 4_000, Event::Wake { vcpu: first });
    tell(&mut s, 5_000, Event::Block { vcpu: first });
    assert_eq!(picked(&mut s, Nanos(3_000_001)).vcpu, vcpu(1, 0));
    assert_eq!(waits(&s, 0), (1, Nanos(1_000)));
    assert_eq!(waits(&s, 1), (1, Nanos(3_000_000)));
    assert_eq!(s.wake_latency_of(Class::Normal).count(), 2);
    assert_eq!(s.wake_latency_of(Class::High).count(), 0);
}

#[test]
fn a_pause_is_no_wait_for_a_cpu_and_a_limit_is() {
    let capped = VcpuSpec {
        cap: Some(PerMille(1)),
        ..ordinary()
    };
    let (mut s, _) = pair(ordinary(), capped);
    let tell = |s: &mut Scheduler, now, event| {
        s.handle(now, event, &mut Commands::new())
            .expect("accepted");
    };
    let waits = |s: &Scheduler, vm| {
        let waits = s.wake_latency(VmId(vm)).expect("known");
        (waits.count(), waits.longest())
    };
    // Both woke at 1 ns. One is paused before it ran, and goes on after an hour.
    let hour = Nanos::from_secs(3600);
    tell(&mut s, Nanos(2), Event::Paused { vm: VmId(0) });
    assert!(matches!(
        s.pick(CpuId(0), Nanos(3), &mut Commands::new()),
        Next::Idle { .. }
    ));
    let filled = Nanos::from_secs(2);
    assert_eq!(picked(&mut s, filled).vcpu, vcpu(1, 0));
    assert_eq!(waits(&s, 1), (1, filled - Nanos(1)), "for its limit");
    let charge = Event::Charge {
        cpu: CpuId(0),
        vcpu: vcpu(1, 0),
        ran: Nanos::from_millis(1),
    };
    tell(&mut s, filled + Nanos::from_millis(1), charge);
    tell(&mut s, hour, Event::Block { vcpu: vcpu(1, 0) });
    tell(&mut s, hour, Event::Resumed { vm: VmId(0) });
    assert_eq!(picked(&mut s, hour + Nanos(7)).vcpu, vcpu(0, 0));
    assert_eq!(waits(&s, 0), (1, Nanos(7)), "since it went on");
}
