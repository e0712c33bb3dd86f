//! Hot sets of drawn layouts, found by the real sampler with the real tunables within ten seconds of simulated time.
//!
//! The bar is that of the trials in emulators, which take minutes each and depend on the host: hot is the smallest set of
//! pages that takes four fifths of the accesses, and F1 is at least 0.9. Here a run takes a fraction of a second, is
//! the same whenever it is repeated, and shows what changes of the estimator do before an emulator is asked. With
//! `--nocapture` each run says what it found.

#[path = "../common/mod.rs"]
mod common;
mod guest;

use common::{agreement, four_fifths};
use footprint::pages::{heats, hot_pages};
use footprint::sampler::{Heat, Sight, Tunables};
use footprint::{PageLooks, Sampler};
use guest::{Guest, MEMORY, Pace, hand_in};
use layouts::Layout;
use std::collections::BTreeSet;
use units::Nanos;

/// A layout runs so long before it is counted, and so long while it is.
const WARM_UP: Nanos = Nanos::from_millis(500);
/// Where a guest did something else before, it did that for so long, and stopped so long before it is counted.
const BEFORE: Nanos = Nanos::from_millis(15_000);
const SINCE: Nanos = Nanos::from_millis(3_000);
const WINDOW: Nanos = Nanos::from_millis(10_000);
const PASS: Nanos = Nanos::from_millis(1000);
/// Looks are taken in as often.
const AGE: Nanos = Nanos::from_millis(500);

/// A guest under the emulator, which counts each access on the way; and on a host that has other work, too.
const EMULATED: Pace = Pace {
    visit: Nanos::from_micros(14),
    look: Nanos::from_micros(2400),
};
const CROWDED: Pace = Pace {
    visit: Nanos::from_micros(37),
    look: Nanos::from_millis(4),
};

/// What is believed at the end of a run, against what was counted: F1 in thousandths. `before` is what the guest did
/// before that, if it did anything.
fn f1(layout: Layout, seed: u64, pace: Pace, before: Option<Layout>) -> u64 {
    let mut guest = Guest::new(before.unwrap_or(layout), seed, pace);
    let warm_up = before.map_or(WARM_UP, |_| BEFORE + SINCE);
    let mut turned = before.is_none();
    let mut sampler = Sampler::new(std::iter::once(0..MEMORY), seed, Tunables::default());
    let (mut looks, mut seen) = (PageLooks::of_memory(MEMORY), Vec::new());
    let mut heat: Vec<Heat> = Vec::new();
    let (mut now, mut last_pass, mut aged) = (Nanos::ZERO, Nanos::ZERO, Nanos::ZERO);
    let mut window = false;
    while now < warm_up + WINDOW {
        now += sampler.interval();
        if !turned && now > BEFORE {
            turned = true;
            guest.turn_to(layout, seed ^ 0x55);
        }
        if !window && now > warm_up {
            window = true;
            guest.counted.fill(0);
        }
        guest.run(now, window.into(), &mut seen);
        let orders = sampler.tick(Sight::Fresh, true, &mut guest);
        guest.obey(&orders);
        if now.since(last_pass) >= PASS {
            last_pass = now;
            heat = sampler.pass();
        }
        if now.since(aged) >= AGE {
            aged = now;
            hand_in(&mut seen, &mut looks, &mut sampler);
        }
    }
    let ranges = heats(&heat, |at| sampler.pages(at), &looks);
    let pages = ranges.iter().flat_map(|r| r.first..r.first + r.pages);
    let count = hot_pages(&ranges, looks.count());
    let believed: BTreeSet<u64> = pages.take(count as usize).collect();
    let truth = four_fifths((0..).zip(guest.counted.iter().copied()));
    let found = agreement(&truth, &believed);
    println!(
        "{:?} {before:?} {layout:?} seed {seed}: F1 {found}, {} hot, {} believed",
        pace.visit,
        truth.len(),
        believed.len()
    );
    found
}

/// Of ten seeds all must be found, but for so many.
fn found(layouts: &[Layout], pace: Pace, before: Option<Layout>, missed: usize) {
    for layout in layouts {
        let all: Vec<u64> = (1..=10)
            .map(|seed| f1(*layout, seed, pace, before))
            .collect();
        let below = all.iter().filter(|f1| **f1 < 900).count();
        assert!(below <= missed, "{layout:?}: {all:?}");
    }
}

#[test]
fn all_layouts_are_found() {
    use Layout::{Hot, Moving, Ranges, Scattered, Strides, Zipf};
    found(
        &[Hot, Ranges, Scattered, Moving, Strides, Zipf],
        EMULATED,
        None,
        0,
    );
}

/// What a guest did before it began what it is counted at is forgotten in time.
#[test]
fn what_a_guest_did_before_is_forgotten() {
    use Layout::{Hot, Ranges, Strides, Zipf};
    found(&[Hot, Ranges], EMULATED, Some(Hot), 0);
    found(&[Strides], EMULATED, Some(Zipf), 0);
}

/// With a third of the visits and half of the looks.
#[test]
fn layouts_are_found_by_a_crowded_host() {
    found(
        &[
            Layout::Hot,
            Layout::Ranges,
            Layout::Scattered,
            Layout::Moving,
            Layout::Strides,
            Layout::Zipf,
        ],
        CROWDED,
        None,
        0,
    );
}
