//! The pages of a granule of 2 MiB, as a set.

use crate::{PAGE_BYTES, PageSize};

/// Pages of a granule.
const PAGES: usize = 512;
const _: () = assert!(PAGES as u64 * PAGE_BYTES == PageSize::Size2M.bytes());
/// Pages of a word.
const WORD: usize = 64;
/// Counts that are added to in one go, a byte each.
const LANES: usize = 8;

/// Pages of 4 KiB in one granule: a bit for each, by their numbers in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageSet([u64; PAGES / WORD]);

impl PageSet {
    /// A bit for each page, the first one lowest.
    #[must_use]
    pub const fn from_words(words: [u64; PAGES / WORD]) -> Self {
        Self(words)
    }

    /// Those that are in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let Self(mut all) = self;
        all.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
        Self(all)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; PAGES / WORD]
    }

    /// Whether a page is among them.
    #[must_use]
    pub fn contains(&self, page: u16) -> bool {
        let (word, bit) = (usize::from(page) / WORD, usize::from(page) % WORD);
        self.0.get(word).is_some_and(|word| word >> bit & 1 == 1)
    }

    /// Their numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        let words = (0u16..).step_by(WORD).zip(&self.0);
        words.flat_map(|(first, word)| ones(*word).map(move |bit| first + bit as u16))
    }

    /// Adds one to the count of each page that is in the set; no count goes beyond 128.
    pub fn count_in(&self, counts: &mut [u8; PAGES]) {
        let (lanes, _) = counts.as_chunks_mut::<LANES>();
        for (word, lanes) in self.0.iter().zip(lanes.chunks_mut(WORD / LANES)) {
            if *word == 0 {
                continue;
            }
            for (lane, bits) in lanes.iter_mut().zip(word.to_le_bytes()) {
                let counts = u64::from_le_bytes(*lane);
                let full = counts >> 7 & ONES;
                *lane = (counts + (spread(bits) & !full)).to_le_bytes();
            }
        }
    }
}

/// Pages with these numbers; what is no page of a granule is left out.
impl FromIterator<u16> for PageSet {
    fn from_iter<I: IntoIterator<Item = u16>>(pages: I) -> Self {
        let mut set = Self::default();
        for page in pages {
            if let Some(word) = set.0.get_mut(usize::from(page) / WORD) {
                *word |= 1 << (usize::from(page) % WORD);
            }
        }
        set
    }
}

/// One in each byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// A byte that is 1 for each bit that is, the lowest first.
const fn spread(bits: u8) -> u64 {
    // Each byte keeps its own bit; what is not 0 then carries into the highest bit.
    let own = (bits as u64 * ONES) & 0x8040_2010_0804_0201;
    (own + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & ONES
}

/// The numbers of the bits that are 1, ascending.
pub fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let bit = bits.trailing_zeros() as usize;
        (bits != 0).then(|| {
            bits &= bits - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bits_are_spread_to_bytes() {
        for bits in 0..=u8::MAX {
            let bytes = spread(bits).to_le_bytes();
            assert!((0..8).all(|i| bytes[i] == bits >> i & 1), "{bits}");
        }
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in_and_counts_it(
            one in proptest::collection::btree_set(0u16..512, 0..100),
            other in proptest::collection::btree_set(0u16..512, 0..100),
        ) {
            let set: PageSet = one.iter().copied().chain([512, u16::MAX]).collect();
            prop_assert!(set.iter().eq(one.iter().copied()));
            prop_assert_eq!(set.is_empty(), one.is_empty());
            prop_assert!((0..=512).all(|page| set.contains(page) == one.contains(&page)));
            let both = set.union(other.iter().copied().collect());
            prop_assert!(both.iter().eq(one.union(&other).copied()));
            let mut counts = [0; PAGES];
            (0..130).for_each(|_| set.count_in(&mut counts));
            (0..7).for_each(|_| both.count_in(&mut counts));
            for page in 0u16..512 {
                let expected = match (one.contains(&page), other.contains(&page)) {
                    (true, _) => 128,
                    (false, in_other) => 7 * u8::from(in_other),
                };
                prop_assert_eq!(counts[usize::from(page)], expected);
            }
        }
    }
}
