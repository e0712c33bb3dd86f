//! Which events are counted together.
//!
//! Some belong together: near and far reads, cycles and stalls are only of use as a ratio, and a ratio of counts from different
//! times would say nothing. So events come in [`SETS`], and sets that fit are put into one group. Groups take turns.

use alloc::vec::Vec;

use crate::events::{Event, Kind};
use crate::unit::{Absent, Unit};

/// How many counters may be used on each CPU. The others are left to whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota(pub u8);

impl Default for Quota {
    fn default() -> Self {
        Self(4)
    }
}

/// What is counted together.
const SETS: [&[Kind]; 3] = [
    &[Kind::LocalDram, Kind::RemoteDram],
    &[Kind::Cycles, Kind::StallCycles],
    &[Kind::CacheMisses, Kind::Instructions],
];

/// What all CPUs count, and in which turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    unit: Unit,
    room: usize,
    groups: Vec<Vec<Event>>,
}

impl Plan {
    /// Divides what `unit` can count among as many counters as `quota` allows.
    ///
    /// # Errors
    /// It allows none.
    pub fn new(unit: Unit, quota: Quota) -> Result<Self, Absent> {
        let room = usize::from(unit.counters.min(quota.0));
        if room == 0 {
            return Err(Absent::NoQuota);
        }
        let mut groups: Vec<Vec<Event>> = Vec::new();
        for set in SETS {
            let set: Vec<Event> = set
                .iter()
                .filter_map(|kind| unit.events.iter().find(|e| e.kind == *kind).copied())
                .collect();
            // One that does not fit at all is counted in parts.
            for part in set.chunks(room) {
                match groups.iter_mut().find(|g| g.len() + part.len() <= room) {
                    Some(group) => group.extend_from_slice(part),
                    None => groups.push(part.to_vec()),
                }
            }
        }
        Ok(Self { unit, room, groups })
    }

    /// The counters.
    pub const fn unit(&self) -> &Unit {
        &self.unit
    }

    /// How many counters of each CPU may be used.
    pub const fn room(&self) -> usize {
        self.room
    }

    /// Events by group.
    pub fn groups(&self) -> &[Vec<Event>] {
        &self.groups
    }
}
