//! What others cost a guest that works without pause (`tests/guests/hostile`, `attack=count`).
//!
//! Instructions in a second would say how busy the host of the emulator is. Two shares do not:
//!
//! * of the time by its own clock, how much it had a CPU, by the kernel's clock;
//! * of the instructions that its CPU executed in its laps, how many were its own. The others are the hypervisor's,
//!   for whatever reason: interrupts, messages of other CPUs, locks that it waited for. An observer outside counts
//!   them.
//!
//! Their product is its pace, as a share of the pace that it would have alone on a CPU without a hypervisor.

use crate::{Emulator, Evidence};

/// What the observer is asked for.
pub(super) const OBSERVER: &str = "host=count";
/// A neighbour's pace, in percent, is at least this.
const LEAST: u64 = 90;
/// The observer's number for a lap of it.
const CLASS: u64 = 40;
/// Fewer laps show nothing.
const FEWEST_LAPS: u64 = 20;

/// The neighbour alone on its CPU kept its pace.
pub(super) fn kept(e: &Evidence, vm: &str) -> Result<(), String> {
    let (time, work) = (time_share(e, vm)?, work_share(e, vm)?);
    // Parts of ten thousand, each.
    if time * work < LEAST * 1_000_000 {
        return Err(format!(
            "{vm} had a CPU for {time} of 10000 parts of its time, and {work} of 10000 instructions there were its own"
        ));
    }
    Ok(())
}

/// The neighbour had a CPU for nine tenths of its fair share, in percent, at least.
pub(super) fn ran(e: &Evidence, vm: &str, fair: u64) -> Result<(), String> {
    let time = time_share(e, vm)?;
    if time < fair * LEAST {
        return Err(format!(
            "{vm} had a CPU for {time} of 10000 parts of its time; {fair} % are its share"
        ));
    }
    Ok(())
}

/// Nine tenths of the neighbour's laps ended while the attack went on.
pub(super) fn meanwhile(e: &Evidence, attacker: &str, vm: &str) -> Result<(), String> {
    let said = |word: &'static str| {
        e.guest_lines(attacker)
            .filter(move |l| l.what.starts_with("ATTACK ") && l.what.contains(word))
            .map(|l| l.at)
    };
    let (Some(begins), Some(is_over)) = (said("begins").next(), said("is over").last()) else {
        return Err(format!("{attacker} did not say when it attacked"));
    };
    let attack = begins..is_over;
    let laps: Vec<_> = e
        .guest_lines(vm)
        .filter(|l| l.what.starts_with("COUNT "))
        .map(|l| attack.contains(&l.at))
        .collect();
    let during = laps.iter().filter(|during| **during).count();
    if during * 10 < laps.len() * 9 {
        return Err(format!(
            "only {during} of {} laps were run under attack",
            laps.len()
        ));
    }
    Ok(())
}

/// Instructions that it counted, and the microseconds that it took.
fn counted(e: &Evidence, vm: &str) -> Result<(u64, u64), String> {
    e.guest_lines(vm)
        .find_map(|line| {
            let (all, took) = line
                .what
                .trim()
                .strip_prefix("COUNTED ")?
                .split_once(" instructions in ")?;
            Some((all.parse().ok()?, took.strip_suffix(" us")?.parse().ok()?))
        })
        .ok_or_else(|| format!("{vm} did not say how far it came"))
}

/// Parts of ten thousand of its time that it had a CPU.
fn time_share(e: &Evidence, vm: &str) -> Result<u64, String> {
    let (_, took) = counted(e, vm)?;
    let said = format!("[{vm}] COUNTED ");
    let ran = e
        .console
        .iter()
        .skip_while(|line| !line.what.contains(&said))
        .find_map(|line| {
            let mut words = line.what.split_whitespace();
            let row = words.next()?.parse::<u32>().is_ok() && words.next() == Some(vm);
            let ran: f64 = line
                .what
                .trim()
                .strip_suffix(" s")?
                .rsplit(' ')
                .next()?
                .parse()
                .ok()?;
            row.then_some(ran)
        })
        .ok_or_else(|| format!("the operator was not told how long {vm} ran"))?;
    // Its start, before it counted, is in that too: little, and never more than the whole.
    Ok(((ran * 1e10 / took.max(1) as f64) as u64).min(10_000))
}

