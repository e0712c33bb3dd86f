//! One region: what is known of a run of granules.

use crate::accessors::HitsByNode;
use crate::port::Seen;
use alloc::vec::Vec;
use units::Nanos;

/// A run of granules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Number of its first granule.
    pub first: u32,
    /// How many; never 0.
    pub granules: u32,
    /// Intervals in which the granule that spoke for it was touched.
    pub hits: u16,
    /// Intervals that were observed.
    pub observed: u16,
    /// Hits since the last pass.
    pub fresh_hits: u16,
    /// The granule that is being observed.
    pub pick: Option<u32>,
    /// What a close look found: heat of a granule over its rate, in 1/1024 pages; `None` before the first look.
    pub density: Option<u64>,
    /// When the next close look is due, in intervals since the beginning, and how long until the one after it.
    pub look_at: u64,
    /// See [`Region::look_at`].
    pub look_again: u32,
    /// When it was seen touched last, in intervals since the beginning; 0 is never.
    pub touched_at: u64,
    /// Granules that were seen touched lately; only for regions of several.
    pub seen: Vec<Sighting>,
    /// By whom its granule was touched, as far as that is told; only for regions of one.
    pub by: HitsByNode,
    /// By node, what a close look found: how many pages share its rate, in 1/1024.
    pub densities: Vec<u64>,
}

/// A granule that was seen touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its number.
    pub granule: u32,
    /// By whom.
    pub seen: Seen,
}

impl Region {
    /// Number of the first granule behind it.
    pub const fn end(&self) -> u32 {
        self.first.saturating_add(self.granules)
    }

    /// Takes in what became of its pick.
    pub fn observe(&mut self, seen: Seen) {
        self.observed = self.observed.saturating_add(1);
        if self.granules == 1 && seen.is_told() {
            self.by.observe(seen);
        }
        if !seen.is_touched() {
            return;
        }
        self.hits = self.hits.saturating_add(1);
        self.fresh_hits = self.fresh_hits.saturating_add(1);
        if self.granules > 1
            && let Some(granule) = self.pick
        {
            self.seen.push(Sighting { granule, seen });
        }
    }

    /// Forgets what close looks found; the next one is due.
    pub fn forget_looks(&mut self) {
        (self.density, self.look_at, self.look_again) = (None, 0, 0);
        self.densities.clear();
    }

    /// Forgets by whom it was touched: nodes were given tables of their own, or have lost them.
    pub fn forget_accessors(&mut self) {
        self.by = HitsByNode::default();
        self.densities.clear();
        self.seen.iter_mut().for_each(|s| s.seen = Seen::TOUCHED);
    }

    /// By node: what its touches of a granule weigh among all touches of it; empty if that is not known.
    pub fn accessors(&self, granule: u32, interval: Nanos) -> Vec<u64> {
        let mut weights = if self.granules == 1 {
            self.by.rates(interval)
        } else {
            let mut hits = HitsByNode::default();
            let of_it = self.seen.iter().filter(|s| s.granule == granule);
            of_it.for_each(|s| hits.observe(s.seen));
            hits.rates(interval)
        };
        // Who was not there at the last close look touches a page at least.
        let density = |node| self.densities.get(node).copied().unwrap_or(0).max(1 << 10);
        for (node, weight) in weights.iter_mut().enumerate() {
            *weight = weight.saturating_mul(density(node));
        }
        weights
    }

    /// Bytes of memory behind it.
    pub fn bytes(&self) -> usize {
        let lists = self.seen.capacity() * size_of::<Sighting>();
        lists + self.by.bytes() + self.densities.capacity() * size_of::<u64>()
    }

    /// The share of its observations that were hits, in 2^-16.
    pub(crate) fn share(&self) -> u32 {
        (u32::from(self.hits) << 16) / u32::from(self.observed).max(1)
    }

    /// Forgets the older half of what was observed.
    pub fn halve(&mut self) {
        self.hits /= 2;
        self.observed /= 2;
        self.by.halve();
        let old = self.seen.len() / 2;
        self.seen.drain(..old);
    }

    /// A lone granule had no need to write down which one was seen: what it would have written.
    fn lone_sighting(&self) -> Option<Sighting> {
        let seen = match self.by.seen() {
            Seen::UNTOUCHED => Seen::TOUCHED,
            told => told,
        };
        let granule = self.first;
        (self.granules == 1 && self.hits > 0).then_some(Sighting { granule, seen })
    }

