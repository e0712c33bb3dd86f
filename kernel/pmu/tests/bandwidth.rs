//! Bandwidth by the meter against bytes that a simulated cache really let through.

use pmu::bandwidth::simulated::SimulatedCache;
use pmu::bandwidth::{Absent, Event, Meter, Monitoring, Trouble, detect, take_part};
use pmu::registers::{IA32_PQR_ASSOC, IA32_QM_CTR, IA32_QM_EVTSEL};
use pmu::simulated::{SimulatedPmu, Writes};
use pmu::{CpuidValues, Fault, MsrPort};
use proptest::prelude::*;
use units::Nanos;

const TENTH: Nanos = Nanos::from_millis(100);
const GB: u64 = 1_000_000_000;

/// Intel's processors of this kind and AMD's, with whatever CPUID says of a cache.
fn xeon(cache: &SimulatedCache) -> CpuidValues {
    let mut cpuid = SimulatedPmu::skylake_sp(4, 48, Writes::Full).cpuid();
    cache.describe(&mut cpuid);
    cpuid
}

fn epyc(cache: &SimulatedCache) -> CpuidValues {
    let mut cpuid = SimulatedPmu::zen2().cpuid();
    cache.describe(&mut cpuid);
    cpuid
}

/// A cache with a count every 64 KiB, as Intel's first ones, and its meter.
fn first(width: u8) -> (SimulatedCache, Meter) {
    let cache = SimulatedCache::new(1 << 16, width);
    let monitoring = detect(&xeon(&cache)).expect("it is offered");
    (cache, Meter::new(monitoring))
}

/// Runs for `steps` tenths of a second, at the end of each of which the counts are read.
fn run(
    cache: &mut SimulatedCache,
    meter: &mut Meter,
    now: &mut Nanos,
    steps: u32,
    total: u64,
    local: u64,
) {
    for _ in 0..steps {
        *now += TENTH;
        cache.run(TENTH, total, local);
        meter.read(cache, *now).expect("no register is broken");
    }
}

fn about(rate: Option<u64>, wanted: u64) {
    let rate = rate.expect("it is known");
    // A tenth of a second ends within a unit of a count.
    let unit = 10 << 16;
    assert!(rate.abs_diff(wanted) <= unit, "{rate} should be {wanted}");
}

#[test]
fn what_is_offered_is_what_cpuid_says() {
    let intel = detect(&xeon(&SimulatedCache::new(1 << 16, 24))).expect("it is offered");
    let wanted = Monitoring {
        factor: 1 << 16,
        width: 24,
        total: true,
        local: true,
        source: "SDM 3B 18.18.5.2",
    };
    assert_eq!(intel, wanted);
    // 24 bits and 8 more.
    let wider = detect(&xeon(&SimulatedCache::new(96, 32))).expect("it is offered");
    assert_eq!((wider.width, wider.factor), (32, 96));
    // AMD says nothing of 44 bits.
    let mut cpuid = epyc(&SimulatedCache::new(64, 44));
    cpuid.leaf_f_1.eax = 0;
    let amd = detect(&cpuid).expect("it is offered");
    assert_eq!(
        (amd.width, amd.factor, amd.source),
        (44, 64, "APM 2 19.3.3")
    );
    // Or says so.
    let amd = detect(&epyc(&SimulatedCache::new(64, 40))).expect("it is offered");
    assert_eq!(amd.width, 40);
    // Hygon: HygonGenuine.
    cpuid.leaf_0.ebx = 0x6f67_7948;
    cpuid.leaf_0.edx = 0x6e65_476e;
    cpuid.leaf_0.ecx = 0x656e_6975;
    assert_eq!(detect(&cpuid).map(|m| m.width), Ok(32));
    // One event of two.
    let mut cpuid = xeon(&SimulatedCache::new(64, 24));
    cpuid.leaf_f_1.edx = 1 << 2;
    let half = detect(&cpuid).expect("half is offered");
    assert!(half.local && !half.total);
}

#[test]
fn what_is_absent_says_why() {
    let plain = SimulatedPmu::skylake_sp(4, 48, Writes::Full).cpuid();
    assert_eq!(detect(&plain), Err(Absent::NotOffered));
    let whole = xeon(&SimulatedCache::new(1 << 16, 24));
    let without = |change: fn(&mut CpuidValues)| {
        let mut cpuid = whole;
        change(&mut cpuid);
        detect(&cpuid)
    };
    assert_eq!(without(|c| c.leaf_7.ebx = 0), Err(Absent::NotOffered));
    assert_eq!(without(|c| c.leaf_f.edx = 0), Err(Absent::NotOffered));
    assert_eq!(without(|c| c.leaf_f_1.edx = 1), Err(Absent::NoEvents));
    let nonsense = |factor, offset| Err(Absent::Nonsense { factor, offset });
    assert_eq!(without(|c| c.leaf_f_1.ebx = 0), nonsense(0, 0));
    assert_eq!(without(|c| c.leaf_f_1.eax = 39), nonsense(1 << 16, 39));
    assert_eq!(without(|c| c.leaf_f_1.eax = 255), nonsense(1 << 16, 255));
    assert!(without(|c| c.leaf_f_1.eax = 38).is_ok());
    for why in [
        Absent::NotOffered,
        Absent::NoEvents,
        Absent::Nonsense {
            factor: 0,
            offset: 1,
        },
    ] {
        assert!(why.to_string().starts_with("CPUID offers "), "{why}");
    }
}

