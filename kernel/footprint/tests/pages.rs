//! Heat of single pages against synthetic guests whose every access is counted.

mod common;

use common::{agreement, four_fifths};
use footprint::lens::{INTERVALS, PAGES};
use footprint::pages::{Range, Standing, heats, standing};
use footprint::sampler::Heat;
use footprint::{PageHits, PageLooks};
use layouts::Random;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use units::{Gpa, Nanos, PAGE_BYTES, PageSize};

const INTERVAL: Nanos = Nanos::from_millis(100);
const GRANULES: u64 = 16;
const ALL: u64 = GRANULES * PAGES as u64;
/// Of the VM: enough that nothing is forgotten early.
const MEMORY: u64 = 1 << 30;

/// A guest that visits pages as `next` says, watched for six seconds.
struct Watched {
    truth: BTreeMap<u64, u64>,
    granules: Vec<Heat>,
    close: BTreeMap<u64, PageHits>,
    looks: PageLooks,
}

/// A close look that found pages so often, in the first of its intervals.
fn look(pages: &mut PageHits, hits: &[u8], interval: Nanos) {
    for i in 0..INTERVALS {
        let touched = (0u16..).zip(hits).filter(|(_, h)| i < **h);
        pages.observe(&touched.map(|(page, _)| page).collect(), interval);
    }
}

fn looked(hits: &[u8]) -> PageHits {
    let mut pages = PageHits::default();
    look(&mut pages, hits, INTERVAL);
    pages
}

fn watch(seed: u64, visits_of_interval: u64, mut next: impl FnMut(&mut Random) -> u64) -> Watched {
    let mut dice = Random::new(seed | 1, 0);
    let mut w = Watched {
        truth: BTreeMap::new(),
        granules: Vec::new(),
        close: BTreeMap::new(),
        looks: PageLooks::of_memory(MEMORY),
    };
    for _look in 0..3 {
        let mut hits = vec![[0u8; PAGES]; GRANULES as usize];
        for _ in 0..INTERVALS {
            let mut touched = BTreeSet::new();
            for visit in 0..visits_of_interval {
                let page = next(&mut dice);
                *w.truth.entry(page).or_default() += 1;
                touched.insert(page);
                if visit % (visits_of_interval / 40) == 7 {
                    w.looks.look([(Gpa(page * PAGE_BYTES), 300)]);
                }
            }
            for page in touched {
                hits[(page / PAGES as u64) as usize][(page % PAGES as u64) as usize] += 1;
            }
        }
        for (granule, hits) in (0u64..).zip(&hits) {
            look(w.close.entry(granule).or_default(), hits, INTERVAL);
        }
    }
    let heat = |granule| Heat {
        gpa: Gpa(granule * PageSize::Size2M.bytes()),
        heat: 1000,
        hits: 20,
    };
    w.granules = (0..GRANULES).map(heat).collect();
    w
}

impl Watched {
    fn heats(&self, looks: &PageLooks) -> Vec<Range> {
        heats(
            &self.granules,
            |at| self.close.get(&(at.0 / PageSize::Size2M.bytes())),
            looks,
        )
    }
    /// F1 of the smallest sets that take four fifths, in thousandths.
    fn f1(&self, looks: &PageLooks) -> u64 {
        let believed = four_fifths(self.heats(looks).iter().flat_map(|r| {
            let each = r.heat / r.pages;
            (r.first..r.first + r.pages).map(move |page| (page, each))
        }));
        let truth = four_fifths(self.truth.iter().map(|(p, n)| (*p, *n)));
        agreement(&truth, &believed)
    }
}

/// 81 % to some pages, the rest anywhere.
fn mostly(dice: &mut Random, hot: impl Fn(u64) -> u64, count: u64) -> u64 {
    match dice.below(100) < 81 {
        true => hot(dice.below(count)),
        false => dice.below(ALL),
    }
}

#[test]
fn a_saturated_range_is_told_from_the_cold_rest_by_looks() {
    for seed in (1..12).step_by(2) {
        let w = watch(seed, 6000, |d| mostly(d, |n| 1000 + n, 200));
        assert!(w.f1(&w.looks) >= 950, "{}", w.f1(&w.looks));
        assert!(
            w.f1(&PageLooks::of_memory(MEMORY)) < 500,
            "bits alone know what is hot, not how hot"
        );
    }
}

