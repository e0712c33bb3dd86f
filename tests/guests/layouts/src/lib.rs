//! What the probe touches, drawn from a seed.
//!
//! Perigee claims to know which pages a VM uses. To test that, the guest `probe` touches pages that a seed
//! draws, an observer outside counts what it really touched, and a judge compares. Guest and
//! judge share this crate, so that both draw alike; the hypervisor has never heard of it.
//!
//! * [`Layout`] and [`Walk`]: in which order pages are visited, for footprints;
//! * [`kind`]: which blocks are read and which are written, exactly once each, for accessed and dirty bits.
//!
//! In every layout with a hot set, that set takes [`HOT_PERMILLE`] of the visits and the rest is spread over
//! all pages. So "the smallest set of pages that takes 80 % of the accesses" is the hot set, whole
//! and nothing else, and no judge has to break ties. Zipf is graded by nature.
#![no_std]
#![forbid(unsafe_code)]

mod layout;
mod random;

pub use layout::{HOT_PERMILLE, Layout, Visit, Walk};
pub use random::Random;

/// What happens to a block of memory in a trial of accessed and dirty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Untouched,
    /// It is read.
    Read,
    /// It is written.
    Written,
}

/// What happens to block `index` in round `round` of the trial with this seed.
#[must_use]
pub fn kind(seed: u64, round: u64, index: u64) -> Kind {
    match random::mix(random::mix(seed ^ round.rotate_left(32)) ^ index) % 8 {
        0 | 1 => Kind::Read,
        2 => Kind::Written,
        _ => Kind::Untouched,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_mixed_and_change_with_seed_and_round() {
        let count = |seed, round, kind_wanted| {
            (0..1000)
                .filter(|i| kind(seed, round, *i) == kind_wanted)
                .count()
        };
        assert!((200..300).contains(&count(1, 0, Kind::Read)));
        assert!((80..170).contains(&count(1, 0, Kind::Written)));
        let differ = |a: (u64, u64), b: (u64, u64)| {
            (0..1000)
                .filter(|i| kind(a.0, a.1, *i) != kind(b.0, b.1, *i))
                .count()
        };
        assert!(differ((1, 0), (2, 0)) > 300 && differ((1, 0), (1, 1)) > 300);
    }
}
