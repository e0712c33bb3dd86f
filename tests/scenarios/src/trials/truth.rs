//! Footprints against the truth: what Perigee believes to be hot, and who touches which node, as counted outside.
//!
//! The guest `probe` visits pages as a seed draws that the hypervisor never sees, the observer counts each access
//! of the guest by page, CPU and node for ten seconds of the guest's time, and the judge compares. The bars:
//! F1 of the hot set at least 0.9, where the hot set is the smallest set of 4 KiB pages that takes 80 % of the
//! accesses; error of the attribution at most 0.1; and of an idle guest no opinion.

use std::collections::BTreeSet;
use std::time::Duration;

use telemetry::Event;
use telemetry::touched::HotRange;

use super::GO;
use super::observed::{
    Observed, agreement, attribution_error, believed, hot_set, hot_set_as_believed,
};
use super::random::Random;
use crate::{Evidence, Machine, Scenario, Tier, Vm};

const NAME: &str = "probe";
/// Least F1 of a hot set, in thousandths.
const F1: u64 = 900;
/// Largest error of an attribution, in thousandths.
const ERROR: u64 = 100;
/// What is counted from outside.
const COUNTED: &str = "pages=guests,linear=128";
/// Each instruction takes so long, or the emulator's own work would be taken for the guests', and one CPU would be faster than the other.
const INSTRUCTION_PS: u32 = 3000;
/// Looks a second where hot pages are hardly hotter than others.
const OFTEN: &str = "4000";
/// Programs have phases of seconds; what Perigee tells is what the guest did in the last ten, so they are counted for as long.
const SECONDS: u32 = 10;
const CLOSED: &str = "PROBE window closed";

/// Makes a scenario of one tier.
type Kind = fn(&str, &str, fn(&Evidence) -> Result<(), String>) -> Scenario;

/// The trials of this file.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let mut random = Random::new(seed ^ 0x7007);
    let mut drawn = || u64::from(random.between(1, u32::MAX));
    // With the emulator's own clock accesses take longer than other instructions, for each is counted, and those to pages that it
    // has not met lately longer still: shares are off by a twentieth, and sets that take just about four fifths by half.
    let layouts = ["hot", "ranges", "scattered", "moving", "strides", "zipf"];
    let mut trials: Vec<Scenario> = layouts
        .into_iter()
        .map(|layout| {
            let name = format!("hot-set-{layout}");
            let about = format!("the hot set of the layout {layout:?} is found within ten seconds");
            touching(
                Scenario::full,
                &name,
                &about,
                layout,
                drawn(),
                1,
                knows_the_hot_set,
            )
            .observed(&format!("{COUNTED},clock={INSTRUCTION_PS}"))
        })
        .collect();
    trials.push(
        touching(
            Scenario::full,
            "attribution-scan",
            "a sequential scan over two nodes' memory is attributed as it was counted",
            "scan",
            drawn(),
            1,
            attributes,
        )
        .on(Machine::row(2, 1, 512)),
    );
    for (layout, about) in [
        (
            "halves",
            "two vCPUs on two nodes that touch disjoint halves are told apart",
        ),
        (
            "mix",
            "two vCPUs on two nodes that touch their own half four times out of five are told apart",
        ),
    ] {
        let name = format!("attribution-{layout}");
        trials.push(
            touching(Scenario::full, &name, about, layout, drawn(), 2, attributes)
                .observed(&format!("{COUNTED},clock={INSTRUCTION_PS}")),
        );
    }
    for (name, layout, looks, about) in [
        (
            "halves-by-roots",
            "halves",
            None,
            "two vCPUs that touch disjoint halves through their nodes' own page tables are told apart",
        ),
        (
            "mix-by-roots",
            "mix",
            None,
            "two vCPUs that touch their own half four times out of five, with page tables on all nodes, are told apart",
        ),
        (
            "halves-by-bits",
            "halves",
            Some("0"),
            "two vCPUs that touch disjoint halves are told apart by the accessed bits of their nodes' own page tables alone",
        ),
    ] {
        let judge = match looks {
            Some(_) => attributes_by_bits,
            None => attributes,
        };
        let name = format!("attribution-{name}");
        let trial = touching(Scenario::full, &name, about, layout, drawn(), 2, judge)
            .host("roots", "\"every\"")
            .observed(&format!("{COUNTED},clock={INSTRUCTION_PS}"));
        trials.push(match looks {
            Some(looks) => trial.host("looks", looks),
            None => trial,
        });
    }
    trials.push(
        Scenario::full(
            "hot-set-idle",
            "an idle guest has no hot set",
            has_no_opinion,
        )
        .on(Machine::row(2, 1, 512))
        .vm(Vm::probe(NAME, "idle seconds=10").set("mode", "\"off\""))
        .observed(COUNTED)
        .type_after(CLOSED, &format!("hot {NAME}\r"))
        .type_after("are in the records", GO),
    );
    // Of bzip2's six hundred pages each is met some twenty times, and which they are changes within its blocks of thirteen seconds;
    // sort's set is some thirty pages, of which a third take two hundredths of its accesses.
    let programs: [(&str, Kind); 4] = [
        ("gzip", Scenario::full),
        ("sha256sum", Scenario::full),
        ("bzip2", Scenario::gap),
        ("sort", Scenario::gap),
    ];
    for (program, kind) in programs {
        let about = format!("the hot set of Linux running Debian's {program} is found");
        let words = format!("--program {program} {SECONDS} {}", drawn());
        trials.push(
            kind(
                &format!("hot-set-linux-{program}"),
                &about,
                knows_the_hot_frames,
            )
            .on(Machine::row(2, 1, 512))
            .vm(Vm::linux(NAME)
                .set("cpus", "1")
                .set("mode", "\"off\"")
                .workload(&words))
            .host("looks", OFTEN)
            .type_after(CLOSED, &format!("hot {NAME}\r"))
            .observed(&format!("{COUNTED},clock={INSTRUCTION_PS}")),
        );
    }
    trials
        .into_iter()
        .map(|trial| {
            let mut trial = trial.within(Duration::from_secs(600));
            // Nobody counts from outside there.
            trial.bochs_tier = Tier::Gap;
            trial
        })
        .collect()
}

