//! Classes of pages of like rate, and how all touches are divided among them.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use units::Score;

use super::mixture::Mixture;
use super::{ALL, LOOK, PageLooks, Run, SATURATED};
use crate::evidence;
use crate::operands::WEIGHT_OF_BITS;

/// What is told of saturated pages and of the others is what looks prove with so many standard deviations, squared,
/// in 1/1000. A set of many cold pages that is thought a little warmer than it is hides a small hot one; the other way round a
/// few of its pages are missed.
const SURE: u128 = 6_000;

/// Rates by bits are off by some hundredths, whatever looks say: so many looks know more.
const BITS_ARE_WORTH: u128 = 400;

/// Divides [`ALL`] among classes: between the saturated one and the others as looks say, and among the others by the
/// rates that bits found, as far as looks do not contradict.
fn share(classes: &mut [Class], looks: &PageLooks) {
    let sum = |part: &[Class], of: fn(&Class) -> u128| part.iter().map(of).sum::<u128>();
    let others = classes.partition_point(|c| c.last != SATURATED);
    let (looked, rates) = (sum(classes, |c| c.looked.into()), sum(classes, |c| c.rates));
    let count = u128::from(if looked > 0 { looks.count() } else { 0 });
    let by_looks = |c: &Class| part(c.looked.into(), looked);
    let (others, saturated) = classes.split_at_mut(others);
    for group in [&mut *others, &mut *saturated] {
        let (met, rated) = (sum(group, |c| c.looked.into()), sum(group, |c| c.rates));
        let likely = part(met, looked) * count + part(rated, rates) * u128::from(WEIGHT_OF_BITS);
        let likely = likely / (count + u128::from(WEIGHT_OF_BITS));
        let trust = trust_in_bits(group, part(met, looked), count, by_looks);
        let trust = trust.min(scaled(ALL, BITS_ARE_WORTH, count + BITS_ARE_WORTH));
        let mixed = |c: &Class| {
            let by_bits = scaled(likely, c.rates, rated);
            let by_looks = scaled(likely, c.looked.into(), met);
            let by_looks = if met > 0 { by_looks } else { by_bits };
            (by_bits * trust + by_looks * (ALL - trust)) / ALL
        };
        let shares: Vec<u128> = group.iter().map(mixed).collect();
        let sure = proved(likely, count + u128::from(WEIGHT_OF_BITS));
        for (class, heat) in group.iter_mut().zip(shares) {
            class.heat = scaled(sure, heat, likely);
        }
    }
}

/// How far looks agree with bits about a group of classes, as part of [`ALL`]: what looks scatter by chance over what
/// they do (W. James and C. Stein, 1961).
fn trust_in_bits(
    group: &[Class],
    likely: u128,
    count: u128,
    by_looks: impl Fn(&Class) -> u128,
) -> u128 {
    let rated = group.iter().map(|c| c.rates).sum::<u128>();
    let (mut scatter, mut chance) = (0u128, 0u128);
    for class in group {
        let expected = scaled(likely, class.rates, rated);
        // Where less than a look is expected nothing can be said.
        if expected * count < ALL {
            continue;
        }
        let off = expected.abs_diff(by_looks(class));
        scatter += scaled(off, off, expected) * count;
        chance += ALL;
    }
    let chance = chance.saturating_sub(ALL);
    // The mean of a chi-square distribution, and three standard deviations more.
    if scatter <= chance + 3 * (2 * chance * ALL).isqrt() {
        ALL
    } else {
        scaled(ALL, chance, scatter)
    }
}

/// `n` of `of` as part of [`ALL`].
fn part(n: u128, of: u128) -> u128 {
    scaled(ALL, n, of)
}

/// `a` times `n` over `of`; 0 of nothing.
pub(super) fn scaled(a: u128, n: u128, of: u128) -> u128 {
    // Below 2^48 times below 2^80.
    let shift = 128u32.saturating_sub(of.leading_zeros()).saturating_sub(72);
    a.saturating_mul(n >> shift)
        .checked_div(of >> shift)
        .unwrap_or(0)
}

/// The part of [`ALL`] that so many looks prove, of one that is likely.
fn proved(likely: u128, looks: u128) -> u128 {
    let hits = (likely * looks).div_ceil(ALL);
    let (Ok(hits), Ok(looks)) = (u64::try_from(hits), u64::try_from(looks)) else {
        return likely;
    };
    let sure = u128::from(evidence::lower(hits, looks, SURE).0);
    likely * sure / u128::from(Score::ratio(hits.into(), looks.into()).0).max(1)
}

