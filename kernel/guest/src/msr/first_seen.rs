//! A short memory of what was already logged.

use super::Direction;

/// Registers remembered; a guest that probes more is not worth more lines.
const CAPACITY: usize = 64;

/// The first denied registers of a VM, so that each is logged once and a guest cannot flood the log.
#[derive(Clone, Debug)]
pub struct FirstSeen {
    seen: [(u32, Direction); CAPACITY],
    count: usize,
    repeated: u64,
}

impl Default for FirstSeen {
    fn default() -> Self {
        Self::new()
    }
}

impl FirstSeen {
    /// Nothing seen yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            seen: [(0, Direction::Read); CAPACITY],
            count: 0,
            repeated: 0,
        }
    }

    /// Whether this access is the first of its kind and is to be logged. Once the memory is full nothing is.
    pub fn insert(&mut self, msr: u32, direction: Direction) -> bool {
        let known = self
            .seen
            .iter()
            .take(self.count)
            .any(|s| *s == (msr, direction));
        match self.seen.get_mut(self.count) {
            Some(place) if !known => {
                *place = (msr, direction);
                self.count += 1;
                true
            }
            _ => {
                self.repeated = self.repeated.saturating_add(1);
                false
            }
        }
    }

    /// Accesses that were not to be logged.
    #[must_use]
    pub const fn suppressed(&self) -> u64 {
        self.repeated
    }
}
