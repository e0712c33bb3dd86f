//! Classes of exit in Bochs, which has no observer outside but a clock that counts instructions.
//!
//! On a machine with one processor Bochs' TSC advances by one with each instruction, whoever executes it. The probe
//! reads it around each operation and says what it saw (`tests/guests/probe/src/ticks.rs`). That the clock counts
//! instructions is checked with a thousand of them.

use anyhow::{Context, Result, ensure};
use scenarios::{Emulator, Evidence, Machine, Vm};
use serde_json::{Value, json};

use super::CLASSES;
use super::boot::Measured;

/// The probe keeps no more operations of a class.
const MOST: u32 = 1000;
/// Instructions of the probe's check, and how far off the clock may be.
const KNOWN: u64 = 1000;
const OFF: u64 = 2;
/// The last class that one processor can have measured by its own clock: beyond are one in which it waits for a moment, and
/// one for two processors.
const LAST_CLASS: u64 = 10;

pub const ABOUT: &str = "\
Median over all operations of a class, by a clock that counts instructions, on a machine with one CPU. What reading the
clock costs is taken off; the few instructions of the operation itself are in it, and for an ipi those that
wait for it. A timer, whose operation waits, and an ipi to another CPU are not measured this way.";

/// Boots the probe in Bochs; what it measured.
///
/// # Errors
/// What cannot be built or started; a run that shows nothing; a clock that does not count instructions.
pub fn figures(count: u32) -> Result<Value> {
    of(&run(count.min(MOST))?)
}

fn run(count: u32) -> Result<Evidence> {
    let vm = Vm::probe("probe", &format!("bench ticks count={count}"));
    Measured {
        emulator: Emulator::Bochs,
        machine: &Machine::row(1, 1, 256),
        vm: vm.set("mode", "\"off\""),
        steps: &[],
        observer: None,
    }
    .run()
}

/// What the probe said.
fn of(evidence: &Evidence) -> Result<Value> {
    let lines: Vec<String> = evidence
        .guest_lines("probe")
        .map(|line| line.what.to_string())
        .collect();
    let said = |class: &str, key: &str| -> Result<u64> {
        let head = format!("TICKS {class} ");
        let number = lines.iter().find_map(|line| {
            let words = line.strip_prefix(&head)?.split_whitespace();
            let mut pairs = words.filter_map(|word| word.split_once('='));
            pairs.find(|(k, _)| *k == key)?.1.parse().ok()
        });
        number.with_context(|| format!("the probe does not say the {key} of {class}"))
    };
    let reading = said("nothing", "median")?;
    let known = said("thousand", "median")?.saturating_sub(reading);
    ensure!(
        known.abs_diff(KNOWN) <= OFF,
        "the clock does not count instructions: {KNOWN} of them took {known} ticks"
    );
    let mut rows = Vec::new();
    for (number, name, _) in CLASSES.iter().filter(|(number, ..)| *number <= LAST_CLASS) {
        let class = number.to_string();
        let cost = |key| Ok::<u64, anyhow::Error>(said(&class, key)?.saturating_sub(reading));
        rows.push(json!({
            "name": name,
            "operations": said(&class, "operations")?,
            "instructions": cost("median")?,
            "least": cost("least")?,
            "p90": cost("p90")?,
            "most": cost("most")?,
            "exits": 1,
        }));
    }
    Ok(json!({ "kind": "exit", "lab": "bochs", "rows": rows }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scenarios::Outcome;
    use scenarios::Stamped;
    use std::time::Duration;

    fn evidence(known: u64, classes: u64) -> Evidence {
        let spread = |class: &str, median: u64| {
            format!("[probe] TICKS {class} operations=9 least=1 median={median} p90=900 most=999")
        };
        let mut lines = vec![spread("nothing", 20), spread("thousand", 20 + known)];
        lines.extend((1..=classes).map(|n| spread(&n.to_string(), 20 + n)));
        Evidence {
            emulator: Emulator::Bochs,
            machine: Machine::row(1, 1, 256),
            vms: vec!["probe".into()],
            outcome: Outcome::Clean,
            console: lines
                .into_iter()
                .map(|what| Stamped {
                    at: Duration::ZERO,
                    what,
                })
                .collect(),
            records: Vec::new(),
            torn_records: 0,
            plugin: None,
            seed: None,
        }
    }

    #[test]
    fn what_reading_the_clock_costs_is_taken_off() {
        let figures = of(&evidence(1001, 10)).expect("all is there");
        assert_eq!(figures["rows"][6]["instructions"], 7);
        assert_eq!(figures["rows"][6]["least"], 0);
        assert_eq!(figures["rows"].as_array().map(Vec::len), Some(10));
    }

    #[test]
    fn a_clock_of_another_kind_and_a_missing_class_are_refused() {
        let why = of(&evidence(400, 10)).expect_err("no count");
        assert!(why.to_string().contains("does not count"));
        let why = of(&evidence(1000, 9)).expect_err("less");
        assert!(why.to_string().contains("of 10"));
    }
}
