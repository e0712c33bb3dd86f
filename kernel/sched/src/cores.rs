//! Who has a core for himself.
//!
//! Threads of a core share its pipeline: two busy ones are worth about one and a quarter. So a vCPU moves from a full core to
//! an empty one when there is one, to another node too if a core is worth more to it than the way to its memory is
//! long; and nobody is brought near his memory at a higher price.
//!
//! Where cores must be shared, those should who lose least by it: what stalls on memory leaves the pipeline to
//! others meanwhile. So one that computes changes places with one of its node that stalls and has a core for itself.

use alloc::vec::Vec;
use telemetry::MoveReason;
use units::{CpuId, Nanos, NodeId, Score, VcpuId};

use crate::event::Commands;
use crate::scheduler::Scheduler;

/// What the time in which it does not wait for memory gets longer by when a vCPU shares its core, in per cent: two threads that
/// share one get five eighths each.
const SHARED_PER_CENT: u32 = 60;
/// A core of its own must be worth so much more than the way to it, or than to whoever gives it up.
const MARGIN: Score = Score(Score::ONE.0 / 20);
/// Time for which a vCPU rests before it goes to another node for a core of its own, or gives one up.
const REST: Nanos = Nanos::from_secs(1);
/// A vCPU or a CPU with this demand is busy.
const BUSY: u64 = Score::ONE.0 as u64 / 2;

impl Scheduler {
    /// Sends a vCPU from a core with two busy threads to one with none of this node, if it has such: one of the node, else one
    /// from another that loses less by the way.
    /// How many CPUs were looked at.
    pub(crate) fn spread_cores(&mut self, now: Nanos, node: NodeId, out: &mut Commands) -> usize {
        let Some(to) = self.free_core(node) else {
            return 1;
        };
        let near = self
            .crowded(node)
            .find(|(id, _)| self.may_spread(now, *id, to, self.tunables.balance_period));
        let chosen = near.or_else(|| self.worth_a_core(now, node, to));
        if let Some((vcpu, from)) = chosen {
            if from != node {
                self.gates.pay(from, node);
            }
            let reason = MoveReason::Balance {
                from_load: 2000,
                to_load: 0,
            };
            self.send(now, vcpu, to, reason, out);
        }
        self.cpus.len()
    }

    /// A thread of `node` whose core has nothing to do.
    fn free_core(&self, node: NodeId) -> Option<CpuId> {
        let empty = |id: CpuId| {
            let c = self.cpus.get(id);
            c.is_some_and(|c| c.current.is_none() && c.is_empty())
        };
        let free = |cpu: &CpuId| {
            let siblings = self.cpus.get(*cpu).map_or(&[][..], |c| &c.siblings);
            !siblings.is_empty() && empty(*cpu) && siblings.iter().all(|s| empty(*s))
        };
        self.index.idle(node).find(free)
    }

