//! The sampler of one machine: what to look at in each interval, and what it adds up to.
//!
//! # An interval
//! [`Sampler::tick`] asks the mechanism, through [`Eyes`], for the accessed bits of one granule of each region, and of
//! all pages under a [`Lens`](crate::lens::Lens). Looking clears, so each answer is about one interval. Between two
//! ticks every CPU that ran the machine must have flushed once; the mechanism knows, and says so with [`Sight`]. A
//! stale interval says nothing about cold memory, so it counts for nothing.
//!
//! # A pass
//! [`Sampler::pass`] turns what was observed into heat: the rate at which a granule is touched, proved with 95 %
//! confidence, times the number of pages that share that rate. The second factor is known from a close look; until
//! a region has had one, the average of the others stands in, and while that is so for more than half of the heat
//! the sampler is not [`Sampler::settled`].
//!
//! # Who touched it
//! Where several nodes have page tables of their own ([`Sampler::set_roots`]), the answers say through which ones, and that is
//! counted beside ([`accessors`](crate::accessors)). It changes nothing of what is hot; it divides a sample's heat and hits among
//! samples that name one node each ([`Sampler::told_apart`]). When nodes get tables or lose them, counting begins anew.
//!
//! # Close looks
//! Touched regions are looked at closely in turn, first those that never were, and again after a time that
//! doubles as long as looks agree. At most [`Tunables::lenses`] are open at a time; the mechanism is told which
//! granules to map by small pages and which to map as one again ([`Orders`]).
//!
//! # The interval's length
//! It is steered so that about 4 % of what is looked at is found touched (DAMON's rule: then hits say
//! most about differences), within the bounds of the tunables. An idle machine is hardly looked at. And looking may take
//! one part in [`Tunables::rest`] of the time (MECHANISMS section 9: scan time <= 1/32 of run time): where it is slow the interval
//! is longer, and where the longest is not enough fewer granules are looked at closely.

use alloc::vec::Vec;
use units::{Gpa, Nanos, NodeId, PageSize};

use crate::lens::{Found, Lens, PAGES};
use crate::pages::PageHits;
pub use crate::port::{Eyes, Heat, Mapped, Orders, Seen, Sight, Tunables};
use crate::regions::{Region, Regions};
use crate::remembered::Remembered;
pub use crate::touched::Touched;

mod passes;

/// See the module.
#[derive(Clone, Debug)]
pub struct Sampler {
    tunables: Tunables,
    /// First address of each run of memory, the number of its first granule, ascending.
    runs: Vec<(u32, Gpa)>,
    regions: Regions,
    lenses: Vec<Lens>,
    pages: Remembered,
    /// Nodes with page tables of their own, a bit for each; and whether bits may still speak of others.
    roots: (u64, bool),
    interval: Nanos,
    stretch: u16,
    /// Regions that would be looked at if there were room.
    waiting: usize,
    now: u64,
    judged: u16,
    /// What looking took since the last pass, and how many intervals that were.
    spent: (Nanos, u64),
    /// The shortest interval that looking leaves time for.
    least: Nanos,
    /// Granules found touched, and looked at, since the interval was steered last.
    found: (u64, u64),
    settled: bool,
    dice: u64,
}

impl Sampler {
    /// Of a machine with memory in these ranges of bytes, ascending; they are widened to whole granules.
    pub fn new(
        memory: impl IntoIterator<Item = core::ops::Range<u64>>,
        seed: u64,
        tunables: Tunables,
    ) -> Self {
        let bytes = PageSize::Size2M.bytes();
        let (mut runs, mut granules, mut next) = (Vec::new(), 0u32, 0);
        for range in memory {
            let first = (range.start / bytes).max(next);
            let end = range.end.div_ceil(bytes);
            let Some(count) = end.checked_sub(first).filter(|n| *n > 0) else {
                continue;
            };
            runs.push((granules, Gpa(first * bytes)));
            granules = granules.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
            next = end;
        }
        Self {
            interval: tunables.shortest,
            stretch: 1,
            regions: Regions::new(granules, tunables.regions),
            tunables,
            runs,
            lenses: Vec::new(),
            pages: Remembered::of(granules, tunables.remembered),
            roots: (0, true),
            waiting: 0,
            now: 0,
            judged: 0,
            spent: (Nanos::ZERO, 0),
            least: Nanos::ZERO,
            found: (0, 0),
            settled: false,
            dice: seed | 1,
        }
    }

