//! Performance counters in the booted kernel. No emulator has any, so simulated ones stand behind the port where a
//! processor's would, and count what the trial says ([`config::Sabotage`], `inject-counters`): all above them is the kernel
//! that anybody runs. Without them it says that it has none, which the operator's trials see.

use std::time::Duration;

use telemetry::{Event, Pick};
use units::PerMille;

use super::GO;
use crate::{Evidence, Machine, Scenario, Tier, Vm};

/// The VM of the first trial, all of whose accesses are near; what beats beside it is a clock for the operator.
const NAME: &str = "probe";
const BEAT: &str = "[beat] COUNT ms=";
const CLOSED: &str = "PROBE window closed";
/// Passes of about a second until what was injected is believed: doubt remembers eight.
const PASSES: usize = 14;

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![contradict(), flip()]
}

/// Bits see touches of near memory only; counters say that nearly every read was far, and later that none was.
fn contradict() -> Scenario {
    let shares = "[{ node = 0, size = \"64M\" }, { node = 1 }]";
    let touch = "touch layout=hot seed=7 mib=16 seconds=8";
    let trial = Scenario::quick(
        "counters-contradict-the-bits",
        "counted far reads that contradict the accessed bits change the footprint and its confidence, and agreement mends both",
        footprint_follows,
    )
    .on(Machine::row(2, 1, 512))
    .on_bochs(Machine::row(2, 1, 256))
    .sabotaged("inject-counters")
    .vm(Vm::probe(NAME, touch).set("memory_nodes", shares).set("start_node", "0").set("mode", "\"off\""))
    .vm(Vm::probe("beat", "count seconds=55")
        .set("memory", "\"34M\"")
        .set("start_node", "1")
        .set("mode", "\"off\""))
    .within(Duration::from_secs(420));
    let far = format!("footprint {NAME}\rinject {NAME} local-dram=100000 remote-dram=4900000\r");
    let near =
        format!("footprint {NAME}\rcounters\rcounters {NAME}\rinject {NAME} local-dram=5000000\r");
    let trial = trial.type_after(CLOSED, &far);
    let trial = trial.wait_for(BEAT, PASSES).type_after(BEAT, &near);
    trial
        .wait_for(BEAT, PASSES + 4)
        .type_after(BEAT, &format!("footprint {NAME}\r{GO}"))
}

/// The footprint that the operator was shown at the n-th look: shares, and confidence. The answer names its pass; by time of
/// arrival a record may be the next one's.
fn shown(e: &Evidence, look: usize) -> Result<(Vec<PerMille>, PerMille), String> {
    let answers = e.console.iter().filter_map(|line| {
        let rest = line.what.strip_prefix("probe: busy, ")?;
        rest.split_once(" passes")?.0.parse::<u64>().ok()
    });
    let mut answers = answers.skip(look);
    let last = answers
        .next()
        .ok_or_else(|| format!("look {look} at {NAME}'s footprint was not answered"))?;
    let told = e.events().filter_map(|event| match event {
        Event::Footprint {
            name,
            pass,
            shares,
            confidence,
            ..
        } if name == NAME && *pass <= last => Some((shares.clone(), *confidence)),
        _ => None,
    });
    told.last()
        .ok_or_else(|| format!("no footprint of {NAME} was told up to pass {last}"))
}

fn footprint_follows(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let share = |shares: &[PerMille], node: usize| shares.get(node).map_or(0, |s| s.0);
    let (near, sure) = shown(e, 0)?;
    if share(&near, 0) < 950 || sure.0 < 950 {
        return Err(format!(
            "bits alone should say node 0, and be sure: {near:?}, {sure}"
        ));
    }
    // 98 % of counted reads are far. Bits and looks said none: doubt nears 0.98, of which half costs confidence.
    let (far, doubtful) = shown(e, 1)?;
    if share(&far, 1) < 900 {
        return Err(format!(
            "counted reads should take the footprint to node 1: {far:?}"
        ));
    }
    if !(480..=720).contains(&doubtful.0) {
        return Err(format!(
            "confidence should fall to a half and a little more, and is {doubtful}"
        ));
    }
    let (again, mended) = shown(e, 2)?;
    if share(&again, 0) < 950 || mended.0 < doubtful.0 + 150 {
        return Err(format!(
            "agreement should mend both: {again:?}, {mended} after {doubtful}"
        ));
    }
    counted_as_injected(e)?;
    for words in ["near and", "counters contradict by"] {
        e.line(words)
            .ok_or_else(|| format!("the operator was not told {words:?}"))?;
    }
    // The events' table, whichever family stands behind the port.
    let sources = ["(AMD 55803)", "Intel performance monitoring events"];
    let cited = sources.iter().any(|source| e.line(source).is_some());
    cited
        .then_some(())
        .ok_or_else(|| "the operator was not told where the events are from".into())
}

/// 49 far reads to one near, as often as was injected for the time in the guest, and no more.
fn counted_as_injected(e: &Evidence) -> Result<(), String> {
    let row = e.console.iter().find(|line| {
        let words: Vec<&str> = line.what.split_whitespace().collect();
        words.first() == Some(&"probe.0") && words.get(2) == Some(&"ms")
    });
    let row = row.ok_or("what was counted of probe.0 was not shown")?;
    // vCPU, N ms, then a column a kind: near reads are the fourth, far ones the fifth.
    let number = |column: usize| row.what.split_whitespace().nth(column)?.parse::<u64>().ok();
    let (Some(ms), Some(near), Some(far)) = (number(1), number(6), number(7)) else {
        return Err(format!("this is not what was counted: {}", row.what));
    };
    if near == 0 || far.abs_diff(49 * near) > near {
        return Err(format!(
            "49 far reads to a near one were injected, and counted: {}",
            row.what
        ));
    }
    if (near + far) > 5_000_000 / 1000 * ms {
        return Err(format!("more was counted than was injected: {}", row.what));
    }
    Ok(())
}

