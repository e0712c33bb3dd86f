//! A spinning vCPU's slice goes to a preempted neighbour, at the spinner's cost.

mod common;

use common::{Load, Sim, vcpu};
use sched::*;
use telemetry::MoveReason;
use units::*;

const ONE: CpuId = CpuId(0);

fn machine(cpus: u32, tunables: Tunables) -> Scheduler {
    let mut s = Scheduler::new(tunables);
    for cpu in 0..cpus {
        let place = CpuPlace {
            node: NodeId(0),
            llc: 0,
            core: cpu,
        };
        tell(
            &mut s,
            1,
            Event::CpuOnline {
                cpu: CpuId(cpu),
                place,
            },
        );
    }
    s
}

fn tell(s: &mut Scheduler, now: u64, event: Event) -> Commands {
    let mut out = Commands::new();
    s.handle(Nanos(now), event, &mut out).expect("accepted");
    out
}

fn add(s: &mut Scheduler, v: VcpuId, weight: u32, cpu: u32) {
    let spec = VcpuSpec {
        weight,
        affinity: Affinity::Cpus(vec![CpuId(cpu)]),
        ..VcpuSpec::default()
    };
    tell(s, 1, Event::VcpuAdded { vcpu: v, spec });
    tell(s, 1, Event::Wake { vcpu: v });
}

fn pick(s: &mut Scheduler, cpu: CpuId, now: u64) -> Option<VcpuId> {
    match s.pick(cpu, Nanos(now), &mut Commands::new()) {
        Next::Run { vcpu, .. } => Some(vcpu),
        Next::Idle { .. } => None,
    }
}

/// vm0.0, vm1.0 and, with half their weight, vm0.1 wait for one CPU; vm0.0 runs for 1 ms and spins.
/// Returns who runs then.
fn spin_case(tunables: Tunables) -> (Scheduler, VcpuId) {
    spin_on(machine(1, tunables))
}

/// The same on this machine of one CPU.
fn spin_on(mut s: Scheduler) -> (Scheduler, VcpuId) {
    for (v, weight) in [(vcpu(0, 0), 512), (vcpu(1, 0), 512), (vcpu(0, 1), 256)] {
        add(&mut s, v, weight, 0);
    }
    assert_eq!(pick(&mut s, ONE, 2), Some(vcpu(0, 0)));
    let (now, ran) = (1_000_002, Nanos::from_millis(1));
    let charge = Event::Charge {
        cpu: ONE,
        vcpu: vcpu(0, 0),
        ran,
    };
    tell(&mut s, now, charge);
    tell(&mut s, now, Event::Spin { vcpu: vcpu(0, 0) });
    let next = pick(&mut s, ONE, now).expect("two wait");
    (s, next)
}

#[test]
fn the_slice_goes_to_the_neighbour_and_the_donor_pays() {
    let (mut s, next) = spin_case(Tunables::default());
    assert_eq!(
        next,
        vcpu(0, 1),
        "not the other machine, which is next by key"
    );
    let before = |s: &Scheduler, v| s.vcpu(v).expect("known").credit.0;
    let (donor, heir, other) = (
        before(&s, vcpu(0, 0)),
        before(&s, vcpu(0, 1)),
        before(&s, vcpu(1, 0)),
    );
    let charge = Event::Charge {
        cpu: ONE,
        vcpu: vcpu(0, 1),
        ran: Nanos(900_000),
    };
    tell(&mut s, 1_900_002, charge);
    assert_eq!(
        before(&s, vcpu(0, 0)),
        donor + 360_000 - 900_000,
        "the donor pays"
    );
    assert_eq!(
        before(&s, vcpu(0, 1)),
        heir + 180_000,
        "the heir earns as if it waited"
    );
    assert_eq!(
        before(&s, vcpu(1, 0)),
        other + 360_000,
        "the other machine's lag is what it would be"
    );
    assert_eq!(
        s.vcpu(vcpu(0, 1)).expect("known").ran,
        Nanos(900_000),
        "run time is who ran"
    );
    assert_eq!(pick(&mut s, ONE, 1_900_002), Some(vcpu(1, 0)), "once");
}

