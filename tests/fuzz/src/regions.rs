//! The regions of a machine's memory and the sampler above them, against accessed bits that lie as they please.

use crate::Input;
use footprint::Sampler;
use footprint::lens::PAGES;
use footprint::pages::heats;
use footprint::regions::{RegionTunables, Regions};
use footprint::sampler::{Eyes, Mapped, Seen, Sight, Touched, Tunables};
use footprint::{LeafSample, PageHits, PageLooks};
use std::collections::BTreeSet;
use units::{Gpa, Nanos, NodeId, PageSet, PageSize};

const GRANULE: u64 = PageSize::Size2M.bytes();
/// Steps that one input takes at most.
const STEPS: usize = 400;

/// First the shape, then a step for each byte.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let tunables = RegionTunables {
        most: u32::from(input.u8()),
        fewest: u32::from(input.u8()),
        period: u16::from(input.u8() % 32),
        memory: u16::from(input.u8()),
    };
    match input.u8() % 2 {
        0 => shapes(&mut input, tunables),
        _ => samples(&mut input, tunables),
    }
}

/// Split and merge alone.
fn shapes(input: &mut Input<'_>, tunables: RegionTunables) {
    let granules = u32::from(input.u16());
    let mut regions = Regions::new(granules, tunables);
    whole(&regions, tunables);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 4 {
            0 => regions.reshape(|_| u32::from(input.u16())),
            1 => regions.all_mut().iter_mut().for_each(|r| r.halve()),
            _ => {
                for region in regions.all_mut() {
                    let random = input.u8();
                    region.pick = Some(region.first + u32::from(random >> 1) % region.granules);
                    region.observe(seen(random & 1));
                }
            }
        }
        whole(&regions, tunables);
    }
}

/// No gap, no overlap, nothing outside, not too many.
fn whole(regions: &Regions, tunables: RegionTunables) {
    let mut next = 0;
    for r in regions.all() {
        assert_eq!(r.first, next);
        assert!(r.granules > 0 && r.hits <= r.observed, "{r:?}");
        let inside = |g: u32| (r.first..r.end()).contains(&g);
        assert!(r.seen.iter().all(|s| inside(s.granule)), "{r:?}");
        assert!(r.pick.is_none_or(inside), "{r:?}");
        next = r.end();
    }
    assert_eq!(next, regions.granules());
    let most = tunables.most.max(tunables.fewest).max(1);
    assert!(regions.all().len() as u32 <= most);
}

/// Through the tables of so many nodes, up to three.
fn seen(random: u8) -> Seen {
    match random {
        0 => Seen::UNTOUCHED,
        1..4 => Seen::by(NodeId(random.into())),
        4..6 => Seen::by(NodeId(1)).and(Seen::by(NodeId(2))),
        _ => Seen::TOUCHED,
    }
}

/// Bits as the input says, and what is mapped by small pages.
struct Bits<'i, 'a> {
    input: &'i mut Input<'a>,
    split: &'i BTreeSet<Gpa>,
    /// What somebody else has mapped by one leaf again.
    whole: Vec<Gpa>,
}

impl Eyes for Bits<'_, '_> {
    fn granule(&mut self, at: Gpa) -> Seen {
        assert!(at.is_aligned(PageSize::Size2M));
        seen(self.input.u8() & 7)
    }
    fn pages(&mut self, at: Gpa, touched: &mut Touched) -> Mapped {
        assert!(
            self.split.contains(&at),
            "a close look at {at}, which is mapped whole"
        );
        for _ in 0..self.input.u8() % 8 {
            let pages = PageSet::from_iter([self.input.u16()]);
            touched.add(seen(self.input.u8() & 7), pages);
        }
        match self.input.u8() {
            0 => {
                self.whole.push(at);
                Mapped::Whole
            }
            _ => Mapped::Pages,
        }
    }
}

/// The sampler, from intervals to the heat of pages.
fn samples(input: &mut Input<'_>, regions: RegionTunables) {
    let tunables = Tunables {
        lenses: usize::from(input.u8() % 8),
        begin_every: u64::from(input.u8() % 4),
        look_again: (u32::from(input.u8()), u32::from(input.u8())),
        remembered: usize::from(input.u8() % 8),
        longest: Nanos(input.u64()),
        regions,
        ..Tunables::default()
    };
    // `look_again` is a range.
    let look_again = (
        tunables.look_again.0,
        tunables.look_again.0.max(tunables.look_again.1),
    );
    let tunables = Tunables {
        look_again,
        ..tunables
    };
    let memory: Vec<_> = (0..input.u8() % 4)
        .map(|i| {
            let first = (u64::from(i) << 32) + u64::from(input.u32());
            first..first + u64::from(input.u32() >> 4)
        })
        .collect();
    let bytes: u64 = memory.iter().map(|r| r.end - r.start + 2 * GRANULE).sum();
    let mut sampler = Sampler::new(memory, input.u64(), tunables);
    let mut looks = PageLooks::of_memory(bytes);
    let mut split = BTreeSet::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 16 {
            0 => {
                if looks.age() {
                    sampler.forget();
                }
                judge(&sampler.pass(), &sampler, &looks, bytes);
            }
            1 => sampler.awake(),
            14 => sampler.set_roots((0..u16::from(input.u8() % 5)).map(NodeId)),
            2 => looks.look([(Gpa(u64::from(input.u32())), input.u32())]),
            15 => sampler.forget(),
            word => {
                let sight = match word & 1 {
                    0 => Sight::Fresh,
                    _ => Sight::Stale,
                };
                let mut eyes = Bits {
                    input,
                    split: &split,
                    whole: Vec::new(),
                };
                let orders = sampler.tick(sight, word != 3, &mut eyes);
                for at in eyes.whole.iter().chain(&orders.join) {
                    assert!(split.remove(at), "{at} was not split");
                }
                for at in &orders.split {
                    assert!(split.insert(*at), "{at} is split already");
                }
                let looks: BTreeSet<Gpa> = sampler.looks().collect();
                assert!(split == looks && looks.len() <= tunables.lenses);
            }
        }
    }
}

fn judge(found: &[footprint::sampler::Heat], sampler: &Sampler, looks: &PageLooks, bytes: u64) {
    assert!(found.windows(2).all(|w| w[0].gpa < w[1].gpa));
    assert!(found.len() as u64 * GRANULE <= bytes);
    for heat in found {
        // Whoever touched it, it is as hot.
        for size in [PageSize::Size2M, PageSize::Size4K] {
            let sample = LeafSample::sampled(heat.gpa, size, NodeId(0), heat.heat, heat.hits);
            let mut samples = Vec::new();
            sampler.told_apart(heat.gpa, sample, &mut samples);
            let heats: u128 = samples.iter().map(|s| u128::from(s.heat)).sum();
            let hits: u64 = samples.iter().map(|s| u64::from(s.hits)).sum();
            assert_eq!((heats, hits), (heat.heat.into(), heat.hits.into()));
        }
    }
    let close = |at| {
        let pages: Option<&PageHits> = sampler.pages(at);
        assert!(pages.is_none_or(|p| p.hits().len() == PAGES));
        pages
    };
    let mut ranges = heats(found, close, looks);
    let each: Vec<u64> = ranges.iter().map(|r| r.heat / r.pages).collect();
    assert!(each.windows(2).all(|w| w[0] >= w[1]), "hottest first");
    ranges.sort_by_key(|r| r.first);
    let apart = |w: &[footprint::pages::Range]| w[0].first + w[0].pages <= w[1].first;
    assert!(ranges.windows(2).all(apart));
}
