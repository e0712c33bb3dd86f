//! Granules of 2 MiB that small pages map for a while: for a close look, or while they move.
//!
//! They become one leaf again, on the frames that they have or on the block that they move to. So they must stay together
//! meanwhile: whoever moves a page of such a granule moves all of it, and a look that it was taken apart for is over then.
//! What small pages map for another reason is not noted here, and stays as it is: the operator wants it so, the guest
//! executes there, or there is a hole.
//!
//! What is noted must agree with the tables, so it changes together with them, under their owner's lock for writing.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use units::Gpa;

/// What a granule is taken apart for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To see which of its pages are touched.
    Look,
    /// To see which of its pages are written while it is copied.
    Move,
}

/// One machine's granules that are apart for a while.
#[derive(Clone, Debug, Default)]
pub struct Apart {
    granules: BTreeMap<Gpa, Purpose>,
    overtaken: u64,
}

impl Apart {
    /// What this granule is apart for; `None` if it is not, or not just for a while.
    pub fn purpose(&self, granule: Gpa) -> Option<Purpose> {
        self.granules.get(&granule).copied()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.granules.len()
    }

    /// Looks that moves have ended so far.
    pub const fn overtaken(&self) -> u64 {
        self.overtaken
    }

    /// Those of `granules` that are apart for this purpose.
    pub fn only(&self, purpose: Purpose, granules: &[Gpa]) -> Vec<Gpa> {
        let mine = |at: &&Gpa| self.purpose(**at) == Some(purpose);
        granules.iter().filter(mine).copied().collect()
    }

    /// These have been taken apart.
    pub fn note(&mut self, granules: &[Gpa], purpose: Purpose) {
        let granules = granules.iter().map(|at| (*at, purpose));
        self.granules.extend(granules);
    }

    /// These are about to move: looks at them are over. Says which were looked at.
    pub fn overtake(&mut self, granules: &[Gpa]) -> Vec<Gpa> {
        let looked_at = self.only(Purpose::Look, granules);
        self.note(&looked_at, Purpose::Move);
        self.overtaken += looked_at.len() as u64;
        looked_at
    }

    /// It is one leaf, or small pages map it for good from now on. Whether it was noted.
    pub fn forget(&mut self, granule: Gpa) -> bool {
        self.granules.remove(&granule).is_some()
    }

    /// Small pages shall map what is in this range for good. Says of how many granules that are apart for looks that is true
    /// now; those that move become one leaf first.
    pub fn keep(&mut self, range: &Range<u64>) -> usize {
        let before = self.granules.len();
        let stays = |at: &Gpa, why: &mut Purpose| *why == Purpose::Move || !range.contains(&at.0);
        self.granules.retain(stays);
        before - self.granules.len()
    }

    /// How many are in this range.
    pub fn count_in(&self, range: &Range<u64>) -> usize {
        self.granules
            .keys()
            .filter(|at| range.contains(&at.0))
            .count()
    }

    /// The memory is taken down.
    pub fn clear(&mut self) {
        self.granules.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Gpa = Gpa(0);
    const B: Gpa = Gpa(2 << 20);
    const C: Gpa = Gpa(4 << 20);

    fn looked_at_and_moving() -> Apart {
        let mut apart = Apart::default();
        apart.note(&[A, B], Purpose::Look);
        apart.note(&[C], Purpose::Move);
        apart
    }

    #[test]
    fn a_move_ends_looks_and_nothing_else() {
        let mut apart = looked_at_and_moving();
        assert_eq!(apart.overtake(&[B, C, Gpa(6 << 20)]), [B]);
        assert_eq!(
            [A, B, C].map(|at| apart.purpose(at)),
            [
                Some(Purpose::Look),
                Some(Purpose::Move),
                Some(Purpose::Move)
            ]
        );
        assert_eq!(apart.only(Purpose::Look, &[A, B, C]), [A]);
        assert_eq!(apart.overtake(&[B]), [], "once");
        assert_eq!((apart.overtaken(), apart.count()), (1, 3));
    }

    #[test]
    fn what_the_operator_wants_small_is_put_together_by_nobody() {
        let mut apart = looked_at_and_moving();
        let all = B.0..u64::MAX;
        assert_eq!(apart.keep(&all), 1);
        assert_eq!(apart.only(Purpose::Look, &[A, B, C]), [A]);
        assert_eq!(apart.count_in(&all), 1, "what moves arrives as one");
        assert!(apart.forget(C) && !apart.forget(C));
        apart.clear();
        assert_eq!(apart.purpose(A), None);
    }
}
