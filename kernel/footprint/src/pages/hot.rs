//! How many pages are hot: the smallest set that takes four fifths of all touches, as far as that is known.
//!
//! Which part of all touches the hottest pages take is known from looks, and few looks leave it open by some hundredths.
//! Where pages are graded that moves the end of the set a little. Where a small set takes just about four fifths and the rest
//! is spread over everything, a hundredth less than that adds hundreds of pages, each as cold as any other. So the set's
//! size is looked up for each of [`CASES`] shares that may be the right one, and of those sizes the one is told that agrees best with
//! all of them: the mean of F1, which two sets, one in the other, have by their sizes alone, is highest (N. Ye et al., "Optimizing
//! F-measure", ICML 2012).

use super::Range;

/// The set's share, in thousandths.
const SHARE: u64 = 800;
/// Standard deviations that the share may be off, in thousandths: nine of ten times it is less.
const DEVIATIONS: u64 = 1645;
/// What may be wrong with looks besides luck, in thousandths: a page that is not in the caches is touched for longer.
const BESIDES: u64 = 20;
/// The most that a share may be off, in thousandths, however few looks there were.
const MOST_OFF: u64 = 100;
/// Shares that are tried to each side of [`SHARE`].
const CASES: u64 = 3;

/// The number of the first pages of `ranges`, hottest first, that are hot, if heat is known from so many looks.
pub fn hot_pages(ranges: &[Range], looks: u64) -> u64 {
    let deviation = (SHARE * (1000 - SHARE) * 1_000_000).checked_div(looks);
    let luck = deviation.map_or(MOST_OFF, |square| square.isqrt() * DEVIATIONS / 1_000_000);
    let off = (luck + BESIDES).min(MOST_OFF);
    let shares = (0..=2 * CASES).map(|case| SHARE - off + off * case / CASES);
    let sizes: alloc::vec::Vec<u64> = shares.map(|share| taking(ranges, share)).collect();
    let agreement = |size: u64| -> u64 {
        let with = |other: &u64| {
            let (less, sum) = (size.min(*other), u128::from(size) + u128::from(*other));
            let f1 = (u128::from(less) << 32).checked_div(sum).unwrap_or(0);
            u64::try_from(f1).unwrap_or(0)
        };
        sizes.iter().map(with).sum()
    };
    // Of equals the smallest.
    let best = sizes.iter().rev().max_by_key(|size| agreement(**size));
    best.copied().unwrap_or(0)
}

/// How many of the hottest pages take so many thousandths of the heat.
fn taking(ranges: &[Range], share: u64) -> u64 {
    let all: u128 = ranges.iter().map(|r| u128::from(r.heat)).sum();
    let mut missing = (all * u128::from(share)).div_ceil(1000);
    let mut pages = 0u64;
    for range in ranges {
        let heat = u128::from(range.heat);
        if heat >= missing {
            let part = (missing * u128::from(range.pages)).div_ceil(heat.max(1));
            return pages.saturating_add(u64::try_from(part).unwrap_or(range.pages));
        }
        missing -= heat;
        pages = pages.saturating_add(range.pages);
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn ranges(parts: &[(u64, u64)]) -> Vec<Range> {
        let parts = parts.iter();
        parts
            .map(|(pages, heat)| Range {
                first: 0,
                pages: *pages,
                heat: *heat,
            })
            .collect()
    }

    #[test]
    fn a_small_set_is_told_whether_a_little_more_or_less_than_four_fifths_is_believed() {
        for share in [792, 795, 805, 830] {
            let found = hot_pages(&ranges(&[(32, share), (16_000, 1000 - share)]), 500);
            assert!((30..=33).contains(&found), "{share}: {found}");
        }
        // Far from that it is not.
        assert!(hot_pages(&ranges(&[(32, 500), (16_000, 500)]), 500) > 5_000);
    }

    #[test]
    fn of_graded_pages_four_fifths_are_told() {
        let graded: Vec<(u64, u64)> = (0..14).map(|scale| (1 << scale, 100)).collect();
        let found = hot_pages(&ranges(&graded), 500);
        // 11.2 of 14: 2047 pages and a fifth of 2048.
        assert!((2300..2600).contains(&found), "{found}");
        assert!((790..=810).contains(&hot_pages(&ranges(&[(1000, 77)]), 1 << 40)));
        assert_eq!(hot_pages(&[], 0), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_there_are(parts in proptest::collection::vec((1u64..=u64::MAX / 64, any::<u64>()), 0..30), looks: u64) {
            let all: u64 = parts.iter().map(|(pages, _)| *pages).sum();
            prop_assert!(hot_pages(&ranges(&parts), looks) <= all);
        }
    }
}
