//! Pages that move under a guest that knows every byte of them (`tests/guests/stamps`).
//!
//! Four processors compare and rewrite all of the guest's memory, one of them by an emulated port as well, while the
//! operator sends all pages from node to node: first as large leaves, then as small ones. Each node has page tables of
//! its own, so that every move changes several.

use std::time::Duration;

use telemetry::Event;
use units::PageSize;

use super::random::Random;
use crate::{Evidence, Machine, Outcome, Scenario, Tier, Vm};

const NAME: &str = "stamps";
/// MiB of the guest.
const MEMORY: u64 = 24;
/// Its leaves: a few less of 2 MiB, for the hole below 1 MiB.
const SMALL: u64 = MEMORY << 8;
/// What the guest says of a byte that it did not write.
const LOST: &str = "was not what was written";
/// How it begins to tell of such a byte.
const WRONG: &str = "STAMPS page ";
/// Bytes of a Linux guest that are moved at least: all it has, about five times.
const TOURED: u64 = 1 << 30;
/// Nodes that the pages of [`incremental`] are brought to.
const STOPS: u32 = 6;
const OVER: &str = "have been around";
/// Ctrl-A and the VM's digit, and back.
const QUIT: &str = "\u{1}1q\u{1}0";

/// The trials of this file.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    vec![
        incremental(seed),
        tour(
            Scenario::quick(
                "moves-lose-nothing",
                "all pages of a busy guest go from node to node, large and small, and every byte is what it wrote",
                |e| nothing_lost(e, 12, 2 * SMALL * 9 / 10, 1),
            ),
            Stops {
                large: 3,
                small: 2,
                turns: 3,
            },
        ),
        tour(
            Scenario::full(
                "moves-lose-nothing-200000",
                "the same 200,000 times, with a thousand that are written meanwhile",
                |e| nothing_lost(e, 100, 200_000, 1000),
            ),
            Stops {
                large: 40,
                small: 36,
                turns: 10,
            },
        )
        .within(Duration::from_secs(1800)),
        tour(
            Scenario::full(
                "moves-lose-nothing-slowly",
                "the same with a pause between any two steps of a move",
                |e| nothing_lost(e, 40, 3 * SMALL * 9 / 10, 100),
            ),
            Stops {
                large: 8,
                small: 4,
                turns: 3,
            },
        )
        .sabotaged("slow-moves"),
        looked_at(),
        linux_on_tour(),
        in_qemu_only(broken("map-early", "")),
        // In Bochs a store goes on through an old translation only where another store went a moment before.
        named(
            "moves-notice-map-early-under-stores",
            broken("map-early", "only=8").in_bochs_only(),
        ),
        broken("judge-early", ""),
        broken("forget-replica", ""),
    ]
}

/// A guest writes so many pages of one large leaf all the time, drawn from a seed that the hypervisor does not see.
fn incremental(seed: u64) -> Scenario {
    let pages = Random::new(seed ^ 0x1c0_91e5).between(9, 250);
    let judge = move |e: &Evidence| only_what_was_written(e, u64::from(pages));
    Scenario::quick(
        "moves-copy-again-what-was-written",
        "of a large page that moves under a guest exactly the 4 KiB that it writes are copied again",
        judge,
    )
    .seeded(seed)
    .on(Machine::row(2, 2, 256))
    .host("sample_ms", "60000")
    .vm(Vm::micro(NAME, "stamps", &format!("only={pages}"))
        .set("memory", &format!("\"{MEMORY}M\""))
        .set("cpu_affinity", "{ cpus = [1] }")
        .set("mode", "\"off\""))
    .type_after("[stamps] STAMPS ", &format!("migrate {NAME} around {STOPS}\r"))
    .type_after(OVER, QUIT)
    .within(Duration::from_secs(300))
}

