//! What looking at accessed bits costs a VM that works: entries that flush, CPUs that are interrupted, time, notes.
//!
//! The guest `probe` works all the time on pages as a seed draws, and somebody else's heartbeat tells when to ask. The
//! intervals of looking must interrupt nobody: what CPUs have cached goes when they enter anyway. Now and then Perigee
//! looks closely, which takes granules apart and interrupts who is inside; once it knows what is hot, rarely.

use std::time::Duration;

use super::GO;
use super::random::Random;
use crate::{Evidence, Machine, Scenario, Vm};

const NAME: &str = "probe";
const BEAT: &str = "[beat] COUNT ms=";
/// Heartbeats, a second each, until the hot set is known, and for how long the cost is taken then.
const SETTLES: usize = 20;
/// See [`SETTLES`].
const TAKEN: usize = 20;
/// Flushes of a virtual CPU in a second, and the parts of a CPU and of memory that looking may take.
const FLUSHES: u64 = 10;
/// See [`FLUSHES`].
const TIME_PER_MILLE: u64 = 32;
/// See [`FLUSHES`].
const NOTES_PER_MILLE: u64 = 2;
/// Milliseconds from one close look to the next, at least.
const CLOSE_LOOK_MS: u64 = 4000;
/// What the guest has.
const MIB: u64 = 128;

/// The trials of this file.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let seed = u64::from(Random::new(seed ^ 0x100c).between(1, u32::MAX));
    let words = format!("touch layout=scattered seed={seed} mib=64 seconds=10");
    let ask = format!("footprint {NAME}\r");
    let trial = Scenario::full(
        "looking-costs-little",
        "once a working VM's hot set is known, looking goes on, interrupts no CPU but for rare close looks, flushes at most ten entries a second, and takes little",
        costs_little,
    )
    .on(Machine::row(2, 1, 512))
    .vm(Vm::probe(NAME, &words)
        .set("memory", &format!("\"{MIB}M\""))
        .set("cpu_affinity", "{ cpus = [0] }")
        .set("mode", "\"off\""))
    .vm(Vm::probe("beat", &format!("count seconds={}", SETTLES + TAKEN + 10))
        .set("memory", "\"34M\"")
        .set("cpu_affinity", "{ cpus = [1] }")
        .set("mode", "\"off\""))
    .seeded(seed)
    .within(Duration::from_secs(400));
    let trial = trial.wait_for(BEAT, SETTLES - 1).type_after(BEAT, &ask);
    let trial = trial.wait_for(BEAT, TAKEN - 1);
    vec![trial.type_after(BEAT, &format!("{ask}{GO}"))]
}

/// What one answer says that looking had cost until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    looks: u64,
    stale: u64,
    took_ms: u64,
    notes_kib: u64,
    flushes: u64,
    /// Shootdowns for close looks at this VM, CPUs that were interrupted by those of all VMs, and by all shootdowns.
    closely: u64,
    by_close_looks: u64,
    interrupted: u64,
}

fn costs_little(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let [before, after] = asked(e)?;
    // By the heartbeats: an emulator's second may be longer than ours.
    let ms = 1000 * TAKEN as u64;
    let of = |then: u64, now: u64| now.saturating_sub(then);
    let figures = format!(
        "in {ms} ms {} looks ({} stale) took {} ms, {} entries flushed, {} CPUs were interrupted, {} of them by close looks, of which {} were at this VM; {} KiB of notes",
        of(before.looks, after.looks),
        of(before.stale, after.stale),
        of(before.took_ms, after.took_ms),
        of(before.flushes, after.flushes),
        of(before.interrupted, after.interrupted),
        of(before.by_close_looks, after.by_close_looks),
        of(before.closely, after.closely),
        after.notes_kib,
    );
    let bounds = [
        // A second is looked at once at least, and most looks see something.
        (of(before.looks, after.looks) >= ms / 1000, "too few looks"),
        (
            2 * of(before.stale, after.stale) <= of(before.looks, after.looks),
            "too many were in vain",
        ),
        (
            // Nothing else happens meanwhile.
            of(before.interrupted, after.interrupted)
                == of(before.by_close_looks, after.by_close_looks),
            "intervals interrupted CPUs",
        ),
        (
            of(before.closely, after.closely) * CLOSE_LOOK_MS <= ms,
            "too many close looks",
        ),
        (
            of(before.flushes, after.flushes) * 1000 <= FLUSHES * ms,
            "too many flushes",
        ),
        (
            of(before.took_ms, after.took_ms) * 1000 <= TIME_PER_MILLE * ms,
            "too much time",
        ),
        (
            after.notes_kib * 1000 <= NOTES_PER_MILLE * MIB * 1024,
            "too many notes",
        ),
    ];
    match bounds.iter().find(|(kept, _)| !kept) {
        Some((_, what)) => Err(format!("{what}: {figures}")),
        None => Ok(()),
    }
}

