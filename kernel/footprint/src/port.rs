//! What passes between the sampler and the mechanism: what it asks, what it is told, what it wants done.

use alloc::vec::Vec;
use units::{Gpa, Nanos};

use crate::regions::RegionTunables;

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

/// What the mechanism found at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Touched since the last look.
    Touched,
    /// Not touched since, or not mapped.
    Untouched,
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
    /// Whether any page of the granule was touched; clears what says so.
    fn granule(&mut self, at: Gpa) -> Seen;
    /// Calls `touched` with the number of each touched page of the granule and clears their bits; says how the
    /// granule is mapped.
    fn pages(&mut self, at: Gpa, touched: &mut dyn FnMut(u16)) -> Mapped;
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