/// In one round while the guest runs, and once more while it waits; each time all of them, or none if it did not run.
fn only_what_was_written(e: &Evidence, pages: u64) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    let large = e.events().filter_map(|event| match event {
        Event::PagesMoved {
            leaf: PageSize::Size2M,
            failed: 0,
            written,
            copied_again,
            ..
        } => Some((u64::from(*written), copied_again / PageSize::Size4K.bytes())),
        _ => None,
    });
    let large: Vec<(u64, u64)> = large.collect();
    let all = |(written, copied): &&(u64, u64)| *written == 1 && copied.is_multiple_of(pages);
    let none = |(written, copied): &&(u64, u64)| *written == 0 && *copied == 0;
    let fit = large.iter().filter(|seen| all(seen) || none(seen)).count();
    let often = large.iter().filter(all).count();
    if fit < large.len() || often * 2 <= STOPS as usize || large.iter().any(|(_, n)| *n > 2 * pages)
    {
        return Err(format!(
            "{pages} pages of one large leaf were written all the time; large leaves written and pages copied again \
             at each stop: {large:?}"
        ));
    }
    Ok(())
}

/// Nodes that all pages are brought to, one after the other.
struct Stops {
    large: u32,
    small: u32,
    /// How often each page is compared at least.
    turns: u32,
}

fn tour(scenario: Scenario, stops: Stops) -> Scenario {
    touring(scenario, stops, "")
}

fn touring(scenario: Scenario, stops: Stops, words: &str) -> Scenario {
    let words = format!("turns={} {words}", stops.turns);
    let around = |stops: u32| format!("migrate {NAME} around {stops}\r");
    scenario
        .on(Machine::row(3, 2, 256))
        .on_bochs(Machine::row(2, 2, 256))
        .vm(Vm::micro(NAME, "stamps", words.trim_end())
            .set("cpus", "4")
            .set("memory", &format!("\"{MEMORY}M\""))
            .set("mode", "\"off\""))
        // Page tables for each node: a move changes them all.
        .host("roots", "\"every\"")
        // No close look takes large leaves apart meanwhile.
        .host("sample_ms", "60000")
        .type_after("[stamps] STAMPS ", &around(stops.large))
        .type_after(
            OVER,
            &format!("split {NAME} 0 {MEMORY}\r{}", around(stops.small)),
        )
        .type_after(OVER, QUIT)
        .within(Duration::from_secs(600))
}

/// Close looks take large leaves apart and put them together again meanwhile.
fn looked_at() -> Scenario {
    let trial = Scenario::full(
        "moves-lose-nothing-looked-at",
        "the same while the guest is looked at, closely at times",
        |e| nothing_lost(e, 12, SMALL * 9 / 10, 1),
    );
    let stops = Stops {
        large: 6,
        small: 2,
        turns: 3,
    };
    tour(trial, stops).host("sample_ms", "20")
}

/// Linux' kernel and a program of Debian's, which checks what it gets, on pages that are always on their way.
fn linux_on_tour() -> Scenario {
    let well = |e: &Evidence| {
        e.every_guest_is_well(2)?;
        let moved = |event: &Event| match event {
            Event::PagesMoved { bytes, .. } => *bytes,
            _ => 0,
        };
        match e.events().map(moved).sum() {
            0..TOURED => Err("too few of its pages were on their way".into()),
            _ => Ok(()),
        }
    };
    Scenario::full(
        "linux-on-tour",
        "Linux and its programs notice nothing of it that all of their pages are always on their way",
        well,
    )
    .on(Machine::row(3, 2, 512))
    .vm(Vm::linux(NAME)
        .set("mode", "\"off\"")
        .workload("--program sort 40 7"))
    .type_after("GUEST-UP", &format!("migrate {NAME} around 1000000\r"))
    .within(Duration::from_secs(600))
}

fn named(name: &str, mut trial: Scenario) -> Scenario {
    trial.name = name.into();
    trial
}

fn in_qemu_only(mut trial: Scenario) -> Scenario {
    trial.bochs_tier = Tier::Gap;
    trial
}

/// The same on a kernel that moves pages wrongly, with a guest that was told these words as well: it must be noticed.
fn broken(how: &'static str, words: &str) -> Scenario {
    let judge = move |e: &Evidence| {
        let seen = e.guest(NAME);
        // Lost code or stacks leave nobody who could tell.
        let crashed =
            matches!(&e.outcome, Outcome::GuestFailed(why) if why.contains("triple-faulted"));
        // Whether it comes to its end or not: the word that it should may be what was lost.
        let told = e
            .guest_lines(NAME)
            .any(|line| line.what.starts_with(WRONG) && line.what.contains(", not "));
        if crashed || told || seen.ok == Some(false) && seen.details.contains(LOST) {
            return Ok(());
        }
        Err(format!(
            "pages were moved by {how}, and nothing was noticed: {}, {}",
            e.outcome, seen.details
        ))
    };
    let stops = Stops {
        large: 8,
        small: 4,
        turns: 3,
    };
    let name = format!("moves-notice-{how}");
    let about = format!("moves that are broken by {how} lose writes, which the guest notices");
    touring(Scenario::full(&name, &about, judge), stops, words)
        .sabotaged("slow-moves")
        .sabotaged(how)
}

