//! A machine's limit: a purse of CPU time that fills at the rate of the cap and empties by running.

use alloc::vec::Vec;
use units::{Credits, Nanos, PerMille, VcpuId};

/// Largest cap, in thousandths of one CPU.
const MOST: u16 = 64_000;

/// CPU time that a machine may use, and its vCPUs that wait for more.
#[derive(Clone, Debug)]
pub(crate) struct Purse {
    cap: PerMille,
    rate: u64,
    /// Negative after a late interruption, or while what comes in meanwhile was granted in advance.
    tokens_ns: i64,
    /// Income below one nanosecond, kept for the next filling.
    thousandths: u16,
    filled_at: Nanos,
    /// Those who wait, in order.
    line: Vec<VcpuId>,
}

impl Purse {
    /// An empty one.
    pub(crate) fn new(cap: PerMille, now: Nanos) -> Self {
        Self {
            cap,
            rate: u64::from(cap.0.clamp(1, MOST)),
            tokens_ns: 0,
            thousandths: 0,
            filled_at: now,
            line: Vec::new(),
        }
    }

    /// Thousandths of one CPU that come in, as they were asked for.
    pub(crate) const fn cap(&self) -> PerMille {
        self.cap
    }

    /// Takes in what has come, up to a `request` for each CPU's worth of the cap, so that idle time does not
    /// become a long burst; more only while so many stand in line for a `grain` each.
    pub(crate) fn fill(&mut self, now: Nanos, request: Nanos, grain: Nanos) {
        let income = u128::from(now.since(self.filled_at).0) * u128::from(self.rate)
            + u128::from(self.thousandths);
        self.filled_at = self.filled_at.max(now);
        self.thousandths = u16::try_from(income % 1000).unwrap_or(0);
        let income = i64::try_from(income / 1000).unwrap_or(i64::MAX);
        let burst = request.0.saturating_mul(self.rate.div_ceil(1000));
        let line = grain.0.saturating_mul(self.line.len() as u64 + 1);
        let most = Credits::for_time(Nanos(burst.max(line))).0;
        self.tokens_ns = self.tokens_ns.saturating_add(income).min(most);
    }

    /// Takes out, or puts back what is negative.
    pub(crate) fn pay(&mut self, ns: i64) {
        self.tokens_ns = self.tokens_ns.saturating_sub(ns);
    }

    /// What has been saved.
    pub(crate) fn left(&self) -> Nanos {
        Nanos(u64::try_from(self.tokens_ns).unwrap_or(0))
    }

    /// What has been saved beyond a `grain` for each who stands in line before `vcpu`; it may be in line itself.
    pub(crate) fn left_for(&self, vcpu: VcpuId, grain: Nanos) -> Nanos {
        self.left() - Nanos(grain.0.saturating_mul(self.before(vcpu)))
    }

    fn before(&self, vcpu: VcpuId) -> u64 {
        self.line.iter().take_while(|id| **id != vcpu).count() as u64
    }

    /// Whether as much comes in as `running` vCPUs use, and nobody else waits.
    pub(crate) fn covers(&self, vcpu: VcpuId, running: u64) -> bool {
        self.line.iter().all(|id| *id == vcpu) && running.saturating_mul(1000) <= self.rate
    }

    /// How long `vcpu`, one of `running`, may run from now on: by half of what is there, so that who wakes meanwhile finds
    /// something, but a `grain` if there is one. If it is the only one, what comes in meanwhile is its own as well.
    pub(crate) fn lasts(&self, vcpu: VcpuId, running: u64, grain: Nanos) -> Nanos {
        let there = self.left_for(vcpu, grain);
        let there = Nanos(there.0 / 2).max(there.min(grain));
        if self.covers(vcpu, running) {
            Nanos(u64::MAX)
        } else if running == 1 && self.line.iter().all(|id| *id == vcpu) {
            let lasts = u128::from(there.0) * 1000 / u128::from((1000 - self.rate).max(1));
            Nanos(u64::try_from(lasts).unwrap_or(u64::MAX))
        } else {
            there
        }
    }

    /// `vcpu` waits: where it did, or behind all others.
    pub(crate) fn stand_in_line(&mut self, vcpu: VcpuId) {
        if !self.line.contains(&vcpu) {
            self.line.push(vcpu);
        }
    }