#[test]
fn overhead_is_paid_machine_wide_and_moves_no_lag() {
    let (mut s, _) = spin_case(Tunables::default());
    let paid = |s: &Scheduler, id| {
        let v = s.vcpu(id).expect("known");
        (v.account.0, v.credit.0)
    };
    let (mut with, vm) = (s.clone(), VmId(0));
    let took = Nanos::from_millis(2);
    tell(&mut with, 1_100_002, Event::Overhead { vm, took });
    let nothing = Nanos::ZERO;
    tell(&mut s, 1_100_002, Event::Overhead { vm, took: nothing });
    let mine: i64 = (0..2)
        .map(|i| paid(&s, vcpu(0, i)).0 - paid(&with, vcpu(0, i)).0)
        .sum();
    assert_eq!(mine, Credits::for_time(took).0);
    for id in [vcpu(0, 0), vcpu(0, 1), vcpu(1, 0)] {
        assert_eq!(paid(&s, id).1, paid(&with, id).1, "{id}");
    }
}

#[test]
fn when_the_donor_leaves_the_donated_slice_ends() {
    let (mut s, next) = spin_case(Tunables::default());
    assert_eq!(next, vcpu(0, 1));
    let out = tell(&mut s, 1_100_002, Event::VcpuRemoved { vcpu: vcpu(0, 0) });
    assert_eq!(out.as_slice(), [Command::Kick { cpu: ONE }]);
    let heir = s.vcpu(vcpu(0, 1)).expect("known").credit.0;
    // What the donor owes is taken from those whom the queue owes, who are even then; the heir has paid nothing.
    assert_eq!(heir, 0);
}

#[test]
fn without_donation_the_next_by_key_runs() {
    let off = Tunables {
        donate: false,
        ..Tunables::default()
    };
    assert_eq!(spin_case(off).1, vcpu(1, 0));
}

#[test]
fn donation_is_switched_off_and_on_again_while_it_runs() {
    let mut s = machine(1, Tunables::default());
    tell(&mut s, 1, Event::Donating { on: false });
    assert_eq!(spin_on(s.clone()).1, vcpu(1, 0));
    tell(&mut s, 1, Event::Donating { on: true });
    assert_eq!(spin_on(s).1, vcpu(0, 1));
}

#[test]
fn a_neighbour_that_spun_itself_is_no_heir_and_one_elsewhere_comes_over() {
    let mut s = machine(2, Tunables::default());
    add(&mut s, vcpu(0, 0), 256, 0);
    add(&mut s, vcpu(1, 0), 256, 1);
    let both = VcpuSpec {
        affinity: Affinity::Cpus(vec![CpuId(1)]),
        ..VcpuSpec::default()
    };
    tell(
        &mut s,
        1,
        Event::VcpuAdded {
            vcpu: vcpu(0, 1),
            spec: both,
        },
    );
    tell(&mut s, 1, Event::Wake { vcpu: vcpu(0, 1) });
    assert_eq!(pick(&mut s, ONE, 2), Some(vcpu(0, 0)));
    assert_eq!(
        pick(&mut s, CpuId(1), 2),
        Some(vcpu(0, 1)),
        "the smaller name of two equals"
    );
    // It spins, so it is put down and the other machine runs; it is no heir to its neighbour.
    let now = 1_000_002;
    let charge = |cpu, vcpu| Event::Charge {
        cpu,
        vcpu,
        ran: Nanos::MAX,
    };
    tell(&mut s, now, charge(CpuId(1), vcpu(0, 1)));
    tell(&mut s, now, Event::Spin { vcpu: vcpu(0, 1) });
    assert_eq!(pick(&mut s, CpuId(1), now), Some(vcpu(1, 0)));
    tell(&mut s, now, charge(ONE, vcpu(0, 0)));
    tell(&mut s, now, Event::Spin { vcpu: vcpu(0, 0) });
    assert_eq!(
        pick(&mut s, ONE, now),
        Some(vcpu(0, 0)),
        "nobody to give to"
    );
    // Once it was preempted instead, and may come over, it comes.
    let anywhere = Event::Respecified {
        vcpu: vcpu(0, 1),
        spec: VcpuSpec::default(),
    };
    let later = 6_000_002;
    tell(&mut s, later, charge(CpuId(1), vcpu(1, 0)));
    assert_eq!(pick(&mut s, CpuId(1), later), Some(vcpu(0, 1)));
    let end = 11_000_002;
    tell(&mut s, end, charge(CpuId(1), vcpu(0, 1)));
    assert_eq!(pick(&mut s, CpuId(1), end), Some(vcpu(1, 0)), "preempted");
    tell(&mut s, end, anywhere);
    tell(&mut s, end, charge(ONE, vcpu(0, 0)));
    let out = tell(&mut s, end, Event::Spin { vcpu: vcpu(0, 0) });
    let came = out.as_slice().iter().any(|c| {
        matches!(c, Command::Migrate { vcpu: v, to: ONE, reason: MoveReason::Donated { .. }, .. } if *v == vcpu(0, 1))
    });
    assert!(came, "{out:?}");
    assert_eq!(pick(&mut s, ONE, end), Some(vcpu(0, 1)));
    // And it goes home after it: two of one machine that stayed on one CPU would have that one for both.
    let after = end + 2_000_000;
    tell(&mut s, after, charge(ONE, vcpu(0, 1)));
    assert_eq!(pick(&mut s, ONE, after), Some(vcpu(0, 0)));
    assert_eq!(s.vcpu(vcpu(0, 1)).map(|v| v.cpu), Some(CpuId(1)));
}

