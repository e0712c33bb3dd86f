//! What passes between the sampler and the mechanism: what it asks, what it is told, what it wants done.

use alloc::vec::Vec;
use units::{Gpa, Nanos, NodeId};

use crate::regions::RegionTunables;
use crate::touched::Touched;

/// What the sampler decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Shortest interval; never shorter than what flushes take to reach every CPU.
    pub shortest: Nanos,
    /// Longest interval; a rate needs [`Tunables::least`] of them.
    pub longest: Nanos,
    /// An interval is at least so many times as long as looking takes in it.
    pub rest: u64,
    /// Observations below which there is no result.
    pub least: u32,
    /// Granules that are looked at closely at the same time.
    pub lenses: usize,
    /// Close looks that follow each other at a granule while nobody waits for one.
    pub looks: u8,
    /// Close looks are begun in every so many intervals, many by one shootdown.
    pub begin_every: u64,
    /// Intervals until a region is looked at again, after the first look and at most.
    pub look_again: (u32, u32),
    /// Granules whose pages are remembered.
    pub remembered: usize,
    /// Of the regions.
    pub regions: RegionTunables,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            shortest: Nanos::from_millis(100),
            longest: Nanos::from_millis(500),
            rest: 32,
            least: 20,
            lenses: 64,
            looks: 4,
            begin_every: 10,
            look_again: (20, 320),
            remembered: 4096,
            regions: RegionTunables::default(),
        }
    }
}

/// Through whose page tables something was touched since the last look: a bit for each node that has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u64);

impl Seen {
    /// Not touched since, or not mapped.
    pub const UNTOUCHED: Self = Self(0);
    /// Touched; through whose tables is not known.
    pub const TOUCHED: Self = Self(u64::MAX);

    /// Touched through the tables of a node.
    pub const fn by(node: NodeId) -> Self {
        match 1u64.checked_shl(node.0 as u32) {
            Some(bit) => Self(bit),
            None => Self::TOUCHED,
        }
    }
    /// As this and the other say.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// Whether it was touched at all.
    pub const fn is_touched(self) -> bool {
        self.0 != 0
    }
    /// Whether it is known that the tables of the node with this number say so.
    pub fn is_by(self, node: usize) -> bool {
        let bit = u32::try_from(node).ok().and_then(|n| self.0.checked_shr(n));
        self.is_told() && bit.is_some_and(|bit| bit & 1 == 1)
    }
    /// Whether it is known by whom.
    pub const fn is_told(self) -> bool {
        self.0 != Self::TOUCHED.0
    }
    /// A bit for each node, as in [`LeafSample::accessed`](crate::LeafSample::accessed).
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// The nodes whose tables say so, by number; none if that is not known.
    pub fn nodes(self) -> impl Iterator<Item = usize> {
        let mut rest = if self.is_told() { self.0 } else { 0 };
        core::iter::from_fn(move || {
            let node = rest.trailing_zeros() as usize;
            (rest != 0).then(|| {
                rest &= rest - 1;
                node
            })
        })
    }
}

/// How a granule is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// By one leaf, or by a part of a larger one.
    Whole,
    /// By pages of 4 KiB.
    Pages,
}

/// The mechanism: reads accessed bits and clears them.
pub trait Eyes {
    /// Through whose tables any page of the granule was touched; clears what says so.
    fn granule(&mut self, at: Gpa) -> Seen;
    /// Adds the touched pages of the granule to `touched` and clears their bits; says how the granule is mapped.
    fn pages(&mut self, at: Gpa, touched: &mut Touched) -> Mapped;
}

/// Whether an interval's answers may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Every CPU that ran the machine has flushed since the bits were cleared.
    Fresh,
    /// One has not: what looks cold may be hot.
    Stale,
}

/// What is to change in how granules are mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// To be mapped by pages of 4 KiB.
    pub split: Vec<Gpa>,
    /// To be mapped by one leaf again, if they were split for a look.
    pub join: Vec<Gpa>,
}

/// Heat of one granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heat {
    /// First address.
    pub gpa: Gpa,
    /// Touches of pages a second, in units of [`TOUCH_PER_SECOND`](crate::rate::TOUCH_PER_SECOND).
    pub heat: u64,
    /// Times that it was seen touched since the last pass.
    pub hits: u32,
}