#[test]
fn scattered_pages_are_found() {
    let w = watch(5, 6000, |d| mostly(d, |n| n * 31 + 7, 256));
    assert!(w.f1(&w.looks) >= 950, "{}", w.f1(&w.looks));
}

#[test]
fn a_page_that_takes_half_of_all_touches_is_known_to() {
    let w = watch(9, 6000, |d| match d.below(2) {
        0 => 77,
        _ => mostly(d, |n| 2000 + n, 100),
    });
    let heats = w.heats(&w.looks);
    let total: u64 = heats.iter().map(|r| r.heat).sum();
    let first = heats.first().expect("something is hot");
    let share = first.heat * 1000 / total;
    assert!(
        first.first == 77 && first.pages == 1 && (430..550).contains(&share),
        "{first:?} {share}"
    );
}

#[test]
fn a_graded_set_is_cut_at_about_the_right_place() {
    for seed in (1..12).step_by(2) {
        // Ranks of the same power of two are visited equally often.
        let w = watch(seed, 8000, |d| {
            let scale = d.below(13);
            let rank = (1 << scale) + d.below(1 << scale) - 1;
            rank * 0x1235 % ALL
        });

        assert!(w.f1(&w.looks) >= 850, "{}", w.f1(&w.looks));
    }
}

#[test]
fn what_was_long_ago_is_forgotten() {
    let mut pages = looked(&[20; PAGES]);
    look(&mut pages, &[0; PAGES], INTERVAL);
    assert_eq!((pages.hits()[5], pages.observed()), (20, 40));
    (0..20).for_each(|_| look(&mut pages, &[0; PAGES], INTERVAL));
    assert_eq!(pages.hits()[5], 0);
    assert!(pages.observed() <= 100);
}

#[test]
fn looks_with_intervals_of_different_lengths_are_taken_together() {
    let mut pages = looked(&[1; PAGES]);
    look(&mut pages, &[3; PAGES], Nanos::from_millis(300));
    assert_eq!((pages.hits()[5], pages.observed()), (4, 40));
    assert_eq!(pages.interval(), Nanos::from_millis(200));
}

#[test]
fn what_looks_met_is_forgotten_and_takes_no_more_than_its_part_of_memory() {
    let told = |looks: &PageLooks| heats(&[], |_| None, looks).len();
    for mib in [32u64, 256, 8192] {
        let part = (mib << 20 >> 10) as usize;
        let mut looks = PageLooks::of_memory(mib << 20);
        let mut most = 0;
        for page in 0..200_000u64 {
            looks.look([(Gpa(page * PAGE_BYTES), 1024)]);
            most = most.max(looks.metadata_bytes());
            assert!(looks.metadata_bytes() <= part, "{mib} MiB: {most} bytes");
        }
        // All but a portion of it is put to use, as far as there is something to remember.
        let pages = told(&looks);
        let needed = pages == 200_000;
        assert!(
            most * 4 >= part * 3 || needed,
            "{mib} MiB: {most} bytes, {pages} pages"
        );
        (0..20).for_each(|_| assert!(!looks.age()));
        assert_eq!((told(&looks), looks.count()), (0, 0));
    }
}

/// Where there is little room, what was met last is what counts.
#[test]
fn without_room_the_oldest_is_forgotten() {
    let mut looks = PageLooks::of_memory(32 << 20);
    for page in (0..3000u64).chain(5000..6000) {
        looks.look([(Gpa(page * PAGE_BYTES), 1024)]);
    }
    let ranges = heats(&[], |_| None, &looks);
    let known = |page: u64| {
        ranges
            .iter()
            .any(|r| (r.first..r.first + r.pages).contains(&page))
    };
    assert!((5900..6000).all(known) && !(0..100).any(known));
}

