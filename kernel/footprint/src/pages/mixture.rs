//! How the pages of a class differ, by how often looks met each of them.
//!
//! Bits say the same of all pages of a class; looks may know better, but each page is met a few times at most, and luck
//! alone makes some of equals be met twice as often as others. Which rates there are among the pages is what the counts of all
//! of them together tell: the most likely mixture of [`STEPS`] to the octave is found by expectation maximization
//! (A. Dempster, N. Laird and D. Rubin, 1977; N. Laird, 1978, for mixtures of Poisson processes), and each page gets the mean
//! of those rates that its own count leaves likely (H. Robbins, 1956). Where all pages are alike each
//! gets the same. Pages of code that are fetched in every interval and hold no operand, among pages that are met
//! ten times each, get next to nothing; and a page met a hundred times among pages met once has its own.
//!
//! Everything is in fixed point: rates and counts in [`LOOK`]s, logarithms in 2^-16, probabilities in 2^-32.

use alloc::vec::Vec;

use super::LOOK;

/// Rates of each octave.
const STEPS: u64 = 4;
/// The lowest rate is so many octaves below the mean.
const BELOW: u64 = 6;
/// Octaves that there are at most.
const OCTAVES: u64 = 40;
/// A page that was met so often has a rate of its own between two steps: chance moves its count by less than half a step.
const CERTAIN: u64 = 64 * LOOK as u64;
/// Rounds of expectation and maximization.
const ROUNDS: usize = 40;
/// Counts are told apart by this part of themselves, or of a look.
const GRAIN: u64 = 32;
/// Counts and numbers of pages are limited to this, so that no sum overflows.
const LIMIT: u64 = 1 << 40;
/// Pages are alike unless differences make their counts so much likelier: a logarithm, in 2^-16.
const MUCH: i128 = 10 << 16;
/// A probability of one.
const ONE: u64 = 1 << 32;
/// ln 2 in 2^-16.
const LN_2: u64 = 45_426;

/// Which rates there are among the pages of a class, and how many pages have each.
#[derive(Clone, Debug, Default)]
pub(super) struct Mixture {
    /// Ascending, none is 0, and the part of all pages that has it.
    rates: Vec<(u64, u64)>,
}

impl Mixture {
    /// Of pages that were met so often, and `unmet` more.
    pub(super) fn of(met: &[u64], unmet: u64) -> Self {
        let unmet = unmet.min(LIMIT);
        let pages = unmet + met.len() as u64;
        let sum = met
            .iter()
            .fold(0u64, |sum, n| sum.saturating_add((*n).min(LIMIT)));
        let most = met.iter().copied().max().unwrap_or(0).min(LIMIT);
        if sum == 0 || pages == 0 {
            return Self::default();
        }
        let lowest = ((sum / pages) >> BELOW).max(1);
        let mut found = Self {
            rates: ladder(lowest, most.max(lowest)),
        };
        let groups = grouped(met, unmet);
        let counts = found.chances(&groups);
        for _ in 0..ROUNDS {
            found.improve(&counts);
        }
        let alike = Self {
            rates: alloc::vec![((sum / pages).max(1), ONE)],
        };
        if found.explains(&groups) > alike.explains(&groups) + MUCH {
            found
        } else {
            alike
        }
    }

    /// Logarithm of how likely all counts are.
    fn explains(&self, groups: &[(u64, u64)]) -> i128 {
        let each = |(count, pages): &(u64, u64)| {
            let logs = self.logs(*count);
            let best = self.best(&logs);
            let likely = self.likely(*count);
            let weight = |((_, part), likely): (&(u64, u64), u64)| (part * (likely >> 8)) >> 24;
            let all: u64 = self.rates.iter().zip(likely).map(weight).sum();
            (best + i128::from(ln(all) - ln(ONE))) * i128::from(*pages)
        };
        groups.iter().map(each).sum()
    }

