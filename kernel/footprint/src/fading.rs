//! How fast what was seen is forgotten.
//!
//! MECHANISMS section 4 halves the matrix at each pass, as Linux' NUMA balancing does, whose passes are many seconds
//! long. Ours last about one, and half of an opinion would then rest on a single second: too few observations to
//! divide a machine's accesses among nodes within a tenth, and a machine that works on one node's memory for
//! a second and then on another's would be said to use only one of them. So what was seen fades by time, whatever
//! the length of a pass.

use units::{Nanos, Score};

/// Steps of a half-life.
const STEPS: u64 = 16;
/// 2^(-1/16).
const STEP: Score = Score(62_757);
/// After so many half-lives nothing is left of 64 bits.
const FORGOTTEN: u64 = 64;

/// What is left of what was seen, after some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fading {
    halvings: u32,
    rest: Score,
}

impl Fading {
    /// After `time`, with this half-life; without one nothing is left.
    pub(crate) fn after(time: Nanos, half_life: Nanos) -> Self {
        let scaled = u128::from(time.0) * u128::from(STEPS);
        let half = u128::from(half_life.0);
        let steps = (scaled + half / 2).checked_div(half);
        let steps = steps
            .and_then(|s| u64::try_from(s).ok())
            .unwrap_or(u64::MAX);
        let halvings = (steps / STEPS).min(FORGOTTEN);
        let rest = (0..steps % STEPS).fold(Score::ONE, |rest, _| {
            Score(u32::try_from(STEP.of(rest.0.into())).unwrap_or(0))
        });
        Self {
            halvings: u32::try_from(halvings).unwrap_or(u32::MAX),
            rest,
        }
    }

    /// What is left of `amount`, rounded down.
    pub(crate) fn of(self, amount: u64) -> u64 {
        let halved = amount.checked_shr(self.halvings).unwrap_or(0);
        self.rest.of(halved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_is_left_after_a_half_life_and_all_after_no_time() {
        let second = Nanos::from_millis(1000);
        let left = |ms, amount| Fading::after(Nanos::from_millis(ms), second).of(amount);
        assert_eq!(left(1000, 1024), 512);
        assert_eq!(left(2000, 1024), 256);
        assert_eq!(left(0, u64::MAX), u64::MAX);
        assert_eq!(left(64_000, u64::MAX), 0);
        assert_eq!(left(1_000_000_000, u64::MAX), 0);
        assert_eq!(Fading::after(second, Nanos::ZERO).of(u64::MAX), 0);
    }

    proptest! {
        #[test]
        fn it_is_what_floating_point_says(ms in 0u64..20_000, life in 500u64..10_000) {
            let (time, half) = (Nanos::from_millis(ms), Nanos::from_millis(life));
            let left = Fading::after(time, half).of(1 << 40) as f64 / (1u64 << 40) as f64;
            let exact = 0.5f64.powf(ms as f64 / life as f64);
            // The time is rounded to a sixteenth of a half-life, half of it either way: 2.2 %.
            prop_assert!(exact < 1e-6 || (left / exact - 1.0).abs() < 0.025, "{left} {exact}");
        }

        #[test]
        fn longer_leaves_less(a in any::<u64>(), b in any::<u64>(), life in any::<u64>(), amount in any::<u64>()) {
            let left = |time| Fading::after(Nanos(time), Nanos(life)).of(amount);
            prop_assert!(left(a.max(b)) <= left(a.min(b)));
            prop_assert!(left(a) <= amount);
        }
    }
}
