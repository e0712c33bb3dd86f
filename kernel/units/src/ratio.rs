//! Ratios without floating point: a score in 1/65536 and a share in 1/1000.

use core::fmt;
use serde::{Deserialize, Serialize};

/// A number from 0 to 1 in steps of 1/65536: a proximity score, a share, a gain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Score(pub u32);

impl Score {
    /// 0.
    pub const ZERO: Self = Self(0);
    /// 1: as near as the machine has it.
    pub const ONE: Self = Self(1 << 16);

    /// `part` of `whole`, rounded to nearest and at most 1; 0 of nothing is 0.
    pub const fn ratio(part: u128, whole: u128) -> Self {
        if whole == 0 {
            return Self::ZERO;
        }
        if part >= whole {
            return Self::ONE;
        }
        if whole < 1 << 47 {
            // Nearly always: a division in 64 bits, which is many times cheaper.
            let (part, whole) = (part as u64, whole as u64);
            return Self((((part << 16) + whole / 2) / whole) as u32);
        }
        // Room for the 16 bits of the fraction: drop low bits of both alike.
        let shift = 18u32.saturating_sub(whole.leading_zeros());
        let (part, whole) = (part >> shift, whole >> shift);
        Self(((part * (1 << 16) + whole / 2) / whole) as u32)
    }
    /// From thousandths, at most 1.
    pub const fn from_per_mille(per_mille: u16) -> Self {
        Self::ratio(per_mille as u128, 1000)
    }
    /// In thousandths, rounded to nearest.
    pub const fn per_mille(self) -> PerMille {
        PerMille(((self.0 as u64 * 1000 + (1 << 15)) >> 16) as u16)
    }
    /// The difference to a smaller score, 0 when `other` is the larger.
    pub const fn above(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    /// This part of `amount`, rounded down.
    pub const fn of(self, amount: u64) -> u64 {
        let part = (amount as u128 * self.0 as u128) >> 16;
        if part > u64::MAX as u128 {
            u64::MAX
        } else {
            part as u64
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = self.per_mille().0;
        write!(f, "{}.{:03}", p / 1000, p % 1000)
    }
}
impl fmt::Debug for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A share in thousandths; 1000 is the whole. Loads may exceed it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PerMille(pub u16);

impl PerMille {
    /// The whole.
    pub const WHOLE: Self = Self(1000);

    /// `part` of `whole` in thousandths, rounded to nearest; saturates; 0 of nothing is 0.
    pub const fn ratio(part: u64, whole: u64) -> Self {
        if whole == 0 {
            return Self(0);
        }
        let p = (part as u128 * 1000 + whole as u128 / 2) / whole as u128;
        Self(if p > u16::MAX as u128 {
            u16::MAX
        } else {
            p as u16
        })
    }
}

impl fmt::Display for PerMille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} %", self.0 / 10, self.0 % 10)
    }
}
impl fmt::Debug for PerMille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_ratio_is_exact_at_the_ends_and_never_overflows() {
        assert_eq!(Score::ratio(0, 7), Score::ZERO);
        assert_eq!(Score::ratio(7, 7), Score::ONE);
        assert_eq!(Score::ratio(9, 7), Score::ONE);
        assert_eq!(Score::ratio(5, 0), Score::ZERO);
        assert_eq!(Score::ratio(1, 2), Score(1 << 15));
        assert_eq!(Score::ratio(u128::MAX / 2, u128::MAX), Score(1 << 15));
        assert_eq!(Score(1 << 15).of(u64::MAX), u64::MAX / 2);
    }

    #[test]
    fn ratios_print_as_a_person_writes_them() {
        assert_eq!(Score::from_per_mille(72).to_string(), "0.072");
        assert_eq!(Score::ONE.to_string(), "1.000");
        assert_eq!(PerMille::ratio(97, 100).to_string(), "97.0 %");
    }
}
