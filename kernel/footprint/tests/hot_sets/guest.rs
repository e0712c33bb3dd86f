//! The guest `probe` in a few lines: it visits pages as a layout draws them, one access after the other, and stops now
//! and then to be looked at. What it does to accessed bits and what it is about to touch is all that the sampler is
//! told; who judges counts every access.

use footprint::lens::PAGES;
use footprint::sampler::{Eyes, Mapped, Orders, Seen, Touched};
use footprint::{PageLooks, Sampler};
use layouts::{Layout, Random, Visit, Walk};
use std::collections::BTreeSet;
use units::{Gpa, Nanos, PAGE_BYTES, PageSize};

/// First page of what is visited, and how many there are: 64 MiB behind the first 32.
const ARENA: u64 = 8192;
const ARENA_PAGES: u64 = 16384;
/// Bytes of all memory.
pub const MEMORY: u64 = 128 << 20;
/// Accesses of a visit, and those around it to the stack.
const WORDS: u64 = 512;
const AROUND: u64 = 20;
/// Pages of the guest itself: its stack, and those of its code and its page tables, which bits see and nobody counts.
const STACK: u64 = 0x219;
const FETCHED: [u64; 9] = [9, 10, 11, 0x202, 0x203, 0x206, 0x208, 0x21b, 0x220];
/// Operands in a run of instructions that is looked at, and what each weighs.
const RUN: u64 = 32;
const WEIGHT: u64 = 8;

/// How fast a guest is, and how often it is looked at: what differs between machines.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between the beginnings of two visits.
    pub visit: Nanos,
    /// Between two looks, on average.
    pub look: Nanos,
}

/// See the module.
pub struct Guest {
    walk: Walk,
    random: Random,
    pace: Pace,
    now: Nanos,
    next_look: Nanos,
    following: Visit,
    granules: Vec<bool>,
    pages: Vec<bool>,
    split: BTreeSet<Gpa>,
    /// Accesses by page.
    pub counted: Vec<u64>,
}

impl Guest {
    pub fn new(layout: Layout, seed: u64, pace: Pace) -> Self {
        let pages = (MEMORY / PAGE_BYTES) as usize;
        let mut walk = Walk::new(layout, ARENA_PAGES, seed, 0);
        let following = walk.next(0);
        Self {
            walk,
            random: Random::new(seed, 1),
            pace,
            now: Nanos::ZERO,
            next_look: Nanos::ZERO,
            following,
            granules: vec![false; pages / PAGES],
            pages: vec![false; pages],
            split: BTreeSet::new(),
            counted: vec![0; pages],
        }
    }

    /// Does something else from now on.
    pub fn turn_to(&mut self, layout: Layout, seed: u64) {
        self.walk = Walk::new(layout, ARENA_PAGES, seed, 0);
    }

    /// Runs until `end`; looks find their way into `looks`.
    pub fn run(&mut self, end: Nanos, epoch: u64, looks: &mut Vec<Vec<(Gpa, u32)>>) {
        while self.now < end {
            let page = ARENA + self.following.page;
            self.following = self.walk.next(epoch);
            [page, STACK]
                .into_iter()
                .chain(FETCHED)
                .for_each(|p| self.touch(p));
            self.count(page, WORDS);
            self.count(STACK, AROUND);
            let next = self.now + self.pace.visit;
            while self.next_look < next {
                let done = self.next_look.since(self.now).0 * WORDS / self.pace.visit.0;
                looks.push(self.look(page, WORDS - done.min(WORDS - 1)));
                let pause = self.random.below(self.pace.look.0 * 2);
                self.next_look += Nanos(pause);
            }
            self.now = next;
        }
    }

    /// What it is about to touch in a visit with so many accesses left.
    fn look(&self, page: u64, left: u64) -> Vec<(Gpa, u32)> {
        let (here, rest) = (left.min(RUN), RUN.saturating_sub(left));
        let around = rest.min(AROUND);
        let parts = [
            (page, here),
            (STACK, around),
            (ARENA + self.following.page, rest - around),
        ];
        let weighed = parts.iter().filter(|(_, operands)| *operands > 0);
        weighed
            .map(|(page, operands)| (Gpa(page * PAGE_BYTES), (operands * WEIGHT) as u32))
            .collect()
    }

    fn touch(&mut self, page: u64) {
        self.pages[page as usize] = true;
        self.granules[page as usize / PAGES] = true;
    }

    fn count(&mut self, page: u64, accesses: u64) {
        self.counted[page as usize] += accesses;
    }

    /// Maps anew as the sampler wants.
    pub fn obey(&mut self, orders: &Orders) {
        for at in &orders.split {
            assert!(self.split.insert(*at), "{at} is split already");
            let first = (at.0 / PAGE_BYTES) as usize;
            self.pages[first..first + PAGES].fill(true);
        }
        for at in &orders.join {
            assert!(self.split.remove(at), "{at} was not split");
        }
    }
}

impl Eyes for Guest {
    fn granule(&mut self, at: Gpa) -> Seen {
        let bit = &mut self.granules[(at.0 / PageSize::Size2M.bytes()) as usize];
        match core::mem::take(bit) {
            true => Seen::TOUCHED,
            false => Seen::UNTOUCHED,
        }
    }

    fn pages(&mut self, at: Gpa, touched: &mut Touched) -> Mapped {
        if !self.split.contains(&at) {
            return Mapped::Whole;
        }
        let first = (at.0 / PAGE_BYTES) as usize;
        let bits = (0u16..).zip(&mut self.pages[first..first + PAGES]);
        let set = bits.filter_map(|(page, bit)| core::mem::take(bit).then_some(page));
        touched.add(Seen::TOUCHED, set.collect());
        Mapped::Pages
    }
}

/// Puts looks where the mechanism does, every half second.
pub fn hand_in(seen: &mut Vec<Vec<(Gpa, u32)>>, looks: &mut PageLooks, sampler: &mut Sampler) {
    if looks.age() {
        sampler.forget();
    }
    seen.drain(..).for_each(|look| looks.look(look));
}
