//! What a vCPU touches where that differs from what its machine touches.
//!
//! A machine's vCPUs may work on memory of their own, each on another node. Then its scores say that no place is better than
//! another, while each of them has a node where it would be near: its own scores say so. That node is its wish
//! before any that the planner names for the whole machine, and it goes there as soon as there is room, or changes places
//! ([`crate::swap`]), also with one of its own machine.

use alloc::vec::Vec;
use telemetry::MoveReason;
use units::{CpuId, NodeId, Score, VcpuId};

use crate::event::Refusal;
use crate::scheduler::Scheduler;
use crate::score::mean;

/// Proximity that a move for it must gain, and by which a node must be nearer than any other to be wished for.
pub(crate) const WORTH: Score = Score(Score::ONE.0 / 10);

/// Proximity of one vCPU's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// By node; empty where it is its machine's.
    pub(crate) scores: Vec<Score>,
    /// Their mean over nodes with CPUs.
    pub(crate) mean: Score,
    /// The node where it wants to be.
    near: Option<NodeId>,
}

impl Own {
    /// Of these scores. What was wished for before stays so while nothing is nearer by half of what makes a wish.
    fn of(scores: Vec<Score>, nodes: &[NodeId], before: Option<NodeId>) -> Self {
        let at = |n: NodeId| scores.get(n.index()).copied();
        let by_score = |n: &NodeId| (at(*n), core::cmp::Reverse(*n));
        let best = nodes.iter().copied().max_by_key(by_score);
        let score = |n: Option<NodeId>| n.and_then(at).unwrap_or(Score::ZERO);
        let others = nodes.iter().copied().filter(|n| Some(*n) != best);
        let second = others.max_by_key(by_score);
        let clear = score(best).above(score(second)) >= WORTH;
        let still = before.filter(|_| score(best).above(score(before)) < Score(WORTH.0 / 2));
        let near = still.or(best.filter(|_| clear));
        Self {
            mean: mean(&scores, nodes),
            near: near.filter(|_| !scores.is_empty()),
            scores,
        }
    }
}

impl Scheduler {
    /// A vCPU's own scores, or that it has none any more.
    pub(crate) fn set_own(&mut self, vcpu: VcpuId, scores: Vec<Score>) -> Result<(), Refusal> {
        let v = self.vcpus.get_mut(vcpu).filter(|v| !v.removed);
        let v = v.ok_or(Refusal::UnknownVcpu(vcpu))?;
        v.own = Own::of(scores, &self.nodes, v.own.near);
        Ok(())
    }

    /// CPUs came: means are taken anew.
    pub(crate) fn own_means(&mut self) {
        for v in self.vcpus.values_mut() {
            v.own.mean = mean(&v.own.scores, &self.nodes);
        }
    }

    /// Whether anything is known of what a vCPU touches.
    pub(crate) fn has_scores(&self, vcpu: VcpuId) -> bool {
        let of_its_machine = |vm: &crate::scheduler::Vm| !vm.scores.is_empty();
        self.has_own(vcpu) || self.vcpus.vm(vcpu.vm).is_some_and(of_its_machine)
    }

    pub(crate) fn has_own(&self, vcpu: VcpuId) -> bool {
        let v = self.vcpus.get(vcpu);
        v.is_some_and(|v| !v.own.scores.is_empty())
    }

    /// The node that the planner named for a vCPU's machine, unless it has a wish of its own.
    pub(crate) fn ordered(&self, vcpu: VcpuId) -> Option<NodeId> {
        match self.vcpus.get(vcpu).and_then(|v| v.own.near) {
            Some(_) => None,
            None => self.vcpus.vm(vcpu.vm).and_then(|vm| vm.preferred),
        }
    }

    /// Where a vCPU should be: by its own wish, else by its machine's.
    pub(crate) fn wish(&self, vcpu: VcpuId) -> Option<NodeId> {
        let own = self.vcpus.get(vcpu).and_then(|v| v.own.near);
        own.or_else(|| self.ordered(vcpu))
    }

    /// Whether going to its wish from `from` is worth it: what the planner orders is.
    pub(crate) fn wish_pays(&self, vcpu: VcpuId, from: CpuId) -> bool {
        let own = self.vcpus.get(vcpu).and_then(|v| v.own.near);
        let (Some(near), Some(here)) = (own, self.node_of(from)) else {
            return true;
        };
        let gain = self.score(vcpu, near).above(self.score(vcpu, here));
        self.weigh(vcpu, gain) >= WORTH
    }

    /// Why it goes to its wish.
    pub(crate) fn for_its_wish(&self, vcpu: VcpuId, from: CpuId, to: CpuId) -> MoveReason {
        let score = |cpu| {
            self.node_of(cpu)
                .map_or(Score::ONE, |n| self.score(vcpu, n))
        };
        MoveReason::Preferred {
            from: score(from),
            to: score(to),
        }
    }
}
