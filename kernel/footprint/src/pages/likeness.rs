//! How alike the pages of a class are, by how much looks at them scatter.

use super::LOOK;

/// How alike the pages of a class are, in parts of a look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Likeness {
    /// Pages with more stand alone.
    pub(super) most: u128,
    /// The mean of the others.
    pub(super) mean: u128,
    /// Looks that each of them has in advance: the more, the more they are alike.
    pub(super) advance: u128,
}

impl Likeness {
    /// Least and most of [`Likeness::advance`].
    const ADVANCE: (u128, u128) = (LOOK / 2, LOOK * 64);

    /// Of pages that were met so often, and `unmet` more.
    pub(super) fn of(met: &[u128], unmet: u64) -> Self {
        let mut found = Self {
            most: u128::MAX,
            ..Self::default()
        };
        // Those that stand out are left out, and then perhaps more of them stand out.
        for _ in 0..8 {
            let alike = || met.iter().filter(|x| **x <= found.most);
            let count = (alike().count() as u128 + u128::from(unmet)).max(1);
            let mean = (alike().sum::<u128>() + LOOK / 2).div_ceil(count);
            let most = mean + 5 * (mean * LOOK).isqrt() + 2 * LOOK;
            let squares = alike().map(|x| x * x).sum::<u128>() / count;
            // Beyond the variance of a Poisson process, which is its mean.
            let scatter = squares
                .saturating_sub(mean * mean)
                .saturating_sub(mean * LOOK);
            // What may be chance: three standard errors of that.
            let error = (2 * mean * mean + mean * LOOK) / count;
            let scatter = scatter.saturating_sub(3 * LOOK * error.isqrt());
            let advance = (mean * mean * LOOK).checked_div(scatter);
            let advance = advance.unwrap_or(u128::MAX);
            let advance = advance.clamp(Self::ADVANCE.0, Self::ADVANCE.1);
            let settled = most >= found.most;
            found = Self {
                most: most.min(found.most),
                mean,
                advance,
            };
            if settled {
                break;
            }
        }
        found
    }
}
