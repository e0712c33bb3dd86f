//! Accessed and dirty bits, exactly: what a guest reads and writes between two moments is what Perigee says.
//!
//! The guest `probe` reads and writes blocks that a seed draws, every other one by its second processor, on another node
//! with page tables of its own; the hypervisor never sees the seed. Code,
//! stack and page tables of the guest lie below the range that is judged. The truth is the seed's, and, where an
//! observer counts outside, the observer's as well.

use std::collections::BTreeSet;
use std::time::Duration;

use layouts::{Kind, kind};
use telemetry::Event;
use telemetry::touched::PageRange;

use super::GO;
use super::observed::Observed;
use super::random::Random;
use crate::{Emulator, Evidence, Machine, Scenario, Vm};

const NAME: &str = "probe";
/// Times that the bits are cleared and read.
const ROUNDS: u64 = 3;
/// Where the range begins, and how long it is.
const FROM_MIB: u64 = 32;
const MIB: u64 = 64;
const PAGES_PER_MIB: u64 = 256;

/// The trials of this file.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let mut random = Random::new(seed ^ 0xacce55ed);
    let mut drawn = |step_pages| loop {
        let seed = u64::from(random.between(1, u32::MAX));
        // Of 32 large leaves one draw in twenty writes none in some round, which would show nothing.
        if (0..ROUNDS).all(|round| shows_something(seed, round, step_pages)) {
            return seed;
        }
    };
    let found = |step, step_pages, seed| {
        let about = format!(
            "a guest's reads and writes are found exactly, by leaves of {step}, again and again"
        );
        Scenario::quick(&format!("touched-exactly-{step}"), &about, move |e| {
            exact(e, seed, step_pages)?;
            as_the_processor_can(e, step_pages)
        })
        .quick_in_bochs()
    };
    let (small, large, lost) = (drawn(1), drawn(512), drawn(1));
    vec![
        trial(found("4k", 1, small), "4k", 1, small),
        trial(found("2m", 512, large), "2m", 512, large),
        trial(
            Scenario::full(
                "touched-log-that-loses-is-noticed",
                "a kernel that forgets one in a thousand pages that the processor logged as written fails the trial above",
                move |e| match exact(e, lost, 1) {
                    Err(why) if why.contains("blocks written") => Ok(()),
                    other => Err(format!("nobody missed the pages: {other:?}")),
                },
            )
            .in_bochs_only()
            .sabotaged("lose-writes"),
            "4k",
            1,
            lost,
        ),
    ]
}

/// Whether the seed has something read and something written in this round.
fn shows_something(seed: u64, round: u64, step_pages: u64) -> bool {
    let has = |wanted| {
        (0..MIB * PAGES_PER_MIB / step_pages).any(|index| kind(seed, round, index) == wanted)
    };
    has(Kind::Read) && has(Kind::Written)
}

fn trial(scenario: Scenario, step: &'static str, step_pages: u64, seed: u64) -> Scenario {
    let words =
        format!("exact cpus=2 seed={seed} rounds={ROUNDS} from={FROM_MIB} mib={MIB} step={step}");
    let mut trial = scenario
        .on(Machine::row(2, 1, 512))
        .on_bochs(Machine::row(2, 1, 256))
        // Each of two processors touches every other block, through tables of its own node.
        .host("roots", "\"every\"")
        .vm(Vm::probe(NAME, &words)
            .set("cpus", "2")
            .set("cpu_affinity", "{ cpus = [0, 1] }")
            .set("mode", "\"off\""))
        .observed("pages=guests,linear=128")
        .within(Duration::from_secs(420))
        .seeded(seed);
    for round in 0..ROUNDS {
        let split = if round == 0 && step_pages == 1 {
            format!("split {NAME} {FROM_MIB} {MIB}\r")
        } else {
            String::new()
        };
        trial = trial
            .type_after(
                &format!("EXACT ready round={round}"),
                &format!("{split}touched {NAME} begin\r"),
            )
            .type_after("is watched from now on", GO)
            .type_after(
                &format!("EXACT touched round={round}"),
                &format!("touched {NAME} end\r"),
            )
            .type_after("they are in the records", GO);
    }
    trial
}

