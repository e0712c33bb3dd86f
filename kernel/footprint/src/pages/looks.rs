//! What looks at stopped guests met, by page, and for how long it counts.
//!
//! A guest that goes on doing the same is known the better the longer its looks are remembered; of one that has begun
//! something else, what it did before is worse than nothing: pages that were hot then fill the hot set with what nobody
//! touches. So looks fade slowly, by a sixteenth a pass, and a change of what the guest does is told by itself: most of what a pass
//! meets is *familiar*, met before; how much, depends on how many pages there are, but for one guest it stays the same, until a pass
//! comes that meets other pages. Then all that was before is forgotten. A guest that turns from one thing to another and
//! back meets nothing new, and remains one thing.
//!
//! What goes bit by bit is noticed page by page: one that by its weight should have been met [`MISSED`] times since it was met last
//! has most likely had its time, and fades fast from then on.

use alloc::collections::BTreeMap;
use units::{Gpa, PAGE_BYTES, Score};

/// Pages that looks are remembered of.
const LOOKED_AT: usize = 8192;
/// With each pass so much of itself is lost of what was met, and of what was met on pages that close looks find untouched since.
const FADES: u64 = 16;
/// See [`FADES`].
const FADES_IDLE: u64 = 2;
/// A page that is met as often as its weight says stays away for so many times its usual pause once in fifty cases.
const MISSED: u64 = 4;
/// Looks that say how familiar a pass is; one with fewer is judged together with the next.
const ENOUGH: u64 = 32;
/// A pass that is less familiar than usual, by more than this part of that and by more than chance makes of it, is something
/// else.
const LESS: Score = Score::from_per_mille(500);
/// Standard deviations that chance makes at most.
const DEVIATIONS: u64 = 4;

/// What looks met of one page.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weight {
    /// In all.
    pub(super) sum: u64,
    /// In which pass it was met last.
    last: u32,
}

/// What looks met, by page.
#[derive(Clone, Debug, Default)]
struct Met {
    weights: BTreeMap<u64, Weight>,
    total: u64,
    /// In 1/256.
    looks: u64,
}

impl Met {
    fn of(&self, page: u64) -> u64 {
        self.weights.get(&page).map_or(0, |weight| weight.sum)
    }

    fn add(&mut self, page: u64, weight: u32, pass: u32) {
        let met = self.weights.entry(page).or_default();
        met.sum += u64::from(weight);
        met.last = pass;
        self.total += u64::from(weight);
    }

    fn note_look(&mut self) {
        self.looks += 1 << 8;
        while self.weights.len() > LOOKED_AT {
            self.fade(|_, _| 2);
        }
    }

    fn fade(&mut self, part: impl Fn(u64, &Weight) -> u64) {
        let before = self.total;
        self.weights.retain(|page, weight| {
            weight.sum -= weight.sum.div_ceil(part(*page, weight));
            weight.sum > 0
        });
        self.total = self.weights.values().map(|weight| weight.sum).sum();
        let looks = u128::from(self.looks) * u128::from(self.total);
        let looks = looks.checked_div(before.into()).unwrap_or(0);
        self.looks = u64::try_from(looks).unwrap_or(self.looks);
    }
}

/// What looks at stopped guests met, by page, as far as it counts.
#[derive(Clone, Debug, Default)]
pub struct PageLooks {
    all: Met,
    /// Of that, what was met since the last judgement, and the weight of what was familiar then.
    lately: Met,
    familiar: u64,
    /// The usual part of familiar touches, once it is known.
    usual: Option<Score>,
    /// The number of this pass.
    pass: u32,
    /// Passes that what was met is of, as far as they still count, in 1/256.
    span: u64,
}

impl PageLooks {
    /// One look: the pages that it met and what each weighs.
    pub fn look(&mut self, pages: impl IntoIterator<Item = (Gpa, u32)>) {
        let before = self.all.total;
        for (page, weight) in pages.into_iter().filter(|(_, weight)| *weight > 0) {
            let page = page.0 / PAGE_BYTES;
            if self.all.of(page) > self.lately.of(page) {
                self.familiar += u64::from(weight);
            }
            self.all.add(page, weight, self.pass);
            self.lately.add(page, weight, self.pass);
        }
        if self.all.total > before {
            self.all.note_look();
            self.lately.note_look();
        }
    }

    /// A pass is over: what was seen before it counts for less. It counts for much less where close looks have not
    /// found the page touched since: it was of use once. True if the guest has begun something else, so that what close looks
    /// found before is of no use either.
    pub fn age(&mut self, idle: impl Fn(Gpa) -> bool) -> bool {
        let changed = self.lately.looks >= ENOUGH << 8 && self.is_something_else();
        let (one, pass, span) = (self.one(), self.pass, self.span.max(1));
        self.all.fade(|page, weight| {
            let silent = u64::from(pass.saturating_sub(weight.last));
            // How often it should have been met meanwhile, in 1/256.
            let missed = weight.sum.saturating_mul(silent << 16) / one / span;
            match missed > MISSED << 8 || idle(Gpa(page * PAGE_BYTES)) {
                true => FADES_IDLE,
                false => FADES,
            }
        });
        self.pass = pass.saturating_add(1);
        self.span = self.span - self.span / FADES + (1 << 8);
        changed
    }

    /// Whether the guest does something else than before; then what was before is forgotten.
    fn is_something_else(&mut self) -> bool {
        let lately = core::mem::take(&mut self.lately);
        let familiar = core::mem::take(&mut self.familiar);
        let familiar = Score::ratio(familiar.into(), lately.total.into());
        let usual = self.usual.unwrap_or(familiar);
        let less = part(usual, LESS).max(chance(usual, lately.looks >> 8));
        if familiar < usual.above(less) {
            (self.all, self.usual, self.span) = (lately, None, 1 << 8);
            return true;
        }
        // A mean that follows within four passes.
        self.usual = Some(Score(usual.0 - usual.0 / 4 + familiar.0 / 4));
        false
    }

    /// Looks, as far as they still count.
    pub const fn count(&self) -> u64 {
        self.all.looks >> 8
    }

    /// The same, in 1/256.
    pub(super) const fn looks(&self) -> u64 {
        self.all.looks
    }

    /// Weights by the number of the page.
    pub(super) const fn pages(&self) -> &BTreeMap<u64, Weight> {
        &self.all.weights
    }

    /// What one look weighs on average.
    pub(super) fn one(&self) -> u64 {
        (self.all.total << 8)
            .checked_div(self.all.looks)
            .unwrap_or(0)
            .max(1)
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
