//! What counts mean to a scheduler: the part of its time in which a virtual CPU waits for memory.

use units::{Nanos, Score};

use crate::events::Kind;
use crate::tally::Tally;

/// Accesses that a processor has under way at a time, where only their number is known: each costs this part of its latency. Out
/// of order execution and prefetching overlap them; 4 lies amid what server processors reach on programs that are not
/// pure pointer chases.
pub const OVERLAP: u64 = 4;

/// What an access to memory takes from where the virtual CPU ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// To memory of its own node, in ns.
    pub local_ns: u32,
    /// To memory of other nodes, in ns.
    pub remote_ns: u32,
}

/// Part of its time in which it waits for memory, by the best of what was counted:
///
/// 1. stall cycles over cycles, where the processor counts them;
/// 2. else near and far reads, each with its latency, over [`OVERLAP`];
/// 3. else misses of the last-level cache, taken to be near.
///
/// `None` if none of these was counted.
pub fn share(tally: &Tally, latency: Latency) -> Option<Score> {
    if let (Some(stalls), Some(cycles)) = (
        tally.estimate(Kind::StallCycles),
        tally.estimate(Kind::Cycles),
    ) {
        return Some(Score::ratio(stalls.into(), cycles.into()));
    }
    let waits = |kind: Kind, ns: u32| Some(u128::from(tally.estimate(kind)?) * u128::from(ns));
    let reads = || {
        Some(
            waits(Kind::LocalDram, latency.local_ns)? + waits(Kind::RemoteDram, latency.remote_ns)?,
        )
    };
    let ns = reads().or_else(|| waits(Kind::CacheMisses, latency.local_ns))?;
    Some(Score::ratio(
        ns / u128::from(OVERLAP),
        tally.enabled().0.into(),
    ))
}

/// Time that it takes to fill a cache with `bytes` from memory of another node.
pub fn refill(bytes: u64, latency: Latency) -> Nanos {
    /// Bytes of a cache line.
    const LINE: u64 = 64;
    /// Lines under way at a time: a core fetches as many as it has fill buffers, Skylake twelve (L1D line fill buffers in
    /// Intel's optimization manual, 248966).
    const BUFFERS: u64 = 12;
    Nanos((bytes / LINE).saturating_mul(latency.remote_ns.into()) / BUFFERS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::Reading;

    const LATENCY: Latency = Latency {
        local_ns: 80,
        remote_ns: 240,
    };

    fn tally(counts: &[(Kind, u64)]) -> Tally {
        let mut reading = Reading::of(Nanos::from_secs(1));
        counts
            .iter()
            .for_each(|(kind, count)| reading.note(*kind, *count));
        let mut tally = Tally::new();
        tally.add(&reading);
        tally
    }

    #[test]
    fn the_best_that_was_counted_is_used() {
        let (local, remote) = ((Kind::LocalDram, 10_000_000), (Kind::RemoteDram, 5_000_000));
        let misses = (Kind::CacheMisses, 5_000_000);
        // (10 M x 80 ns + 5 M x 240 ns) / 4 = 0.5 s
        assert_eq!(
            share(&tally(&[local, remote, misses]), LATENCY),
            Some(Score(1 << 15))
        );
        assert_eq!(
            share(&tally(&[local, misses]), LATENCY),
            Some(Score::ratio(1, 10))
        );
        let exact = [local, remote, (Kind::StallCycles, 1), (Kind::Cycles, 4)];
        assert_eq!(share(&tally(&exact), LATENCY), Some(Score(1 << 14)));
        assert_eq!(share(&tally(&[(Kind::Cycles, 4)]), LATENCY), None);
        assert_eq!(
            share(&tally(&[(Kind::CacheMisses, u64::MAX)]), LATENCY),
            Some(Score::ONE)
        );
    }

    #[test]
    fn a_cache_is_filled_line_by_line() {
        assert_eq!(refill(1 << 20, LATENCY), Nanos(16384 * 20));
        assert_eq!(refill(u64::MAX, LATENCY), Nanos(u64::MAX / 12));
    }
}