    /// Takes its right neighbour in.
    pub(crate) fn absorb(&mut self, right: Self) {
        let all = u64::from(self.granules) + u64::from(right.granules);
        let mean = |a: u16, b: u16| {
            let sum =
                u64::from(a) * u64::from(self.granules) + u64::from(b) * u64::from(right.granules);
            u16::try_from(sum / all.max(1)).unwrap_or(u16::MAX)
        };
        let (hits, observed) = (
            mean(self.hits, right.hits),
            mean(self.observed, right.observed),
        );
        self.density = match (self.density, right.density) {
            (Some(a), Some(b)) => Some(a / 2 + b / 2),
            (a, b) => a.or(b),
        };
        for lone in [self.lone_sighting(), right.lone_sighting()] {
            self.seen.extend(lone);
        }
        self.by = HitsByNode::default();
        if self.densities.is_empty() {
            self.densities = right.densities;
        }
        (self.hits, self.observed) = (hits, observed);
        self.granules = self.granules.saturating_add(right.granules);
        self.fresh_hits = self.fresh_hits.saturating_add(right.fresh_hits);
        self.seen.extend(right.seen);
        self.look_at = self.look_at.min(right.look_at);
        self.look_again = self.look_again.min(right.look_again);
        self.touched_at = self.touched_at.max(right.touched_at);
        self.pick = None;
    }

    /// Cuts it before granule `at`, which lies inside; the right part is returned.
    pub(crate) fn cut(&mut self, at: u32) -> Self {
        let mut right = self.clone();
        right.granules = self.end() - at;
        right.first = at;
        self.granules = at - self.first;
        for part in [&mut *self, &mut right] {
            let (first, end) = (part.first, part.end());
            part.seen.retain(|s| (first..end).contains(&s.granule));
            if part.pick.is_some_and(|p| !(first..end).contains(&p)) {
                part.pick = None;
            }
        }
        // What was observed as a whole goes with the part that it was observed in, as far as that is known.
        let hits = u16::try_from(right.seen.len()).unwrap_or(u16::MAX);
        right.fresh_hits = self.fresh_hits.min(hits);
        self.fresh_hits -= right.fresh_hits;
        for part in [self, &mut right] {
            if part.granules == 1 {
                let told = part.seen.drain(..).filter(|s| s.seen.is_told());
                told.for_each(|s| part.by.observe(s.seen));
            }
        }
        right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use units::NodeId;

    const TICK: Nanos = Nanos::from_millis(100);

    #[test]
    fn accessors_weigh_by_rate_and_by_pages() {
        let (a, b) = (Seen::by(NodeId(0)), Seen::by(NodeId(3)));
        let mut lone = Region {
            granules: 1,
            ..Region::default()
        };
        for _ in 0..20 {
            lone.observe(a.and(b));
        }
        let even = lone.accessors(0, TICK);
        assert_eq!((even[0], even[1], even[2]), (even[3], 0, 0));
        lone.densities = [512 << 10, 0, 0, 2 << 10].into();
        let weights = lone.accessors(0, TICK);
        assert_eq!(weights[0], 256 * weights[3]);
        lone.forget_accessors();
        assert_eq!(lone.accessors(0, TICK), []);
        lone.observe(Seen::TOUCHED);
        assert_eq!((lone.hits, lone.accessors(0, TICK)), (21, [].into()));
        // Of several granules each has its own.
        let mut several = Region {
            granules: 5,
            ..Region::default()
        };
        for (pick, seen) in [(1, a), (2, b), (1, a), (3, Seen::TOUCHED)] {
            several.pick = Some(pick);
            several.observe(seen);
        }
        let nodes = |granule| {
            several
                .accessors(granule, TICK)
                .iter()
                .filter(|w| **w > 0)
                .count()
        };
        assert!(several.accessors(1, TICK)[0] > 0 && several.accessors(2, TICK)[3] > 0);
        assert_eq!([1, 2, 3, 4].map(nodes), [1, 1, 0, 0]);
    }

    #[test]
    fn absorbing_and_cutting_keep_what_was_seen() {
        let by = |node| Seen::by(NodeId(node));
        let sighting = |granule, seen| Sighting { granule, seen };
        let lone = |first, hits| Region {
            first,
            granules: 1,
            hits,
            observed: 20,
            fresh_hits: hits,
            ..Region::default()
        };
        let mut both = lone(4, 19);
        both.observe(by(2));
        both.absorb(lone(5, 0));
        assert_eq!(
            (both.first, both.granules, both.hits, both.observed),
            (4, 2, 10, 20)
        );
        assert_eq!(both.seen, [sighting(4, by(2))]);
        both.observe(Seen::UNTOUCHED);
        both.pick = Some(5);
        both.observe(by(3));
        assert_eq!(both.seen, [sighting(4, by(2)), sighting(5, by(3))]);
        let right = both.cut(5);
        assert_eq!((both.granules, right.first, right.granules), (1, 5, 1));
        assert!(
            both.seen.is_empty() && right.seen.is_empty(),
            "a lone granule needs no list"
        );
        assert_eq!((both.by.seen(), right.by.seen()), (by(2), by(3)));
        // Who it was may not be known.
        let mut both = lone(4, 20);
        both.absorb(lone(5, 20));
        let told = [Seen::TOUCHED; 2];
        assert_eq!(both.seen.iter().map(|s| s.seen).collect::<Vec<_>>(), told);
    }
}
