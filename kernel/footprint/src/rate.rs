//! From "touched in h of n intervals" to touches a second, in integers.
//!
//! An accessed bit says whether something was touched in an interval, not how often. If touches come
//! independently at rate `lambda`, an interval of length `T` stays untouched with probability
//! `exp(-lambda T)`; so `lambda = -ln(1 - h/n) / T`. That is what separates a page of an inner loop, touched in
//! every interval, from one that a timer grazes once a second, though both have been "touched" after a second.
//!
//! What is acted on is not the estimate but what the sample *proves*: the lower end of Wilson's interval takes
//! the place of `h/n`. It also keeps `h == n`, whose estimate is infinite, finite. Only where the rates of many pages
//! are added up is each taken as it is likely ([`Rates`]).

use units::{Nanos, Score};

use crate::evidence::wilson_lower;

/// One touch a second, in the unit of rates and heats here.
pub const TOUCH_PER_SECOND: u64 = 1024;

/// ln 2 in 2^-32.
const LN_2: u64 = 2_977_044_472;
/// Bits behind the point of [`ln`].
const FRACTION: u32 = 16;

/// The natural logarithm of `x`, which is not 0, in 2^-16; rounded down.
fn ln(x: u32) -> u64 {
    let whole = x.max(1).ilog2();
    // The mantissa in [1, 2) with 31 bits behind the point; each squaring yields one bit of the logarithm
    // (Majithia & Levan, Proc. IEEE 61, 1973).
    let mut mantissa = u64::from(x.max(1)) << (31 - whole);
    let mut log2 = u64::from(whole);
    for _ in 0..FRACTION {
        mantissa = (mantissa * mantissa) >> 31;
        log2 <<= 1;
        if mantissa >> 32 != 0 {
            mantissa >>= 1;
            log2 |= 1;
        }
    }
    (log2 * LN_2) >> 32
}

/// Touches a second at which an interval stays untouched with probability `left`, in units of [`TOUCH_PER_SECOND`].
fn rate(left: Score, interval: Nanos) -> u64 {
    let in_interval = ln(Score::ONE.0) - ln(left.0.max(1));
    let scaled = u128::from(in_interval) * u128::from(TOUCH_PER_SECOND) * 1_000_000_000;
    let rate = scaled.checked_div(u128::from(interval.0) << FRACTION);
    u64::try_from(rate.unwrap_or(0)).unwrap_or(u64::MAX)
}

/// Touches a second in units of [`TOUCH_PER_SECOND`] that `hits` of `n` intervals of length `interval` prove with
/// 95 % confidence; 0 without observations or for an empty interval.
pub fn at_least(hits: u32, n: u32, interval: Nanos) -> u64 {
    rate(
        Score::ONE.above(wilson_lower(hits.into(), n.into())),
        interval,
    )
}

/// The likely rate; see [`Rates`].
fn estimate(hits: u32, n: u32, interval: Nanos) -> u64 {
    let share = Score::ratio(hits.into(), n.max(1).into());
    rate(Score::ONE.above(share), interval)
}

/// What [`Rates`] say of one number of hits.
pub fn likely(hits: u32, n: u32, interval: Nanos) -> u64 {
    estimate(hits.min(n), n, interval).min(at_least(n, n, interval))
}

/// The likely rates for every number of hits in the same `n` intervals, for sums over many pages: each may err, and
/// the errors cancel. None is higher than what hits in all intervals prove, for more cannot be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates(alloc::vec::Vec<u64>);

impl Rates {
    /// The table for `n` intervals.
    pub fn of(n: u32, interval: Nanos) -> Self {
        let most = at_least(n, n, interval);
        Self(
            (0..=n)
                .map(|hits| estimate(hits, n, interval).min(most))
                .collect(),
        )
    }
    /// The rate for so many hits; more than all intervals count as all.
    pub fn get(&self, hits: u32) -> u64 {
        let rate = self.0.get(hits as usize).or(self.0.last());
        rate.copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn logarithms_are_those_of_floating_point() {
        for x in (1..2000).chain([65_535, 65_536, u32::MAX]) {
            let exact = f64::from(x).ln();
            let ours = ln(x) as f64 / 65_536.0;
            assert!((exact - ours).abs() < 3e-5, "ln {x}: {exact} and {ours}");
        }
    }

    #[test]
    fn a_page_of_every_interval_outweighs_one_of_each_second() {
        let interval = Nanos::from_millis(100);
        let always = at_least(20, 20, interval);
        let once = at_least(2, 20, interval);
        assert!(always > 40 * once, "{always} and {once}");
        // -ln(1 - 0.881) / 0.1 s = 21.3
        assert!((21 * 1024..22 * 1024).contains(&always), "{always}");
        // The same share of shorter intervals is a higher rate.
        let short = at_least(20, 20, Nanos::from_millis(20));
        assert!(short.abs_diff(5 * always) <= 5, "{short}");
        assert_eq!(at_least(0, 20, interval), 0);
        assert_eq!(at_least(5, 0, interval), 0);
        assert_eq!(at_least(5, 9, Nanos::ZERO), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_proved_grows_with_hits_and_stays_below_what_is_likely(n in 1u32..200, part in 0u32..=100) {
            let hits = n * part / 100;
            let interval = Nanos::from_millis(100);
            let rates = Rates::of(n, interval);
            prop_assert!(rates.get(hits) <= rates.get(hits + 1));
            prop_assert_eq!(rates.get(hits), likely(hits, n, interval));
            let proved = at_least(hits, n, interval);
            prop_assert!(proved <= rates.get(hits) + 2);
            prop_assert!(hits == n || proved <= at_least(hits + 1, n, interval));
            if hits < n {
                let exact = -(1.0 - f64::from(hits) / f64::from(n)).ln() * 10.0 * 1024.0;
                let most = at_least(n, n, interval) as f64;
                prop_assert!((rates.get(hits) as f64 - exact.min(most)).abs() < 4.0, "{exact}");
            }
        }
    }
}
