//! Counts by the plane against counters of 128 bits that never stop, over random schedules.

use pmu::simulated::{Code, Side, SimulatedPmu, Writes};
use pmu::{Absent, Bank, Course, Fault, Kind, MsrPort, Plan, Quota, Tally};
use proptest::prelude::*;
use units::Nanos;

const KINDS: usize = Kind::ALL.len();

/// The processors of the trials.
fn processor(which: u8, width: u8) -> SimulatedPmu {
    match which % 5 {
        0 => SimulatedPmu::skylake_sp(4, width, Writes::Low),
        1 => SimulatedPmu::skylake_sp(8, width, Writes::Full),
        2 => SimulatedPmu::skylake_sp(2, width, Writes::Full),
        3 => SimulatedPmu::zen2(),
        _ => SimulatedPmu::zen4(),
    }
}

/// A machine of such processors, its virtual CPUs, and what really happened to each of them.
struct Machine {
    plan: Plan,
    cpus: Vec<(SimulatedPmu, Bank)>,
    vcpus: Vec<(Course, Tally, [u128; KINDS])>,
    now: Nanos,
}

impl Machine {
    fn new(model: &SimulatedPmu, quota: u8, cpus: usize, vcpus: usize) -> Self {
        let plan = Plan::new(model.unit().expect("it has counters"), Quota(quota))
            .expect("some may be used");
        let cpus = (0..cpus).map(|_| {
            let mut pmu = model.clone();
            let bank = Bank::claim(&plan, &mut pmu).expect("all are free");
            (pmu, bank)
        });
        Self {
            cpus: cpus.collect(),
            plan,
            vcpus: vec![Default::default(); vcpus],
            now: Nanos(17),
        }
    }

    /// A virtual CPU stays on a CPU for some entries; `rates` is how often each kind happens in a ns of each. Between
    /// entries the hypervisor runs, in which as much happens.
    fn stay(&mut self, vcpu: usize, cpu: usize, entries: &[(u32, [u64; KINDS])]) {
        let (pmu, bank) = &mut self.cpus[cpu];
        let (course, tally, truth) = &mut self.vcpus[vcpu];
        bank.load(pmu, course, self.now)
            .expect("no register is broken");
        let events = self.plan.unit().events.clone();
        let kind = |code: Code| {
            let is = |e: &&pmu::Event| {
                (e.select, e.umask, e.cmask) == (code.select, code.umask, code.cmask)
            };
            events.iter().find(is).map(|e| e.kind as usize)
        };
        for (ns, rates) in entries {
            let happened = |code: Code| kind(code).map_or(0, |k| u64::from(*ns) * rates[k]);
            pmu.advance(Side::Host, happened);
            bank.open(pmu).expect("no register is broken");
            pmu.advance(Side::Guest, happened);
            for (sum, rate) in truth.iter_mut().zip(rates) {
                *sum += u128::from(*ns) * u128::from(*rate);
            }
            bank.close(pmu).expect("no register is broken");
            pmu.advance(Side::Host, happened);
            self.now += Nanos(u64::from(*ns));
        }
        assert!(!pmu.interrupts());
        let reading = bank
            .unload(pmu, course, self.now)
            .expect("no register is broken");
        tally.add(&reading.expect("it was loaded"));
    }
}

fn rates(limits: std::ops::Range<u64>) -> impl Strategy<Value = [u64; KINDS]> {
    prop::array::uniform6(limits)
}

type Entries = Vec<(u32, [u64; KINDS])>;

