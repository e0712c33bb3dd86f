//! Every 50 ms: feasible shares, the operator's credits, and moves that even out load, in the order of [`crate::round`].
//!
//! Five reasons move a vCPU here, in this order. Its machine's preferred node has room for it.
//! Load is uneven and moving (or swapping) it makes the sum of squared loads smaller by more than
//! the proximity it would lose ([`crate::even`]). A core has two busy threads while another has none.
//! One vCPU needs another's node more than that one does, or two machines lie across two nodes ([`crate::swap`]).
//! Or everything is as even as it can be and still one vCPU falls behind, like the third of three
//! equals on two CPUs: then it changes places with the one that is most ahead.

use alloc::vec::Vec;
use telemetry::MoveReason;
use units::{CpuId, Credits, Nanos, NodeId, Score, VcpuId, VmId};

use crate::event::Commands;
use crate::scheduler::Scheduler;
use crate::vcpu::Vcpu;

/// vCPUs from each end of the order by account that are compared for a change of places.
const ENDS: usize = 8;
/// Time for which a vCPU rests after a move before it is brought to its preferred node.
const REST: Nanos = Nanos::from_secs(1);

impl Scheduler {
    /// Those of a machine's vCPUs that want to run go to its preferred node or to their own, if they have one; how many
    /// CPUs were looked at.
    pub(crate) fn bring_home(&mut self, now: Nanos, vm: VmId, out: &mut Commands) -> usize {
        // Who sleeps is asked where to when it wakes, and who has just been there and left again for want of room is let be.
        let rested = |v: &Vcpu| v.moved_at == Nanos::ZERO || now.since(v.moved_at) > REST;
        self.move_to_preferred(now, vm, |v| v.runnable() && rested(v), out)
    }

    /// Brings those vCPUs of a machine to its preferred node or to their own, each as soon as a CPU there is less
    /// wanted than the one it would leave; how many CPUs were looked at.
    pub(crate) fn move_to_preferred(
        &mut self,
        now: Nanos,
        vm: VmId,
        those: impl Fn(&Vcpu) -> bool,
        out: &mut Commands,
    ) -> usize {
        let away = self.vcpus.of(vm).filter_map(|(id, v)| {
            let node = self.wish(id).filter(|n| self.node_of(v.cpu) != Some(*n))?;
            let goes = those(v) && v.move_to.is_none() && self.wish_pays(id, v.cpu);
            goes.then_some((id, node))
        });
        let away: Vec<(VcpuId, NodeId)> = away.collect();
        let cpus_of = |node: &NodeId| self.node_cpus.get(node).map_or(0, Vec::len);
        let looked_at = away.iter().map(|(_, node)| cpus_of(node)).sum();
        let mut sent: Vec<(CpuId, u64)> = Vec::new();
        for (id, node) in away {
            let Some(v) = self.vcpus.get(id) else {
                continue;
            };
            let (from, demand) = (v.cpu, u64::from(v.demand.0));
            let coming = |cpu: CpuId| -> u64 {
                sent.iter()
                    .filter(|(to, _)| *to == cpu)
                    .map(|(_, d)| *d)
                    .sum()
            };
            let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
            let threads = |cpu: CpuId| self.cpus.get(cpu).map_or(&[][..], |c| &c.siblings);
            let crowd = |cpu: CpuId| -> u64 {
                let siblings = threads(cpu).iter();
                siblings.map(|s| self.demand_on(*s) + coming(*s)).sum()
            };
            let target = cpus
                .iter()
                .filter(|cpu| self.allowed(id, **cpu))
                .map(|&cpu| (self.demand_on(cpu) + coming(cpu), crowd(cpu), cpu))
                .min();
            let target = target.map(|(there, _, cpu)| (there, cpu));
            let Some((there, to)) = target else { continue };
            let here = self.demand_on(from).max(u64::from(Score::ONE.0));
            if there + demand > here || self.would_share(id, from, to, coming) {
                continue;
            }
            let reason = self.for_its_wish(id, from, to);
            if self.vcpus.get(id).is_some_and(|v| v.on_cpu.is_some()) {
                sent.push((to, demand));
            }
            self.send(now, id, to, reason, out);
        }
        looked_at
    }

    /// Lets the vCPU that is most behind change places with the one that is most ahead, inside a
    /// node, where neither loses its memory.
    pub(crate) fn rotate(&mut self, now: Nanos, node: NodeId, out: &mut Commands) {
        let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
        let residents = cpus.iter().filter_map(|c| self.cpus.get(*c));
        let residents = residents.flat_map(|c| c.residents.iter().copied());
        let queued = residents.filter_map(|id| {
            let v = self.vcpus.get(id)?;
            v.queued.then_some((v.account, id))
        });
        let mut queued: Vec<(i64, VcpuId)> = queued.collect();
        queued.sort_unstable();
        let mut best: Option<(i64, VcpuId, VcpuId)> = None;
        let waiting = |id: VcpuId| self.vcpus.get(id).is_some_and(|v| v.waiting());
        let behind = queued
            .iter()
            .rev()
            .filter(|(_, id)| waiting(*id))
            .take(ENDS);
        for &(b_account, behind) in behind {
            for &(a_account, ahead) in queued.iter().take(ENDS) {
                let gap = b_account.saturating_sub(a_account);
                if gap > best.map_or(0, |(g, ..)| g) && self.may_rotate(behind, ahead) {
                    best = Some((gap, behind, ahead));
                }
            }
        }
        let Some((gap, behind, ahead)) = best else {
            return;
        };
        if gap <= Credits::for_time(self.tunables.fairness_gap).0 {
            return;
        }
        let at = |id| self.vcpus.get(id).map(|v| v.cpu);
        let (Some(from), Some(to)) = (at(behind), at(ahead)) else {
            return;
        };
        let owed = self.vcpus.get(behind).map_or(0, |v| v.account);
        let reason = MoveReason::Fairness {
            owed: Credits(owed),
        };
        self.send(now, behind, to, reason, out);
        self.send(now, ahead, from, reason, out);
    }

    fn may_rotate(&self, behind: VcpuId, ahead: VcpuId) -> bool {
        let (Some(b), Some(a)) = (self.vcpus.get(behind), self.vcpus.get(ahead)) else {
            return false;
        };
        a.cpu != b.cpu
            && a.spec.class == b.spec.class
            && a.move_to.is_none()
            && self.allowed(behind, a.cpu)
            && self.allowed(ahead, b.cpu)
            && self.evens_enough(behind, ahead, (b.cpu, a.cpu))
    }

    /// Whether CPUs differ, so that who is behind gains by changing places, and do not differ more after it. Of even CPUs none is
    /// better, and a heavy one that changes places with a light one takes its load along: for what it was owed long ago
    /// it would be sent to and fro for ever, and all load with it.
    fn evens_enough(&self, behind: VcpuId, ahead: VcpuId, (from, to): (CpuId, CpuId)) -> bool {
        let gap = self.load_on(from).saturating_sub(self.load_on(to));
        let (b, a) = (self.load_of(behind), self.load_of(ahead));
        gap > 0 && b.abs_diff(a) <= gap.max(b / 8)
    }
}
