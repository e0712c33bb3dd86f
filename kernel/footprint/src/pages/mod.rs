//! How hot single pages are: what close looks and looks at stopped guests say together.
//!
//! Accessed bits order pages by rate as far as they do not saturate: a page that is touched in nearly every interval
//! may be touched ten times a second or a million times. Looks at what stopped guests were about to touch
//! ([`operands`](crate::operands)) do not saturate, but they are few: most pages are never met. So pages are put
//! into *classes* of like rate by their bits. Looks say which part of all touches the saturated class gets and which
//! the others: `(N w + W b) / (N + W)`, as among nodes. Among the others bits say it, unless looks differ from that by
//! more than chance, as they do where pages are touched in bursts. Where a hotter class would come out colder per page, luck was at work and the two
//! are made one (pool adjacent violators: R. Barlow et al., "Statistical inference under order restrictions", 1972).
//! What the two are told to have is what looks prove of each ([`evidence`](crate::evidence)), so that few looks at many
//! cold pages do not add up to something.
//!
//! Inside a class a page's own looks count as far as they are more than luck: see `mixture`. What a guest did ten seconds ago, or
//! before it began something else, is forgotten: see `looks` and `habit`. And how many of the hottest pages are
//! the hot set is a decision of its own, for what looks leave open may be hundreds of pages or none: [`hot_pages`].

mod classes;
mod habit;
mod hot;
mod looks;
mod mixture;

use alloc::boxed::Box;
use alloc::vec::Vec;
use units::{Gpa, Nanos, PAGE_BYTES, PageSet};

use crate::lens::PAGES;
use crate::rate::{Rates, TOUCH_PER_SECOND};
use crate::sampler::Heat;
use classes::Classes;
pub use hot::hot_pages;
pub use looks::PageLooks;

/// Intervals that are remembered of a granule's pages: five close looks.
pub(crate) const REMEMBERED: u8 = 5 * crate::lens::INTERVALS;
const _: () = assert!(REMEMBERED <= 128, "PageSet::count_in counts no further");
/// All touches together, as heat of pages.
const ALL: u128 = 1 << 48;
/// A look, where looks are counted in parts.
const LOOK: u128 = 1 << 16;
/// Classes of each octave of rates.
const CLASSES_OF_OCTAVE: u32 = 2;
/// The class of pages that are touched in nearly every interval.
const SATURATED: u32 = u32::MAX;

/// In how many intervals each page of a granule was touched lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageHits {
    hits: Box<[u8; PAGES]>,
    observed: u8,
    /// Of all intervals together.
    time: Nanos,
}

impl Default for PageHits {
    fn default() -> Self {
        Self {
            hits: Box::new([0; PAGES]),
            observed: 0,
            time: Nanos::ZERO,
        }
    }
}

impl PageHits {
    /// Takes in an interval: the pages that were touched in it.
    pub fn observe(&mut self, touched: &PageSet, interval: Nanos) {
        if self.observed >= REMEMBERED {
            self.hits.iter_mut().for_each(|hits| *hits /= 2);
            self.observed /= 2;
            self.time = Nanos(self.time.0 / 2);
        }
        self.observed += 1;
        self.time += interval;
        touched.count_in(&mut self.hits);
    }

    /// How long an interval was, on average. Of seldom touched pages only the time in all matters, so intervals of different
    /// lengths may be taken together.
    pub fn interval(&self) -> Nanos {
        Nanos(self.time.0 / u64::from(self.observed.max(1)))
    }

    /// By page.
    pub fn hits(&self) -> &[u8] {
        self.hits.as_slice()
    }

    /// Intervals that were observed.
    pub const fn observed(&self) -> u8 {
        self.observed
    }
}

/// Consecutive pages that are thought to be touched equally often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Number of the first page: its address divided by 4096.
    pub first: u64,
    /// How many.
    pub pages: u64,
    /// Share of all touches that goes to these pages together, in 2^-48.
    pub heat: u64,
}

/// Pages that bits and looks say the same of.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    pages: u64,
    /// By bits, of each page.
    rate: u64,
    class: u32,
    /// By looks, of all.
    looked: u64,
}

