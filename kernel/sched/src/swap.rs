//! Two vCPUs change places because one of them needs the other's node more.
//!
//! Where a node is full, somebody of its machines runs elsewhere, and at first that is whoever waited
//! longest. To one that stalls on memory half of its time distance costs much, to one that computes in its
//! caches nothing. So the one that loses most by being away changes places with the one on its node that
//! would lose least, if the difference is worth two refills and both have rested. The two may be of one machine, where each works
//! on memory of its own (`own`).
//!
//! If nobody gains so much, machines are gathered. Of two machines that are both spread over two nodes, whichever holds their
//! memory, pages can follow neither; exchanged so that one is here and the other there, both can have theirs
//! near. So two vCPUs change places as well if their machines' vCPUs are closer together after it and the way to
//! memory is no longer in sum.

use alloc::vec::Vec;
use core::cmp::Reverse;
use telemetry::MoveReason;
use units::{CpuId, Nanos, NodeId, Score, VcpuId, VmId};

use crate::event::Commands;
use crate::own::WORTH;
use crate::scheduler::Scheduler;

/// Time for which a vCPU rests after a move before it is moved for this.
const REST: Nanos = Nanos::from_secs(1);
/// vCPUs whose machines would gain most by being gathered that are tried in one look.
const GATHERED: usize = 8;

