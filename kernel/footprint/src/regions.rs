//! A machine's memory as regions of like heat: what is looked at, and how finely.
//!
//! Memory is counted in granules of 2 MiB, the size that one entry of a nested table spans. A region is a run
//! of granules that is taken to be equally hot, so one granule at random speaks for all of it in each interval: the
//! cost of looking depends on the number of regions and not on the memory (S. Park et al., "Profiling dynamic data
//! access patterns with controlled overhead and quality", Middleware 2019: DAMON). Every
//! [`RegionTunables::period`] intervals neighbours of like heat are merged and what could be finer is split.
//!
//! A machine with no more granules than [`RegionTunables::most`] has a region for each: nothing is guessed and
//! nothing needs to be merged.

pub use crate::region::{Region, Sighting};
use alloc::vec::Vec;

/// How many regions there may be, and when they change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionTunables {
    /// No more regions than this.
    pub most: u32,
    /// Not fewer than this, if there are so many granules.
    pub fewest: u32,
    /// Observations of a region after which it is judged.
    pub period: u16,
    /// Observations that are remembered: when there are more, all are halved.
    pub memory: u16,
}

impl Default for RegionTunables {
    fn default() -> Self {
        Self {
            most: 1024,
            fewest: 16,
            period: 20,
            memory: 40,
        }
    }
}

/// All regions of a machine, ascending and without gaps.
#[derive(Clone, Debug)]
pub struct Regions {
    tunables: RegionTunables,
    all: Vec<Region>,
    granules: u32,
}

impl Regions {
    /// Of a machine with so many granules.
    pub fn new(granules: u32, tunables: RegionTunables) -> Self {
        let most = tunables.most.max(1);
        // A machine that is larger begins with half as many as there may be, so that all can be cut once.
        let count = if granules <= most {
            granules
        } else {
            (most / 2).max(tunables.fewest).clamp(1, granules)
        };
        let edge = |i: u32| {
            let edge = u64::from(granules) * u64::from(i) / u64::from(count.max(1));
            u32::try_from(edge).unwrap_or(granules)
        };
        let all = (0..count)
            .map(|i| Region {
                first: edge(i),
                granules: edge(i + 1) - edge(i),
                ..Region::default()
            })
            .collect();
        Self {
            tunables,
            all,
            granules,
        }
    }

    /// Granules in all.
    pub const fn granules(&self) -> u32 {
        self.granules
    }
    /// The regions.
    pub fn all(&self) -> &[Region] {
        &self.all
    }
    /// The regions, to be observed.
    pub fn all_mut(&mut self) -> &mut [Region] {
        &mut self.all
    }
    /// The region of a granule, to read.
    pub fn of(&self, granule: u32) -> Option<&Region> {
        let i = self.all.partition_point(|r| r.first <= granule);
        self.all.get(i.checked_sub(1)?)
    }
    /// The region of a granule.
    pub fn of_mut(&mut self, granule: u32) -> Option<&mut Region> {
        let i = self.all.partition_point(|r| r.first <= granule);
        self.all.get_mut(i.checked_sub(1)?)
    }

    /// Merges neighbours of like heat and splits what could be finer. `random(n)` is a number below `n`.
    pub fn reshape(&mut self, mut random: impl FnMut(u32) -> u32) {
        if self.granules > self.tunables.most {
            self.merge();
            self.split(&mut random);
        }
        for region in &mut self.all {
            if region.observed > self.tunables.memory {
                region.halve();
            }
        }
    }

    /// Merges until half of the permitted number is left: first what hardly differs, then what differs more.
    fn merge(&mut self) {
        let goal = (self.tunables.most / 2).max(self.tunables.fewest) as usize;
        // No region may become so large that fewer than the fewest would cover everything.
        let largest = self.granules / self.tunables.fewest.max(1);
        let mut alike = (1 << 16) / 20;
        loop {
            let mut merged: Vec<Region> = Vec::with_capacity(self.all.len());
            for region in self.all.drain(..) {
                match merged.last_mut() {
                    Some(left)
                        if left.share().abs_diff(region.share()) <= alike
                            && left.granules.saturating_add(region.granules) <= largest =>
                    {
                        left.absorb(region);
                    }
                    _ => merged.push(region),
                }
            }
            self.all = merged;
            if self.all.len() <= goal || alike >= 1 << 16 {
                return;
            }
            alike *= 2;
        }
    }

