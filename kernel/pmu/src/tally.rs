//! What was counted, and for how much of the time.

use units::Nanos;

use crate::events::Kind;

/// One event in one stay on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How often it happened while it was counted.
    pub count: u64,
    /// For how long that was.
    pub running: Nanos,
}

/// What one stay on a CPU brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// How long the stay was.
    pub enabled: Nanos,
    counted: [Counted; Kind::ALL.len()],
}

impl Reading {
    /// A stay of this length in which nothing was counted.
    pub const fn of(enabled: Nanos) -> Self {
        Self {
            enabled,
            counted: [Counted {
                count: 0,
                running: Nanos::ZERO,
            }; Kind::ALL.len()],
        }
    }

    /// What happened while it was counted, all the time.
    pub fn note(&mut self, kind: Kind, count: u64) {
        if let Some(counted) = self.counted.get_mut(kind as usize) {
            *counted = Counted {
                count,
                running: self.enabled,
            };
        }
    }

    /// What was counted of `kind`.
    pub fn of_kind(&self, kind: Kind) -> Counted {
        self.counted.get(kind as usize).copied().unwrap_or_default()
    }
}

/// The sum of many stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    sum: Reading,
}

impl Tally {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            sum: Reading::of(Nanos::ZERO),
        }
    }

    /// Adds a stay.
    pub fn add(&mut self, reading: &Reading) {
        self.sum.enabled += reading.enabled;
        for (sum, more) in self.sum.counted.iter_mut().zip(&reading.counted) {
            sum.count = sum.count.saturating_add(more.count);
            sum.running += more.running;
        }
    }

    /// Adds another sum.
    pub fn add_all(&mut self, other: &Self) {
        self.add(&other.sum);
    }

    /// Takes it out and begins anew.
    pub fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Time of all stays.
    pub const fn enabled(&self) -> Nanos {
        self.sum.enabled
    }

    /// Part of that in which `kind` was counted.
    pub fn running(&self, kind: Kind) -> Nanos {
        self.sum.of_kind(kind).running
    }

    /// How often it happened in all stays: what was counted, scaled to the whole time and rounded to nearest. `None` if it was
    /// never counted.
    ///
    /// If its rate was always between `low` and `high`, this errs by `(high - low) x (enabled - running)` at most, and by
    /// 1 for rounding.
    pub fn estimate(&self, kind: Kind) -> Option<u64> {
        let Counted { count, running } = self.sum.of_kind(kind);
        if running == Nanos::ZERO {
            return None;
        }
        let (running, enabled) = (u128::from(running.0), u128::from(self.sum.enabled.0));
        let scaled = (u128::from(count) * enabled + running / 2) / running;
        Some(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_seen_is_taken_to_be_like_what_was() {
        let mut tally = Tally::new();
        assert_eq!(tally.estimate(Kind::Cycles), None);
        let mut reading = Reading::of(Nanos(100));
        reading.note(Kind::Cycles, 300);
        tally.add(&reading);
        tally.add(&Reading::of(Nanos(200)));
        assert_eq!(tally.estimate(Kind::Cycles), Some(900));
        assert_eq!(tally.estimate(Kind::RemoteDram), None);
        assert_eq!(tally.take().enabled(), Nanos(300));
        assert_eq!(tally, Tally::new());
        // No count makes it overflow.
        let mut reading = Reading::of(Nanos::MAX);
        reading.note(Kind::Cycles, u64::MAX);
        tally.add(&reading);
        tally.add(&reading);
        assert_eq!(tally.estimate(Kind::Cycles), Some(u64::MAX));
    }
}