/// All pages that are touched, hottest first: `granules` as the sampler's last pass found them; `close` is what close
/// looks found of the one at an address.
pub fn heats<'s>(
    granules: &[Heat],
    close: impl Fn(Gpa) -> Option<&'s PageHits>,
    looks: &PageLooks,
) -> Vec<Range> {
    let mut runs = Vec::new();
    for granule in granules {
        of_granule(granule, close(granule.gpa), &mut runs);
    }
    let runs = single_out(runs, looks);
    let classes = Classes::of(&runs, looks);
    let mut ranges: Vec<Range> = Vec::with_capacity(runs.len());
    for (run, heat) in runs.iter().zip(classes.heats(&runs)) {
        if heat == 0 {
            continue;
        }
        ranges.push(Range {
            first: run.first,
            pages: run.pages,
            heat,
        });
    }
    let by_page = |r: &Range| core::cmp::Reverse(r.heat / r.pages.max(1));
    ranges.sort_by_key(|r| (by_page(r), r.first));
    ranges
}

/// The runs of a granule's pages by bits alone.
fn of_granule(granule: &Heat, close: Option<&PageHits>, runs: &mut Vec<Run>) {
    let mut at = granule.gpa.0 / PAGE_BYTES;
    let Some(close) = close else {
        let rate = granule.heat / PAGES as u64;
        runs.push(run(at, PAGES as u64, rate, class(rate)));
        return;
    };
    let rates = Rates::of(close.observed.into(), close.interval());
    for part in close.hits.chunk_by(|a, b| a == b) {
        let hits = part.first().copied().unwrap_or(0);
        let rate = rates.get(hits.into());
        let saturated = u32::from(hits) * 32 >= u32::from(close.observed) * 31;
        let class = if saturated { SATURATED } else { class(rate) };
        let pages = part.len() as u64;
        if hits > 0 {
            runs.push(run(at, pages, rate, class));
        }
        at += pages;
    }
}

const fn run(first: u64, pages: u64, rate: u64, class: u32) -> Run {
    Run {
        first,
        pages,
        rate,
        class,
        looked: 0,
    }
}

/// The class of a rate that does not saturate.
fn class(rate: u64) -> u32 {
    let octave = rate.max(1).ilog2();
    let above = rate.max(1) - (1 << octave);
    let part = (u128::from(above) * u128::from(CLASSES_OF_OCTAVE)) >> octave;
    octave * CLASSES_OF_OCTAVE + u32::try_from(part).unwrap_or(0)
}

/// Gives each page that looks met a run of its own. Bits may know nothing of it: then it is as cold as anything.
fn single_out(mut runs: Vec<Run>, looks: &PageLooks) -> Vec<Run> {
    runs.sort_unstable_by_key(|r| r.first);
    let met = looks
        .pages()
        .iter()
        .map(|(page, weight)| (*page, u64::from(*weight)));
    let mut looked = met.peekable();
    let mut all: Vec<Run> = Vec::with_capacity(runs.len() + looks.pages().len());
    let alone = |page: u64, weight: u64| Run {
        looked: weight,
        ..run(page, 1, TOUCH_PER_SECOND / 10, class(TOUCH_PER_SECOND / 10))
    };
    for mut rest in runs {
        while let Some((page, weight)) = looked.next_if(|(page, _)| *page < rest.first) {
            all.push(alone(page, weight));
        }
        let end = rest.first.saturating_add(rest.pages);
        while let Some((page, weight)) = looked.next_if(|(page, _)| *page < end) {
            if page > rest.first {
                all.push(Run {
                    pages: page - rest.first,
                    ..rest
                });
            }
            all.push(Run {
                first: page,
                pages: 1,
                looked: weight,
                ..rest
            });
            rest.first = page + 1;
            rest.pages = end - rest.first;
        }
        if rest.pages > 0 {
            all.push(rest);
        }
    }
    all.extend(looked.map(|(page, weight)| alone(page, weight)));
    all
}

/// Where a page stands among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its part of all touches, in millionths.
    pub ppm: u64,
    /// Pages that are hotter.
    pub hotter: u64,
}

/// Where a page stands among `ranges` that [`heats`] found; `None` for one that is not touched.
pub fn standing(ranges: &[Range], page: u64) -> Option<Standing> {
    let all: u128 = ranges.iter().map(|r| u128::from(r.heat)).sum();
    let own = ranges
        .iter()
        .find(|r| (r.first..r.first.saturating_add(r.pages)).contains(&page))?;
    let each = |r: &Range| r.heat / r.pages.max(1);
    let ppm = (u128::from(each(own)) * 1_000_000).checked_div(all)?;
    let hotter = ranges.iter().take_while(|r| each(r) > each(own));
    Some(Standing {
        ppm: u64::try_from(ppm).unwrap_or(u64::MAX),
        hotter: hotter.map(|r| r.pages).sum(),
    })
}
