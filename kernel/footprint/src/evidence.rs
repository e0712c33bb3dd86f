//! How sure a share is: the lower end of Wilson's interval, in integers.
//!
//! A share of `hits` in `n` observations estimates the true share `p`; with few observations it
//! may lie by luck. Wilson's score interval (E. B. Wilson, JASA 22, 1927) has the lower end
//!
//! `(p + z²/2n - z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`
//!
//! and behaves for small `n` and for `p` near 0 and 1, where we live. With `z² = Z2` and everything
//! multiplied by `2n²` it needs one integer square root.

use units::Score;

/// z² in 1/1000 for a one-sided error of 5 % (z = 1.645).
const Z2_MILLI: u128 = 2_706;

/// Observations are limited to this, above which the interval is narrower than a score's step.
const N_LIMIT: u64 = 1 << 24;

/// The share that `hits` of `n` proves with 95 % confidence; 0 for no observation.
///
/// Never above `hits / n`, grows with both at a constant share, and is `n / (n + z²)` for
/// `hits == n`.
pub fn wilson_lower(hits: u64, n: u64) -> Score {
    lower(hits, n, Z2_MILLI)
}

/// The same with a confidence of its own: z² in 1/1000.
pub(crate) fn lower(hits: u64, n: u64, z2_milli: u128) -> Score {
    if n == 0 || hits == 0 {
        return Score::ZERO;
    }
    let (mut hits, mut n) = (hits.min(n), n);
    while n > N_LIMIT {
        n >>= 1;
        hits >>= 1;
    }
    let (h, n) = (u128::from(hits), u128::from(n));
    // lower = (2h + z² - sqrt(z² (4h(n-h)/n + z²))) / (2(n + z²)), each term in thousandths.
    let radicand = z2_milli * (4 * h * (n - h) * 1000 / n + z2_milli);
    // Rounded up, so that the bound is rounded down.
    let root = radicand.isqrt() + u128::from(radicand.isqrt().pow(2) != radicand);
    let numerator = (2 * h * 1000 + z2_milli).saturating_sub(root);
    Score::ratio(numerator, 2 * (n * 1000 + z2_milli))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // n/(n+z²): 20/(22.706) = 0.881
        assert_eq!(wilson_lower(20, 20).per_mille().0, 881);
        assert_eq!(wilson_lower(0, 20), Score::ZERO);
        // p = 0.5, n = 100: (0.5 + 0.01353 - 1.645 sqrt(0.0025 + 0.0000676)) / 1.02706 = 0.4188
        assert_eq!(wilson_lower(50, 100).per_mille().0, 419);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_bound_is_below_the_estimate_and_tightens(n in 1u64..5000, part in 0u64..=1000) {
            let hits = n * part / 1000;
            let bound = wilson_lower(hits, n);
            prop_assert!(bound <= Score::ratio(hits.into(), n.into()));
            prop_assert!(wilson_lower(hits * 4, n * 4) >= bound);
            prop_assert!(wilson_lower((hits + 1).min(n), n) >= bound);
        }

        #[test]
        fn no_input_overflows(hits: u64, n: u64) {
            prop_assert!(wilson_lower(hits, n) <= Score::ONE);
        }
    }
}
