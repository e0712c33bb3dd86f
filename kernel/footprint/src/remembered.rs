//! What close looks have found of granules' pages, as long as there is room for it.

use alloc::collections::BTreeMap;
use units::Nanos;

use crate::accessors::{PageHitsByNode, Room};
use crate::lens::PAGES;
use crate::pages::{PageHits, REMEMBERED};
use crate::touched::Touched;

/// How many nodes' hits by page there is room for, for each granule of the machine: half of 0.2 % of 2 MiB.
const NODES_OF_GRANULE: usize = 4;

/// Pages of the granules that were looked at closely.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    granules: BTreeMap<u32, Notes>,
    most: usize,
    room: Room,
}

#[derive(Clone, Debug, Default)]
struct Notes {
    hits: PageHits,
    by: PageHitsByNode,
}

impl Remembered {
    /// Nothing yet, of a machine with so many granules; at most so many are remembered.
    pub(crate) fn of(granules: u32, most: usize) -> Self {
        let of = (granules as usize).saturating_mul(NODES_OF_GRANULE);
        Self {
            granules: BTreeMap::new(),
            most,
            room: Room { taken: 0, of },
        }
    }

    /// Takes in one interval of a close look: the pages that were touched, and by whom.
    pub(crate) fn observe(&mut self, granule: u32, touched: &Touched, interval: Nanos) {
        if self.granules.len() >= self.most
            && !self.granules.contains_key(&granule)
            && let Some((_, mut gone)) = self.granules.pop_first()
        {
            gone.by.forget(&mut self.room);
        }
        let notes = self.granules.entry(granule).or_default();
        notes.hits.observe(touched.all(), interval);
        if touched.is_told() {
            notes.by.observe(touched, REMEMBERED, &mut self.room);
        }
    }

    /// A granule's pages, if it was looked at.
    pub(crate) fn pages(&self, granule: u32) -> Option<&PageHits> {
        self.granules.get(&granule).map(|notes| &notes.hits)
    }

    /// By node: how many of a granule's pages share its rate, in 1/1024; empty if that is not known.
    pub(crate) fn densities(&self, granule: u32) -> alloc::vec::Vec<u64> {
        let notes = self.granules.get(&granule);
        notes.map_or_else(Default::default, |n| n.by.densities(n.hits.interval()))
    }

    /// By node: how often it touches a page of a granule; empty if that is not known.
    pub(crate) fn accessors(&self, granule: u32, page: usize) -> alloc::vec::Vec<u64> {
        let notes = self.granules.get(&granule);
        notes.map_or_else(Default::default, |n| n.by.rates(page, n.hits.interval()))
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.granules.clear();
        self.room.taken = 0;
    }

    /// Forgets by whom pages were touched.
    pub(crate) fn forget_accessors(&mut self) {
        for notes in self.granules.values_mut() {
            notes.by.forget(&mut self.room);
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        let by: usize = self.granules.values().map(|notes| notes.by.bytes()).sum();
        by + self.granules.len() * (size_of::<(u32, Notes)>() + PAGES)
    }
}