/// The probe on two nodes, half of its arena on each.
fn touching(
    kind: Kind,
    name: &str,
    about: &str,
    layout: &str,
    seed: u64,
    cpus: u32,
    judge: fn(&Evidence) -> Result<(), String>,
) -> Scenario {
    let words = format!("touch layout={layout} seed={seed} mib=64 seconds=10 cpus={cpus}");
    let shares = "[{ node = 0, size = \"64M\" }, { node = 1 }]";
    kind(name, about, judge)
        .on(Machine::row(2, 1, 512))
        .vm(Vm::probe(NAME, &words)
            .set("cpus", &cpus.to_string())
            .set("memory_nodes", shares)
            .set("mode", "\"off\""))
        .type_after(CLOSED, &format!("footprint {NAME}\rhot {NAME}\r"))
        .type_after("are in the records", GO)
        .observed(COUNTED)
        .seeded(seed)
}

/// What Perigee said is touched, hottest first, and how many pages of that are hot.
fn said(e: &Evidence) -> Result<(Vec<HotRange>, u64), String> {
    let mut said = Vec::new();
    for event in e.events() {
        if let Event::HotPages {
            name,
            ranges,
            hot,
            last,
            ..
        } = event
            && name == NAME
        {
            said.extend_from_slice(ranges);
            if *last {
                return Ok((said, *hot));
            }
        }
    }
    Err("Perigee did not say what is hot".into())
}

/// The hot set, by the bar.
fn knows_the_hot_set(e: &Evidence) -> Result<(), String> {
    well(e)?;
    let truth = hot_set(&Observed::only(e)?.linear);
    let (ranges, hot) = said(e)?;
    agree(&truth, &believed(&ranges, hot, |range| range.first)?)
}

/// The same of a guest whose linear addresses say nothing: by the machine's pages, of which none moves.
fn knows_the_hot_frames(e: &Evidence) -> Result<(), String> {
    well(e)?;
    let counted = Observed::only(e)?.machine;
    let (ranges, hot) = said(e)?;
    let belief = believed(&ranges, hot, |range| range.frame)?;
    agree(&hot_set_as_believed(&counted, &belief), &belief)
}

fn agree(truth: &BTreeSet<u64>, belief: &BTreeSet<u64>) -> Result<(), String> {
    let found = agreement(truth, belief);
    let figures = format!(
        "F1 {} thousandths: of {} hot pages Perigee knows {}, and {} of its {} are right",
        found.f1,
        truth.len(),
        found.recall,
        found.precision,
        belief.len()
    );
    if found.f1 >= F1 { Ok(()) } else { Err(figures) }
}

/// Who touches which node, by the bar.
fn attributes(e: &Evidence) -> Result<(), String> {
    well(e)?;
    let truth = Observed::only(e)?.matrix;
    let closed = e.line(CLOSED).ok_or("the window was never closed")?.at;
    let before = e.records.iter().take_while(|record| record.at <= closed);
    let matrices = before.filter_map(|record| match &record.what.event {
        Event::Footprint { name, matrix, .. } if name == NAME => Some(matrix),
        _ => None,
    });
    let believed = matrices.last().ok_or("Perigee told no footprint in time")?;
    let error = attribution_error(&truth, believed);
    if error <= ERROR {
        return Ok(());
    }
    Err(format!(
        "attribution error 0.{error:03}: counted {truth:?}, believed {believed:?}"
    ))
}

/// The same of a guest that was never looked at: its nodes' accessed bits are all that is known.
fn attributes_by_bits(e: &Evidence) -> Result<(), String> {
    attributes(e)?;
    match e.line("looked 0 times at what a stopped virtual CPU") {
        Some(_) => Ok(()),
        None => Err("the guest was looked at, or Perigee did not say".into()),
    }
}

/// Nothing hot, and no confidence.
fn has_no_opinion(e: &Evidence) -> Result<(), String> {
    well(e)?;
    let (ranges, _) = said(e)?;
    if !ranges.is_empty() {
        return Err(format!(
            "{} ranges of an idle guest are said to be hot",
            ranges.len()
        ));
    }
    let sure = e.events().any(|event| {
        matches!(event, Event::Footprint { name, confidence, .. } if name == NAME && confidence.0 > 0)
    });
    if sure {
        Err("Perigee has an opinion about an idle guest".into())
    } else {
        Ok(())
    }
}

fn well(e: &Evidence) -> Result<(), String> {
    let cpus = e.line("GUEST-UP cpus=2").map_or(1, |_| 2);
    e.every_guest_is_well(cpus)
}