/// The two answers.
fn asked(e: &Evidence) -> Result<[Cost; 2], String> {
    let mut costs = Vec::new();
    for (i, line) in e.console.iter().enumerate() {
        if let Some(looked) = line.what.strip_prefix("looked ")
            && looked.contains(" stale) in ")
        {
            let closely = e.console.get(i + 1).map_or("", |line| line.what.as_str());
            let cost = cost(looked, closely);
            costs
                .push(cost.ok_or_else(|| format!("not understood: {:?}, {closely:?}", line.what))?);
        }
    }
    <[Cost; 2]>::try_from(costs).map_err(|costs| format!("two answers were expected: {costs:?}"))
}

fn cost(looked: &str, closely: &str) -> Option<Cost> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (looks, rest) = looked.split_once(" times (")?;
    let (stale, rest) = rest.split_once(" stale) in ")?;
    let (took, rest) = rest.split_once(" s, ")?;
    let (seconds, thousandths) = took.split_once('.')?;
    let (_, rest) = rest.split_once(", with ")?;
    let (notes, rest) = rest.split_once(" KiB of notes, ")?;
    let (_, rest) = rest.split_once(" % of its memory; ")?;
    let (closely, kicks) = closely.split_once("; ")?;
    let (_, closely) = closely.split_once(" granules by ")?;
    let (shootdowns, _) = closely.split_once(" shootdowns, ")?;
    // Of all VMs, like the total: somebody else's granules may be looked at closely meanwhile.
    let (interrupted, kicks) =
        kicks.split_once(" were interrupted for shootdowns of all kinds and VMs, ")?;
    let by_close_looks = kicks.strip_suffix(" of them by close looks")?;
    Some(Cost {
        looks: number(looks)?,
        stale: number(stale)?,
        took_ms: number(seconds)? * 1000 + number(thousandths)?,
        notes_kib: number(notes)?,
        flushes: number(rest.strip_suffix(" entries flushed")?)?,
        closely: number(shootdowns)?,
        by_close_looks: number(by_close_looks)?,
        interrupted: number(interrupted)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stamped;

    const LOOKED: &str = "looked 120 times (3 stale) in 0.110 s, now every 100 ms at 64 regions, with 9 KiB of notes, 0.007 % of its memory; 140 entries flushed";
    const CLOSELY: &str = "looked closely at 40 granules by 12 shootdowns, 0.003 s in all, that interrupted 6 CPUs; 9 were interrupted for shootdowns of all kinds and VMs, 9 of them by close looks";

    fn judged(second: &[&str]) -> Result<(), String> {
        let lines = [NAME, "beat"].map(|vm| {
            [
                format!("[{vm}] GUEST-UP cpus=1 kernel=probe"),
                format!("[{vm}] GUEST-RESULT ok"),
            ]
        });
        let lines: Vec<&str> = lines.iter().flatten().map(String::as_str).collect();
        let mut e = Evidence::clean(&[NAME, "beat"], &lines);
        for (at, lines) in [(30, &[LOOKED, CLOSELY][..]), (50, second)] {
            let stamped = |line: &&str| Stamped {
                at: Duration::from_secs(at),
                what: (*line).into(),
            };
            e.console.extend(lines.iter().map(stamped));
        }
        costs_little(&e)
    }

    #[test]
    fn little_convinces_and_more_does_not() {
        let with = |looks: u64, stale: u64, took: &str, notes: u64, flushes: u64| {
            format!(
                "looked {looks} times ({stale} stale) in {took} s, now every 100 ms at 64 regions, with {notes} KiB of notes, 0.007 % of its memory; {flushes} entries flushed"
            )
        };
        let refused = |lines: &[&str], why: &str| {
            let verdict = judged(lines);
            assert!(
                verdict.as_ref().is_err_and(|said| said.contains(why)),
                "{verdict:?}"
            );
        };
        let good = with(320, 5, "0.300", 9, 339);
        assert_eq!(judged(&[&good, CLOSELY]), Ok(()));
        refused(
            &[&good, &CLOSELY.replace("; 9 were", "; 10 were")],
            "intervals interrupted",
        );
        refused(
            &[&good, &CLOSELY.replace("12 shootdowns", "18 shootdowns")],
            "close looks",
        );
        refused(&[&with(135, 5, "0.300", 9, 339), CLOSELY], "too few looks");
        refused(&[&with(320, 203, "0.300", 9, 339), CLOSELY], "in vain");
        refused(&[&with(320, 5, "0.300", 9, 341), CLOSELY], "flushes");
        refused(&[&with(320, 5, "0.800", 9, 339), CLOSELY], "time");
        refused(&[&with(320, 5, "0.300", 300, 339), CLOSELY], "notes");
        refused(&[&good], "not understood");
        refused(&[], "two answers");
    }
}
