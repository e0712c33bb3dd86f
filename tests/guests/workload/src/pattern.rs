//! Which page comes next.

use crate::args::Pattern;

/// Pseudo-random numbers (xorshift64*), the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream)) | 1)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }
}

/// Spreads a number over 64 bits (the finalizer of splitmix64).
pub fn mix(number: u64) -> u64 {
    let a = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let b = (a ^ (a >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let c = (b ^ (b >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    c ^ (c >> 31)
}

/// Chooses pages.
#[derive(Debug)]
pub struct Chooser {
    pattern: Pattern,
    pages: usize,
    at: usize,
}

impl Chooser {
    /// For `pages` pages, which are not none.
    pub fn new(pattern: Pattern, pages: usize) -> Self {
        Self {
            pattern,
            pages,
            at: 0,
        }
    }

    /// The next page; with [`Pattern::Chase`] that is `pointed`, what the last page pointed to.
    pub fn next(&mut self, random: &mut Random, pointed: usize) -> usize {
        match self.pattern {
            Pattern::Sequential => {
                let page = self.at;
                self.at = (self.at + 1) % self.pages;
                page
            }
            Pattern::Random => random.below(self.pages),
            Pattern::Zipf => {
                // The rank whose logarithm is uniform has probability 1/rank, up to a factor.
                let uniform = random.bits() as f64 / 2f64.powi(64);
                let rank = (uniform * (self.pages as f64).ln()).exp() as usize;
                // A prime factor spreads the popular ranks over memory, each to a page of its own.
                (rank.min(self.pages) - 1).wrapping_mul(2_654_435_761) % self.pages
            }
            Pattern::Chase => pointed % self.pages,
        }
    }
}

/// For each of `pages` pages the one behind it on a single random ring through all (Sattolo).
pub fn ring(pages: usize, random: &mut Random) -> Vec<usize> {
    let mut next: Vec<usize> = (0..pages).collect();
    for last in (1..pages).rev() {
        next.swap(last, random.below(last));
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_leads_through_every_page() {
        for pages in [1, 2, 3, 100] {
            let next = ring(pages, &mut Random::new(7, 0));
            let (mut at, mut seen) = (0, vec![false; pages]);
            for _ in 0..pages {
                assert!(!std::mem::replace(&mut seen[at], true), "back too early");
                at = next[at];
            }
            assert_eq!(at, 0);
        }
    }

    #[test]
    fn patterns_have_their_shapes() {
        let visits = |pattern| {
            let (mut chooser, mut random) = (Chooser::new(pattern, 1000), Random::new(1, 1));
            let mut visits = vec![0u32; 1000];
            (0..100_000).for_each(|_| visits[chooser.next(&mut random, 0)] += 1);
            visits.sort_unstable_by(|a, b| b.cmp(a));
            visits
        };
        assert!(visits(Pattern::Sequential).iter().all(|v| *v == 100));
        let random = visits(Pattern::Random);
        assert!(
            random[0] < 160 && random[999] > 50,
            "{} to {}",
            random[0],
            random[999]
        );
        let zipf = visits(Pattern::Zipf);
        let hottest: u32 = zipf[..100].iter().sum();
        assert!(
            (60_000..75_000).contains(&hottest),
            "a tenth of the pages has {hottest} of 100000 visits"
        );
    }
}
