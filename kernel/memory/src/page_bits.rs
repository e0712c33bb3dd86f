//! What the entries of the lowest level say, 64 of them in one go: most of what a look at small pages costs is here.
//!
//! Nearly all lines of entries say nothing, so a line is first taken as a whole. Where it says something, bits are gathered
//! without a branch for each entry: whether a page was used is a surprise too often.

use crate::table::{LINE, RadixTable, TableFormat, TableMemory};
use core::ops::Range;
use units::{Frame, ones};

/// Entries that are read in one go.
pub(crate) const WORD: usize = 64;
/// A bit for each entry of a line.
const WHOLE_LINE: u64 = u64::MAX >> (WORD - LINE);
/// Lines of a word.
const LINES_OF_WORD: usize = WORD / LINE;

/// What [`WORD`] entries of a table of small pages say, a bit for each.
#[derive(Clone, Copy)]
pub(crate) struct PagesInWord {
    /// Pages that are mapped.
    pub(crate) mapped: u64,
    /// Those of them that have one of the bits in question.
    pub(crate) used: u64,
    /// The used ones' entries as they were read; what stands for the others is of no account.
    entries: [[u64; LINE]; LINES_OF_WORD],
}

impl PagesInWord {
    /// Before anything is read.
    pub(crate) const EMPTY: Self = Self {
        mapped: 0,
        used: 0,
        entries: [[0; LINE]; LINES_OF_WORD],
    };

    /// Numbers in the word and entries of the used pages, ascending.
    pub(crate) fn each_used(&self) -> impl Iterator<Item = (usize, u64)> {
        let entries = self.entries.as_flattened();
        ones(self.used).filter_map(|bit| Some((bit, *entries.get(bit)?)))
    }
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Finds what a table of small pages says of the bits in `mask`, for the entries of `range` that are in its `word`th
    /// word; no others are read.
    pub(crate) fn read_pages(
        &self,
        table: Frame,
        word: usize,
        range: &Range<usize>,
        mask: u64,
        pages: &mut PagesInWord,
    ) {
        let inside = bits_within(range, word * WORD);
        let (mut mapped, mut used) = (0, 0);
        for (line, kept) in pages.entries.iter_mut().enumerate() {
            let (number, shift) = (word * LINES_OF_WORD + line, line * LINE);
            let entries = match inside >> shift & WHOLE_LINE {
                0 => continue,
                WHOLE_LINE => self.memory().load_line(table, number),
                some => core::array::from_fn(|i| match some >> i & 1 {
                    0 => 0,
                    _ => self.memory().load(table, number * LINE + i),
                }),
            };
            let (all, any) = entries.iter().fold((u64::MAX, 0), |(all, any), entry| {
                (all & entry, any | entry)
            });
            let present = match F::is_present(all) {
                true => WHOLE_LINE,
                false => gather(&entries, F::PRESENT),
            };
            mapped |= present << shift;
            if any & mask != 0 {
                used |= (gather(&entries, mask) & present) << shift;
                *kept = entries;
            }
        }
        (pages.mapped, pages.used) = (mapped, used);
    }

    /// Of a table's `word`th word of small pages: a bit for each that is mapped and has one of the bits of `mask`.
    pub(crate) fn used_pages(&self, table: Frame, word: usize, mask: u64) -> u64 {
        (0..LINES_OF_WORD).fold(0, |used, line| {
            let entries = self.memory().load_line(table, word * LINES_OF_WORD + line);
            match entries.iter().fold(0, |any, entry| any | entry) & mask {
                0 => used,
                _ => {
                    let found = gather(&entries, mask) & gather(&entries, F::PRESENT);
                    used | found << (line * LINE)
                }
            }
        })
    }
}

/// A bit for each entry that has one of the bits of `mask`.
fn gather(entries: &[u64; LINE], mask: u64) -> u64 {
    let each = entries.iter().enumerate();
    each.fold(0, |bits, (i, entry)| {
        bits | u64::from(entry & mask != 0) << i
    })
}

/// Which of the [`WORD`] entries from `start` on are in a range.
fn bits_within(range: &Range<usize>, start: usize) -> u64 {
    let bit = |index: usize| u32::try_from(index.saturating_sub(start)).unwrap_or(u32::MAX);
    let from = |index| u64::MAX.checked_shl(bit(index)).unwrap_or(0);
    from(range.start) & !from(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Attributes, ENTRIES, EptFormat, Level, NoProcessor, NptFormat};
    use crate::testing::{Access, VecTables, touch};
    use alloc::vec::Vec;
    use units::{Gpa, NodeId, PageSize};

    #[test]
    fn bits_are_within_where_their_indices_are() {
        for (start, end) in [
            (0, 512),
            (0, 0),
            (63, 65),
            (64, 128),
            (100, 101),
            (130, 120),
        ] {
            for word in 0..ENTRIES / WORD {
                let bits = bits_within(&(start..end), word * WORD);
                let inside = |bit: &usize| (start..end).contains(&(word * WORD + bit));
                let expected: Vec<usize> = (0..WORD).filter(inside).collect();
                assert_eq!(ones(bits).collect::<Vec<_>>(), expected);
            }
        }
    }

    /// Of pages that are mapped and used here and there, words say what the entries do one by one.
    fn words_say_what_entries_say<F: TableFormat<Address = Gpa>>() {
        let memory = VecTables::new(16);
        let mut table = RadixTable::<F, _>::new(&memory, NodeId(0)).expect("room");
        let page = |i: u64| Gpa(i << 12);
        for i in (0..512).filter(|i| i / 8 % 3 != 0 || i % 5 == 0) {
            let size = PageSize::Size4K;
            let flush = table.map(page(i), Frame(i), size, Attributes::GUEST_MEMORY);
            flush.expect("empty").carry_out(&NoProcessor);
            let access = if i % 2 == 0 {
                Access::Read
            } else {
                Access::Write
            };
            if i % 7 < 2 && i / 8 % 4 != 0 {
                touch::<F>(&memory, table.root(), page(i), access).expect("mapped");
            }
        }
        let slot = table.find_at(0, Level::LOWEST);
        let mut found = PagesInWord::EMPTY;
        for range in [0..512, 10..11, 60..70, 64..128, 500..512, 20..20] {
            for mask in [F::ACCESSED, F::DIRTY, F::ACCESSED | F::DIRTY] {
                for word in 0..ENTRIES / WORD {
                    table.read_pages(slot.table, word, &range, mask, &mut found);
                    let mut listed = found.each_used();
                    for bit in 0..WORD {
                        let index = word * WORD + bit;
                        let entry = memory.load(slot.table, index);
                        let mapped = range.contains(&index) && F::is_present(entry);
                        let used = mapped && entry & mask != 0;
                        let said = [found.mapped, found.used].map(|bits| bits >> bit & 1 == 1);
                        assert_eq!(said, [mapped, used], "{index} of {range:?}");
                        if used {
                            assert_eq!(listed.next(), Some((bit, entry)));
                        }
                    }
                    assert_eq!(listed.next(), None);
                }
            }
        }
        table.destroy(&NoProcessor, |_| {});
    }

    #[test]
    fn words_say_what_entries_say_in_both_formats() {
        words_say_what_entries_say::<NptFormat>();
        words_say_what_entries_say::<EptFormat>();
    }
}