    /// Cuts every region in two at random while the number permits; those that were touched first.
    fn split(&mut self, random: &mut impl FnMut(u32) -> u32) {
        let mut room = (self.tunables.most as usize).saturating_sub(self.all.len());
        let touched = self
            .all
            .iter()
            .filter(|r| r.granules > 1 && r.hits > 0)
            .count();
        let mut cold_room = room.saturating_sub(touched);
        let mut cut: Vec<Region> = Vec::with_capacity(self.tunables.most as usize);
        for mut region in self.all.drain(..) {
            let cold = region.hits == 0;
            if region.granules < 2 || room == 0 || cold && cold_room == 0 {
                cut.push(region);
                continue;
            }
            room -= 1;
            cold_room -= usize::from(cold);
            let at = region.first + 1 + random(region.granules - 1).min(region.granules - 2);
            let right = region.cut(at);
            cut.extend([region, right]);
        }
        self.all = cut;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Seen;
    use proptest::prelude::*;

    /// What must hold of any regions.
    fn check(regions: &Regions) {
        let mut next = 0;
        for r in regions.all() {
            assert_eq!(r.first, next, "no gap and no overlap");
            assert!(r.granules > 0);
            assert!(r.hits <= r.observed, "{r:?}");
            assert!(
                r.seen
                    .iter()
                    .all(|s| (r.first..r.end()).contains(&s.granule)),
                "{r:?}"
            );
            assert!(
                r.pick.is_none_or(|g| (r.first..r.end()).contains(&g)),
                "{r:?}"
            );
            next = r.end();
        }
        assert_eq!(next, regions.granules());
        assert!(regions.all().len() as u32 <= regions.tunables.most.max(regions.granules.min(1)));
    }

    fn seen(touched: bool) -> Seen {
        match touched {
            true => Seen::TOUCHED,
            false => Seen::UNTOUCHED,
        }
    }

    /// A stream of numbers.
    fn dice(seed: u64) -> impl FnMut(u32) -> u32 {
        let mut state = seed | 1;
        move |n| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % u64::from(n.max(1))) as u32
        }
    }

    #[test]
    fn a_small_machine_has_a_region_for_each_granule_and_keeps_them() {
        let mut regions = Regions::new(300, RegionTunables::default());
        assert_eq!(regions.all().len(), 300);
        regions.reshape(dice(1));
        assert_eq!(regions.all().len(), 300);
        check(&regions);
        assert!(Regions::new(0, RegionTunables::default()).all().is_empty());
    }

    #[test]
    fn a_hot_range_in_a_large_machine_is_narrowed_down() {
        // 64 GiB with 2 GiB that are touched all the time.
        let (granules, hot) = (32 << 10, 7_000..8_024);
        let mut regions = Regions::new(granules, RegionTunables::default());
        let mut random = dice(7);
        for _ in 0..30 {
            for _ in 0..20 {
                for r in regions.all_mut() {
                    let pick = r.first + random(r.granules);
                    r.pick = Some(pick);
                    r.observe(seen(hot.contains(&pick)));
                }
            }
            regions.reshape(&mut random);
            check(&regions);
        }
        let (mut inside, mut outside) = (0, 0);
        for r in regions
            .all()
            .iter()
            .filter(|r| u32::from(r.hits) * 2 > u32::from(r.observed))
        {
            let here = (r.first..r.end()).filter(|g| hot.contains(g)).count() as u32;
            inside += here;
            outside += r.granules - here;
        }
        assert!(
            inside > 950 && outside < 60,
            "{inside} of 1024, and {outside} others"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
        #[test]
        fn any_history_leaves_regions_whole(
            granules in 0u32..3000, most in 0u32..64, fewest in 0u32..32,
            steps in proptest::collection::vec((any::<u64>(), 0u32..4), 0..12),
        ) {
            let tunables = RegionTunables { most, fewest, ..RegionTunables::default() };
            let mut regions = Regions::new(granules, tunables);
            for (seed, heat) in steps {
                let mut random = dice(seed);
                for _ in 0..25 {
                    for r in regions.all_mut() {
                        r.pick = Some(r.first + random(r.granules));
                        r.observe(seen(random(4) < heat));
                    }
                }
                regions.reshape(&mut random);
                let mut next = 0;
                for r in regions.all() {
                    prop_assert_eq!(r.first, next);
                    prop_assert!(r.granules > 0 && r.hits <= r.observed);
                    prop_assert!(r.seen.iter().all(|s| (r.first..r.end()).contains(&s.granule)));
                    next = r.end();
                }
                prop_assert_eq!(next, granules);
                let limit = most.max(fewest).max(1);
                prop_assert!(regions.all().len() as u32 <= limit.max(1), "{} of {limit}", regions.all().len());
            }
        }
    }
}