    /// Length of an interval now.
    pub fn interval(&self) -> Nanos {
        Nanos(self.interval.0.saturating_mul(self.stretch.into()))
    }

    /// Makes all intervals so many times as long as they would be: a busy host has less time for looks.
    pub fn set_stretch(&mut self, times: u16) {
        self.stretch = times.max(1);
    }

    /// Whether most of the heat of the last pass rests on close looks.
    pub const fn settled(&self) -> bool {
        self.settled
    }

    /// The regions.
    pub fn regions(&self) -> &[Region] {
        self.regions.all()
    }

    /// Granules under a close look.
    pub fn looks(&self) -> impl Iterator<Item = Gpa> {
        self.lenses.iter().map(|lens| self.address(lens.granule))
    }

    /// In how many intervals of its last close looks each page of the granule was touched; `None` if they are too few.
    pub fn pages(&self, granule: Gpa) -> Option<&PageHits> {
        let pages = self.pages.pages(self.number(granule)?)?;
        (u32::from(pages.observed()) >= self.tunables.least).then_some(pages)
    }

    /// How many intervals ago the region of an address was seen touched; `None` if it never was.
    pub fn touched_ago(&self, at: Gpa) -> Option<u64> {
        let region = self.regions.of(self.number(at)?)?;
        let touched = Some(region.touched_at).filter(|at| *at > 0)?;
        Some(self.now.saturating_sub(touched))
    }

    /// Bytes of memory that the sampler itself takes.
    pub fn metadata_bytes(&self) -> usize {
        let regions: usize = self.regions().iter().map(Region::bytes).sum();
        let lenses = self.lenses.len() * (size_of::<Lens>() + PAGES);
        size_of_val(self.regions()) + regions + lenses + self.pages.bytes()
    }

    /// These nodes have page tables of their own from now on. Where there are several, they say who touches; but what they said
    /// before means something else, and what they say at the next look is about both times.
    pub fn set_roots(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        let bits = |all: Seen, node| all.and(Seen::by(node));
        let roots = nodes.into_iter().fold(Seen::UNTOUCHED, bits).bits();
        if roots != self.roots.0 {
            self.roots = (roots, true);
            self.regions
                .all_mut()
                .iter_mut()
                .for_each(Region::forget_accessors);
            self.pages.forget_accessors();
        }
    }

    /// Whether bits say who touched.
    const fn tells(&self) -> bool {
        self.roots.0.count_ones() > 1 && !self.roots.1
    }

    /// What is to be made of what a root's bit says.
    fn told(&self) -> impl Fn(Seen) -> Seen + use<> {
        let tells = self.tells();
        move |seen| match tells || !seen.is_touched() {
            true => seen,
            false => Seen::TOUCHED,
        }
    }

    /// One interval is over. With `look` false no close looks are begun and open ones are ended: an idle machine is
    /// not worth them.
    pub fn tick(&mut self, sight: Sight, look: bool, eyes: &mut impl Eyes) -> Orders {
        self.now += 1;
        let fresh = sight == Sight::Fresh;
        self.observe_regions(fresh, eyes);
        let mut orders = self.observe_lenses(fresh, eyes);
        self.roots.1 = false;
        self.judged += u16::from(fresh);
        if self.judged >= self.tunables.regions.period {
            self.judged = 0;
            let mut dice = self.dice;
            self.regions.reshape(|n| roll(&mut dice, n));
            self.dice = dice;
        }
        if look {
            self.begin_looks(&mut orders);
        } else {
            let ended = core::mem::take(&mut self.lenses);
            orders
                .join
                .extend(ended.iter().map(|lens| self.address(lens.granule)));
        }
        orders
    }