/// Stays of three virtual CPUs on two CPUs.
fn schedule(limits: std::ops::Range<u64>) -> impl Strategy<Value = Vec<(usize, usize, Entries)>> {
    let entries = prop::collection::vec((1u32..4_000_000, rates(limits)), 1..4);
    prop::collection::vec((0usize..3, 0usize..2, entries), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// With a counter for each event nothing is estimated: every count is the truth, over wraps and moves.
    #[test]
    fn counts_are_exact_where_all_events_fit(which in 0u8..5, width in 40u8..64, stays in schedule(0..5000)) {
        let model = processor(which, width);
        let events = model.unit().expect("counters").events.len();
        prop_assume!(model.unit().expect("counters").counters as usize >= events && which % 5 != 0);
        let mut machine = Machine::new(&model, 8, 2, 3);
        prop_assert_eq!(machine.plan.groups().len(), 1);
        for (vcpu, cpu, entries) in &stays {
            machine.stay(*vcpu, *cpu, entries);
        }
        for (_, tally, truth) in &machine.vcpus {
            for event in &machine.plan.unit().events {
                let counted = tally.estimate(event.kind).unwrap_or(0);
                prop_assert_eq!(u128::from(counted), truth[event.kind as usize], "{}", event.kind);
            }
        }
    }

    /// With counters of 32 bits, which wrap in every other stay and overtake their start in some, still no count is lost.
    #[test]
    fn narrow_counters_wrap_and_lose_nothing(stays in schedule(0..530)) {
        let model = SimulatedPmu::skylake_sp(8, 32, Writes::Low);
        let mut machine = Machine::new(&model, 8, 2, 3);
        for (vcpu, cpu, entries) in &stays {
            machine.stay(*vcpu, *cpu, entries);
        }
        for (_, tally, truth) in &machine.vcpus {
            for kind in Kind::ALL {
                prop_assert_eq!(u128::from(tally.estimate(kind).unwrap_or(0)), truth[kind as usize], "{}", kind);
            }
        }
    }

    /// With too few, the estimate errs by the spread of the rates over the time that was not watched, as documented.
    #[test]
    fn estimates_keep_their_documented_error(
        which in 0u8..5, quota in 1u8..5, low in 0u64..400, spread in 0u64..400, seed in schedule(0..1000),
    ) {
        let model = processor(which, 48);
        let mut machine = Machine::new(&model, quota, 2, 3);
        for (vcpu, cpu, entries) in &seed {
            let bounded = |rates: &[u64; KINDS]| rates.map(|r| low + r % (spread + 1));
            let entries: Entries = entries.iter().map(|(ns, r)| (*ns, bounded(r))).collect();
            machine.stay(*vcpu, *cpu, &entries);
        }
        for (_, tally, truth) in &machine.vcpus {
            for event in &machine.plan.unit().events {
                let running = tally.running(event.kind);
                let Some(estimate) = tally.estimate(event.kind) else {
                    prop_assert_eq!(running, Nanos::ZERO);
                    continue;
                };
                let unseen = u128::from(tally.enabled().since(running).0);
                let error = u128::from(estimate).abs_diff(truth[event.kind as usize]);
                prop_assert!(error <= u128::from(spread) * unseen + 1, "{} is off by {error}", event.kind);
            }
        }
    }
}

#[test]
fn groups_take_turns_and_a_steady_program_is_estimated_exactly() {
    let model = SimulatedPmu::skylake_sp(2, 48, Writes::Full);
    let mut machine = Machine::new(&model, 2, 2, 1);
    assert_eq!(machine.plan.groups().len(), 3);
    for turn in 0..300 {
        machine.stay(0, turn % 2, &[(5_000_000, [7, 6, 5, 4, 3, 2])]);
    }
    let (_, tally, truth) = &machine.vcpus[0];
    for kind in Kind::ALL {
        // A third of the time each, to a turn.
        let running = tally.running(kind).0 * 3 / 5_000_000;
        assert!(
            (290..=310).contains(&running),
            "{kind} ran for {running} of 300"
        );
        assert_eq!(
            tally.estimate(kind).map(u128::from),
            Some(truth[kind as usize])
        );
    }
}

#[test]
fn what_belongs_together_is_counted_together() {
    for quota in 2..=6 {
        for which in 0..5 {
            let unit = processor(which, 48).unit().expect("counters");
            let plan = Plan::new(unit, Quota(quota)).expect("some");
            let group_of = |kind| {
                plan.groups()
                    .iter()
                    .position(|g| g.iter().any(|e| e.kind == kind))
            };
            assert_eq!(group_of(Kind::LocalDram), group_of(Kind::RemoteDram));
            assert!(
                plan.groups().iter().all(|g| g.len() <= usize::from(quota)),
                "{plan:?}"
            );
        }
    }
}

/// A port that keeps account of which registers are written.
struct Watched<'p> {
    pmu: &'p mut SimulatedPmu,
    written: Vec<u32>,
}

