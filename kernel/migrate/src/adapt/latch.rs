//! A yes or no about a number, that does not flutter.
//!
//! It turns to yes above one value and back to no below a lower one, and only if two ticks in a row say so: a number that
//! swings between the two values changes nothing, and neither does a single peak.

use units::PerMille;

/// The two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Yes from above this.
    pub open: PerMille,
    /// No from below this.
    pub close: PerMille,
}

/// Ticks in a row that must contradict what was believed.
const TICKS: u8 = 2;

/// What is believed, and how often in a row that was contradicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latch {
    on: bool,
    against: u8,
}

impl Latch {
    /// Whether it is a yes now.
    pub const fn is_on(self) -> bool {
        self.on
    }

    /// One tick. A number that is not known speaks for no.
    pub fn judge(&mut self, value: Option<PerMille>, bounds: Bounds) -> bool {
        let contradicted = match (self.on, value) {
            (false, Some(value)) => value > bounds.open,
            (false, None) => false,
            (true, Some(value)) => value < bounds.close,
            (true, None) => true,
        };
        self.against = if contradicted { self.against + 1 } else { 0 };
        if self.against >= TICKS {
            (self.on, self.against) = (!self.on, 0);
        }
        self.on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        open: PerMille(900),
        close: PerMille(800),
    };

    fn changes(values: impl IntoIterator<Item = u16>) -> usize {
        let mut latch = Latch::default();
        let judged = values.into_iter().map(|value| {
            let before = latch.is_on();
            latch.judge(Some(PerMille(value)), BOUNDS) != before
        });
        judged.filter(|changed| *changed).count()
    }

    #[test]
    fn a_step_up_and_back_changes_it_twice() {
        let steps = [200; 5].into_iter().chain([950; 5]).chain([200; 5]);
        assert_eq!(changes(steps), 2);
    }

    #[test]
    fn a_single_peak_changes_nothing_and_what_is_unknown_is_a_no() {
        assert_eq!(changes([200, 1000, 200, 1000, 200, 1000]), 0);
        let mut latch = Latch::default();
        assert!(
            (0..2)
                .map(|_| latch.judge(Some(PerMille(1000)), BOUNDS))
                .last()
                == Some(true)
        );
        assert!((0..2).map(|_| latch.judge(None, BOUNDS)).last() == Some(false));
    }

    proptest! {
        #[test]
        fn numbers_within_the_band_of_either_state_never_change_it(
            low in proptest::collection::vec(0u16..=900, 0..50),
            high in proptest::collection::vec(800u16..=1000, 0..50),
        ) {
            prop_assert_eq!(changes(low), 0);
            // Once it is a yes, it stays so.
            prop_assert_eq!(changes([1000, 1000].into_iter().chain(high)), 1);
        }
    }
}
