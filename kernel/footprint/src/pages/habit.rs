//! Whether a guest has begun something else.
//!
//! Most of what looks meet in a second is *familiar*, met before; how much, depends on how many pages there are, but for one guest
//! it stays the same, until one comes that meets other pages. A guest that turns from one thing to another and
//! back meets nothing new, and remains one thing.

use units::Score;

/// Looks that say how familiar a time is; one with fewer is judged together with the next.
const ENOUGH: u64 = 32;
/// A time that is less familiar than usual, by more than this part of that and by more than chance makes of it, is something
/// else.
const LESS: Score = Score::from_per_mille(500);
/// Standard deviations that chance makes at most.
const DEVIATIONS: u64 = 4;

/// How familiar is what a guest does.
#[derive(Clone, Debug, Default)]
pub(super) struct Habit {
    /// Since the last judgement: looks, what they weigh, and how much of that was familiar.
    looks: u64,
    total: u64,
    familiar: u64,
    /// The usual part of familiar touches, once it is known.
    usual: Option<Score>,
}

impl Habit {
    /// A look met pages of this weight, of which so much was familiar.
    pub(super) const fn note(&mut self, total: u64, familiar: u64) {
        self.looks += 1;
        self.total += total;
        self.familiar += familiar;
    }

    /// Whether what was noted lately is something else than before; `None` while that is too little to say.
    pub(super) fn is_broken(&mut self) -> Option<bool> {
        if self.looks < ENOUGH {
            return None;
        }
        let familiar = Score::ratio(self.familiar.into(), self.total.into());
        let usual = self.usual.unwrap_or(familiar);
        let less = part(usual, LESS).max(chance(usual, self.looks));
        let broken = familiar < usual.above(less);
        // A mean that follows within four judgements.
        let follows = Score(usual.0 - usual.0 / 4 + familiar.0 / 4);
        *self = Self {
            usual: (!broken).then_some(follows),
            ..Self::default()
        };
        Some(broken)
    }
}

/// A part of a score.
fn part(score: Score, of: Score) -> Score {
    Score(u32::try_from(of.of(score.0.into())).unwrap_or(score.0))
}

/// By how much a share that so many looks tell is off by chance at most: [`DEVIATIONS`] times the root of p (1 - p) / n.
fn chance(share: Score, looks: u64) -> Score {
    let variance = share.of(Score::ONE.above(share).0.into()) << 16;
    let deviation = variance
        .checked_div(looks)
        .map_or(Score::ONE.0.into(), u64::isqrt);
    let off = deviation.saturating_mul(DEVIATIONS);
    Score(u32::try_from(off).unwrap_or(Score::ONE.0)).min(Score::ONE)
}