    fn observe_regions(&mut self, fresh: bool, eyes: &mut impl Eyes) {
        let (mut found, mut sought) = (0, 0);
        let told = self.told();
        let runs = &self.runs;
        let dice = &mut self.dice;
        for region in self.regions.all_mut() {
            let before = region.pick;
            if let Some(pick) = before {
                let seen = told(eyes.granule(address(runs, pick)));
                if fresh {
                    region.observe(seen);
                    if seen.is_touched() {
                        region.touched_at = self.now;
                    }
                    found += u64::from(seen.is_touched());
                    sought += 1;
                }
            }
            let pick = match region.granules {
                1 => region.first,
                n => region.first + roll(dice, n),
            };
            if before != Some(pick) {
                // Whatever it says is about the time before.
                let _before = eyes.granule(address(runs, pick));
                region.pick = Some(pick);
            }
        }
        self.found = (self.found.0 + found, self.found.1 + sought);
    }

    fn observe_lenses(&mut self, fresh: bool, eyes: &mut impl Eyes) -> Orders {
        let mut orders = Orders::default();
        let (mut touched, tells) = (Touched::default(), self.tells());
        for mut lens in core::mem::take(&mut self.lenses) {
            touched.clear();
            let at = self.address(lens.granule);
            if eyes.pages(at, &mut touched) == Mapped::Whole {
                // Somebody mapped it as one leaf: the look is over without a result.
                self.postpone(lens.granule);
                continue;
            }
            if !tells {
                touched.untell();
            }
            if lens.observe(fresh, touched.all()) {
                let interval = self.interval();
                self.pages.observe(lens.granule, &touched, interval);
            }
            if lens.is_done() {
                self.learn(lens.granule, lens.found(self.interval()));
                let more = lens.looks() < self.tunables.looks;
                if !more || self.waiting > 0 {
                    orders.join.push(at);
                    continue;
                }
            }
            self.lenses.push(lens);
        }
        orders
    }

    fn postpone(&mut self, granule: u32) {
        let at = self.now + u64::from(self.tunables.look_again.0) / 4;
        if let Some(region) = self.regions.of_mut(granule) {
            region.look_at = at;
        }
    }

    /// Takes in what a close look found.
    fn learn(&mut self, granule: u32, found: Found) {
        let (first, most) = self.tunables.look_again;
        let (now, densities) = (self.now, self.pages.densities(granule));
        let Some(region) = self.regions.of_mut(granule) else {
            return;
        };
        let agrees = match (region.density, found.density) {
            (Some(a), Some(b)) => a.abs_diff(b) <= a.max(b) / 4,
            (None, None) => true,
            _ => false,
        };
        region.look_again = match agrees {
            true => region.look_again.saturating_mul(2).clamp(first, most),
            false => first,
        };
        region.look_at = now + u64::from(region.look_again);
        region.density = match (region.density, found.density) {
            // One granule cannot speak for all of a region.
            (Some(old), Some(new)) if region.granules > 1 => Some(old / 2 + new / 2),
            (old, new) => new.or(old),
        };
        if !densities.is_empty() {
            region.densities = densities;
        }
    }

    /// Where even the longest interval is too short for looking, fewer looks are taken at the same time.
    fn lenses_at_most(&self) -> usize {
        let longest = self.tunables.longest.0.max(1);
        let times = usize::try_from(self.least.0.div_ceil(longest)).unwrap_or(usize::MAX);
        self.tunables.lenses / times.max(1)
    }