/// Parts of ten thousand instructions of its CPU that were its own; all, where nobody counts.
fn work_share(e: &Evidence, vm: &str) -> Result<u64, String> {
    if e.emulator == Emulator::Bochs {
        return Ok(10_000);
    }
    let (own, _) = counted(e, vm)?;
    let report = e
        .plugin
        .as_ref()
        .ok_or("the observer outside wrote no report")?;
    let classes = report["host"]["classes"].as_array();
    let laps = classes
        .into_iter()
        .flatten()
        .find(|class| class["class"] == CLASS)
        .ok_or("the observer outside saw no lap")?;
    let number = |value: &serde_json::Value| {
        value
            .as_u64()
            .ok_or("the observer's report has no such figure")
    };
    let (seen, others) = (number(&laps["operations"])?, number(&laps["own"]["total"])?);
    if report["shared_thread"] != false || seen < FEWEST_LAPS {
        return Err(format!(
            "the observer outside saw {seen} laps only, or cannot tell the CPUs apart"
        ));
    }
    Ok((u128::from(own) * 10_000 / u128::from(own + others).max(1)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Machine, Outcome, Stamped};
    use serde_json::json;
    use std::time::Duration;

    /// A neighbour that counted 9,000 instructions in ten seconds.
    fn evidence(ran: &str, others: u64) -> Evidence {
        let lines = [
            (0, "[mallory] ATTACK nmi begins"),
            (1, "  2  neighbour  running  1  32 MiB  node0  0.120 s"),
            (2, "[neighbour] COUNT 450"),
            (3, "[neighbour] COUNT 450"),
            (4, "[neighbour] COUNTED 9000 instructions in 10000000 us"),
            (5, "  1  mallory  running  1  32 MiB  node0  1.000 s"),
            (
                6,
                &format!("  2  neighbour  running  1  32 MiB  node0  {ran} s"),
            ),
            (9, "[mallory] ATTACK nmi is over"),
        ];
        let stamped = |(s, what): (u64, &str)| Stamped {
            at: Duration::from_secs(s),
            what: what.into(),
        };
        Evidence {
            emulator: Emulator::Qemu,
            machine: Machine::row(1, 2, 512),
            vms: vec!["mallory".into(), "neighbour".into()],
            outcome: Outcome::Clean,
            console: lines.map(stamped).into(),
            records: Vec::new(),
            torn_records: 0,
            plugin: Some(json!({"shared_thread": false, "host": {"classes": [
                {"class": CLASS, "operations": 20, "own": {"total": others}}]}})),
            seed: None,
        }
    }

    #[test]
    fn a_neighbour_that_suffers_is_noticed() {
        let pace = |ran, others| kept(&evidence(ran, others), "neighbour");
        assert_eq!(pace("10.210", 0), Ok(()));
        assert_eq!(pace("10.210", 900), Ok(()));
        assert!(pace("10.210", 1010).is_err_and(|why| why.contains("8991 of 10000")));
        assert_eq!(pace("9.010", 0), Ok(()));
        assert!(pace("8.900", 0).is_err_and(|why| why.contains("8900 of 10000 parts")));
        assert!(pace("9.400", 600).is_err(), "both together");
        assert!(ran(&evidence("4.6", 0), "neighbour", 50).is_ok());
        assert!(ran(&evidence("4.4", 0), "neighbour", 50).is_err());
    }

    #[test]
    fn evidence_that_shows_nothing_is_refused() {
        let refused = |change: fn(&mut Evidence), why: &str| {
            let mut e = evidence("10.0", 0);
            change(&mut e);
            kept(&e, "neighbour").is_err_and(|said| said.contains(why))
        };
        assert!(refused(|e| e.plugin = None, "no report"));
        assert!(refused(|e| e.plugin = Some(json!({})), "no lap"));
        assert!(refused(|e| e.console.truncate(6), "how long"));
        assert!(refused(|e| e.console.truncate(4), "how far"));
        let few = |e: &mut Evidence| {
            if let Some(plugin) = &mut e.plugin {
                plugin["host"]["classes"][0]["operations"] = 19.into();
            }
        };
        assert!(refused(few, "19 laps only"));
    }

    #[test]
    fn laps_after_the_attack_do_not_count() {
        let mut e = evidence("10.0", 0);
        assert_eq!(meanwhile(&e, "mallory", "neighbour"), Ok(()));
        e.console[3].at = Duration::from_secs(10);
        assert!(meanwhile(&e, "mallory", "neighbour").is_err_and(|why| why.contains("1 of 2")));
    }
}
