//! What the entries of the lowest level say, 64 of them in one go: most of what a look at small pages costs is here.
//!
//! A branch for each entry is wrong whenever it is a surprise that a page was used, so bits are gathered without any; and since
//! nearly all lines of entries say nothing, a line is first taken as a whole.

use crate::table::{LINE, RadixTable, TableFormat, TableMemory};
use core::ops::Range;
use units::Frame;

/// Entries that are read in one go.
pub(crate) const WORD: usize = 64;
/// Lines of them.
const LINES_OF_WORD: usize = WORD / LINE;

/// What [`WORD`] entries of a table of small pages say, a bit for each.
#[derive(Clone, Copy, Default)]
pub(crate) struct PagesInWord {
    /// Pages that are mapped.
    pub(crate) mapped: u64,
    /// Those of them that have one of the bits in question.
    pub(crate) used: u64,
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// What the `word`th word of a table of small pages says of the bits in `mask`.
    pub(crate) fn pages_in_word(&self, table: Frame, word: usize, mask: u64) -> PagesInWord {
        let mut pages = PagesInWord::default();
        for line in 0..LINES_OF_WORD {
            let entries = self.memory().load_line(table, word * LINES_OF_WORD + line);
            let (all, any) = entries.iter().fold((u64::MAX, 0), |(all, any), entry| {
                (all & entry, any | entry)
            });
            let (mut mapped, mut used) = (u64::MAX >> (WORD - LINE), 0);
            if !F::is_present(all) || any & mask != 0 {
                mapped = 0;
                for (bit, entry) in entries.into_iter().enumerate() {
                    mapped |= u64::from(F::is_present(entry)) << bit;
                    used |= u64::from(entry & mask != 0) << bit;
                }
            }
            pages.mapped |= mapped << (line * LINE);
            pages.used |= (used & mapped) << (line * LINE);
        }
        pages
    }
}

/// Which of the [`WORD`] entries from `start` on are in a range that meets them.
pub(crate) fn bits_within(range: Range<usize>, start: usize) -> u64 {
    let before = range.start.saturating_sub(start).min(WORD - 1);
    let behind = (start + WORD).saturating_sub(range.end).min(WORD - 1);
    (u64::MAX << before) & (u64::MAX >> behind)
}

/// The numbers of the bits that are 1, ascending.
pub(crate) fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let bit = bits.trailing_zeros() as usize;
        (bits != 0).then(|| {
            bits &= bits - 1;
            bit
        })
    })
}