impl MsrPort for Watched<'_> {
    fn read(&mut self, register: u32) -> Result<u64, Fault> {
        self.pmu.read(register)
    }
    fn write(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        self.written.push(register);
        self.pmu.write(register, value)
    }
}

#[test]
fn what_firmware_uses_stays_its_own() {
    for which in [0, 1, 3, 4] {
        let mut pmu = processor(which, 48);
        let unit = pmu.unit().expect("counters");
        let plan = Plan::new(unit.clone(), Quota(4)).expect("some");
        // Firmware counts cycles in counter 1, in guest and host alike.
        let select = unit.style.select(1);
        let firmwares = unit.style.selection(&unit.events[1]) & !pmu::registers::GUEST_ONLY;
        pmu.write(select, firmwares).expect("a register");
        if let Some(global) = unit.style.global() {
            pmu.write(global.control, 0b10).expect("a register");
        }
        let mut port = Watched {
            pmu: &mut pmu,
            written: Vec::new(),
        };
        let mut bank = Bank::claim(&plan, &mut port).expect("the others are free");
        let mut course = Course::default();
        for i in 0..40 {
            bank.load(&mut port, &mut course, Nanos(i * 6_000_000))
                .expect("works");
            bank.open(&mut port).expect("works");
            port.pmu.advance(Side::Guest, |_| 10);
            bank.close(&mut port).expect("works");
            port.pmu.advance(Side::Host, |_| 5);
            let now = Nanos((i + 1) * 6_000_000);
            bank.unload(&mut port, &mut course, now).expect("works");
        }
        let own = [select, unit.style.counter(1)];
        assert!(
            port.written.iter().all(|r| !own.contains(r)),
            "{which}: {:x?}",
            port.written
        );
        assert_eq!(pmu.counter(1), 40 * 15, "firmware's counter ran on");
        assert_eq!(pmu.read(select), Ok(firmwares));
    }
}

#[test]
fn where_counters_are_taken_or_false_there_are_none() {
    let model = SimulatedPmu::skylake_sp(4, 48, Writes::Full);
    let plan = Plan::new(model.unit().expect("counters"), Quota::default()).expect("some");
    let mut taken = model.clone();
    for counter in 0..4 {
        taken
            .write(0x186 + counter, pmu::registers::EN)
            .expect("a register");
    }
    assert_eq!(
        Bank::claim(&plan, &mut taken).map(|_| ()),
        Err(Absent::Taken)
    );

    // As some hypervisors have it: registers that read as zero whatever is written.
    struct Zeros;
    impl MsrPort for Zeros {
        fn read(&mut self, _: u32) -> Result<u64, Fault> {
            Ok(0)
        }
        fn write(&mut self, _: u32, _: u64) -> Result<(), Fault> {
            Ok(())
        }
    }
    assert_eq!(
        Bank::claim(&plan, &mut Zeros).map(|_| ()),
        Err(Absent::Forgets { register: 0xc1 })
    );

    let mut broken = model.clone();
    broken.broken.push(0x187);
    assert_eq!(
        Bank::claim(&plan, &mut broken).map(|_| ()),
        Err(Absent::Refused(Fault { register: 0x187 }))
    );
    assert_eq!(
        Plan::new(model.unit().expect("counters"), Quota(0)).map(|_| ()),
        Err(Absent::NoQuota)
    );
}