/// What was written is known from the processor's log where it keeps one, whose room of 512 pages small leaves exceed.
fn as_the_processor_can(e: &Evidence, step_pages: u64) -> Result<(), String> {
    let words = match e.emulator {
        Emulator::Qemu => "a search of all dirty bits finds ",
        Emulator::Bochs => "the processors' log names ",
    };
    let said: Vec<&str> = e.console.iter().map(|l| l.what.as_str()).collect();
    let told: Vec<&&str> = said.iter().filter(|l| l.contains(words)).collect();
    if told.len() as u64 != ROUNDS {
        return Err(format!(
            "{} of {ROUNDS} rounds were told with {words:?}",
            told.len()
        ));
    }
    let was_full = |line: &str| {
        let (_, rest) = line.split_once("it was full ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    };
    let small = e.emulator == Emulator::Bochs && step_pages == 1;
    // Whatever takes the processor out of the guest empties it as well.
    let fullest = told.iter().filter_map(|line| was_full(line)).max();
    if small && fullest.is_none_or(|times| times < 2) {
        return Err(format!(
            "the log should have been full more than once in a round: {}",
            told.iter()
                .map(|line| **line)
                .collect::<Vec<&str>>()
                .join("; ")
        ));
    }
    Ok(())
}

/// Every round's record has the drawn blocks and no other.
fn exact(e: &Evidence, seed: u64, step_pages: u64) -> Result<(), String> {
    e.every_guest_is_well(2)?;
    let mut told: Vec<(Vec<PageRange>, Vec<PageRange>)> = vec![Default::default()];
    for event in e.events() {
        if let Event::Touched {
            accessed,
            dirty,
            last,
            ..
        } = event
            && let Some(round) = told.last_mut()
        {
            round.0.extend_from_slice(accessed);
            round.1.extend_from_slice(dirty);
            if *last {
                told.push(Default::default());
            }
        }
    }
    told.pop();
    if told.len() as u64 != ROUNDS {
        return Err(format!("{} rounds were told of, not {ROUNDS}", told.len()));
    }
    let windows = e
        .plugin
        .is_some()
        .then(|| Observed::windows(e))
        .transpose()?;
    for (round, (accessed, dirty)) in told.into_iter().enumerate() {
        let drawn = |wanted: fn(Kind) -> bool| -> BTreeSet<u64> {
            (0..MIB * PAGES_PER_MIB / step_pages)
                .filter(|index| wanted(kind(seed, round as u64, *index)))
                .collect()
        };
        let (touched, written) = (
            drawn(|kind| kind != Kind::Untouched),
            drawn(|kind| kind == Kind::Written),
        );
        same(
            &touched,
            &blocks(ranges(&accessed), step_pages),
            "accessed",
            round,
        )?;
        same(
            &written,
            &blocks(ranges(&dirty), step_pages),
            "written",
            round,
        )?;
        let Some(windows) = &windows else { continue };
        let window = windows
            .get(round)
            .ok_or("the observer outside saw fewer rounds")?;
        let seen = |which: fn(&(u64, u64)) -> bool| {
            let pages = window.linear.iter().filter(|(_, touches)| which(touches));
            blocks(pages.map(|(page, _)| *page), step_pages)
        };
        same(
            &seen(|t| t.0 + t.1 > 0),
            &touched,
            "accessed as seen outside",
            round,
        )?;
        same(
            &seen(|t| t.1 > 0),
            &written,
            "written as seen outside",
            round,
        )?;
    }
    Ok(())
}

fn ranges(ranges: &[PageRange]) -> impl Iterator<Item = u64> + '_ {
    ranges
        .iter()
        .flat_map(|(first, pages)| *first..first + pages)
}

/// The judged blocks in which these pages lie.
fn blocks(pages: impl Iterator<Item = u64>, step_pages: u64) -> BTreeSet<u64> {
    let (first, end) = (FROM_MIB * PAGES_PER_MIB, (FROM_MIB + MIB) * PAGES_PER_MIB);
    pages
        .filter(|page| (first..end).contains(page))
        .map(|page| (page - first) / step_pages)
        .collect()
}

fn same(
    expected: &BTreeSet<u64>,
    found: &BTreeSet<u64>,
    what: &str,
    round: usize,
) -> Result<(), String> {
    if expected.is_empty() {
        return Err(format!(
            "round {round}: nothing was {what}, which shows nothing"
        ));
    }
    let missing: Vec<_> = expected.difference(found).take(5).collect();
    let surplus: Vec<_> = found.difference(expected).take(5).collect();
    if missing.is_empty() && surplus.is_empty() {
        return Ok(());
    }
    Err(format!(
        "round {round}: of {} blocks {what}, {} were found; missing among others {missing:?}, too many {surplus:?}",
        expected.len(),
        found.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stamped;
    use crate::trials::counted::tests::evidence;
    use telemetry::touched::extend;
    use units::VmId;

    const SEED: u64 = 77;

    /// A run in which everything drawn is told, in two records a round, with `more` as well.
    fn told(more: &[u64]) -> Evidence {
        let mut e = evidence(serde_json::json!(null));
        e.plugin = None;
        e.vms.clear();
        for round in 0..ROUNDS {
            let of = |wanted: fn(Kind) -> bool| {
                let mut ranges = Vec::new();
                (0..MIB * PAGES_PER_MIB)
                    .filter(|i| wanted(kind(SEED, round, *i)) || more.contains(i))
                    .for_each(|i| extend(&mut ranges, FROM_MIB * PAGES_PER_MIB + i, 1));
                ranges
            };
            let (accessed, dirty) = (of(|k| k != Kind::Untouched), of(|k| k == Kind::Written));
            let half = accessed.len() / 2;
            for (accessed, dirty, last) in [
                (accessed[..half].to_vec(), dirty, false),
                (accessed[half..].to_vec(), Vec::new(), true),
            ] {
                let (vm, name) = (VmId(0), NAME.into());
                let event = Event::Touched {
                    vm,
                    name,
                    accessed,
                    dirty,
                    last,
                };
                let (at_ns, seq) = (units::Nanos(0), 0);
                let what = telemetry::Record { at_ns, seq, event };
                e.records.push(Stamped {
                    at: Duration::ZERO,
                    what,
                });
            }
        }
        e
    }

    #[test]
    fn seeds_that_show_nothing_are_known() {
        assert!(!shows_something(3_439_774_500, 0, 512), "it was drawn once");
        assert!(shows_something(3_439_774_500, 0, 1));
    }

    #[test]
    fn exactly_what_was_drawn_convinces() {
        assert_eq!(exact(&told(&[]), SEED, 1), Ok(()));
        let untouched = (0..).find(|i| (0..ROUNDS).all(|r| kind(SEED, r, *i) == Kind::Untouched));
        let surplus = told(&[untouched.expect("one in five")]);
        assert!(exact(&surplus, SEED, 1).is_err_and(|why| why.contains("too many")));
        assert!(exact(&told(&[]), SEED + 1, 1).is_err());
        let mut less = told(&[]);
        less.records.pop();
        assert!(exact(&less, SEED, 1).is_err_and(|why| why.contains("2 rounds")));
    }
}
