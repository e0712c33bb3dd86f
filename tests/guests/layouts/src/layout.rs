//! Orders in which pages are visited.

use crate::random::{Random, mix};

/// Thousandths of the visits that go to the hot set; the rest goes anywhere.
pub const HOT_PERMILLE: u64 = 805;
/// Pages of 4 KiB in 2 MiB.
const BLOCK: u64 = 512;
/// Visits out of this many that write.
const WRITE_ONE_IN: u64 = 4;
/// Ranges of [`Layout::Ranges`].
const RANGES: u64 = 64;

/// Which pages are hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One range.
    Hot,
    /// Sixty-four ranges.
    Ranges,
    /// Single pages here and there, one in thirty-two.
    Scattered,
    /// The k-th in the order of popularity 1/k as often as the first.
    Zipf,
    /// One range, which jumps elsewhere when the epoch changes.
    Moving,
    /// One page in each 2 MiB.
    Strides,
    /// All pages, one after the other; no hot set.
    Scan,
    /// Each of two processors touches its own half.
    Halves,
    /// Each of two processors touches its own half four times out of five, the other half else.
    Mix,
}

impl Layout {
    /// All of them with their names.
    pub const ALL: [(&'static str, Self); 9] = [
        ("hot", Self::Hot),
        ("ranges", Self::Ranges),
        ("scattered", Self::Scattered),
        ("zipf", Self::Zipf),
        ("moving", Self::Moving),
        ("strides", Self::Strides),
        ("scan", Self::Scan),
        ("halves", Self::Halves),
        ("mix", Self::Mix),
    ];

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, layout)| *layout)
    }
}

/// One visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The page, from 0.
    pub page: u64,
    /// Whether it is written; else it is read.
    pub write: bool,
}

/// Chooses the pages that one processor visits.
#[derive(Clone, Debug)]
pub struct Walk {
    layout: Layout,
    pages: u64,
    seed: u64,
    processor: u64,
    random: Random,
    at: u64,
}

impl Walk {
    /// Over `pages` pages, not none, by `processor`.
    #[must_use]
    pub fn new(layout: Layout, pages: u64, seed: u64, processor: u64) -> Self {
        Self {
            layout,
            pages: pages.max(1),
            seed,
            processor,
            random: Random::new(seed, 100 + processor),
            at: 0,
        }
    }

    /// The next visit; `epoch` moves what moves.
    pub fn next(&mut self, epoch: u64) -> Visit {
        let write = self.random.below(WRITE_ONE_IN) == 0;
        let page = match self.layout {
            Layout::Scan => {
                self.at = (self.at + 1) % self.pages;
                self.at
            }
            Layout::Zipf => self.zipf(),
            Layout::Halves => self.half(self.processor),
            Layout::Mix => {
                let own = self.random.below(5) < 4;
                self.half(self.processor + u64::from(!own))
            }
            _ if self.random.below(1000) >= HOT_PERMILLE => self.random.below(self.pages),
            _ => self.hot(epoch),
        };
        Visit { page, write }
    }

    /// A page of the hot set.
    fn hot(&mut self, epoch: u64) -> u64 {
        let blocks = (self.pages / BLOCK).max(1);
        match self.layout {
            Layout::Ranges => {
                // A slot for each range, so that no two meet; and all of their pages are alike: a long range is
                // visited more often than a short one.
                let slot = (self.pages / RANGES).max(1);
                let longest = (slot / 8).max(1);
                loop {
                    let (range, inside) = (self.random.below(RANGES), self.random.below(longest));
                    let length = 1 + self.draw(range) % longest;
                    if inside < length {
                        let start = self.draw(range ^ 0x100) % (slot - length + 1);
                        break range * slot + start + inside;
                    }
                }
            }
            Layout::Scattered => {
                let slot = self.random.below((self.pages / 32).max(1));
                slot * 32 + self.draw(slot) % 32
            }
            Layout::Strides => {
                let block = self.random.below(blocks);
                block * BLOCK + self.draw(0) % BLOCK
            }
            _ => {
                let epoch = if self.layout == Layout::Moving {
                    epoch
                } else {
                    0
                };
                let length = (self.pages / 64 + self.draw(1) % (self.pages / 32).max(1)).max(1);
                let start = self.draw(2 ^ epoch << 32) % (self.pages - length + 1).max(1);
                start + self.random.below(length)
            }
        }
    }

    /// A number that depends on the seed and `what` only.
    fn draw(&self, what: u64) -> u64 {
        mix(self.seed ^ mix(what))
    }

    fn half(&mut self, which: u64) -> u64 {
        let half = (self.pages / 2).max(1);
        (which % 2) * half + self.random.below(half)
    }

