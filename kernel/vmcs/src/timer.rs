//! The timer that ends a guest's time without an interrupt (SDM 3C 25.5.1, 26.6.4, 27.7.4).
//!
//! It counts down by one whenever bit X of the TSC changes; IA32_VMX_MISC says X (SDM 3D A.6). An entry
//! starts it from its field, and a guest that finds it at zero exits before its first instruction.

/// How a processor's timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreemptionTimer {
    shift: u32,
}

impl PreemptionTimer {
    /// From IA32_VMX_MISC bits 4:0.
    #[must_use]
    pub const fn from_misc(misc: u64) -> Self {
        Self {
            shift: (misc & 0x1f) as u32,
        }
    }

    /// TSC ticks in one of its own.
    #[must_use]
    pub const fn ticks(self) -> u64 {
        1 << self.shift
    }

    /// What an entry at TSC `now` must be given for an exit at `deadline`, never before it, and less than one of its ticks
    /// after it; 0, which exits at once, for a deadline that has passed. One that is farther away than it can count ends early.
    #[must_use]
    pub const fn value(self, now: u64, deadline: u64) -> u32 {
        if deadline <= now {
            return 0;
        }
        // It counts at multiples of its tick, not from the entry on.
        let at = ((deadline - 1) >> self.shift) + 1;
        let left = at - (now >> self.shift);
        if left > u32::MAX as u64 {
            u32::MAX
        } else {
            left as u32
        }
    }

    /// Processors whose timer does not count at the rate that they state, by CPUID leaf 1, EAX (Intel's specification
    /// updates of the Core i3, i5 and i7 of 2010, errata AAT59 and AAU65, and of the Xeon E3-1200 v2). Older ones that
    /// have the same mistake have no unrestricted guests.
    #[must_use]
    pub const fn is_wrong_on(signature: u32) -> bool {
        const RESERVED: u32 = 0xf000_f000;
        matches!(signature & !RESERVED, 0x2_0652 | 0x2_0655 | 0x3_06a8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_edge_of_a_tick_counts() {
        let timer = PreemptionTimer::from_misc(0x7004_01e5);
        assert_eq!(timer.ticks(), 32);
        assert_eq!(timer.value(0, 32), 1);
        assert_eq!(timer.value(31, 32), 1);
        assert_eq!(timer.value(31, 33), 2);
        assert_eq!(timer.value(32, 64), 1);
        assert_eq!((timer.value(5, 5), timer.value(6, 5)), (0, 0));
        assert_eq!(timer.value(0, u64::MAX), u32::MAX);
        assert_eq!(PreemptionTimer::from_misc(0).value(100, 107), 7);
    }

    proptest! {
        /// A processor that counts as the manual says reaches zero at the deadline or less than a tick later.
        #[test]
        fn neither_early_nor_late(misc in 0_u64..32, now in 0_u64..1 << 50, left in 1_u64..1 << 31) {
            let timer = PreemptionTimer::from_misc(misc);
            let value = u64::from(timer.value(now, now + left));
            // The moment at which bit X has changed that often.
            let zero = (now / timer.ticks() + value) * timer.ticks();
            prop_assert!(zero >= now + left && zero - (now + left) < timer.ticks());
        }
    }

    #[test]
    fn models_with_the_erratum_are_known() {
        assert!(
            PreemptionTimer::is_wrong_on(0x2_0655) && PreemptionTimer::is_wrong_on(0x0003_06a8)
        );
        assert!(!PreemptionTimer::is_wrong_on(0x5_0654));
    }
}
