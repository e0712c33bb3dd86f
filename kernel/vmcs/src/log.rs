//! The log of written pages: page-modification logging (SDM 3C 29.3.6).
//!
//! Where it is on, a processor that sets D in a leaf of the nested table writes the guest-physical address of the page to
//! the entry of the log that the index says, and counts the index down. One that finds the index beyond the
//! log exits instead, before it has set D; the access happens again after the next entry.

use core::ops::Range;

/// Entries of a log, 8 bytes each: it is a page.
pub const ENTRIES: usize = 512;
/// The index of an empty log.
pub const EMPTY: u16 = ENTRIES as u16 - 1;
/// Bits of an entry that are the page's address. Bits 11:0 are 0 by the manual; Bochs 2.7 leaves something there.
const ADDRESS: u64 = !0xfff;

/// The entries that hold an address when the index is this: those above it. Of an index beyond the log, which is what
/// counting down from 0 gives, all.
#[must_use]
pub const fn written(index: u16) -> Range<usize> {
    let next = index as usize;
    if next >= ENTRIES {
        0..ENTRIES
    } else {
        next + 1..ENTRIES
    }
}

/// The guest-physical address of the page that an entry names.
#[must_use]
pub const fn page(entry: u64) -> u64 {
    entry & ADDRESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_written_from_its_end_to_its_beginning() {
        let mut index = EMPTY;
        for count in 0..=ENTRIES {
            assert_eq!(written(index).len(), count);
            assert_eq!(written(index).end, ENTRIES);
            index = index.wrapping_sub(1);
        }
        assert_eq!(written(u16::MAX), 0..ENTRIES, "full");
    }

    #[test]
    fn low_bits_of_an_entry_mean_nothing() {
        assert_eq!(page(0x6_0010), 0x6_0000);
    }
}