/// A look that meets four pages says something of each of them: pages that bits find touched all the time, as code is, and that
/// looks never meet get next to nothing, where others of their class are met a few times each.
#[test]
fn each_page_of_a_look_counts_as_met() {
    let (met, fetched) = (64u64, 64u64);
    let mut hits = [0u8; PAGES];
    hits[..(met + fetched) as usize].fill(INTERVALS);
    let close = looked(&hits);
    let granule = Heat {
        gpa: Gpa(0),
        heat: 1000,
        hits: 20,
    };
    let mut looks = PageLooks::of_memory(MEMORY);
    let mut dice = Random::new(3, 0);
    for _ in 0..met {
        let mut page = |i: u64| (Gpa((i * 16 + dice.below(16)) * PAGE_BYTES), 64);
        looks.look((0..4).map(&mut page));
    }
    let ranges = heats(&[granule], |_| Some(&close), &looks);
    let heat = |fetched: bool| -> u64 {
        let of = ranges.iter().filter(|r| (r.first >= met) == fetched);
        of.map(|r| r.heat).sum()
    };
    assert!(
        heat(true) * 30 < heat(false),
        "{}",
        heat(true) * 1000 / heat(false)
    );
}

/// What a guest did in any of the last twenty half seconds counts alike, and not at all after that.
#[test]
fn phases_count_alike_and_are_forgotten_together() {
    let mut looks = PageLooks::of_memory(MEMORY);
    let span = |looks: &mut PageLooks, page: u64| {
        assert!(!looks.age());
        (0..40).for_each(|_| looks.look([(Gpa(page * PAGE_BYTES), 1024)]));
    };
    let part = |looks: &PageLooks, page| {
        let ranges = heats(&[], |_| None, looks);
        standing(&ranges, page).map_or(0, |s| s.ppm)
    };
    let phases = (1..=4).flat_map(|page| [page; 5]);
    for page in [1, 2, 3, 4, 3, 3].into_iter().chain(phases) {
        span(&mut looks, page);
    }
    for page in 1..=4 {
        let quarters = part(&looks, page).abs_diff(250_000);
        assert!(quarters < 20_000, "{page}: {quarters}");
    }
    (0..15).for_each(|_| span(&mut looks, 4));
    assert!(part(&looks, 4) > 990_000, "{}", part(&looks, 4));
    assert_eq!([1, 2, 3].map(|page| part(&looks, page)), [0; 3]);
}

#[test]
fn a_page_stands_where_its_heat_puts_it() {
    let range = |first, pages, heat| Range { first, pages, heat };
    let ranges = [range(7, 1, 500), range(100, 4, 400), range(20, 10, 100)];
    let place = |ppm, hotter| Some(Standing { ppm, hotter });
    assert_eq!(standing(&ranges, 7), place(500_000, 0));
    assert_eq!(standing(&ranges, 103), place(100_000, 1));
    assert_eq!(standing(&ranges, 29), place(10_000, 5));
    assert_eq!(standing(&ranges, 30), None);
    assert_eq!(standing(&[], 0), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn ranges_do_not_overlap_and_their_heats_add_up(
        hits in proptest::collection::vec((0u64..6, proptest::collection::vec(0u8..=20, PAGES)), 0..4),
        touched in proptest::collection::vec((0u64..10, any::<u64>()), 0..8),
        met in proptest::collection::vec((0u64..5000, any::<u32>()), 0..200),
    ) {
        let close: BTreeMap<u64, PageHits> =
            hits.iter().map(|(g, hits)| (*g, looked(hits))).collect();
        let touched: BTreeMap<u64, u64> = touched.into_iter().collect();
        let granules: Vec<Heat> = touched.iter()
            .map(|(g, heat)| Heat { gpa: Gpa(g * PageSize::Size2M.bytes()), heat: *heat, hits: 1 }).collect();
        let mut looks = PageLooks::of_memory(MEMORY);
        met.iter().for_each(|(page, weight)| looks.look([(Gpa(page * PAGE_BYTES), *weight)]));
        let ranges = heats(&granules, |at| close.get(&(at.0 / PageSize::Size2M.bytes())), &looks);
        let mut sorted = ranges.clone();
        sorted.sort_by_key(|r| r.first);
        prop_assert!(sorted.windows(2).all(|w| w[0].first + w[0].pages <= w[1].first));
        prop_assert!(ranges.windows(2).all(|w| w[0].heat / w[0].pages >= w[1].heat / w[1].pages));
        let sum: u128 = ranges.iter().map(|r| u128::from(r.heat)).sum();
        prop_assert!(sum <= (1 << 48) * 11 / 10, "{sum}");
        let any = met.iter().any(|(_, w)| *w > 0);
        prop_assert!(!any || sum > 0);
    }
}