    /// Opens lenses over touched regions whose time has come: first those without a look, then the hottest.
    fn begin_looks(&mut self, orders: &mut Orders) {
        let room = self.lenses_at_most().saturating_sub(self.lenses.len());
        let now = self.now;
        if !now.is_multiple_of(self.tunables.begin_every.max(1)) && orders.join.is_empty() {
            return;
        }
        let open: Vec<u32> = self.lenses.iter().map(|lens| lens.granule).collect();
        // A few intervals tell what is worth a look; a graze or two do not.
        let worth = |r: &&Region| r.observed >= 4 && r.hits > 0 && r.look_at <= now;
        let mut due: Vec<(bool, core::cmp::Reverse<u16>, u32)> = self
            .regions
            .all()
            .iter()
            .filter(worth)
            .filter(|r| !open.iter().any(|g| (r.first..r.end()).contains(g)))
            .filter_map(|r| {
                let granule = if r.granules == 1 {
                    Some(r.first)
                } else {
                    r.seen.last().map(|s| s.granule)
                };
                // What is mapped as one again in this very interval must have been so first.
                let granule = granule.filter(|g| !orders.join.contains(&self.address(*g)))?;
                Some((r.density.is_some(), core::cmp::Reverse(r.hits), granule))
            })
            .collect();
        due.sort_unstable();
        self.waiting = due.len().saturating_sub(room);
        for (_, _, granule) in due.into_iter().take(room) {
            orders.split.push(self.address(granule));
            self.lenses.push(Lens::over(granule));
        }
    }

    /// Looking took so long, in the interval that is over: it lasts at most a part of all time ([`Tunables::rest`]).
    pub fn charge(&mut self, took: Nanos) {
        self.spent.0 += took;
        self.spent.1 += 1;
    }

    /// Lengthens the interval where little is found or looking is slow, and shortens it where much is found.
    fn steer(&mut self) {
        let (spent, intervals) = core::mem::take(&mut self.spent);
        let each = spent.0.checked_div(intervals).unwrap_or(0);
        self.least = Nanos(each.saturating_mul(self.tunables.rest));
        let (found, sought) = core::mem::take(&mut self.found);
        if sought == 0 {
            return;
        }
        let per_mille = found.saturating_mul(1000) / sought;
        let length = match per_mille {
            0..25 => self.interval.0.saturating_mul(3) / 2,
            25..60 => self.interval.0,
            _ => self.interval.0 / 3 * 2,
        };
        self.set_interval(Nanos(length));
    }

    /// Goes back to the shortest interval: a machine that idled has begun to work.
    pub fn awake(&mut self) {
        self.set_interval(self.tunables.shortest);
        self.regions.all_mut().iter_mut().for_each(Region::halve);
    }

    /// Forgets what close looks found: the machine has begun something else. They begin anew.
    pub fn forget(&mut self) {
        self.pages.clear();
        let regions = self.regions.all_mut();
        regions.iter_mut().for_each(Region::forget_looks);
    }

    fn set_interval(&mut self, length: Nanos) {
        let longest = self.tunables.longest.max(self.tunables.shortest);
        let shortest = self.tunables.shortest.max(self.least);
        self.interval = length.max(shortest).min(longest);
    }

    fn address(&self, granule: u32) -> Gpa {
        address(&self.runs, granule)
    }

    /// The number of the granule at an address.
    fn number(&self, at: Gpa) -> Option<u32> {
        let i = self.runs.partition_point(|(_, first)| *first <= at);
        let (number, first) = self.runs.get(i.checked_sub(1)?)?;
        let inside = (at.0 - first.0) / PageSize::Size2M.bytes();
        let granule = number.checked_add(u32::try_from(inside).ok()?)?;
        let end = self
            .runs
            .get(i)
            .map_or(self.regions.granules(), |(next, _)| *next);
        (granule < end).then_some(granule)
    }
}

/// First address of a granule.
fn address(runs: &[(u32, Gpa)], granule: u32) -> Gpa {
    let i = runs.partition_point(|(first, _)| *first <= granule);
    let (first, at) = i
        .checked_sub(1)
        .and_then(|i| runs.get(i))
        .copied()
        .unwrap_or_default();
    Gpa(at.0 + u64::from(granule - first) * PageSize::Size2M.bytes())
}

/// A number below `n` (xorshift64*).
fn roll(state: &mut u64, n: u32) -> u32 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
    ((bits * u64::from(n)) >> 32) as u32
}
