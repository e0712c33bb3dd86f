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
use footprint::pages::heats;
use footprint::sampler::{Heat, Sight, Tunables};
use footprint::{PageLooks, Sampler};
use guest::{Guest, MEMORY, Pace, hand_in};
use layouts::Layout;
use units::Nanos;

/// A layout runs so long before it is counted, and so long while it is.
const WARM_UP: Nanos = Nanos::from_millis(500);
const WINDOW: Nanos = Nanos::from_millis(10_000);
const PASS: Nanos = Nanos::from_millis(1000);

/// A guest under the emulator, which counts each access on the way; and on a host that has other work, too.
const EMULATED: Pace = Pace {
    visit: Nanos::from_micros(12),
    look: Nanos::from_millis(15),
};
const CROWDED: Pace = Pace {
    visit: Nanos::from_micros(40),
    look: Nanos::from_millis(25),
};

/// What is believed at the end of a run, against what was counted: F1 in thousandths.
fn f1(layout: Layout, seed: u64, pace: Pace) -> u64 {
    let mut guest = Guest::new(layout, seed, pace);
    let mut sampler = Sampler::new(std::iter::once(0..MEMORY), seed, Tunables::default());
    let (mut looks, mut seen) = (PageLooks::default(), Vec::new());
    let mut heat: Vec<Heat> = Vec::new();
    let (mut now, mut last_pass) = (Nanos::ZERO, Nanos::ZERO);
    let mut window = false;
    while now < WARM_UP + WINDOW {
        now += sampler.interval();
        if !window && now > WARM_UP {
            window = true;
            guest.counted.fill(0);
        }
        guest.run(now, window.into(), &mut seen);
        let orders = sampler.tick(Sight::Fresh, true, &mut guest);
        guest.obey(&orders);
        if now.since(last_pass) >= PASS {
            last_pass = now;
            heat = sampler.pass();
            hand_in(&mut seen, &mut looks);
        }
    }
    let ranges = heats(&heat, |at| sampler.pages(at), &looks);
    let believed = four_fifths(ranges.iter().flat_map(|r| {
        let each = r.heat / r.pages;
        (r.first..r.first + r.pages).map(move |page| (page, each))
    }));
    let truth = four_fifths((0..).zip(guest.counted.iter().copied()));
    let found = agreement(&truth, &believed);
    println!(
        "{layout:?} seed {seed}: F1 {found}, {} hot, {} believed",
        truth.len(),
        believed.len()
    );
    found
}

/// The least F1 of some seeds.
fn least(layout: Layout, pace: Pace) -> u64 {
    let all = (1..=10).map(|seed| f1(layout, seed, pace));
    all.min().unwrap_or(0)
}

fn found(layouts: &[Layout]) {
    for pace in [EMULATED, CROWDED] {
        for layout in layouts {
            let least = least(*layout, pace);
            assert!(least >= 900, "{layout:?}: {least}");
        }
    }
}

#[test]
fn one_range_many_ranges_and_scattered_pages_are_found() {
    found(&[Layout::Hot, Layout::Ranges, Layout::Scattered]);
}

/// What does not hold yet.
#[test]
#[ignore = "they are not found with every seed"]
fn ranges_that_move_strides_and_zipf_are_found() {
    found(&[Layout::Moving, Layout::Strides, Layout::Zipf]);
}
