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
/// A guest's pages that are always small: those of the 2 MiB that the hole below 1 MiB is in.
const BESIDE_THE_HOLE: u64 = 512;
/// Stops at the end of its tour that are judged.
const LAST_STOPS: usize = 10;
/// Nodes that a guest's pages are brought to while it is looked at, and close looks that meet that at least.
const LOOKED_AT_STOPS: u32 = 40;
/// See [`LOOKED_AT_STOPS`].
const LOOKS_THAT_MET: u64 = 20;
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
    touring(scenario, stops, "", "")
}

/// With a guest that is told these words, and a question to Perigee behind each tour.
fn touring(scenario: Scenario, stops: Stops, words: &str, ask: &str) -> Scenario {
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
            &format!("{ask}split {NAME} 0 {MEMORY}\r{}", around(stops.small)),
        )
        .type_after(OVER, &format!("{ask}{QUIT}"))
        .within(Duration::from_secs(600))
}

/// Close looks take large leaves apart meanwhile. They end where their pages move, and the leaf moves as one.
fn looked_at() -> Scenario {
    let trial = Scenario::full(
        "moves-lose-nothing-looked-at",
        "the same while the guest is looked at, closely at times: what a close look takes apart is put together again",
        |e| {
            nothing_lost(e, 12, SMALL * 9 / 10, 1)?;
            looks_gave_way(e)
        },
    );
    let stops = Stops {
        large: LOOKED_AT_STOPS,
        small: 2,
        turns: 3,
    };
    touring(trial, stops, "", &format!("footprint {NAME}\r")).host("sample_ms", "20")
}

/// Close looks were under way where pages moved, and of what they took apart nothing stayed so. What the operator had
/// taken apart did.
fn looks_gave_way(e: &Evidence) -> Result<(), String> {
    let stops = small_at_each_stop(e);
    let first_tour = stops.iter().take(LOOKED_AT_STOPS as usize);
    let most = first_tour.max().copied().unwrap_or(0);
    if most > BESIDE_THE_HOLE {
        return Err(format!(
            "{most} pages moved as small ones before the operator said so"
        ));
    }
    let told: Vec<Mapping> = e.console.iter().filter_map(|l| mapping(&l.what)).collect();
    match told.as_slice() {
        [first, _] if first.overtaken < LOOKS_THAT_MET => Err(format!(
            "only {} close looks were under way where pages moved",
            first.overtaken
        )),
        [first, _] if first.small > BESIDE_THE_HOLE => {
            Err(format!("{} pages were left small", first.small))
        }
        [_, last] if last.small < SMALL * 9 / 10 => Err(format!(
            "only {} pages are small that the operator wanted so",
            last.small
        )),
        [_, _] => Ok(()),
        told => Err(format!("two answers were expected: {told:?}")),
    }
}

/// How the guest's memory is mapped, and how many close looks ended as their pages moved.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    small: u64,
    overtaken: u64,
}

/// As the answer to `footprint` tells it.
fn mapping(line: &str) -> Option<Mapping> {
    let line = line.strip_prefix("page tables on ")?;
    let (_, line) = line.split_once(" large pages and ")?;
    let (small, line) = line.split_once(" of 4 KiB; ")?;
    let (_, line) = line.split_once(" for a while, and ")?;
    let (overtaken, _) = line.split_once(" close looks ended early")?;
    Some(Mapping {
        small: small.parse().ok()?,
        overtaken: overtaken.parse().ok()?,
    })
}

/// Linux' kernel and a program of Debian's, which checks what it gets, on pages that are always on their way.
fn linux_on_tour() -> Scenario {
    let well = |e: &Evidence| {
        e.every_guest_is_well(2)?;
        let moved = |event: &Event| match event {
            Event::PagesMoved { bytes, .. } => *bytes,
            _ => 0,
        };
        if e.events().map(moved).sum::<u64>() < TOURED {
            return Err("too few of its pages were on their way".into());
        }
        let small = small_at_each_stop(e);
        let last = small.get(small.len().saturating_sub(LAST_STOPS)..);
        match last.unwrap_or_default().iter().max() {
            Some(most) if *most > BESIDE_THE_HOLE => Err(format!(
                "{most} of its pages were mapped by 4 KiB at the end: what was taken apart stayed so"
            )),
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

/// Small leaves that arrived at each stop of a tour, which brings all that there are.
fn small_at_each_stop(e: &Evidence) -> Vec<u64> {
    let arrivals = e.events().filter_map(|event| match event {
        Event::PagesMoved {
            to, leaf, leaves, ..
        } => Some((
            *to,
            u64::from(*leaves) * u64::from(*leaf == PageSize::Size4K),
        )),
        _ => None,
    });
    let arrivals: Vec<_> = arrivals.collect();
    let stops = arrivals.chunk_by(|one, next| one.0 == next.0);
    stops
        .map(|stop| stop.iter().map(|(_, small)| small).sum())
        .collect()
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
    touring(Scenario::full(&name, &about, judge), stops, words, "")
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

    /// What the stops of a tour brought: where to, how many leaves, and of which size.
    fn stops(of: &[(u16, u32, PageSize)]) -> Evidence {
        let mut e = evidence(1, PageSize::Size2M, 0, "GUEST-RESULT ok");
        let one = e.records.remove(0);
        for (node, many, size) in of {
            let mut record = one.clone();
            if let Event::PagesMoved {
                to, leaves, leaf, ..
            } = &mut record.what.event
            {
                (*to, *leaves, *leaf) = (NodeId(*node), *many, *size);
            }
            e.records.push(record);
        }
        e
    }

    #[test]
    fn small_pages_are_counted_stop_by_stop() {
        let (small, large) = (PageSize::Size4K, PageSize::Size2M);
        let e = stops(&[
            (1, 480, small),
            (1, 90, large),
            (1, 32, small),
            (2, 91, large),
        ]);
        assert_eq!(small_at_each_stop(&e), [512, 0]);
    }

    #[test]
    fn looks_that_left_something_small_or_met_no_move_do_not_convince() {
        let judged = |moved: u32, answers: &[(u64, u64)]| {
            let mut e = stops(&[(1, moved, PageSize::Size4K)]);
            let answers = answers.iter().map(|(small, overtaken)| {
                let mut line = e.console[0].clone();
                line.what = format!(
                    "page tables on node1, node0: 84 KiB for 11 large pages and {small} of 4 KiB; 3 large ones are small for a while, and {overtaken} close looks ended early as their pages moved"
                );
                line
            });
            e.console = answers.collect();
            looks_gave_way(&e)
        };
        let good = [(480, 30), (SMALL - 32, 30)];
        assert_eq!(judged(480, &good), Ok(()));
        assert!(judged(4064, &good).is_err(), "moved as small ones");
        assert!(judged(480, &good[..1]).is_err(), "one answer is missing");
        assert!(judged(480, &[(480, 19), good[1]]).is_err(), "no looks");
        assert!(judged(480, &[(992, 30), good[1]]).is_err(), "left small");
        assert!(
            judged(480, &[good[0], (480, 30)]).is_err(),
            "the operator's wish was not obeyed"
        );
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
