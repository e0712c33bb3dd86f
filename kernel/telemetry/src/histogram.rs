//! How long something took, many times: quantiles without keeping each value.
//!
//! Buckets double in width with every second one, each power of two in [`PARTS`] of them, so that a quantile is at most an
//! eighth too large (the idea of HdrHistogram, G. Tene).

use alloc::boxed::Box;
use units::Nanos;

/// Buckets of a power of two.
const PARTS: usize = 8;
const PART_BITS: u32 = PARTS.trailing_zeros();
/// Enough for every `u64`.
const BUCKETS: usize = PARTS * (64 - PART_BITS as usize + 1);

/// See the module.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u32; BUCKETS]>,
    count: u64,
    longest: Nanos,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            count: 0,
            longest: Nanos::ZERO,
        }
    }
}

/// The bucket of a value.
const fn bucket(value: u64) -> usize {
    let Some(shift) = (64 - value.leading_zeros()).checked_sub(PART_BITS + 1) else {
        return value as usize;
    };
    // The highest bits of the value, of which the first is always set.
    (shift as usize + 1) * PARTS + (value >> shift) as usize - PARTS
}

/// The largest value of a bucket.
const fn end(bucket: usize) -> u64 {
    let (row, part) = (bucket / PARTS, (bucket % PARTS) as u64);
    match row {
        0 => part,
        row => {
            let shift = row as u32 - 1;
            // In 128 bits, for the last bucket ends where 64 bits do.
            let next = ((PARTS as u128) + part as u128 + 1) << shift;
            (next - 1) as u64
        }
    }
}

impl Histogram {
    /// One more.
    pub fn add(&mut self, took: Nanos) {
        if let Some(count) = self.counts.get_mut(bucket(took.0)) {
            *count = count.saturating_add(1);
        }
        self.count = self.count.saturating_add(1);
        self.longest = self.longest.max(took);
    }

    /// All of another one as well.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count = count.saturating_add(*more);
        }
        self.count = self.count.saturating_add(other.count);
        self.longest = self.longest.max(other.longest);
    }

    /// How many there are.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The longest.
    pub const fn longest(&self) -> Nanos {
        self.longest
    }

    /// So many thousandths are not longer than this, up to an eighth of it; zero if there are none.
    pub fn quantile(&self, per_mille: u16) -> Nanos {
        let wanted = (u128::from(self.count) * u128::from(per_mille))
            .div_ceil(1000)
            .max(1);
        let mut sum = 0u128;
        for (i, count) in self.counts.iter().enumerate() {
            sum += u128::from(*count);
            if sum >= wanted {
                return Nanos(end(i)).min(self.longest);
            }
        }
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_value_has_a_bucket_that_ends_at_most_an_eighth_above_it() {
        let values = (0..64).flat_map(|b| [(1u64 << b) - 1, 1 << b, (1 << b) + 1]);
        for value in values.chain([u64::MAX, 1000, 123_456_789]) {
            let b = bucket(value);
            assert!(b < BUCKETS, "{value}");
            assert!(
                end(b) >= value && end(b) - value <= value / 8,
                "{value} ends at {}",
                end(b)
            );
            assert!(b == 0 || end(b - 1) < value, "{value}");
        }
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_values(
            mut values in proptest::collection::vec(0u64..1 << 40, 1..300),
            per_mille in 1u16..=1000,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.add(Nanos(*v)));
            values.sort_unstable();
            let rank = (values.len() * usize::from(per_mille)).div_ceil(1000).max(1);
            let exact = values[rank - 1];
            let said = histogram.quantile(per_mille).0;
            prop_assert!(said >= exact && said - exact <= exact / 8, "{said} for {exact}");
            prop_assert_eq!(histogram.longest().0, values[values.len() - 1]);
        }
    }

    proptest! {
        #[test]
        fn two_merged_are_one_of_all_values(values in proptest::collection::vec((0u64..1 << 40, any::<bool>()), 0..300)) {
            let mut halves = [Histogram::default(), Histogram::default()];
            let mut all = Histogram::default();
            for (value, second) in &values {
                halves[usize::from(*second)].add(Nanos(*value));
                all.add(Nanos(*value));
            }
            let [mut first, second] = halves;
            first.merge(&second);
            prop_assert_eq!(first.count(), values.len() as u64);
            prop_assert_eq!(first.longest(), all.longest());
            for per_mille in [1, 500, 990, 1000] {
                prop_assert_eq!(first.quantile(per_mille), all.quantile(per_mille));
            }
        }
    }

    #[test]
    fn of_nothing_every_quantile_is_zero() {
        assert_eq!(Histogram::default().quantile(999), Nanos::ZERO);
    }
}
