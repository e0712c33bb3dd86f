//! Two vCPUs change places because one of them needs the other's node more.
//!
//! Where a node is full, somebody of its machines runs elsewhere, and at first that is whoever waited
//! longest. To one that stalls on memory half of its time distance costs much, to one that computes in its
//! caches nothing. So the one that loses most by being away changes places with the one on its node that
//! would lose least, if the difference is worth two refills and both have rested.

use telemetry::MoveReason;
use units::{CpuId, Nanos, NodeId, Score, VcpuId};

use crate::event::Commands;
use crate::scheduler::Scheduler;

/// Weighed proximity that a change of places must gain.
const WORTH: Score = Score(Score::ONE.0 / 10);
/// Time for which a vCPU rests after a move before it is moved for this.
const REST: Nanos = Nanos::from_secs(1);

impl Scheduler {
    fn may_swap(&self, now: Nanos, vcpu: VcpuId) -> bool {
        self.vcpus.get(vcpu).is_some_and(|v| {
            let rested = v.moved_at == Nanos::ZERO || now.since(v.moved_at) > REST;
            v.runnable() && v.move_to.is_none() && rested
        })
    }

    /// The node where `vcpu` is nearest to its memory, and what it would gain there.
    fn longing(&self, vcpu: VcpuId, from: NodeId) -> Option<(Score, NodeId)> {
        let here = self.score(vcpu, from);
        let nodes = self.nodes.iter().copied().filter(|n| *n != from);
        let best = nodes.max_by_key(|n| (self.score(vcpu, *n), core::cmp::Reverse(*n)))?;
        let gain = self.weigh(vcpu, self.score(vcpu, best).above(here));
        (gain >= WORTH).then_some((gain, best))
    }

    /// The change of places that gains most, once in a look.
    pub(crate) fn swap_for_proximity(&mut self, now: Nanos, out: &mut Commands) {
        if self.nodes.len() < 2 {
            return;
        }
        let known = |id: VcpuId| {
            let vm = self.vcpus.vm(id.vm);
            vm.is_some_and(|vm| !vm.scores.is_empty())
        };
        let away = self.vcpus.iter().filter_map(|(id, v)| {
            let from = self.node_of(v.cpu)?;
            let may = v.stall >= WORTH && known(id) && self.may_swap(now, id);
            let (gain, node) = may.then(|| self.longing(id, from)).flatten()?;
            Some((gain, id, v.cpu, node))
        });
        let most = away.max_by_key(|(gain, id, ..)| (*gain, core::cmp::Reverse(*id)));
        let Some((gain, away, from, node)) = most else {
            return;
        };
        let Some((lost, there, to)) = self.least_attached(now, away, from, node) else {
            return;
        };
        if gain.above(lost) < WORTH {
            return;
        }
        let score = |cpu| {
            self.node_of(cpu)
                .map_or(Score::ONE, |n| self.score(away, n))
        };
        let reason = MoveReason::Preferred {
            from: score(from),
            to: score(to),
        };
        let back = MoveReason::Balance {
            from_load: 1000,
            to_load: 1000,
        };
        self.send(now, away, to, reason, out);
        self.send(now, there, from, back, out);
    }

    /// Who on `node` would lose least in the place of `away`: of its class and about its weight.
    fn least_attached(
        &self,
        now: Nanos,
        away: VcpuId,
        from: CpuId,
        node: NodeId,
    ) -> Option<(Score, VcpuId, CpuId)> {
        let a = self.vcpus.get(away)?;
        let cpus = self.node_cpus.get(&node)?.iter().copied();
        let residents = cpus.flat_map(|cpu| {
            let of = self.cpus.get(cpu).map_or(&[][..], |c| &c.residents);
            of.iter().map(move |id| (*id, cpu))
        });
        residents
            .filter(|(id, cpu)| {
                self.vcpus.get(*id).is_some_and(|v| {
                    v.spec.class == a.spec.class
                        && v.load_weight <= a.load_weight.saturating_mul(2)
                        && a.load_weight <= v.load_weight.saturating_mul(2)
                }) && id.vm != away.vm
                    && self.may_swap(now, *id)
                    && self.allowed(away, *cpu)
                    && self.allowed(*id, from)
            })
            .map(|(id, cpu)| (self.loss(id, cpu, from), id, cpu))
            .min()
    }
}
