//! Ticks of a frequency to nanoseconds and back, without overflow.

use units::Nanos;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The shortest time after which `ticks` ticks of a `hz` clock have passed. A frequency of zero
/// never ticks.
pub(crate) fn ticks_to_nanos(ticks: u64, hz: u64) -> Nanos {
    if hz == 0 {
        return Nanos::MAX;
    }
    let nanos = (u128::from(ticks) * NANOS_PER_SECOND).div_ceil(u128::from(hz));
    Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Whole ticks of a `hz` clock in a span of time.
pub(crate) fn nanos_to_ticks(span: Nanos, hz: u64) -> u64 {
    let ticks = u128::from(span.0) * u128::from(hz) / NANOS_PER_SECOND;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn after_the_time_for_n_ticks_n_ticks_have_passed(ticks in 0..u64::MAX >> 34, hz in 1..4_000_000_000_u64) {
            let span = ticks_to_nanos(ticks, hz);
            prop_assert!(nanos_to_ticks(span, hz) >= ticks);
            if span.0 > 0 {
                prop_assert!(nanos_to_ticks(Nanos(span.0 - 1), hz) < ticks);
            }
        }
    }

    #[test]
    fn extremes_saturate() {
        assert_eq!(ticks_to_nanos(1, 0), Nanos::MAX);
        assert_eq!(ticks_to_nanos(u64::MAX, 1), Nanos::MAX);
        assert_eq!(nanos_to_ticks(Nanos::MAX, u64::MAX), u64::MAX);
    }
}
