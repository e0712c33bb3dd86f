//! What looks at stopped guests met, by page, in the last ten seconds.
//!
//! Programs have phases of seconds: they read, sort and write a block, and begin again. A memory that fades prefers the phase
//! that the guest is in; one that is long enough to hide that tells for as long what the guest did before, and pages that
//! nobody touches any more fill the hot set. So each look counts in full for [`SPANS`] spans of half a second, and not at all after
//! that: what is told is what the guest did in that time. If it begins something else meanwhile, all that was before is forgotten
//! at once (`habit`).
//!
//! All of it together takes a thousandth of the VM's memory at most: where guests are looked at very often, or touch very many
//! pages, the time is shorter.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use units::{Gpa, PAGE_BYTES};

use super::habit::Habit;

/// Spans that are over which looks count for, half a second each: with the one that is not they are ten seconds at most.
const SPANS: u32 = 19;
/// Spans that are judged together: of fewer looks less can be said.
const JUDGED: u32 = 2;
/// Bytes of a VM's memory for each one that notes of looks at it take at most.
const PART_OF_MEMORY: u64 = 1024;
/// Notes of small VMs take so many bytes at most.
const LEAST_BYTES: usize = 16 << 10;
/// Portions that there is room for: when the open one has its part, it is closed, so that what is forgotten is not all.
const PORTIONS: usize = 8;
/// Bytes that a page takes in a portion that is closed, and in a tree: nodes of eleven are two thirds full.
const CLOSED_BYTES: usize = 12;
const TREE_BYTES: usize = 20;

/// What looks met in this span, or in a part of it.
#[derive(Clone, Debug, Default)]
struct Open {
    weights: BTreeMap<u64, u32>,
    looks: u64,
    met: u64,
}

/// What looks met in a span that is over, or in a part of one.
#[derive(Clone, Debug)]
struct Closed {
    span: u32,
    /// By number, ascending.
    pages: Box<[u64]>,
    /// Of each of them.
    weights: Box<[u32]>,
    looks: u64,
    met: u64,
}

impl Closed {
    fn new(open: Open, span: u32) -> Self {
        Self {
            span,
            pages: open.weights.keys().copied().collect(),
            weights: open.weights.values().copied().collect(),
            looks: open.looks,
            met: open.met,
        }
    }

    /// What a page weighs here.
    fn weight(&self, page: u64) -> u32 {
        let at = self.pages.binary_search(&page).ok();
        at.and_then(|at| self.weights.get(at)).map_or(0, |w| *w)
    }
}

/// What looks at stopped guests met, by page, as far as it counts.
#[derive(Clone, Debug)]
pub struct PageLooks {
    /// Bytes that all of it may take.
    room: usize,
    open: Open,
    /// Oldest first.
    closed: VecDeque<Closed>,
    /// Pages of all that are closed together.
    pages_closed: usize,
    /// Of all portions together.
    weights: BTreeMap<u64, u32>,
    total: u64,
    looks: u64,
    /// Pages that looks met: one look meets some.
    met: u64,
    /// The number of this span.
    span: u32,
    habit: Habit,
    /// The first span that [`Habit`] has not judged.
    judged: u32,
}

impl PageLooks {
    /// None yet, of a VM with so much memory.
    pub fn of_memory(bytes: u64) -> Self {
        let room = usize::try_from(bytes / PART_OF_MEMORY).unwrap_or(usize::MAX);
        Self {
            room: room.max(LEAST_BYTES),
            open: Open::default(),
            closed: VecDeque::new(),
            pages_closed: 0,
            weights: BTreeMap::new(),
            total: 0,
            looks: 0,
            met: 0,
            span: 0,
            habit: Habit::default(),
            judged: 0,
        }
    }

    /// One look: the pages that it met and what each weighs.
    pub fn look(&mut self, pages: impl IntoIterator<Item = (Gpa, u32)>) {
        let judged = self.judged;
        let (mut total, mut familiar) = (0, 0);
        for (page, weight) in pages.into_iter().filter(|(_, weight)| *weight > 0) {
            let page = page.0 / PAGE_BYTES;
            let lately = self.open.weights.entry(page).or_default();
            let all = self.weights.entry(page).or_default();
            let unjudged = self.closed.iter().rev().take_while(|p| p.span >= judged);
            let earlier = unjudged.map(|p| p.weight(page));
            let lately_in_all = earlier.fold(*lately, u32::saturating_add);
            if *all > lately_in_all {
                familiar += u64::from(weight);
            }
            *lately = lately.saturating_add(weight);
            *all = all.saturating_add(weight);
            total += u64::from(weight);
            self.open.met += 1;
            self.met += 1;
        }
        if total > 0 {
            self.open.looks += 1;
            self.looks += 1;
            self.total += total;
            self.habit.note(total, familiar);
        }
        self.keep_to_its_room();
    }

    /// Half a second is over, and what was met too many of them ago forgotten. True if the guest has begun something else: then all
    /// that was before is forgotten, and what close looks found before is of no use either.
    pub fn age(&mut self) -> bool {
        let due = self.span - self.judged + 1 >= JUDGED;
        let broken = due.then(|| self.habit.is_broken()).flatten();
        let usual = (self.span + 1).saturating_sub(SPANS);
        let oldest = match broken {
            Some(true) => self.judged.max(usual),
            _ => usual,
        };
        self.close();
        while self.closed.front().is_some_and(|p| p.span < oldest) {
            self.forget_a_portion();
        }
        self.span = self.span.saturating_add(1);
        if broken.is_some() {
            self.judged = self.span;
        }
        broken == Some(true)
    }

    /// Bytes of memory that all of it takes.
    pub fn metadata_bytes(&self) -> usize {
        let in_trees = self.open.weights.len() + self.weights.len();
        let portions = self.closed.capacity() * size_of::<Closed>();
        self.pages_closed * CLOSED_BYTES + in_trees * TREE_BYTES + portions
    }

    /// Looks, as far as they count.
    pub const fn count(&self) -> u64 {
        self.looks
    }

    /// Weights by the number of the page.
    pub(super) const fn pages(&self) -> &BTreeMap<u64, u32> {
        &self.weights
    }

    /// What a page weighs on average when it is met.
    pub(super) fn one(&self) -> u64 {
        self.total.checked_div(self.met).unwrap_or(0).max(1)
    }

    /// Closes the open portion when it has its part of the room, and forgets the oldest where there is none left.
    fn keep_to_its_room(&mut self) {
        if self.open.weights.len() * TREE_BYTES > self.room / PORTIONS {
            self.close();
        }
        while self.metadata_bytes() > self.room && !self.closed.is_empty() {
            self.forget_a_portion();
        }
    }

    fn close(&mut self) {
        let open = core::mem::take(&mut self.open);
        if !open.weights.is_empty() {
            self.pages_closed += open.weights.len();
            self.closed.push_back(Closed::new(open, self.span));
        }
    }

    fn forget_a_portion(&mut self) {
        let Some(portion) = self.closed.pop_front() else {
            return;
        };
        self.pages_closed -= portion.pages.len();
        self.looks = self.looks.saturating_sub(portion.looks);
        self.met = self.met.saturating_sub(portion.met);
        for (page, weight) in portion.pages.iter().zip(&portion.weights) {
            self.total = self.total.saturating_sub(u64::from(*weight));
            if let Some(all) = self.weights.get_mut(page) {
                *all = all.saturating_sub(*weight);
                if *all == 0 {
                    self.weights.remove(page);
                }
            }
        }
    }
}