/// Three that count on one CPU, one of which comes to wait for memory.
fn flip() -> Scenario {
    let count = |name: &str| Vm::probe(name, "count seconds=14").set("memory", "\"34M\"");
    let stalls = "inject two cycles=1000000000 stall-cycles=900000000 local-dram=45000000\r";
    let mut trial = Scenario::quick(
        "miss-penalty-flips-a-pick",
        "a virtual CPU that counters see waiting for memory gives way to one that it would have preceded",
        penalty_decides,
    )
    .on(Machine::row(1, 1, 512))
    .on_bochs(Machine::row(1, 1, 256))
    .sabotaged("inject-counters")
    .host("trace", "true")
    .vm(count("one"))
    .vm(count("two"))
    .vm(count("three"))
    .type_after("[one] COUNT ms=", stalls)
    .within(Duration::from_secs(300));
    // The line for records is too slow there for every step of a scheduler, and what is lost cannot be repeated.
    trial.bochs_tier = Tier::Gap;
    let waited = trial.wait_for("[one] COUNT ms=", 4);
    waited.type_after("[one] COUNT ms=", "why two.0\rwhy one.0\rcounters two\r")
}

fn penalty_decides(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let said = |vm: &str| {
        let at = e
            .console
            .iter()
            .position(|line| line.what.contains(&format!("why {vm}.0")));
        let answer = e.console.iter().skip(at?);
        let mut sums = answer.filter(|line| line.what.contains("+ cache"));
        Some(sums.next()?.what.clone())
    };
    let (two, one) = (said("two"), said("one"));
    // Nine tenths of its time in the guest, of a millisecond; what the hypervisor does for it is not counted.
    let penalty = |sum: &String| -> Option<u64> {
        let us = sum.split_once("+ cache ")?.1.split_once(" us")?.0;
        us.split_once('.')?.0.parse().ok()
    };
    let shown = two
        .as_ref()
        .and_then(penalty)
        .is_some_and(|us| (500..=900).contains(&us));
    if !shown || !one.as_ref().is_some_and(|sum| sum.contains("+ cache 0 ns")) {
        return Err(format!(
            "the operator should see a penalty of `two` and none of `one`: {two:?}, {one:?}"
        ));
    }
    let flips = replay::flipped_by_penalties(e.events().cloned())?;
    let waits = |pick: &Pick| pick.vcpu.vm.0 == 1;
    match flips.iter().find(|f| waits(&f.with) || !waits(&f.without)) {
        Some(flip) => Err(format!("a penalty helped who has it: {flip:?}")),
        None if flips.is_empty() => {
            Err("no pick would have come out otherwise without penalties".into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stamped;
    use crate::trials::counted::tests::evidence;
    use telemetry::Record;
    use units::{Nanos, VmId};

    /// A run with three footprints, as thousandths on node 0 and of confidence, and this row of counts.
    fn run(told: [(u16, u16); 3], row: &str) -> Evidence {
        let mut e = evidence(serde_json::json!(null));
        let second = |s: usize| Duration::from_secs(s as u64);
        let mut say = |s: usize, what: &str| {
            let (at, what) = (second(s), what.into());
            e.console.push(Stamped { at, what });
        };
        say(3, row);
        say(
            3,
            "counted 1 near and 49 far reads from node0 in the last pass; counters contradict by 84.7 %",
        );
        say(
            3,
            "  1  local-dram  PPR Family 17h Model 31h B0 (AMD 55803), core performance monitor counters",
        );
        for (i, _) in told.iter().enumerate() {
            say(
                i,
                &format!("probe: busy, {} passes, confidence 0.0 %", 10 * i + 9),
            );
        }
        for (i, (near, confidence)) in told.into_iter().enumerate() {
            let event = Event::Footprint {
                vm: VmId(0),
                name: NAME.into(),
                pass: 10 * i as u64 + 8,
                matrix: Vec::new(),
                shares: vec![PerMille(near), PerMille(1000 - near)],
                resident: Vec::new(),
                confidence: PerMille(confidence),
                groups: Vec::new(),
            };
            let what = Record {
                at_ns: Nanos(0),
                seq: 0,
                event,
            };
            let at = second(i);
            e.records.push(Stamped { at, what });
        }
        e
    }

    #[test]
    fn a_footprint_that_follows_its_counters_convinces() {
        let row = "  probe.0  23485 ms  0  0  0  1415503  69362624  -  14.8 %";
        let good = [(990, 986), (20, 574), (995, 946)];
        assert_eq!(footprint_follows(&run(good, row)), Ok(()));
        let refused = |told, row: &str, why: &str| {
            let verdict = footprint_follows(&run(told, row));
            assert!(
                verdict.as_ref().is_err_and(|said| said.contains(why)),
                "{verdict:?}"
            );
        };
        refused([(500, 986), good[1], good[2]], row, "bits alone");
        refused([good[0], (600, 574), good[2]], row, "to node 1");
        refused([good[0], (20, 980), good[2]], row, "fall to a half");
        refused([good[0], good[1], (995, 580)], row, "mend both");
        let wrong = "  probe.0  23485 ms  0  0  0  1415503  60000000  -  14.8 %";
        refused(good, wrong, "49 far reads");
        let much = "  probe.0  10000 ms  0  0  0  1415503  69362624  -  14.8 %";
        refused(good, much, "more was counted");
    }
}