/// What a vCPU would gain on another node, its name, where it is, and that node; the greatest is first.
pub(crate) type Longing = (Score, Reverse<VcpuId>, CpuId, NodeId);
/// By how much a machine would be closer together, the vCPU that would go, from where, and to which node; the least is first.
pub(crate) type Scattered = (Reverse<i64>, VcpuId, CpuId, NodeId);

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
        let best = nodes.max_by_key(|n| (self.score(vcpu, *n), Reverse(*n)))?;
        let gain = self.weigh(vcpu, self.score(vcpu, best).above(here));
        (gain >= WORTH).then_some((gain, best))
    }

    /// Whom of a machine's vCPUs another node would gain most.
    pub(crate) fn longs_most(&self, now: Nanos, vm: VmId) -> Option<Longing> {
        let away = self.vcpus.of(vm).filter_map(|(id, v)| {
            let from = self.node_of(v.cpu)?;
            let may = v.stall >= WORTH && self.has_scores(id) && self.may_swap(now, id);
            let (gain, node) = may.then(|| self.longing(id, from)).flatten()?;
            Some((gain, Reverse(id), v.cpu, node))
        });
        away.max()
    }

    /// The change of places that gains most, once in a look; false if it is not worth it, or who longed for it has gone
    /// elsewhere since.
    pub(crate) fn swap_for_proximity(
        &mut self,
        now: Nanos,
        most: Longing,
        out: &mut Commands,
    ) -> bool {
        let (gain, Reverse(away), from, node) = most;
        if !self.still_on(now, away, from) {
            return false;
        }
        let Some((lost, there, to)) = self.least_attached(now, away, from, node) else {
            return false;
        };
        if gain.above(lost) < WORTH {
            return false;
        }
        self.swap(now, (away, from), (there, to), out);
        true
    }

    fn still_on(&self, now: Nanos, vcpu: VcpuId, cpu: CpuId) -> bool {
        self.vcpus.get(vcpu).is_some_and(|v| v.cpu == cpu) && self.may_swap(now, vcpu)
    }

    /// `away` gets the place of `there` and the other way round.
    fn swap(
        &mut self,
        now: Nanos,
        (away, from): (VcpuId, CpuId),
        (there, to): (VcpuId, CpuId),
        out: &mut Commands,
    ) {
        let reason = self.for_its_wish(away, from, to);
        let back = MoveReason::Balance {
            from_load: 1000,
            to_load: 1000,
        };
        self.send(now, away, to, reason, out);
        self.send(now, there, from, back, out);
    }

    /// Adds those of a machine's vCPUs to the list whose going elsewhere would bring it closer together. The list is kept
    /// to those who gain most.
    pub(crate) fn scattered(&self, now: Nanos, vm: VmId, list: &mut Vec<Scattered>) {
        if self.vcpus.vm(vm).is_none_or(|vm| vm.scores.is_empty()) {
            return;
        }
        let places = self.places(vm);
        if places.len() < 2 {
            return;
        }
        for (id, v) in self.vcpus.of(vm).filter(|(id, _)| self.may_swap(now, *id)) {
            let Some(from) = self.node_of(v.cpu) else {
                continue;
            };
            let elsewhere = places.iter().filter(|(node, _)| *node != from);
            let closer = elsewhere.map(|(node, _)| (closer(&places, from, *node), *node));
            let best = closer.max_by_key(|(gain, node)| (*gain, Reverse(*node)));
            if let Some((gain, node)) = best.filter(|(gain, _)| *gain > 0) {
                list.push((Reverse(gain), id, v.cpu, node));
            }
        }
        list.sort_unstable();
        list.truncate(GATHERED);
    }

    /// Lets one of the list change places if that brings machines together; false if nobody is there to change with, or it has gone elsewhere
    /// since.
    pub(crate) fn gather(&mut self, now: Nanos, one: Scattered, out: &mut Commands) -> bool {
        let (Reverse(gain), away, from, node) = one;
        if !self.still_on(now, away, from) {
            return false;
        }
        let Some((there, to)) = self.gives_place(now, gain, (away, from), node) else {
            return false;
        };
        self.swap(now, (away, from), (there, to), out);
        true
    }

    /// Who on `node` should change places with `away`, which gains `gain` in togetherness: whoever loses less of it, and in
    /// sum with `away` no proximity; the best of them.
    fn gives_place(
        &self,
        now: Nanos,
        gain: i64,
        (away, from): (VcpuId, CpuId),
        node: NodeId,
    ) -> Option<(VcpuId, CpuId)> {
        let back = self.node_of(from)?;
        let peers = self.peers(now, away, from, node);
        let others = peers.filter(|(id, _)| id.vm != away.vm);
        let better = others.filter_map(|(id, to)| {
            let together = gain + closer(&self.places(id.vm), node, back);
            let lost = self.loss(away, from, to).0 + self.loss(id, to, from).0;
            let won = self.loss(away, to, from).0 + self.loss(id, from, to).0;
            let net = i64::from(won) - i64::from(lost);
            (together > 0 && net >= 0).then_some((together, net, Reverse(id), to))
        });
        better.max().map(|(_, _, id, to)| (id.0, to))
    }

    /// How many of a machine's vCPUs that want to run are on which node.
    fn places(&self, vm: VmId) -> Vec<(NodeId, i64)> {
        let mut places: Vec<(NodeId, i64)> = Vec::new();
        for (_, v) in self.vcpus.of(vm).filter(|(_, v)| v.runnable()) {
            let Some(node) = self.node_of(v.cpu) else {
                continue;
            };
            match places.iter_mut().find(|(n, _)| *n == node) {
                Some((_, count)) => *count += 1,
                None => places.push((node, 1)),
            }
        }
        places
    }

    /// Who on `node` would lose least in the place of `away`, and of those who gains most: of its class and about its weight.
    fn least_attached(
        &self,
        now: Nanos,
        away: VcpuId,
        from: CpuId,
        node: NodeId,
    ) -> Option<(Score, VcpuId, CpuId)> {
        let peers = self.peers(now, away, from, node);
        let least = peers.min_by_key(|(id, cpu)| {
            let gain = self.loss(*id, from, *cpu);
            (self.loss(*id, *cpu, from), Reverse(gain), *id)
        });
        least.map(|(id, cpu)| (self.loss(id, cpu, from), id, cpu))
    }

    /// Those on `node` that could change places with `away`: of its class and about its weight. One of its own machine is
    /// no other, unless it touches something else.
    fn peers(
        &self,
        now: Nanos,
        away: VcpuId,
        from: CpuId,
        node: NodeId,
    ) -> impl Iterator<Item = (VcpuId, CpuId)> + '_ {
        let kind = self.vcpus.get(away).map(|a| (a.spec.class, a.load_weight));
        let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
        let residents = cpus.iter().copied().flat_map(|cpu| {
            let of = self.cpus.get(cpu).map_or(&[][..], |c| &c.residents);
            of.iter().map(move |id| (*id, cpu))
        });
        residents.filter(move |(id, cpu)| {
            let (Some(v), Some((class, weight))) = (self.vcpus.get(*id), kind) else {
                return false;
            };
            v.spec.class == class
                && v.load_weight <= weight.saturating_mul(2)
                && weight <= v.load_weight.saturating_mul(2)
                && (id.vm != away.vm || self.has_own(*id))
                && v.runnable()
                && v.move_to.is_none()
                && now.since(v.moved_at) > self.tunables.balance_period
                && self.allowed(away, *cpu)
                && self.allowed(*id, from)
        })
    }
}

/// How much closer together a machine with these places is once one of its vCPUs went from one node to another: half of
/// what that adds to the sum of the squares.
fn closer(places: &[(NodeId, i64)], from: NodeId, to: NodeId) -> i64 {
    let on = |node| {
        let place = places.iter().find(|(n, _)| *n == node);
        place.map_or(0, |(_, count)| *count)
    };
    on(to) - on(from) + 1
}