#[test]
fn rates_are_bytes_per_second_from_the_second_reading_on() {
    let (mut cache, mut meter) = first(24);
    let mut now = Nanos(5);
    run(&mut cache, &mut meter, &mut now, 1, 10 * GB, 6 * GB);
    assert_eq!(
        (meter.rates(now).total, meter.rates(now).local),
        (None, None)
    );
    run(&mut cache, &mut meter, &mut now, 1, 10 * GB, 6 * GB);
    about(meter.rates(now).total, 10 * GB);
    about(meter.rates(now).local, 6 * GB);
    assert_eq!((meter.rates(now).tried, meter.rates(now).known), (now, now));
    // A rise and a fall are seen within some seconds, and neither at once.
    run(&mut cache, &mut meter, &mut now, 1, 20 * GB, 6 * GB);
    about(meter.rates(now).total, 11 * GB);
    run(&mut cache, &mut meter, &mut now, 60, 0, 0);
    assert!(meter.rates(now).total < Some(GB / 10));
}

#[test]
fn a_count_that_wraps_goes_on() {
    // 1 TiB is a turn: at 250 GB/s more than three of them.
    let (mut cache, mut meter) = first(24);
    let mut now = Nanos::ZERO;
    run(&mut cache, &mut meter, &mut now, 1, 0, 0);
    for _ in 0..150 {
        run(&mut cache, &mut meter, &mut now, 1, 250 * GB, 100 * GB);
        about(meter.rates(now).total, 250 * GB);
        about(meter.rates(now).local, 100 * GB);
    }
}

#[test]
fn an_interval_in_which_it_may_have_wrapped_twice_is_not_believed() {
    let (mut cache, mut meter) = first(24);
    let mut now = Nanos::ZERO;
    run(&mut cache, &mut meter, &mut now, 2, 10 * GB, 0);
    let known = now;
    // A second is believed, more is not.
    cache.run(Nanos::from_secs(1), 20 * GB, 0);
    now += Nanos::from_secs(1);
    meter.read(&mut cache, now).expect("it is read");
    about(meter.rates(now).total, 20 * GB);
    assert_eq!(
        (meter.rates(now).known, meter.rates(now).trouble),
        (now, None)
    );
    assert!(now > known);
    let known = now;
    cache.run(Nanos::from_millis(1001), 500 * GB, 0);
    now += Nanos::from_millis(1001);
    meter.read(&mut cache, now).expect("it is read");
    about(meter.rates(now).total, 20 * GB);
    assert_eq!(meter.rates(now).trouble, Some(Trouble::TooLong));
    assert_eq!(
        (meter.rates(now).tried, meter.rates(now).known),
        (now, known)
    );
    // But it is where the next one begins.
    run(&mut cache, &mut meter, &mut now, 1, 20 * GB, 0);
    about(meter.rates(now).total, 20 * GB);
    assert_eq!(meter.rates(now).trouble, None);
    // Wider counts may be left alone for longer.
    assert_eq!(
        detect(&xeon(&SimulatedCache::new(64, 24))).map(|m| m.longest()),
        Ok(Nanos::from_secs(1))
    );
    assert_eq!(
        detect(&epyc(&SimulatedCache::new(64, 44))).map(|m| m.longest()),
        Ok(Nanos::from_secs(512))
    );
}

#[test]
fn where_the_processor_does_not_answer_the_last_rate_stays_and_says_so() {
    let (mut cache, mut meter) = first(24);
    let mut now = Nanos::ZERO;
    run(&mut cache, &mut meter, &mut now, 3, 10 * GB, 6 * GB);
    let known = now;
    cache.unavailable = true;
    run(&mut cache, &mut meter, &mut now, 5, 90 * GB, 90 * GB);
    let rates = meter.rates(now);
    about(rates.total, 10 * GB);
    assert_eq!(rates.trouble, Some(Trouble::Unavailable(Event::Local)));
    assert_eq!((rates.tried, rates.known), (now, known));
    // What went through meanwhile is in no rate: the next count is a beginning.
    cache.unavailable = false;
    run(&mut cache, &mut meter, &mut now, 1, 90 * GB, 90 * GB);
    about(meter.rates(now).total, 10 * GB);
    run(&mut cache, &mut meter, &mut now, 30, 10 * GB, 6 * GB);
    about(meter.rates(now).total, 10 * GB);
    assert_eq!(meter.rates(now).trouble, None);
    // An event that CPUID offers and the register does not know.
    cache.events = 1 << 1;
    run(&mut cache, &mut meter, &mut now, 30, 20 * GB, 20 * GB);
    assert_eq!(meter.rates(now).trouble, Some(Trouble::Error(Event::Local)));
    about(meter.rates(now).local, 6 * GB);
    assert!(meter.rates(now).total > Some(19 * GB));
}

