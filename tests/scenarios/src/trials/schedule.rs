//! Shares of CPU time, as the guests count them, and a run that repeats on the host.
//!
//! Guests count shares of what the machine executes, so they are judged where all CPUs execute equally much: in Bochs, whose CPUs
//! take turns, and in QEMU with a clock that counts instructions. By the host's clock QEMU's CPUs are threads that the host puts off
//! one by one, and guests of small weight counted a tenth less than their share, by what the host took.

use std::time::Duration;

use crate::{Evidence, Machine, Scenario, Tier, Vm};

/// Weights of the twelve counting VMs.
const WEIGHTS: [u64; 12] = [128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512];
/// How far a weight class may be from its share, in thousandths of it.
const OFF: u64 = 50;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![repeats(), shares()]
}

/// Four VMs that count on two CPUs and one that sleeps and wakes, with every step recorded.
fn repeats() -> Scenario {
    let mut scenario = Scenario::quick(
        "schedule-repeats",
        "every step of the scheduler that was recorded in the emulator comes out again on the host",
        |e| {
            e.every_guest_is_well(1)?;
            let events = e.events().cloned();
            let done = replay::replay_events(events)?;
            if done.picks < 200 || done.commands < 20 {
                return Err(format!(
                    "too little was recorded to show anything: {done:?}"
                ));
            }
            Ok(())
        },
    );
    // There nobody has seen it yet.
    scenario.bochs_tier = Tier::Gap;
    scenario
        .on(Machine::row(2, 1, 512))
        .host("trace", "true")
        .vm(Vm::probe("one", "count seconds=5"))
        .vm(Vm::probe("two", "count seconds=5").set("weight", "512"))
        .vm(Vm::probe("three", "count seconds=5").set("weight", "128"))
        .vm(Vm::probe("four", "count seconds=5"))
        .vm(Vm::probe("sleeper", "idle seconds=5 ms=20 ends"))
}

/// Twelve VMs of weights 1:2:4 on four CPUs.
fn shares() -> Scenario {
    let scenario = Scenario::full(
        "shares-by-weight",
        "twelve VMs with weights 1:2:4 on four CPUs progress by weight within 5 %, as they count it themselves",
        |e| {
            e.every_guest_is_well(1)?;
            let mut by_weight = [0u64; 3];
            for (i, weight) in WEIGHTS.iter().enumerate() {
                let rate = progress(e, &name(i))?;
                by_weight[class(*weight)] += rate;
            }
            let all: u64 = by_weight.iter().sum();
            for (class, parts) in [1, 2, 4].into_iter().enumerate() {
                let expected = all * parts / 7;
                if by_weight[class].abs_diff(expected) * 1000 > expected * OFF {
                    return Err(format!(
                        "weight class {parts} progressed by {} of {all}, not {expected}: {by_weight:?}",
                        by_weight[class]
                    ));
                }
            }
            Ok(())
        },
    );
    let scenario = scenario
        .on(Machine::row(1, 4, 1024))
        .observed("clock=20000")
        .within(Duration::from_secs(900))
        .within_in_bochs(Duration::from_secs(1800));
    WEIGHTS.iter().enumerate().fold(scenario, |s, (i, weight)| {
        s.vm(Vm::probe(&name(i), "count seconds=60")
            .set("memory", "\"34M\"")
            .set("weight", &weight.to_string()))
    })
}

fn name(i: usize) -> String {
    format!("vm{i}")
}

const fn class(weight: u64) -> usize {
    (weight / 256) as usize
}

/// What a guest counted between its tenth second and the last report before its 55th, in a second.
fn progress(e: &Evidence, vm: &str) -> Result<u64, String> {
    let reports: Vec<(u64, u64)> = e
        .guest_lines(vm)
        .filter_map(|line| {
            let rest = line.what.split_once("COUNT ms=")?.1;
            let (ms, n) = rest.split_once(" n=")?;
            Some((ms.parse().ok()?, n.trim().parse().ok()?))
        })
        .filter(|(ms, _)| (10_000..55_000).contains(ms))
        .collect();
    let (Some(first), Some(last)) = (reports.first(), reports.last()) else {
        return Err(format!("{vm} reported no progress"));
    };
    if last.0 < first.0 + 30_000 {
        return Err(format!("{vm} reported over {} ms only", last.0 - first.0));
    }
    Ok((last.1 - first.1) * 1_000_000 / (last.0 - first.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_fall_into_three_classes() {
        assert_eq!([128, 256, 512].map(class), [0, 1, 2]);
        let sum: u64 = WEIGHTS.iter().sum();
        assert_eq!(sum, 4 * 7 * 128);
    }
}