/// Pages of like rate together.
#[derive(Clone, Debug, Default)]
struct Class {
    /// The highest that is in it.
    last: u32,
    pages: u64,
    /// By bits: the sum of rates.
    rates: u128,
    looked: u64,
    /// Its part of [`ALL`].
    heat: u128,
    mixture: Mixture,
    /// What is expected of all of its pages together.
    expected: u128,
}

impl Class {
    /// How often one of its pages that was never met should be: bits say how such pages differ.
    fn of_unmet(&self, rate: u64) -> u64 {
        let mean = self.rates / u128::from(self.pages.max(1));
        self.mixture.of_unmet(rate.into(), mean)
    }
}

/// All classes, ascending.
pub(super) struct Classes {
    all: Vec<Class>,
    /// What a page weighs when it is met.
    one: u64,
    /// How often each run should be met, to others of its class.
    expected: Vec<u128>,
}

impl Classes {
    /// Of pages by bits and what looks met of them.
    pub(super) fn of(runs: &[Run], looks: &PageLooks) -> Self {
        let mut by_class: BTreeMap<u32, Class> = BTreeMap::new();
        for run in runs {
            let class = by_class.entry(run.class).or_default();
            class.last = run.class;
            class.pages += run.pages;
            class.rates += u128::from(run.rate) * u128::from(run.pages);
            class.looked += run.looked;
        }
        let mut ascending: Vec<Class> = by_class.into_values().collect();
        share(&mut ascending, looks);
        let mut all: Vec<Class> = Vec::with_capacity(ascending.len());
        for class in ascending {
            all.push(class);
            while let [.., colder, hotter] = all.as_mut_slice() {
                if hotter.heat * u128::from(colder.pages) >= colder.heat * u128::from(hotter.pages)
                {
                    break;
                }
                *colder = Class {
                    last: hotter.last,
                    pages: colder.pages + hotter.pages,
                    rates: colder.rates + hotter.rates,
                    looked: colder.looked + hotter.looked,
                    heat: colder.heat + hotter.heat,
                    ..Class::default()
                };
                all.pop();
            }
        }
        let mut classes = Self {
            all,
            one: looks.one(),
            expected: Vec::with_capacity(runs.len()),
        };
        classes.compare(runs);
        classes
    }

    /// Finds out how alike the pages of each class are.
    fn compare(&mut self, runs: &[Run]) {
        let mut met: Vec<Vec<u64>> = alloc::vec![Vec::new(); self.all.len()];
        for run in runs.iter().filter(|r| r.looked > 0) {
            if let Some(met) = met.get_mut(self.at(run)) {
                met.push(self.looks(run));
            }
        }
        for (class, met) in self.all.iter_mut().zip(met) {
            class.mixture = Mixture::of(&met, class.pages.saturating_sub(met.len() as u64));
        }
        // Of pages that were never met there are many, of few rates.
        let mut unmet: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for run in runs {
            let at = self.at(run);
            let Some(class) = self.all.get(at) else {
                self.expected.push(0);
                continue;
            };
            let each = match run.looked {
                0 => *unmet
                    .entry((at, run.rate))
                    .or_insert_with(|| class.of_unmet(run.rate)),
                _ => class.mixture.expected(self.looks(run)),
            };
            let expected = (u128::from(each.max(1)) << 8) * u128::from(run.pages);
            self.expected.push(expected);
            if let Some(class) = self.all.get_mut(at) {
                class.expected += expected;
            }
        }
    }

    /// The number of a run's class.
    fn at(&self, run: &Run) -> usize {
        self.all.partition_point(|c| c.last < run.class)
    }

    /// How often a run was met, in parts of a look.
    fn looks(&self, run: &Run) -> u64 {
        let looks = u128::from(run.looked) * LOOK / u128::from(self.one);
        u64::try_from(looks).unwrap_or(u64::MAX)
    }

    /// What the runs have of their classes' heat, in their order.
    pub(super) fn heats(&self, runs: &[Run]) -> impl Iterator<Item = u64> {
        runs.iter().zip(&self.expected).map(|(run, expected)| {
            let class = self.all.get(self.at(run));
            let heat = class.map_or(0, |class| scaled(class.heat, *expected, class.expected));
            u64::try_from(heat).unwrap_or(u64::MAX)
        })
    }
}