fn nothing_lost(e: &Evidence, large: u64, small: u64, written: u64) -> Result<(), String> {
    e.every_guest_is_well(4)?;
    let (mut moved, mut again) = ([0_u64; 2], 0_u64);
    for event in e.events() {
        if let Event::PagesMoved {
            leaves,
            leaf,
            failed,
            written,
            ..
        } = event
        {
            if *failed > 0 {
                return Err(format!("a page could not be moved: {event}"));
            }
            moved[usize::from(*leaf == PageSize::Size4K)] += u64::from(*leaves);
            again += u64::from(*written);
        }
    }
    if moved[0] < large || moved[1] < small || again < written {
        return Err(format!(
            "only {moved:?} large and small leaves were moved, {again} of them written meanwhile"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use units::{Nanos, NodeId, VmId};

    #[test]
    fn pages_that_were_not_written_are_not_copied_again() {
        let ok = "GUEST-RESULT ok pages=100 turns=9";
        let judged = |seen: &[(u32, u64)]| {
            let mut e = evidence(11, PageSize::Size2M, 0, ok);
            let one = e.records.remove(0);
            e.console[0].what = format!("[{NAME}] GUEST-UP cpus=1 kernel=stamps");
            e.records = seen
                .iter()
                .map(|(leaves, pages)| {
                    let mut record = one.clone();
                    if let Event::PagesMoved {
                        written,
                        copied_again,
                        ..
                    } = &mut record.what.event
                    {
                        (*written, *copied_again) = (*leaves, pages << 12);
                    }
                    record
                })
                .collect();
            only_what_was_written(&e, 100)
        };
        let six = |seen| [[(1, 200); 5].as_slice(), &[seen]].concat();
        assert_eq!(judged(&six((1, 100))), Ok(()));
        assert_eq!(judged(&six((0, 0))), Ok(()));
        assert!(judged(&six((1, 199))).is_err(), "one is missing");
        assert!(judged(&six((1, 201))).is_err(), "one too many");
        assert!(judged(&six((2, 200))).is_err(), "another leaf");
        assert!(judged(&six((1, 300))).is_err(), "it did not help");
        assert!(judged(&[(0, 0); 6]).is_err(), "nothing was seen");
    }

    fn evidence(leaves: u32, leaf: PageSize, failed: u32, result: &str) -> Evidence {
        let event = Event::PagesMoved {
            vm: VmId(0),
            name: NAME.into(),
            from: NodeId(0),
            to: NodeId(1),
            leaves,
            leaf,
            bytes: 0,
            failed,
            written: 1,
            copied_again: 4096,
            pause_p50: Nanos(1),
            pause_max: Nanos(1),
            reason: String::new(),
        };
        let result = format!("[{NAME}] {result}");
        let lines = ["[stamps] GUEST-UP cpus=4 kernel=stamps", &result];
        Evidence::clean(&[NAME], &lines).with(Nanos(0), event)
    }

    #[test]
    fn few_moves_and_failed_ones_do_not_convince() {
        let ok = "GUEST-RESULT ok pages=5120 turns=10";
        let judged = |e: Evidence| nothing_lost(&e, 0, 100, 1);
        assert_eq!(judged(evidence(100, PageSize::Size4K, 0, ok)), Ok(()));
        assert!(judged(evidence(99, PageSize::Size4K, 0, ok)).is_err());
        assert!(judged(evidence(100, PageSize::Size2M, 0, ok)).is_err());
        assert!(judged(evidence(100, PageSize::Size4K, 1, ok)).is_err());
        let lost = "GUEST-RESULT mismatch 3 times a page was not what was written";
        assert!(judged(evidence(100, PageSize::Size4K, 0, lost)).is_err());
    }
}
