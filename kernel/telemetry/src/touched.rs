//! What a VM touched, page by page, as a tool outside asks for it.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Consecutive pages of 4 KiB of a guest: the first page's number (its address divided by 4096), how many.
pub type PageRange = (u64, u64);

/// Consecutive pages that are thought to be touched equally often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotRange {
    /// Number of the first page: its address divided by 4096.
    pub first: u64,
    /// Number of the machine's page that holds it; those behind it follow.
    pub frame: u64,
    /// How many pages of 4 KiB.
    pub pages: u64,
    /// Share of all touches that goes to these pages together, in units of its own.
    pub heat: u64,
}

/// Adds a page to ranges that ascend, to the last one if it follows that.
pub fn extend(ranges: &mut Vec<PageRange>, first: u64, pages: u64) {
    match ranges.last_mut() {
        Some((start, length)) if *start + *length == first => *length += pages,
        _ => ranges.push((first, pages)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let mut ranges = Vec::new();
        for (first, pages) in [(1, 1), (2, 512), (514, 1), (600, 1)] {
            extend(&mut ranges, first, pages);
        }
        assert_eq!(ranges, [(1, 514), (600, 1)]);
    }
}
