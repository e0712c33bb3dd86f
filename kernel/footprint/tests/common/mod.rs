//! What tests of hot sets judge by.

use std::collections::BTreeSet;

/// The smallest set of pages that takes four fifths of all: pages with what each has.
pub fn four_fifths(pages: impl Iterator<Item = (u64, u64)>) -> BTreeSet<u64> {
    let mut sorted: Vec<(u64, u64)> = pages.map(|(page, heat)| (heat, page)).collect();
    sorted.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let total: u64 = sorted.iter().map(|(heat, _)| heat).sum();
    let mut sum = 0;
    let hot = sorted.into_iter().take_while(|(heat, _)| {
        let more = sum * 5 < total * 4;
        sum += heat;
        more
    });
    hot.map(|(_, page)| page).collect()
}

/// How well a belief agrees with the truth: F1 in thousandths.
pub fn agreement(truth: &BTreeSet<u64>, belief: &BTreeSet<u64>) -> u64 {
    let both = truth.intersection(belief).count();
    (2000 * both / (truth.len() + belief.len()).max(1)) as u64
}
