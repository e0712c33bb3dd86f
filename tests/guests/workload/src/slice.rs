//! A thread's memory: what every word of it must be.
//!
//! Page `p` of a slice, word `w` (512 to a page, 8 to a line):
//!
//! | word of its line | holds |
//! |---|---|
//! | 0 | stamp of the page plus `w`, so that the sum over the lines is known |
//! | 1 | number of writing visits to the page since it was filled |
//! | 2, in the page's first line | number of the next page of the ring |
//! | others | a hash of seed, page and word |

#![expect(
    unsafe_code,
    reason = "memory is mapped and touched by address, so that nothing but the loops accesses it"
)]

use crate::args::Placement;
use crate::pattern::{Random, mix, ring};
use crate::system::{self, Mapping};
use crate::touch::{LINES, Touch};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
const LINE_WORDS: usize = WORDS / LINES;
/// Word of a page that names the next one.
const NEXT: usize = 2;

/// Memory of one thread.
#[derive(Debug)]
pub struct Slice {
    memory: Mapping,
    seed: u64,
    next: Vec<usize>,
    writes: Vec<u64>,
}

/// A word that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Page of the slice.
    pub page: usize,
    /// Word of the page; for a failed sum of a reading visit 512.
    pub word: usize,
    /// What must be there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

impl Slice {
    /// Maps `pages` pages, bound to a node of the guest if so asked, and fills them.
    ///
    /// # Errors
    /// A sentence with the system's reason.
    pub fn new(pages: usize, seed: u64, stream: u64, placement: Placement) -> Result<Self, String> {
        let memory = Mapping::new(pages * PAGE)?;
        if let Placement::Node(node) | Placement::TouchOnly(node) = placement {
            system::bind(&memory, node)?;
        }
        let next = ring(pages, &mut Random::new(seed, stream));
        let slice = Self {
            memory,
            seed: mix(seed ^ mix(stream)),
            next,
            writes: vec![0; pages],
        };
        for page in 0..pages {
            for word in 0..WORDS {
                // SAFETY: inside the mapping, which is writable and ours alone.
                unsafe {
                    slice
                        .page(page)
                        .add(word)
                        .write_volatile(slice.expected(page, word))
                };
            }
        }
        Ok(slice)
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.writes.len()
    }

    fn page(&self, page: usize) -> *mut u64 {
        debug_assert!(page < self.pages());
        self.memory.address().wrapping_add(page * PAGE).cast()
    }

    fn stamp(&self, page: usize) -> u64 {
        mix(self.seed ^ page as u64)
    }

    fn expected(&self, page: usize, word: usize) -> u64 {
        match word % LINE_WORDS {
            0 => self.stamp(page).wrapping_add(word as u64),
            1 => self.writes.get(page).copied().unwrap_or(0),
            NEXT if word == NEXT => self.next.get(page).copied().unwrap_or(0) as u64,
            _ => mix(self.stamp(page) ^ mix(word as u64)),
        }
    }

    /// A visit that writes.
    pub fn write(&mut self, page: usize, touch: &Touch) {
        if let Some(writes) = self.writes.get_mut(page) {
            *writes += 1;
            // SAFETY: the page exists, as it has a count, and belongs to this thread alone.
            unsafe { (touch.write)(self.page(page)) };
        }
    }

    /// A visit that reads, and checks what it read.
    ///
    /// # Errors
    /// The sum is not what it must be.
    pub fn read(&self, page: usize, touch: &Touch) -> Result<(), Mismatch> {
        if page >= self.pages() {
            return Ok(());
        }
        // SAFETY: the page exists, and nobody writes to it but this thread.
        let found = unsafe { (touch.read)(self.page(page)) };
        let words: u64 = (0..WORDS as u64).step_by(LINE_WORDS).sum();
        let expected = self
            .stamp(page)
            .wrapping_mul(LINES as u64)
            .wrapping_add(words);
        if found == expected {
            Ok(())
        } else {
            Err(Mismatch {
                page,
                word: WORDS,
                expected,
                found,
            })
        }
    }

    /// The page that `page` points to.
    pub fn follow(&self, page: usize, touch: &Touch) -> usize {
        if page >= self.pages() {
            return 0;
        }
        // SAFETY: the page exists, and nobody writes to it but this thread.
        unsafe { (touch.follow)(self.page(page).add(NEXT)) as usize }
    }

    /// Compares every word; calls `report` for each that is wrong.
    pub fn check(&self, mut report: impl FnMut(Mismatch)) {
        for page in 0..self.pages() {
            for word in 0..WORDS {
                // SAFETY: inside the mapping, which is readable and ours alone.
                let found = unsafe { self.page(page).add(word).read_volatile() };
                let expected = self.expected(page, word);
                if found != expected {
                    report(Mismatch {
                        page,
                        word,
                        expected,
                        found,
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mismatches(slice: &Slice) -> Vec<Mismatch> {
        let mut found = Vec::new();
        slice.check(|mismatch| found.push(mismatch));
        found
    }

    #[test]
    fn visits_leave_what_the_check_expects() {
        let touch = Touch::tagged(1).expect("in range");
        let mut slice = Slice::new(5, 42, 3, Placement::Any).expect("mapped");
        let mut page = 0;
        for visit in 0..50 {
            if visit % 3 == 0 {
                slice.write(page, &touch);
            } else {
                assert_eq!(slice.read(page, &touch), Ok(()));
            }
            page = slice.follow(page, &touch);
        }
        assert_eq!(slice.writes.iter().sum::<u64>(), 17);
        assert_eq!(mismatches(&slice), []);
    }

    #[test]
    fn a_lost_write_and_a_damaged_word_are_seen() {
        let touch = Touch::tagged(2).expect("in range");
        let mut slice = Slice::new(3, 1, 0, Placement::Any).expect("mapped");
        slice.write(1, &touch);
        // SAFETY: inside the mapping.
        unsafe { slice.page(1).add(9).write(0) };
        assert_eq!(
            mismatches(&slice),
            [Mismatch {
                page: 1,
                word: 9,
                expected: 1,
                found: 0
            }]
        );
        assert_eq!(slice.read(2, &touch), Ok(()));
        // SAFETY: inside the mapping.
        unsafe { *slice.page(2).add(64) ^= 1 << 40 };
        let wrong = slice.read(2, &touch).expect_err("damaged");
        assert_eq!((wrong.page, wrong.expected ^ wrong.found != 0), (2, true));
        assert_eq!(mismatches(&slice).len(), 2);
    }
}