    /// Exactly, and without floating point: first a scale, each as often as the next, whose ranks are 2^s to 2^(s+1);
    /// then one of its ranks, which is kept with a probability of 2^s over the rank.
    fn zipf(&mut self) -> u64 {
        let scales = u64::from(self.pages.ilog2()).max(1);
        let rank = loop {
            let scale = self.random.below(scales);
            let rank = (1 << scale) + self.random.below(1 << scale);
            if self.random.below(rank) < 1 << scale {
                break rank.min(self.pages) - 1;
            }
        };
        // An odd factor and a shift spread the popular ranks over memory, each to a page of its own.
        rank.wrapping_mul(0x9e37_79b1).wrapping_add(self.draw(3)) % self.pages
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    const PAGES: u64 = 8192;

    fn counts(layout: Layout, seed: u64, epoch: u64) -> Vec<u64> {
        let (mut walk, mut counts) = (Walk::new(layout, PAGES, seed, 0), vec![0; PAGES as usize]);
        (0..400_000).for_each(|_| counts[walk.next(epoch).page as usize] += 1);
        counts
    }

    /// Pages of the smallest set that takes 80 % of the visits.
    fn hot(counts: &[u64]) -> Vec<usize> {
        let mut pages: Vec<usize> = (0..counts.len()).collect();
        pages.sort_by_key(|p| std::cmp::Reverse(counts[*p]));
        let (total, mut sum) = (counts.iter().sum::<u64>(), 0);
        let more = pages.iter().take_while(|p| {
            let more = sum * 5 < total * 4;
            sum += counts[**p];
            more
        });
        let mut hot: Vec<usize> = more.copied().collect();
        hot.sort_unstable();
        hot
    }

    #[test]
    fn hot_sets_have_their_shapes() {
        for seed in 1..6 {
            let one = hot(&counts(Layout::Hot, seed, 0));
            assert!(one.len() > 120 && one.len() < 400, "{}", one.len());
            let span = one[one.len() - 1] - one[0] + 1;
            assert!(
                span <= one.len() * 102 / 100 + 2,
                "one range, {span} {}",
                one.len()
            );
            let moved = hot(&counts(Layout::Moving, seed, 1));
            assert_ne!(hot(&counts(Layout::Moving, seed, 0)), moved);
            let strides = hot(&counts(Layout::Strides, seed, 0));
            assert_eq!(strides.len() as u64, PAGES / BLOCK);
            assert!(strides.windows(2).all(|p| p[1] - p[0] == BLOCK as usize));
            let scattered = hot(&counts(Layout::Scattered, seed, 0)).len() as u64;
            assert!(
                scattered.abs_diff(PAGES / 32) < PAGES / 32 / 10,
                "{scattered}"
            );
            let ranges = hot(&counts(Layout::Ranges, seed, 0));
            let starts = 1 + ranges.windows(2).filter(|p| p[1] - p[0] > 3).count();
            assert!((40..=66).contains(&starts), "{starts} ranges");
        }
    }

    #[test]
    fn processors_keep_to_their_halves() {
        let on_second = |layout, processor| {
            let mut walk = Walk::new(layout, PAGES, 3, processor);
            (0..10_000)
                .filter(|_| walk.next(0).page >= PAGES / 2)
                .count()
        };
        assert_eq!(
            (on_second(Layout::Halves, 0), on_second(Layout::Halves, 1)),
            (0, 10_000)
        );
        assert!((1800..2200).contains(&on_second(Layout::Mix, 0)));
        assert!((7800..8200).contains(&on_second(Layout::Mix, 1)));
    }

    #[test]
    fn a_scan_visits_all_and_zipf_few_often() {
        let scan = counts(Layout::Scan, 1, 0);
        let (least, most) = (scan.iter().min().copied(), scan.iter().max().copied());
        assert!(least.zip(most).is_some_and(|(a, b)| b - a <= 1));
        let zipf = counts(Layout::Zipf, 1, 0);
        assert!(zipf.iter().filter(|c| **c > 0).count() > PAGES as usize / 2);
        assert!(hot(&zipf).len() < PAGES as usize / 4);
    }

    #[test]
    fn the_kth_page_of_zipf_is_visited_a_kth_as_often_as_the_first() {
        let mut zipf = counts(Layout::Zipf, 1, 0);
        zipf.sort_by_key(|count| std::cmp::Reverse(*count));
        // Also between the powers of two.
        for k in [2, 3, 5, 7, 11, 13, 24, 47] {
            let expected = zipf[0] / k;
            let off = zipf[k as usize - 1].abs_diff(expected);
            assert!(off * 8 < expected, "{k}: {off} of {expected}");
        }
    }
}
