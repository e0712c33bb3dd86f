//! Dividing a whole in proportion, so that the parts add up to it.

use alloc::vec::Vec;

/// The parts of `whole` in proportion to `weights`; their sum is `whole` exactly, unless all weights are 0: then all parts
/// are.
pub(crate) fn divide(whole: u64, weights: &[u64]) -> Vec<u64> {
    let all: u128 = weights.iter().map(|w| u128::from(*w)).sum();
    // Below 2^64 each, and fewer than 2^16 of them: shifted so far, a product is below 2^128.
    let shift = (128 - all.leading_zeros()).saturating_sub(64);
    let until = |sum: u128| {
        let edge = u128::from(whole) * (sum >> shift);
        edge.checked_div(all >> shift).unwrap_or(0)
    };
    let mut sum = 0u128;
    let part = |weight: &u64| {
        let before = until(sum);
        sum += u128::from(*weight);
        u64::try_from(until(sum) - before).unwrap_or(u64::MAX)
    };
    weights.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_in_proportion() {
        assert_eq!(divide(100, &[1, 3]), [25, 75]);
        assert_eq!(divide(10, &[1, 1, 1]), [3, 3, 4]);
        assert_eq!(divide(10, &[0, 5]), [0, 10]);
        assert_eq!(divide(10, &[0, 0]), [0, 0]);
        assert_eq!(divide(10, &[]), []);
        assert_eq!(
            divide(u64::MAX, &[u64::MAX, u64::MAX]),
            [u64::MAX / 2, u64::MAX / 2 + 1]
        );
    }

    proptest! {
        #[test]
        fn parts_add_up(whole: u64, weights in proptest::collection::vec(any::<u64>(), 1..70)) {
            let parts = divide(whole, &weights);
            let sum: u128 = parts.iter().map(|p| u128::from(*p)).sum();
            let all: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            prop_assert_eq!(sum, if all > 0 { u128::from(whole) } else { 0 });
            for (part, weight) in parts.iter().zip(&weights) {
                let exact = whole as f64 * *weight as f64 / all.max(1) as f64;
                prop_assert!((*part as f64 - exact).abs() <= 2.0 + whole as f64 / 1e15, "{part} {exact}");
            }
        }
    }
}
