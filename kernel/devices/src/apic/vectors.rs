//! A set of the 256 interrupt vectors: the shape of IRR, ISR and TMR.

/// A set of vectors, readable as the eight 32-bit registers of a local APIC (SDM 3A 11.8.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet([u32; 8]);

impl VectorSet {
    /// No vector.
    pub(super) const EMPTY: Self = Self([0; 8]);

    /// The 32-bit register that holds vectors `32 * index` and up; zero past the eighth.
    pub(super) fn word(&self, index: usize) -> u32 {
        self.0.get(index).copied().unwrap_or(0)
    }

    fn word_mut(&mut self, vector: u8) -> &mut u32 {
        &mut self.0[usize::from(vector >> 5)] // 0 to 7: the top three of eight bits
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.word(usize::from(vector >> 5)) & 1 << (vector & 31) != 0
    }

    pub(super) fn insert(&mut self, vector: u8) {
        *self.word_mut(vector) |= 1 << (vector & 31);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        *self.word_mut(vector) &= !(1 << (vector & 31));
    }

    /// The largest vector: vectors are served from the top.
    pub(super) fn highest(&self) -> Option<u8> {
        let (index, word) = self
            .0
            .iter()
            .enumerate()
            .rev()
            .find(|(_, word)| **word != 0)?;
        u8::try_from(index * 32 + 31 - word.leading_zeros() as usize).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_a_set(steps in proptest::collection::vec((any::<bool>(), any::<u8>()), 0..64)) {
            let (mut set, mut model) = (VectorSet::EMPTY, BTreeSet::new());
            for (add, vector) in steps {
                if add {
                    set.insert(vector);
                    model.insert(vector);
                } else {
                    set.remove(vector);
                    model.remove(&vector);
                }
                prop_assert_eq!(set.highest(), model.last().copied());
                prop_assert_eq!(set.contains(vector), add);
            }
        }
    }
}