#[test]
fn an_event_that_is_not_offered_is_not_asked_for() {
    let mut cache = SimulatedCache::new(64, 44);
    cache.events = 1 << 1;
    let mut meter = Meter::new(detect(&epyc(&cache)).expect("half is offered"));
    let mut now = Nanos::ZERO;
    run(&mut cache, &mut meter, &mut now, 2, GB, GB);
    assert_eq!(
        (meter.rates(now).total, meter.rates(now).local),
        (Some(GB), None)
    );
    assert_eq!(meter.rates(now).trouble, None);
}

#[test]
fn a_register_that_refuses_is_told() {
    for broken in [IA32_QM_EVTSEL, IA32_QM_CTR] {
        let (mut cache, mut meter) = first(24);
        cache.broken.push(broken);
        let refused = meter.read(&mut cache, TENTH);
        assert_eq!(refused, Err(Fault { register: broken }));
    }
    let (mut cache, _) = first(24);
    cache.broken.push(IA32_PQR_ASSOC);
    assert!(take_part(&mut cache).is_err());
}

#[test]
fn a_cpu_with_an_rmid_counts_once_it_takes_part_and_keeps_its_class() {
    let (mut cache, mut meter) = first(24);
    cache.association = 5 << 32 | 17;
    let mut now = Nanos::ZERO;
    run(&mut cache, &mut meter, &mut now, 2, GB, GB);
    assert_eq!(meter.rates(now).total, Some(0));
    take_part(&mut cache).expect("no register is broken");
    assert_eq!(cache.read(IA32_PQR_ASSOC), Ok(5 << 32));
    run(&mut cache, &mut meter, &mut now, 50, GB, GB);
    assert!(meter.rates(now).total > Some(GB / 10 * 9));
}

#[test]
fn a_rate_is_believed_for_a_while_and_nothing_goes_through_a_cache_whose_cpus_sleep() {
    let (mut cache, mut meter) = first(24);
    assert_eq!(meter.rates(Nanos::from_secs(50)).total, None);
    let mut now = Nanos::ZERO;
    run(&mut cache, &mut meter, &mut now, 1, GB, GB / 2);
    // Once is enough to know who sleeps, not to know a rate.
    assert_eq!(meter.rates(now).total, None);
    assert_eq!(meter.rates(now + Nanos::from_secs(5)).total, Some(0));
    run(&mut cache, &mut meter, &mut now, 2, GB, GB / 2);
    let known = now;
    let seconds = |s| known + Nanos::from_secs(s);
    about(meter.rates(seconds(1)).total, GB);
    assert_eq!(meter.rates(seconds(1) + Nanos(1)).total, Some(0));
    assert_eq!(meter.rates(seconds(1) + Nanos(1)).local, Some(0));
    cache.unavailable = true;
    run(&mut cache, &mut meter, &mut now, 100, GB, GB);
    about(meter.rates(now).local, GB / 2);
    assert_eq!(now, seconds(10));
    run(&mut cache, &mut meter, &mut now, 1, GB, GB);
    assert_eq!(meter.rates(now).total, None);
    // An event that is not offered does not become known by sleep.
    cache.events = 1 << 1;
    let mut meter = Meter::new(detect(&xeon(&cache)).expect("half is offered"));
    run(&mut cache, &mut meter, &mut now, 3, GB, GB);
    let later = now + Nanos::from_secs(5);
    assert_eq!(
        (meter.rates(later).total, meter.rates(later).local),
        (Some(0), None)
    );
}

proptest! {
    /// However long the intervals and however wide the counts: rates are means of what went through in them, rounded to counts.
    #[test]
    fn no_rate_leaves_the_range_of_what_went_through(
        width in 24u8..=62,
        steps in proptest::collection::vec((1u64..1000, 0u64..200), 2..60),
    ) {
        let (mut cache, mut meter) = first(width);
        let mut now = Nanos::ZERO;
        let (mut least, mut most) = (u64::MAX, 0);
        for (i, (ms, gb)) in steps.iter().enumerate() {
            let time = Nanos::from_millis(*ms);
            now += time;
            cache.run(time, gb * GB, gb * GB / 2);
            meter.read(&mut cache, now).expect("no register is broken");
            if i > 0 {
                let unit = (1000 << 16) / ms + 1;
                least = least.min((gb * GB).saturating_sub(unit));
                most = most.max(gb * GB + unit);
                let total = meter.rates(now).total.expect("two were read");
                prop_assert!((least.saturating_sub(60)..=most).contains(&total), "{} {} {}", least, total, most);
            }
        }
    }
}