#[test]
fn a_register_that_breaks_costs_a_stay_and_nothing_else() {
    let model = SimulatedPmu::zen4();
    let mut machine = Machine::new(&model, 4, 1, 1);
    machine.stay(0, 0, &[(1000, [3; KINDS])]);
    let (pmu, bank) = &mut machine.cpus[0];
    let course = &mut machine.vcpus[0].0;
    let counter = 0xc001_0207;
    pmu.broken.push(counter);
    assert_eq!(
        bank.load(pmu, course, Nanos(5000)),
        Err(Fault { register: counter })
    );
    assert_eq!(bank.unload(pmu, course, Nanos(6000)), Ok(None));
    pmu.broken.clear();
    machine.stay(0, 0, &[(1000, [3; KINDS])]);
    assert_eq!(machine.vcpus[0].1.estimate(Kind::LocalDram), Some(6000));
}

#[test]
fn no_more_counters_than_the_quota_are_written() {
    for quota in 1..=5 {
        for which in 0..5 {
            let mut pmu = processor(which, 48);
            let unit = pmu.unit().expect("counters");
            let plan = Plan::new(unit.clone(), Quota(quota)).expect("some");
            let mut port = Watched {
                pmu: &mut pmu,
                written: Vec::new(),
            };
            let mut bank = Bank::claim(&plan, &mut port).expect("free");
            let mut course = Course::default();
            for i in 0..20 {
                let at = |i: u64| Nanos(i * 20_000_000);
                bank.load(&mut port, &mut course, at(i)).expect("works");
                bank.open(&mut port).expect("works");
                bank.close(&mut port).expect("works");
                bank.unload(&mut port, &mut course, at(i + 1))
                    .expect("works");
            }
            let touched = |counter: &u8| {
                let mine = [unit.style.select(*counter), unit.style.counter(*counter)];
                port.written.iter().any(|r| mine.contains(r))
            };
            let touched = (0..unit.counters).filter(touched).count();
            assert!(touched <= usize::from(quota), "{which}: {touched}");
        }
    }
}

#[test]
fn quota_bounds_the_events_that_are_selected() {
    for (quota, most) in [(1, 1), (2, 2), (3, 3)] {
        let mut pmu = SimulatedPmu::zen2();
        let plan = Plan::new(pmu.unit().expect("counters"), Quota(quota)).expect("some");
        let mut bank = Bank::claim(&plan, &mut pmu).expect("free");
        assert!(bank.counters() <= most);
        let mut course = Course::default();
        for i in 0..20 {
            bank.load(&mut pmu, &mut course, Nanos(i * 20_000_000))
                .expect("works");
            let selected = (0..6)
                .filter(|c| pmu.read(0xc001_0200 + 2 * c).is_ok_and(|v| v != 0))
                .count();
            assert!(selected <= most, "{selected} of {most}");
            bank.unload(&mut pmu, &mut course, Nanos((i + 1) * 20_000_000))
                .expect("works");
        }
    }
}

#[test]
fn rates_become_counts_without_a_rest_lost() {
    let mut pmu = SimulatedPmu::zen2();
    let plan = Plan::new(pmu.unit().expect("counters"), Quota(6)).expect("some");
    let mut bank = Bank::claim(&plan, &mut pmu).expect("free");
    let (mut course, mut tally) = (Course::default(), Tally::new());
    let per_second = [1_000_003, 3_000_000_000, 17, 333_333, 666_667, 0];
    bank.load(&mut pmu, &mut course, Nanos::ZERO)
        .expect("works");
    // A second in unequal pieces; the hypervisor's are not counted.
    let mut time = 0;
    for piece in (1..).map(|i| 97_003 * (i % 13 + 1)) {
        let piece = piece.min(1_000_000_000 - time);
        pmu.run(Side::Guest, Nanos(piece), &per_second);
        pmu.run(Side::Host, Nanos(5_000_000_000), &[0; KINDS]);
        time += piece;
        if time == 1_000_000_000 {
            break;
        }
    }
    let reading = bank
        .unload(&mut pmu, &mut course, Nanos::from_secs(1))
        .expect("works");
    tally.add(&reading.expect("it was loaded"));
    for kind in [
        Kind::Instructions,
        Kind::Cycles,
        Kind::CacheMisses,
        Kind::LocalDram,
        Kind::RemoteDram,
    ] {
        assert_eq!(
            tally.estimate(kind),
            Some(per_second[kind as usize]),
            "{kind}"
        );
    }
}