    /// Those on `node` that share a core with a busy thread.
    fn crowded(&self, node: NodeId) -> impl Iterator<Item = (VcpuId, NodeId)> + '_ {
        let busy = |cpu: &CpuId| self.cpus.get(*cpu).is_some_and(|c| !c.is_empty());
        let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
        let crowds = cpus.iter().filter_map(move |cpu| {
            let c = self.cpus.get(*cpu)?;
            (busy(cpu) && c.siblings.iter().any(busy)).then_some(c)
        });
        crowds.flat_map(|c| c.members()).map(move |id| (id, node))
    }

    fn may_spread(&self, now: Nanos, vcpu: VcpuId, to: CpuId, rest: Nanos) -> bool {
        self.vcpus.get(vcpu).is_some_and(|v| {
            v.move_to.is_none() && now.since(v.moved_at) > rest && self.allowed(vcpu, to)
        })
    }

    /// What a core of its own is worth to `vcpu`, in the same measure as [`Self::loss`]. Where no PMU tells how much it waits for
    /// memory, that counts as all of its time and the core as nothing.
    fn core_worth(&self, vcpu: VcpuId) -> Score {
        let stall = self.vcpus.get(vcpu).map_or(Score::ONE, |v| v.stall);
        Score(Score::ONE.above(stall).0 * SHARED_PER_CENT / 100)
    }

    /// Whether `vcpu` would leave a core that it has for itself on `from` for one that it would share on `to`, and being nearer to
    /// its memory is worth less than that. `coming` tells the demand of those who are on their way to a CPU.
    pub(crate) fn would_share(
        &self,
        vcpu: VcpuId,
        from: CpuId,
        to: CpuId,
        coming: impl Fn(CpuId) -> u64,
    ) -> bool {
        let beside = |cpu: CpuId| -> u64 {
            let siblings = self.cpus.get(cpu).map_or(&[][..], |c| &c.siblings);
            let demand = siblings.iter().map(|s| self.demand_on(*s) + coming(*s));
            demand.sum()
        };
        beside(to) >= BUSY
            && beside(from) < BUSY
            && self.loss(vcpu, to, from) < self.core_worth(vcpu)
    }

    /// Who of another node loses least by going to `to`, an empty core of `node`, if that is less than the core is worth.
    fn worth_a_core(&self, now: Nanos, node: NodeId, to: CpuId) -> Option<(VcpuId, NodeId)> {
        let others = self.nodes.iter().copied();
        let others = others.filter(|n| *n != node && self.gates.passable(*n, node));
        let crowded = others.flat_map(|n| self.crowded(n));
        let lost = crowded.filter_map(|(id, from)| {
            if !self.may_spread(now, id, to, REST) {
                return None;
            }
            let lost = self.loss(id, self.vcpus.get(id)?.cpu, to);
            (lost < self.core_worth(id).above(MARGIN)).then_some((lost, id, from))
        });
        lost.min().map(|(_, id, from)| (id, from))
    }

    /// One of this node that shares its core and loses much by it changes places with one that does not and would lose less.
    /// How many CPUs were looked at.
    pub(crate) fn pair_by_stall(&mut self, now: Nanos, node: NodeId, out: &mut Commands) -> usize {
        if !self.tunables.share_cores {
            // Then only vCPUs of one machine share a core, and are not parted.
            return 1;
        }
        let looked_at = self.node_cpus.get(&node).map_or(0, Vec::len);
        let Some((shares, alone)) = self.worst_pairing(now, node) else {
            return looked_at;
        };
        let reason = MoveReason::Balance {
            from_load: 2000,
            to_load: 1000,
        };
        let back = MoveReason::Balance {
            from_load: 1000,
            to_load: 2000,
        };
        self.send(now, shares.0, alone.1, reason, out);
        self.send(now, alone.0, shares.1, back, out);
        looked_at
    }

    /// Of the busy vCPUs of a node that have a thread for themselves: who loses most by sharing a core, and who that has one
    /// would lose least, if they should change places.
    fn worst_pairing(
        &self,
        now: Nanos,
        node: NodeId,
    ) -> Option<((VcpuId, CpuId), (VcpuId, CpuId))> {
        let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
        let (mut most, mut least) = (None, None);
        for &cpu in cpus {
            let Some(c) = self.cpus.get(cpu).filter(|c| !c.siblings.is_empty()) else {
                continue;
            };
            let demand = |id: &VcpuId| self.vcpus.get(*id).map_or(0, |v| u64::from(v.demand.0));
            let Some(id) = c.residents.iter().copied().max_by_key(demand) else {
                continue;
            };
            let has_it_alone = demand(&id) >= BUSY && self.demand_on(cpu) < demand(&id) + BUSY / 2;
            if !has_it_alone || !self.may_spread(now, id, cpu, REST) {
                continue;
            }
            let beside: u64 = c.siblings.iter().map(|s| self.demand_on(*s)).sum();
            let worth = (self.core_worth(id), id, cpu);
            if beside >= BUSY {
                most = most.max(Some(worth));
            } else {
                least = least.map_or(Some(worth), |l| Some(worth.min(l)));
            }
        }
        let ((most, shares, at), (least, alone, to)) = (most?, least?);
        let may = self.allowed(shares, to) && self.allowed(alone, at);
        (may && most.above(least) > MARGIN).then_some(((shares, at), (alone, to)))
    }
}
