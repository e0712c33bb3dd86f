//! How much may be copied: a token bucket for each machine and pair of nodes.

use units::Nanos;

/// Time whose income a bucket can hold.
const BURST: Nanos = Nanos::from_millis(250);

/// A bucket of bytes. It starts full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    bytes: u64,
    filled_at: Nanos,
}

/// Bytes that `rate` earns in `time`.
fn income(rate: u64, time: Nanos) -> u64 {
    let bytes = u128::from(rate) * u128::from(time.0) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// What a bucket holds: two of the largest pages at least, so that a slow link earns the next
/// while the first is waiting for a plan.
fn depth(rate: u64, largest: u64) -> u64 {
    income(rate, BURST).max(largest.saturating_mul(2))
}

impl Bucket {
    pub(crate) fn new(now: Nanos, rate: u64, largest: u64) -> Self {
        Self {
            bytes: depth(rate, largest),
            filled_at: now,
        }
    }

    /// Adds what was earned.
    pub(crate) fn fill(&mut self, now: Nanos, rate: u64, largest: u64) {
        let earned = income(rate, now.since(self.filled_at));
        if earned > 0 {
            self.filled_at = now;
        }
        self.bytes = self.bytes.saturating_add(earned).min(depth(rate, largest));
    }

    /// Takes `bytes` if they are there.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        match self.bytes.checked_sub(bytes) {
            Some(rest) => {
                self.bytes = rest;
                true
            }
            None => false,
        }
    }

    /// When `bytes` will be there.
    pub(crate) fn ready_at(&self, bytes: u64, rate: u64) -> Nanos {
        let missing = u128::from(bytes.saturating_sub(self.bytes));
        let wait = missing * 1_000_000_000 / u128::from(rate.max(1)) + 1;
        self.filled_at + Nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_more_is_taken_than_burst_and_rate_allow(
            rate in 1u64 << 20..1 << 30,
            steps in proptest::collection::vec((0u64..50_000_000, 0u64..8 << 20), 1..200),
        ) {
            let mut bucket = Bucket::new(Nanos::ZERO, rate, 2 << 20);
            let (mut now, mut taken) = (Nanos::ZERO, 0u64);
            for (dt, want) in steps {
                now += Nanos(dt);
                bucket.fill(now, rate, 2 << 20);
                if bucket.take(want) {
                    taken += want;
                }
            }
            let burst = depth(rate, 2 << 20);
            prop_assert!(taken <= burst + income(rate, now) + 1);
        }

        #[test]
        fn it_is_ready_when_it_says(rate in 1u64..1 << 30, want in 1u64..2 << 20) {
            let mut bucket = Bucket::new(Nanos::ZERO, rate, 2 << 20);
            while bucket.take(1 << 20) {}
            let at = bucket.ready_at(want, rate);
            bucket.fill(at, rate, 2 << 20);
            prop_assert!(bucket.take(want));
        }
    }
}
