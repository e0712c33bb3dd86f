//! When to stop copying while the guest runs, and let it wait for the rest.

/// Rounds after the first at most: a guest that writes a little all the time is not followed for ever.
const MOST: u32 = 3;
/// So few pages are copied sooner than another round is begun.
const FEW: u32 = 8;

/// The rounds of one move. Another one is worth its flush only if it leaves half as much as the one before.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    left: u32,
    last: u32,
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            left: MOST,
            last: crate::table::ENTRIES as u32,
        }
    }
}

impl Rounds {
    /// Whether these pages, written since the last copy, are to be copied while the guest runs.
    pub fn go_on(&mut self, written: u32) -> bool {
        let shrinks = written <= self.last / 2;
        let on = written > FEW && shrinks && self.left > 0;
        self.left = self.left.saturating_sub(1);
        self.last = written;
        on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(written: impl IntoIterator<Item = u32>) -> usize {
        let mut rounds = Rounds::default();
        written.into_iter().take_while(|n| rounds.go_on(*n)).count()
    }

    #[test]
    fn they_end_when_few_are_left_or_it_does_not_help_or_there_were_enough() {
        assert_eq!(copied([0]), 0);
        assert_eq!(copied([8, 4]), 0);
        assert_eq!(copied([200, 90, 30, 8]), 3);
        assert_eq!(copied([512]), 0, "all of it is written all the time");
        assert_eq!(copied([100, 80]), 1, "it writes about as fast as is copied");
        assert_eq!(copied([256, 128, 64, 32, 16]), 3);
    }
}