    /// The mean of the rates of pages that were met so often.
    pub(super) fn expected(&self, count: u64) -> u64 {
        let likely = self.likely(count);
        let (mut all, mut sum) = (0u128, 0u128);
        for (i, ((_, part), likely)) in self.rates.iter().zip(likely).enumerate() {
            let weight = u128::from(*part) * u128::from(likely);
            all += weight;
            sum += (weight >> 32) * u128::from(self.step(i, count));
        }
        let mean = sum.checked_div(all >> 32);
        mean.map_or(0, |mean| u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// A rate, as far as a count lets it be told from those between the steps beside it.
    fn step(&self, i: usize, count: u64) -> u64 {
        let of = |i: usize| self.rates.get(i).map(|(rate, _)| *rate);
        let Some(rate) = of(i) else { return 0 };
        if count < CERTAIN {
            return rate;
        }
        let between = |other: Option<u64>| other.map_or(rate, |other| rate.midpoint(other));
        let (below, above) = (i.checked_sub(1).and_then(of), of(i + 1));
        count.clamp(between(below), between(above))
    }

    /// The mean of the rates of a page that was never met, if rates like it are `times` over `of` of those that there are.
    pub(super) fn of_unmet(&self, times: u128, of: u128) -> u64 {
        let scaled = |rate: u64| {
            let rate = super::classes::scaled(rate.into(), times, of);
            u64::try_from(rate).unwrap_or(u64::MAX)
        };
        let there = || self.rates.iter().filter(|(_, part)| *part > 0);
        let least = there().map(|(rate, _)| scaled(*rate)).min().unwrap_or(0);
        let (mut all, mut sum) = (0u128, 0u128);
        for (rate, part) in there() {
            let rate = scaled(*rate);
            let weight = u128::from(*part) * u128::from(exp_minus(rate - least));
            all += weight;
            sum += (weight >> 32) * u128::from(rate);
        }
        let mean = sum.checked_div(all >> 32);
        mean.map_or(0, |mean| u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// How likely each rate makes a count, as part of what the likeliest does of those that there are.
    fn likely(&self, count: u64) -> Vec<u64> {
        let logs = self.logs(count);
        let best = self.best(&logs);
        let off = |log: &i128| u64::try_from((best - log).max(0)).unwrap_or(u64::MAX);
        logs.iter().map(|log| exp_minus(off(log))).collect()
    }

    /// Logarithms of that, but for what is the same for all rates.
    fn logs(&self, count: u64) -> Vec<i128> {
        let log = |rate: u64| {
            let times = i128::from(count.min(LIMIT)) * i128::from(ln(rate));
            // Rates and counts are in 2^-16, too.
            (times >> 16) - i128::from(rate)
        };
        self.rates.iter().map(|(rate, _)| log(*rate)).collect()
    }

    /// The highest logarithm of those rates that there are.
    fn best(&self, logs: &[i128]) -> i128 {
        let there = self.rates.iter().zip(logs).filter(|(r, _)| r.1 > 0);
        there.map(|(_, log)| *log).max().unwrap_or(0)
    }

    /// [`Mixture::likely`] of each count, and how many pages have it.
    fn chances(&self, groups: &[(u64, u64)]) -> Vec<(u64, Vec<u64>)> {
        let likely = |(count, pages): &(u64, u64)| (*pages, self.likely(*count));
        groups.iter().map(likely).collect()
    }

    /// One round: how many pages of each rate there seem to be, if they are as many as was thought.
    fn improve(&mut self, counts: &[(u64, Vec<u64>)]) {
        let mut pages = alloc::vec![0u128; self.rates.len()];
        for (number, likely) in counts {
            let weight = |((_, part), likely): (&(u64, u64), &u64)| (part * (likely >> 8)) >> 24;
            let all: u64 = self.rates.iter().zip(likely).map(weight).sum();
            // In 2^-32 of a page.
            let Some(each) = (u128::from(*number) << 64).checked_div(all.into()) else {
                continue;
            };
            for (sum, of) in pages.iter_mut().zip(self.rates.iter().zip(likely)) {
                *sum += (each * u128::from(weight(of))) >> 32;
            }
        }
        let all: u128 = pages.iter().sum();
        for ((_, part), pages) in self.rates.iter_mut().zip(pages) {
            let share = (pages * u128::from(ONE)).checked_div(all).unwrap_or(0);
            *part = u64::try_from(share).unwrap_or(ONE);
        }
    }
}

/// Rates from `lowest` to beyond `highest`, all equally likely.
fn ladder(lowest: u64, highest: u64) -> Vec<(u64, u64)> {
    let mut rates = Vec::new();
    for octave in 0..OCTAVES {
        for step in 0..STEPS {
            let rate = (lowest << octave) + (lowest << octave) * step / STEPS;
            rates.push(rate);
            if rate >= highest {
                return equally(rates);
            }
        }
    }
    equally(rates)
}

fn equally(mut rates: Vec<u64>) -> Vec<(u64, u64)> {
    rates.dedup();
    let part = ONE / (rates.len() as u64).max(1);
    rates.into_iter().map(|rate| (rate, part)).collect()
}

/// Counts, and how many pages have each.
fn grouped(met: &[u64], unmet: u64) -> Vec<(u64, u64)> {
    let mut rounded: Vec<u64> = met.iter().map(|n| round((*n).min(LIMIT))).collect();
    rounded.sort_unstable();
    let groups = rounded.chunk_by(|a, b| a == b);
    let groups = groups.filter_map(|group| Some((*group.first()?, group.len() as u64)));
    core::iter::once((0, unmet)).chain(groups).collect()
}

/// A count without what does not matter.
fn round(count: u64) -> u64 {
    let look = u64::try_from(LOOK).unwrap_or(1);
    let grain = (count.max(look) / GRAIN).next_power_of_two();
    count / grain * grain
}

/// The natural logarithm of a rate in [`LOOK`]s, in 2^-16.
fn ln(rate: u64) -> i64 {
    let octave = i64::from(rate.max(1).ilog2());
    let mantissa = (u128::from(rate.max(1)) << 63) >> octave;
    // By squaring, a bit at a time (see [`crate::rate`]).
    let (mut mantissa, mut log2) = (mantissa, octave - 16);
    for _ in 0..16 {
        mantissa = (mantissa * mantissa) >> 63;
        log2 <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            log2 |= 1;
        }
    }
    (log2 * LN_2.cast_signed()) >> 16
}

/// e to the power of `-x`, with `x` in 2^-16.
fn exp_minus(x: u64) -> u64 {
    /// 2^-(1/2), 2^-(1/4) and so on, in 2^-32.
    const ROOTS: [u64; 16] = {
        let mut roots = [0; 16];
        let (mut root, mut i) = (ONE / 2, 0);
        while i < 16 {
            root = (root << 32).isqrt();
            roots[i] = root;
            i += 1;
        }
        roots
    };
    let halvings = (u128::from(x) << 16) / u128::from(LN_2);
    let whole = u32::try_from(halvings >> 16).unwrap_or(u32::MAX);
    let below = ROOTS.iter().enumerate();
    let below = below.filter(|(i, _)| halvings >> (15 - i) & 1 == 1);
    let part = below.fold(ONE, |product, (_, root)| {
        u64::try_from((u128::from(product) * u128::from(*root)) >> 32).unwrap_or(0)
    });
    part.checked_shr(whole).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONCE: u64 = LOOK as u64;

    #[test]
    fn logarithms_and_powers_are_those_of_floating_point() {
        for rate in [1, 2, 3, 1000, ONCE, 5 * ONCE, u64::MAX] {
            let exact = (rate as f64 / LOOK as f64).ln();
            assert!((ln(rate) as f64 / 65_536.0 - exact).abs() < 2e-3, "{rate}");
        }
        for x in [0u64, 1, 100, 65_536, 300_000, 1_000_000, u64::MAX] {
            let exact = (-(x as f64) / 65_536.0).exp();
            let ours = exp_minus(x) as f64 / ONE as f64;
            assert!((ours - exact).abs() < 1e-4, "{x}: {ours} {exact}");
        }
    }

    #[test]
    fn a_page_that_is_met_often_has_the_rate_that_it_is_met_with() {
        let mut met: Vec<u64> = (0..32).map(|i| (8 + i % 9) * ONCE).collect();
        for count in [300, 777, 2500] {
            met.push(count * ONCE);
            let mixture = Mixture::of(&met, 100);
            let off = mixture.expected(count * ONCE).abs_diff(count * ONCE);
            assert!(off < count * ONCE / 50, "{count}: off by {}", off / ONCE);
        }
    }

    #[test]
    fn pages_that_are_never_met_among_pages_that_are_get_nothing() {
        let met: Vec<u64> = (0..32).map(|i| (8 + i % 9) * ONCE).collect();
        let mixture = Mixture::of(&met, 9);
        assert!(mixture.expected(0) < ONCE, "{}", mixture.expected(0));
        // Nor do those of which bits think highly.
        assert_eq!(mixture.of_unmet(5, 5), mixture.expected(0));
        assert!(
            mixture.of_unmet(20, 5) < 2 * ONCE,
            "{}",
            mixture.of_unmet(20, 5)
        );
        let (few, many) = (mixture.expected(8 * ONCE), mixture.expected(16 * ONCE));
        assert!(few > 9 * ONCE && many < 15 * ONCE, "{few} {many}");
    }

    #[test]
    fn a_page_that_is_met_all_the_time_has_its_own() {
        let mut met = alloc::vec![ONCE; 30];
        met.push(100 * ONCE);
        let mixture = Mixture::of(&met, 1000);
        let (own, other) = (mixture.expected(100 * ONCE), mixture.expected(ONCE));
        assert!(own.abs_diff(100 * ONCE) < 15 * ONCE, "{own}");
        assert!(other < ONCE, "{other}");
        assert!(mixture.expected(0) < ONCE / 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
        #[test]
        fn more_is_never_expected_of_what_is_met_less(
            met in proptest::collection::vec(any::<u64>(), 0..60), scale in 0u32..64, unmet: u64, a: u64, b: u64,
        ) {
            let met: Vec<u64> = met.iter().map(|n| n >> scale).collect();
            let mixture = Mixture::of(&met, unmet);
            let (less, more) = (a.min(b) >> scale, a.max(b) >> scale);
            let (less, more) = (mixture.expected(less), mixture.expected(more));
            prop_assert!(less <= more.saturating_add(more >> 8).saturating_add(2), "{less} {more}");
        }
    }
}
