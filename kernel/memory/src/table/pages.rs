//! Some of the 512 pages that one table maps.

use super::ENTRIES;

/// A set of indices below 512.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Pages([u64; ENTRIES / 64]);

impl Pages {
    fn insert(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// How many.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Each, from the lowest.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let words = (0u64..).zip(&self.0);
        words.flat_map(|(i, word)| {
            (0..64)
                .filter(move |b| word >> b & 1 == 1)
                .map(move |b| i * 64 + b)
        })
    }

    /// These and those.
    #[must_use]
    pub fn and(self, more: Self) -> Self {
        let mut all = self;
        for (word, more) in all.0.iter_mut().zip(more.0) {
            *word |= more;
        }
        all
    }
}

impl FromIterator<usize> for Pages {
    /// Indices beyond 511 are none.
    fn from_iter<I: IntoIterator<Item = usize>>(indices: I) -> Self {
        let mut pages = Self::default();
        indices.into_iter().for_each(|index| pages.insert(index));
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_set_holds_what_was_put_into_it() {
        let some: Pages = [511, 0, 64, 63, 0, 512].into_iter().collect();
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 63, 64, 511]);
        assert_eq!(some.count(), 4);
        let more = some.and([1].into_iter().collect());
        assert_eq!(more.iter().collect::<Vec<_>>(), [0, 1, 63, 64, 511]);
        assert_eq!(Pages::default().count(), 0);
    }
}
