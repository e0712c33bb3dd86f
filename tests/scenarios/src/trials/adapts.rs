//! Thresholds that follow the load of the machine, there and back.

use std::time::Duration;

use telemetry::{Dial, Event};

use crate::{Evidence, Machine, Scenario, Vm};

/// The VM that hardly runs and outlives the two that only run.
const BEAT: &str = "beat";
const UP: &str = "time between looks: 2 times what the sampler wants now, was 1";
const DOWN: &str = "time between looks: 1 times what the sampler wants now, was 2";

/// Seconds until a rate that remembers about one is what was injected, and thresholds have followed.
const SETTLES: usize = 10;
const BUSY: &str = "copy budget: 25.0 % now, was 100.0 %";

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![of_cpus(), of_memory()]
}

fn of_cpus() -> Scenario {
    let trial = Scenario::quick(
        "thresholds-follow-the-load",
        "two CPUs go from full to nearly idle and back twice: each threshold is turned once a step, as documented, with its reason",
        |e| {
            e.every_guest_is_well(1)?;
            // Busy at the start, idle, busy, idle.
            turned(e, Dial::Interval, &[2, 1, 2, 1])?;
            turned(e, Dial::HotThreshold, &[4, 0, 4, 0])?;
            turned(e, Dial::Budget, &[500, 1000, 500, 1000])?;
            turned(e, Dial::Bonus, &[500, 750, 500, 750])?;
            let busy = "CPUs are busy from above 90.0 % until below 80.0 %";
            let last = " ago: copy budget: 100.0 % now, was 50.0 %";
            operator_saw(e, &["now: CPUs ", busy, "step 4 of 15", last])
        },
    );
    let burner = |name: &str| Vm::probe(name, "count seconds=8").set("memory", "\"34M\"");
    trial
        .on(Machine::row(2, 1, 512))
        .vm(burner("one"))
        .vm(burner("two"))
        .vm(Vm::probe(BEAT, "idle seconds=42 ms=500 ends").set("memory", "\"34M\""))
        .type_after(UP, "thresholds\r")
        .type_after(DOWN, "thresholds\rvm one start\rvm two start\r")
        .type_after(UP, "")
        .type_after(DOWN, "thresholds\r")
        .within(Duration::from_secs(300))
}

fn of_memory() -> Scenario {
    let trial = Scenario::quick(
        "thresholds-follow-the-memory",
        "a memory controller goes from idle to 84 % and back: thresholds are turned once a step, as documented",
        |e| {
            e.every_guest_is_well(1)?;
            turned(e, Dial::Interval, &[])?;
            turned(e, Dial::HotThreshold, &[8, 0])?;
            turned(e, Dial::Budget, &[250, 1000])?;
            turned(e, Dial::Bonus, &[1000, 750])?;
            operator_saw(e, &["step 8 of 15", "(busy)", "was 25.0 %"])
        },
    );
    let beat = format!("count seconds={}", 2 * SETTLES + 8);
    let line = "[beat] COUNT ms=";
    let trial = trial
        .on(Machine::row(2, 1, 512))
        // Its CPUs say that they share a cache, which tells traffic of one node only.
        .on_bochs(Machine::row(1, 2, 384))
        .sabotaged("inject-counters")
        .vm(Vm::probe(BEAT, &beat).set("memory", "\"34M\""))
        .type_after(line, "inject node 0 mb-s=36000\r")
        .type_after(BUSY, "thresholds\r")
        .within(Duration::from_secs(300));
    let trial = trial.wait_for(line, SETTLES - 1);
    trial
        .type_after(line, "inject node 0 mb-s=0\r")
        .type_after("was 25.0 %", "thresholds\r")
}

/// Whether a dial was turned to these values, in this order, and to no others.
fn turned(e: &Evidence, which: Dial, expected: &[u16]) -> Result<(), String> {
    let of = |event: &Event| match event {
        Event::Adapted { dial, to, .. } if *dial == which => Some(*to),
        _ => None,
    };
    let seen: Vec<u16> = e.events().filter_map(of).collect();
    match seen == expected {
        true => Ok(()),
        false => Err(format!(
            "{which} was turned to {seen:?}, expected {expected:?}"
        )),
    }
}

/// Whether the operator was shown all of these words.
fn operator_saw(e: &Evidence, words: &[&str]) -> Result<(), String> {
    match words.iter().find(|words| e.line(words).is_none()) {
        Some(words) => Err(format!("the operator was not shown {words:?}")),
        None => Ok(()),
    }
}
