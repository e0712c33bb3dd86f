//! The nearest known word to a mistyped one.

use alloc::vec;
use alloc::vec::Vec;

/// Longest word worth comparing, in characters; keeps the cost of a hostile file bounded.
const LONGEST: usize = 64;

/// The word of `known` that takes the fewest edits to become `word`, if that is few enough to
/// look like a slip of the hand: at most a third of the longer word, and two in any case.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let length = word.chars().count();
    if length > LONGEST {
        return None;
    }
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(edits, candidate)| *edits <= (length.max(candidate.chars().count()) / 3).max(2))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let width = b.len() + 1;
    // Row i of the table: edits that turn the first i characters of `a` into each prefix of `b`.
    let mut before_last: Vec<usize> = vec![usize::MAX; width];
    let mut last: Vec<usize> = (0..width).collect();
    let mut previous = None;
    for (i, ca) in a.chars().flat_map(char::to_lowercase).enumerate() {
        let mut row = vec![i + 1];
        let mut left = None;
        for (j, cb) in b.iter().copied().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX);
            let substituted = at(&last, j).saturating_add(usize::from(ca != cb));
            let deleted = at(&last, j + 1).saturating_add(1);
            let inserted = at(&row, j).saturating_add(1);
            let mut best = substituted.min(deleted).min(inserted);
            if left == Some(ca) && previous == Some(cb) && j > 0 {
                best = best.min(at(&before_last, j - 1).saturating_add(1));
            }
            row.push(best);
            left = Some(cb);
        }
        before_last = core::mem::replace(&mut last, row);
        previous = Some(ca);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_as_a_person_counts_slips() {
        assert_eq!(distance("weight", "weight"), 0);
        assert_eq!(distance("wieght", "weight"), 1, "a swap is one slip");
        assert_eq!(distance("weigt", "weight"), 1);
        assert_eq!(distance("", "cap"), 3);
        assert_eq!(distance("Memory", "memory"), 0, "case is no slip");
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_a_slip_is_corrected() {
        assert_eq!(nearest("wieght", &["name", "weight"]), Some("weight"));
        assert_eq!(
            nearest("memroy_node", &["memory", "memory_nodes"]),
            Some("memory_nodes")
        );
        assert_eq!(nearest("colour", &["name", "weight"]), None);
        assert_eq!(nearest(&"w".repeat(1 << 20), &["weight"]), None);
    }
}
