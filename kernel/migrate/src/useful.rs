//! Whether moving a machine's pages was of any use.
//!
//! A page was worth its copy if, a horizon later, it is still touched as it was after half of that, and nearer to where the
//! machine runs than it would have been. (Heat fades in seconds, and at first it is still growing.) One in [`FOLLOWED`] small pages is followed that long, and every large one. What is found moves an
//! average; below [`OFF`] the machine's pages stay, but for a probe each [`PROBE_EVERY`], and from [`ON`] on they move again
//! (MECHANISMS section 9).

use alloc::collections::BTreeMap;
use units::{Gpa, Nanos, NodeId, PAGE_BYTES, PageSize, PerMille, Score};

use crate::order::PageOrder;
use crate::place::Place;
use footprint::{Footprint, Latencies};

/// One small page of so many is followed.
const FOLLOWED: u64 = 64;
/// Pages followed at a time.
const MOST: usize = 256;
/// Below this, pages stay.
const OFF: Score = Score::from_per_mille(500);
/// From this on they move again.
const ON: Score = Score::from_per_mille(700);
/// While pages stay, a few are moved so often to see whether that has changed.
const PROBE_EVERY: Nanos = Nanos::from_secs(30);
/// A page that keeps less than this part of its heat over half a horizon is not touched any more.
const KEEPS: Score = Score::from_per_mille(600);
/// One finding is so great a part of the average while pages move: it takes more than twenty useless pages on end to stop
/// them. Half a dozen large pages that a guest used while it booted say nothing of what it will do.
const PART_MOVING: u32 = 32;
/// And while they stay, when only few are tried.
const PART_STAYING: u32 = 8;

/// A page that is followed.
#[derive(Clone, Copy, Debug)]
struct Follow {
    from: NodeId,
    /// Half of the horizon is over then, and how hot it was; None before.
    middle: (Nanos, Option<u64>),
    judge_at: Nanos,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Usefulness {
    follows: BTreeMap<Gpa, Follow>,
    average: Score,
    judged: u32,
    off: bool,
    probe_at: Nanos,
}

impl Default for Usefulness {
    fn default() -> Self {
        Self {
            follows: BTreeMap::new(),
            // Until something is found, moves are taken to be what they promise.
            average: Score::ONE,
            judged: 0,
            off: false,
            probe_at: Nanos::ZERO,
        }
    }
}

impl Usefulness {
    /// Average of what was found, and how many pages were followed to their end.
    pub(crate) const fn average(&self) -> (PerMille, u32) {
        (self.average.per_mille(), self.judged)
    }

    /// Until when no page may move; None if pages may.
    pub(crate) fn stays_until(&self, now: Nanos) -> Option<Nanos> {
        (self.off && now < self.probe_at).then_some(self.probe_at)
    }

    /// Whether what is ordered now is a probe only. The next one is due later.
    pub(crate) fn probes(&mut self, now: Nanos) -> bool {
        if self.off {
            self.probe_at = now + PROBE_EVERY;
        }
        self.off
    }

    /// A page was moved; it is judged after `horizon`.
    pub(crate) fn moved(&mut self, order: &PageOrder, now: Nanos, horizon: Nanos) {
        let large = order.size != PageSize::Size4K;
        let drawn = scattered(order.gpa).is_multiple_of(FOLLOWED);
        if (large || drawn || self.off) && self.follows.len() < MOST {
            let follow = Follow {
                from: order.from,
                middle: (now + Nanos(horizon.0 / 2), None),
                judge_at: now + horizon,
            };
            self.follows.insert(order.gpa, follow);
        }
    }

    /// Judges pages whose time has come; true if pages stay from now on, or may move again.
    pub(crate) fn judge(
        &mut self,
        now: Nanos,
        place: &Place,
        footprint: &Footprint,
        latencies: &Latencies,
    ) -> bool {
        let before = self.off;
        let heat = |gpa: &Gpa| footprint.page(*gpa).map_or(0, |page| page.heat);
        for (gpa, follow) in &mut self.follows {
            let (at, seen) = &mut follow.middle;
            if now >= *at {
                seen.get_or_insert_with(|| heat(gpa));
            }
        }
        let ways = place.ways(latencies);
        let due = self
            .follows
            .extract_if(.., |_, follow| follow.judge_at <= now);
        for (gpa, follow) in due {
            let useful = footprint.page(gpa).is_some_and(|page| {
                let way = |node| ways.to(gpa, node);
                let before = follow.middle.1.unwrap_or(0);
                before > 0 && page.heat >= KEEPS.of(before) && way(page.node) < way(follow.from)
            });
            let found = if useful { Score::ONE } else { Score::ZERO };
            let part = if self.off { PART_STAYING } else { PART_MOVING };
            self.average = Score((self.average.0 * (part - 1) + found.0) / part);
            self.judged = self.judged.saturating_add(1);
            self.off = match self.off {
                false => self.average < OFF,
                true => self.average < ON,
            };
        }
        if self.off && !before {
            self.probe_at = now + PROBE_EVERY;
        }
        self.off != before
    }
}

/// The page's number with its bits mixed, so that one in [`FOLLOWED`] of any pattern is drawn.
fn scattered(gpa: Gpa) -> u64 {
    (gpa.0 / PAGE_BYTES).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}
