//! What page moves have cost so far, by the size of the leaf.

use telemetry::Histogram;
use units::{Nanos, PAGE_BYTES, PageSize};

/// Leaves of one size.
#[derive(Clone, Debug, Default)]
pub struct SizeTally {
    /// For how long a guest could not touch each.
    pub pauses: Histogram,
    /// Leaves that moved.
    pub moved: u64,
    /// Of them, those that were written meanwhile.
    pub written: u64,
    /// Bytes that were copied once more for that.
    pub copied_again: u64,
    /// Leaves that could not be moved.
    pub failed: u64,
    /// Time that moving them took, without the rests between.
    pub took: Nanos,
}

impl SizeTally {
    /// Leaves in a second of moving.
    pub fn per_second(&self) -> u64 {
        let leaves = u128::from(self.moved) * 1_000_000_000;
        u64::try_from(leaves / u128::from(self.took.0.max(1))).unwrap_or(u64::MAX)
    }
}

/// All sizes.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    small: SizeTally,
    large: SizeTally,
}

impl Tally {
    /// Leaves of this size; those of 1 GiB count as large.
    pub const fn of(&self, size: PageSize) -> &SizeTally {
        match size {
            PageSize::Size4K => &self.small,
            PageSize::Size2M | PageSize::Size1G => &self.large,
        }
    }

    fn of_mut(&mut self, size: PageSize) -> &mut SizeTally {
        match size {
            PageSize::Size4K => &mut self.small,
            PageSize::Size2M | PageSize::Size1G => &mut self.large,
        }
    }

    /// A leaf moved; `again` pages of 4 KiB were copied once more.
    pub fn moved(&mut self, size: PageSize, pause: Nanos, again: u64) {
        let tally = self.of_mut(size);
        tally.moved += 1;
        tally.written += u64::from(again > 0);
        tally.copied_again += again * PAGE_BYTES;
        tally.pauses.add(pause);
    }

    /// A leaf could not be moved.
    pub fn failed(&mut self, size: PageSize) {
        self.of_mut(size).failed += 1;
    }

    /// A batch of leaves of one size took so long.
    pub fn took(&mut self, size: PageSize, time: Nanos) {
        self.of_mut(size).took += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_counts_for_itself() {
        let mut tally = Tally::default();
        for i in 1..=100 {
            tally.moved(PageSize::Size4K, Nanos::from_micros(i), i % 2);
        }
        tally.failed(PageSize::Size2M);
        tally.took(PageSize::Size4K, Nanos::from_millis(500));
        let (small, large) = (tally.of(PageSize::Size4K), tally.of(PageSize::Size2M));
        assert_eq!(
            (small.moved, small.written, small.copied_again),
            (100, 50, 50 * 4096)
        );
        assert_eq!((small.per_second(), small.failed), (200, 0));
        assert_eq!((large.moved, large.failed, large.per_second()), (0, 1, 0));
        assert_eq!(small.pauses.longest(), Nanos::from_micros(100));
    }
}
