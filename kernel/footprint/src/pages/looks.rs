//! What looks at stopped guests met, by page, in the last ten seconds.
//!
//! Programs have phases of seconds: they read, sort and write a block, and begin again. A memory that fades prefers the phase
//! that the guest is in; one that is long enough to hide that tells for as long what the guest did before, and pages that
//! nobody touches any more fill the hot set. So each look counts in full for [`PASSES`] passes, and not at all after
//! that: what is told is what the guest did in that time. If it begins something else meanwhile, all that was before is forgotten
//! at once (`habit`).
//!
//! Many virtual CPUs are looked at more often than all is worth to be remembered: then the time is shorter.

use alloc::collections::{BTreeMap, VecDeque};
use units::{Gpa, PAGE_BYTES};

use super::habit::Habit;

/// Passes that looks count for. With the one that is not over yet they are ten seconds.
const PASSES: u32 = 9;
/// Pages that one portion of what was met has at most.
const PORTION: usize = 1024;
/// Portions that are remembered.
const PORTIONS: usize = 12;

/// What looks met in a pass, or in a part of it.
#[derive(Clone, Debug, Default)]
struct Portion {
    pass: u32,
    weights: BTreeMap<u64, u64>,
    looks: u64,
    met: u64,
}

/// What looks at stopped guests met, by page, as far as it counts.
#[derive(Clone, Debug, Default)]
pub struct PageLooks {
    portions: VecDeque<Portion>,
    /// Of all portions together.
    weights: BTreeMap<u64, u64>,
    total: u64,
    looks: u64,
    /// Pages that looks met: one look meets some.
    met: u64,
    /// The number of this pass.
    pass: u32,
    habit: Habit,
    /// The first pass that [`Habit`] has not judged.
    judged: u32,
}

impl PageLooks {
    /// One look: the pages that it met and what each weighs.
    pub fn look(&mut self, pages: impl IntoIterator<Item = (Gpa, u32)>) {
        self.make_room();
        let judged = self.judged;
        let Some((portion, before)) = self.portions.make_contiguous().split_last_mut() else {
            return;
        };
        let unjudged = || before.iter().rev().take_while(|p| p.pass >= judged);
        let (mut total, mut familiar) = (0, 0);
        for (page, weight) in pages.into_iter().filter(|(_, weight)| *weight > 0) {
            let (page, weight) = (page.0 / PAGE_BYTES, u64::from(weight));
            let lately = portion.weights.entry(page).or_default();
            let all = self.weights.entry(page).or_default();
            let earlier = unjudged().filter_map(|p| p.weights.get(&page));
            if *all > *lately + earlier.sum::<u64>() {
                familiar += weight;
            }
            *lately += weight;
            *all += weight;
            total += weight;
            portion.met += 1;
            self.met += 1;
        }
        if total > 0 {
            portion.looks += 1;
            self.looks += 1;
            self.total += total;
            self.habit.note(total, familiar);
        }
    }

    /// A pass is over, and what was met too many of them ago forgotten. True if the guest has begun something else: then all that
    /// was before is forgotten, and what close looks found before is of no use either.
    pub fn age(&mut self) -> bool {
        let broken = self.habit.is_broken();
        let oldest = match broken {
            Some(true) => self.judged,
            _ => (self.pass + 2).saturating_sub(PASSES),
        };
        while self.portions.front().is_some_and(|p| p.pass < oldest) {
            self.forget_a_portion();
        }
        self.pass = self.pass.saturating_add(1);
        if broken.is_some() {
            self.judged = self.pass;
        }
        broken == Some(true)
    }

    /// Looks, as far as they count.
    pub const fn count(&self) -> u64 {
        self.looks
    }

    /// Weights by the number of the page.
    pub(super) const fn pages(&self) -> &BTreeMap<u64, u64> {
        &self.weights
    }

    /// What a page weighs on average when it is met.
    pub(super) fn one(&self) -> u64 {
        self.total.checked_div(self.met).unwrap_or(0).max(1)
    }

    /// Sees to it that the last portion is of this pass and has room for a look.
    fn make_room(&mut self) {
        let pass = self.pass;
        let has_room = |p: &Portion| p.pass == pass && p.weights.len() < PORTION;
        if self.portions.back().is_some_and(has_room) {
            return;
        }
        if self.portions.len() >= PORTIONS {
            self.forget_a_portion();
        }
        self.portions.push_back(Portion {
            pass,
            ..Portion::default()
        });
    }

    fn forget_a_portion(&mut self) {
        let Some(portion) = self.portions.pop_front() else {
            return;
        };
        self.looks = self.looks.saturating_sub(portion.looks);
        self.met = self.met.saturating_sub(portion.met);
        for (page, weight) in portion.weights {
            self.total = self.total.saturating_sub(weight);
            if let Some(all) = self.weights.get_mut(&page) {
                *all = all.saturating_sub(weight);
                if *all == 0 {
                    self.weights.remove(&page);
                }
            }
        }
    }
}
