//! A close look at one granule: which of its 512 pages are touched, and how often.
//!
//! The accessed bit of a 2 MiB leaf is the same whether one page of it is touched or all; and a granule that holds a
//! tick's few cache lines is "touched" in every interval just as one that holds a working set. Weighing granules
//! alike lets a guest kernel's scattered pages outweigh the program that runs on it. So granules that are touched are
//! mapped by small pages for [`INTERVALS`] intervals, one after the other, and what their pages prove
//! together is what the granule weighs afterwards. Sampling huge pages by splitting a few at a time is Thermostat's
//! idea (N. Agarwal and T. Wenisch, ASPLOS 2017).

use alloc::boxed::Box;
use units::{Nanos, PageSet, PageSize};

use crate::rate::Rates;

/// Pages of a granule.
pub const PAGES: usize = 512;
const _: () = assert!(PAGES as u64 * PageSize::Size4K.bytes() == PageSize::Size2M.bytes());

/// Intervals that a look takes: as many observations as a rate needs (MECHANISMS section 2: N >= 20).
pub const INTERVALS: u8 = 20;

/// In how many of [`INTERVALS`] each page of a granule was touched.
pub type Hits = Box<[u8; PAGES]>;

/// A look in progress.
#[derive(Clone, Debug)]
pub struct Lens {
    /// The granule.
    pub granule: u32,
    hits: Hits,
    /// Intervals in which any page was touched.
    any: u8,
    observed: u8,
    primed: bool,
    /// How many looks it has been.
    looks: u8,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// In how many intervals each page was touched.
    pub hits: Hits,
    /// Intervals that were observed.
    pub observed: u8,
    /// Heat of all pages together.
    pub heat: u64,
    /// Heat over the granule's own rate, in 1/1024 pages; `None` if nothing was touched.
    pub density: Option<u64>,
}

impl Lens {
    /// Over a granule, before its first interval.
    pub fn over(granule: u32) -> Self {
        Self {
            granule,
            hits: Box::new([0; PAGES]),
            any: 0,
            observed: 0,
            primed: false,
            looks: 0,
        }
    }

    /// How many looks one after the other it has been.
    pub const fn looks(&self) -> u8 {
        self.looks
    }

    /// Takes in one interval: the pages that were touched in it. Whether it counts: the first one says what was touched
    /// before the look began, and a stale one nothing.
    pub fn observe(&mut self, fresh: bool, touched: &PageSet) -> bool {
        if !core::mem::replace(&mut self.primed, true) || !fresh {
            return false;
        }
        self.observed += 1;
        self.any += u8::from(!touched.is_empty());
        touched.count_in(&mut self.hits);
        true
    }

    /// Whether it has seen enough.
    pub const fn is_done(&self) -> bool {
        self.observed >= INTERVALS
    }

    /// What was found, with intervals of this length; a next look may follow.
    pub fn found(&mut self, interval: Nanos) -> Found {
        let rates = Rates::of(self.observed.into(), interval);
        let heat = self.hits.iter().map(|h| rates.get((*h).into())).sum();
        let own = rates.get(self.any.into());
        self.looks = self.looks.saturating_add(1);
        self.any = 0;
        Found {
            density: density(heat, own),
            heat,
            observed: core::mem::take(&mut self.observed),
            hits: core::mem::replace(&mut self.hits, Box::new([0; PAGES])),
        }
    }
}

/// Heat over rate, in 1/1024 pages.
pub fn density(heat: u64, rate: u64) -> Option<u64> {
    let density = (u128::from(heat) << 10).checked_div(rate.into())?;
    Some(u64::try_from(density).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look at pages `every` of each interval and one page of the first interval only.
    fn look(every: core::ops::Range<u16>) -> Found {
        let mut lens = Lens::over(0);
        lens.observe(true, &PageSet::from_iter([511]));
        for i in 0..INTERVALS {
            lens.observe(false, &PageSet::from_iter([400]));
            let touched = every.clone().chain((i == 3).then_some(500)).collect();
            assert!(!lens.is_done());
            lens.observe(true, &touched);
        }
        assert!(lens.is_done());
        lens.found(Nanos::from_millis(100))
    }

    #[test]
    fn what_was_touched_before_and_stale_intervals_do_not_count() {
        let found = look(0..3);
        assert_eq!(
            (
                found.hits[511],
                found.hits[400],
                found.hits[500],
                found.hits[1]
            ),
            (0, 0, 1, 20)
        );
    }

    #[test]
    fn density_is_the_number_of_pages_that_share_the_rate() {
        let pages = |every| look(every).density.map_or(0, |d| d / 1024);
        assert_eq!(pages(0..3), 3);
        assert_eq!(pages(0..500), 500);
        assert_eq!(Lens::over(0).found(Nanos::from_millis(100)).density, None);
    }
}
