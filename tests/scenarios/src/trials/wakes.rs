//! How long it takes from waking up to running, on CPUs that are busy with others.
//!
//! Two CPUs have twice as many VMs that compute, and one more that sleeps for twenty milliseconds at a time. It is owed far
//! more than it takes, so it interrupts whoever computes. The scheduler counts
//! the waits; on a machine whose time is its instructions they are the scheduler's and not the host's.

use std::time::Duration;

use super::GO;
use super::operator::waits;
use crate::{Machine, Scenario, Tier, Vm};

/// One that sleeps.
const SLEEPER: &str = "sleeper";
/// What computes beside it.
const BUSY: [&str; 4] = ["one", "two", "three", "four"];
/// Wake-ups that are counted at least: ten seconds of them, but for some.
const WAKE_UPS: f64 = 400.0;
/// Half of its waits are no longer than this: 110 to 120 us were seen. If it did not interrupt who computes, it would be 390.
const P50_NS: f64 = 250_000.0;
/// All but a hundredth, which are five waits, are no longer than this: 0.85 to 1.31 ms were seen.
const P99_NS: f64 = 2_000_000.0;
/// None may be longer than a quantum.
const LONGEST_NS: f64 = 10_000_000.0;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let scenario = Scenario::full(
        "sleepers-run-soon-after-they-wake",
        "beside twice as many that compute as there are CPUs, one that sleeps runs soon after its wake-up",
        |e| {
            e.every_guest_is_well(1)?;
            let (count, ns) = waits(e, SLEEPER)?;
            let [p50, p99, longest] = ns;
            match count >= WAKE_UPS && p50 <= P50_NS && p99 <= P99_NS && longest <= LONGEST_NS {
                true => Ok(()),
                false => Err(format!(
                    "{count} wake-ups, waits (p50, p99, longest) of {ns:?} ns"
                )),
            }
        },
    );
    let mut scenario = scenario
        .on(Machine::row(1, 2, 512))
        .observed("clock=10000")
        .within(Duration::from_secs(600))
        .vm(Vm::probe(SLEEPER, "idle seconds=10 ms=20"))
        .type_after("PROBE window closed", "latency\r")
        .type_after("class normal", GO);
    // Bochs has no such clock for its timer's late interrupts.
    scenario.bochs_tier = Tier::Gap;
    vec![BUSY.into_iter().fold(scenario, |s, name| {
        s.vm(Vm::probe(name, "count seconds=14").set("memory", "\"34M\""))
    })]
}