    /// Whether `vcpu` waits, or has its turn and was not granted anything yet.
    pub(crate) fn in_line(&self, vcpu: VcpuId) -> bool {
        self.line.contains(&vcpu)
    }

    /// `vcpu` waits no longer.
    pub(crate) fn leave_line(&mut self, vcpu: VcpuId) {
        self.line.retain(|id| *id != vcpu);
    }

    /// Who waits, longest first.
    pub(crate) fn line(&self) -> impl Iterator<Item = VcpuId> + '_ {
        self.line.iter().copied()
    }

    /// What must be there before it is the turn of `vcpu`: a `grain` for itself and for each before it.
    pub(crate) fn needs(&self, vcpu: VcpuId, grain: Nanos) -> Nanos {
        Nanos(grain.0.saturating_mul(self.before(vcpu) + 1))
    }

    /// When `want` will have been saved up.
    pub(crate) fn ready_at(&self, want: Nanos) -> Nanos {
        let missing = Credits::for_time(want).0.saturating_sub(self.tokens_ns);
        let missing = u128::from(missing.max(0).unsigned_abs());
        let wait = missing * 1000 / u128::from(self.rate) + 1;
        self.filled_at + Nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use units::VmId;

    const REQUEST: Nanos = Nanos::from_millis(5);
    const GRAIN: Nanos = Nanos::from_millis(1);

    #[test]
    fn a_purse_pays_out_exactly_its_rate() {
        for cap in [1, 333, 1000, 2718, 6400] {
            let mut purse = Purse::new(PerMille(cap), Nanos::ZERO);
            let (mut ran, mut now) = (0u64, Nanos::ZERO);
            for _ in 0..10_000 {
                now += Nanos(999_983);
                purse.fill(now, REQUEST, GRAIN);
                let run = purse.left();
                purse.pay(Credits::for_time(run).0);
                ran += run.0;
            }
            let exact = now.0 * u64::from(cap) / 1000;
            assert!(ran.abs_diff(exact) < 1000, "{ran} instead of {exact}");
        }
    }

    #[test]
    fn a_purse_says_when_it_is_ready_for_each_in_line() {
        let vcpu = |index| VcpuId { vm: VmId(0), index };
        let mut purse = Purse::new(PerMille(250), Nanos::ZERO);
        (0..8).for_each(|i| purse.stand_in_line(vcpu(i)));
        for i in 0..8 {
            let at = purse.ready_at(purse.needs(vcpu(i), GRAIN));
            let wait = Nanos::from_millis(4 * u64::from(i + 1));
            assert!(at >= wait && at <= wait + Nanos(2), "{at} for {i}");
        }
        purse.fill(Nanos::from_millis(33), REQUEST, GRAIN);
        assert!(
            purse.left() >= purse.needs(vcpu(7), GRAIN),
            "nobody waits for ever"
        );
        assert_eq!(
            purse.left_for(vcpu(9), GRAIN).0 / GRAIN.0,
            0,
            "for who comes next"
        );
        assert_eq!(purse.left_for(vcpu(6), GRAIN).0 / GRAIN.0, 2);
        purse.leave_line(vcpu(0));
        assert_eq!(purse.line().next(), Some(vcpu(1)));
        assert_eq!(purse.needs(vcpu(7), GRAIN), Nanos::from_millis(7));
    }

    #[test]
    fn what_comes_in_meanwhile_is_for_who_runs_alone() {
        let vcpu = VcpuId {
            vm: VmId(0),
            index: 0,
        };
        let mut purse = Purse::new(PerMille(800), Nanos::ZERO);
        purse.fill(Nanos::from_millis(5), REQUEST, GRAIN);
        assert_eq!(purse.left(), Nanos::from_millis(4));
        assert_eq!(
            purse.lasts(vcpu, 1, GRAIN),
            Nanos::from_millis(10),
            "of the half"
        );
        assert_eq!(purse.lasts(vcpu, 2, GRAIN), Nanos::from_millis(2));
        let wide = Purse::new(PerMille(2000), Nanos::ZERO);
        assert!(wide.covers(vcpu, 2) && !wide.covers(vcpu, 3));
    }
}
