//! What the intervals of a pass add up to: heat by granule, and whose it is.

use alloc::vec::Vec;
use units::{Gpa, PAGE_BYTES, PageSize};

use super::{Heat, Sampler, Seen};
use crate::lens::density;
use crate::rate::at_least;
use crate::regions::Region;
use crate::sample::LeafSample;
use crate::share::divide;

impl Sampler {
    /// Heat of what was touched lately, by granule; empty before there is enough to say. A region's heat is
    /// carried by those of its granules that were seen.
    pub fn pass(&mut self) -> Vec<Heat> {
        let (interval, least) = (self.interval(), self.tunables.least);
        let rate = |r: &Region| at_least(r.hits.into(), r.observed.into(), interval);
        let enough = |r: &&Region| u32::from(r.observed) >= least && r.hits > 0;
        let rates: Vec<(u64, &Region)> = self
            .regions()
            .iter()
            .filter(enough)
            .map(|r| (rate(r), r))
            .collect();
        let times = |rate: u64, density: u64| {
            u64::try_from((u128::from(rate) * u128::from(density)) >> 10).unwrap_or(u64::MAX)
        };
        let looked = rates.iter().filter_map(|(rate, r)| {
            let all = rate.saturating_mul(r.granules.into());
            Some((all, times(all, r.density?)))
        });
        let (known_rate, known_heat) = looked.fold((0u64, 0u64), |(a, b), (rate, heat)| {
            (a.saturating_add(rate), b.saturating_add(heat))
        });
        let average = density(known_heat, known_rate).unwrap_or(1 << 10);
        let mut heats = Vec::new();
        let mut all_heat = 0u64;
        for (rate, region) in rates {
            let rate = rate.saturating_mul(region.granules.into());
            let heat = times(rate, region.density.unwrap_or(average));
            all_heat = all_heat.saturating_add(heat);
            self.carry(region, heat, &mut heats);
        }
        self.settled = known_heat > 0 && known_heat >= all_heat / 2;
        for region in self.regions.all_mut() {
            region.fresh_hits = 0;
            if region.hits == 0 && u32::from(region.observed) >= least {
                // It is cold. When it is touched again, it will be for something else.
                region.forget_looks();
            }
        }
        self.steer();
        heats
    }

    /// Divides a region's heat among its granules that were seen.
    fn carry(&self, region: &Region, heat: u64, heats: &mut Vec<Heat>) {
        let hits = u32::from(region.fresh_hits);
        if region.granules == 1 {
            let gpa = self.address(region.first);
            heats.push(Heat { gpa, heat, hits });
            return;
        }
        let each = heat / (region.seen.len() as u64).max(1);
        let fresh = region.seen.len().saturating_sub(hits as usize);
        let mut seen: Vec<(u32, u32)> = region
            .seen
            .iter()
            .enumerate()
            .map(|(i, s)| (s.granule, u32::from(i >= fresh)))
            .collect();
        seen.sort_unstable();
        for group in seen.chunk_by(|a, b| a.0 == b.0) {
            if let Some((granule, _)) = group.first() {
                heats.push(Heat {
                    gpa: self.address(*granule),
                    heat: each.saturating_mul(group.len() as u64),
                    hits: group.iter().map(|g| g.1).sum(),
                });
            }
        }
    }

    /// Adds what is known of the granule at `at` to `samples`: one sample for each node that touches it, which share its heat
    /// and hits as they touch it. Where that is not known, or only one node has page tables, the sample is added as it is.
    pub fn told_apart(&self, at: Gpa, sample: LeafSample, samples: &mut Vec<LeafSample>) {
        let weights = match self.roots.0.count_ones() {
            0 | 1 => Vec::new(),
            _ => self.accessors(at, sample.size),
        };
        if weights.iter().all(|weight| *weight == 0) {
            samples.push(sample);
            return;
        }
        let heats = divide(sample.heat, &weights);
        let hits = divide(sample.hits.into(), &weights);
        let nodes = (0u16..).map(units::NodeId).zip(weights);
        for ((node, weight), (heat, hits)) in nodes.zip(heats.into_iter().zip(hits)) {
            if weight > 0 {
                samples.push(LeafSample {
                    accessed: Seen::by(node).bits(),
                    heat,
                    hits: u32::try_from(hits).unwrap_or(u32::MAX),
                    ..sample
                });
            }
        }
    }

    /// By node: what its touches weigh among all of a granule, or of a small page of it.
    fn accessors(&self, at: Gpa, size: PageSize) -> Vec<u64> {
        let Some(granule) = self.number(at) else {
            return Vec::new();
        };
        if size == PageSize::Size4K {
            let page = (at.0 % PageSize::Size2M.bytes()) / PAGE_BYTES;
            let of_page = self
                .pages
                .accessors(granule, usize::try_from(page).unwrap_or(0));
            if of_page.iter().any(|weight| *weight > 0) {
                return of_page;
            }
        }
        let region = self.regions.of(granule);
        region.map_or_else(Vec::new, |r| r.accessors(granule, self.interval()))
    }
}