#[test]
fn spinning_gains_a_machine_nothing() {
    // One machine spins all the time, another of the same size computes: each gets its half.
    let mut sim = Sim::new(1, 2, 5);
    for i in 0..3 {
        let spins = Load::Spins {
            run: Nanos::from_micros(300),
        };
        sim.add(vcpu(0, i), VcpuSpec::default(), spins);
        sim.busy(vcpu(1, i), 256);
    }
    sim.run(Nanos::from_secs(10));
    let ran = |vm| (0..3).map(|i| sim.ran(vcpu(vm, i)).0).sum::<u64>();
    let (spinner, other) = (ran(0), ran(1));
    assert!(sim.spins > 1000, "it spun: {}", sim.spins);
    assert!(spinner <= other + 200_000_000, "{spinner} against {other}");
    assert!(
        spinner + other > 19_900_000_000,
        "nothing is lost: {spinner} + {other}"
    );
}

#[test]
fn a_visitor_that_is_taken_elsewhere_does_not_go_home_from_there() {
    let mut s = machine(3, Tunables::default());
    let (donor, heir) = (vcpu(0, 0), vcpu(0, 1));
    for (v, cpu) in [(donor, 0), (vcpu(1, 0), 1), (vcpu(2, 0), 2)] {
        add(&mut s, v, 256, cpu);
        assert_eq!(pick(&mut s, CpuId(cpu), 2), Some(v));
    }
    add(&mut s, heir, 256, 1);
    let anywhere = Event::Respecified {
        vcpu: heir,
        spec: VcpuSpec::default(),
    };
    tell(&mut s, 3, anywhere);
    let charge = |cpu: u32, vcpu| Event::Charge {
        cpu: CpuId(cpu),
        vcpu,
        ran: Nanos::from_millis(1),
    };
    tell(&mut s, 1_000_002, charge(0, donor));
    tell(&mut s, 1_000_002, Event::Spin { vcpu: donor });
    let on = |s: &Scheduler| s.vcpu(heir).expect("known").cpu;
    assert_eq!(on(&s), CpuId(0), "it visits");
    // A CPU that runs out of work is quicker than the one that it came to.
    tell(&mut s, 1_000_003, charge(2, vcpu(2, 0)));
    tell(&mut s, 1_000_003, Event::Block { vcpu: vcpu(2, 0) });
    assert_eq!(pick(&mut s, CpuId(2), 1_000_004), Some(heir));
    tell(&mut s, 2_000_004, charge(2, heir));
    let mut out = Commands::new();
    let next = s.pick(CpuId(2), Nanos(2_000_004), &mut out);
    assert!(matches!(next, Next::Run { vcpu, .. } if vcpu == heir));
    assert_eq!(out.as_slice(), [], "nobody sends it to where it was before");
    assert_eq!(on(&s), CpuId(2));
}
