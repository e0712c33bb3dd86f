//! Who waits and who idles, by node: what work conservation looks at.
//!
//! A CPU that runs out of work must find a waiting vCPU, and a vCPU that begins to wait must find an
//! idle CPU, without looking at ten thousand others. Two indices answer: waiting vCPUs by node,
//! class and time of waiting (those that may run on one CPU only are not in it, since nobody else
//! can take them), and idle CPUs by node.

use alloc::collections::{BTreeMap, BTreeSet};
use telemetry::Class;
use units::{CpuId, Nanos, NodeId, VcpuId};

use crate::scheduler::Scheduler;

/// Both indices. Nodes where nobody waits, or no CPU idles, are not in them, so that whoever looks through all nodes passes
/// over those.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    waiting: BTreeMap<NodeId, Waiters>,
    idle: BTreeMap<NodeId, BTreeSet<CpuId>>,
}

/// The waiting vCPUs of a node by class, longest waiting first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiters([BTreeSet<(Nanos, VcpuId)>; Class::ALL.len()]);

impl Waiters {
    pub(crate) fn of(&self, class: Class) -> &BTreeSet<(Nanos, VcpuId)> {
        let [high, normal, low] = &self.0;
        match class {
            Class::High => high,
            Class::Normal => normal,
            Class::Low => low,
        }
    }

    fn of_mut(&mut self, class: Class) -> &mut BTreeSet<(Nanos, VcpuId)> {
        let [high, normal, low] = &mut self.0;
        match class {
            Class::High => high,
            Class::Normal => normal,
            Class::Low => low,
        }
    }
}

impl Index {
    /// Nodes where somebody waits, `own` first, else ascending, and whether each is another than that.
    pub(crate) fn waiting_from(
        &self,
        own: NodeId,
    ) -> impl Iterator<Item = (NodeId, bool, &Waiters)> + '_ {
        from(&self.waiting, own)
    }

    /// Nodes where CPUs idle, likewise.
    pub(crate) fn idle_from(
        &self,
        own: NodeId,
    ) -> impl Iterator<Item = (NodeId, bool, &BTreeSet<CpuId>)> + '_ {
        from(&self.idle, own)
    }

    /// CPUs of a node that have nothing to run.
    pub(crate) fn idle(&self, node: NodeId) -> impl Iterator<Item = CpuId> + '_ {
        self.idle.get(&node).into_iter().flatten().copied()
    }

    /// Whether any vCPU waits that another CPU might take.
    pub(crate) fn any_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether any CPU idles.
    pub(crate) fn any_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    fn wait(&mut self, node: NodeId, class: Class, since: Nanos, vcpu: VcpuId) {
        let waiters = self.waiting.entry(node).or_default();
        waiters.of_mut(class).insert((since, vcpu));
    }

    fn wait_no_more(&mut self, node: NodeId, class: Class, since: Nanos, vcpu: VcpuId) {
        let Some(waiters) = self.waiting.get_mut(&node) else {
            return;
        };
        waiters.of_mut(class).remove(&(since, vcpu));
        if waiters.0.iter().all(BTreeSet::is_empty) {
            self.waiting.remove(&node);
        }
    }

    fn idles(&mut self, node: NodeId, cpu: CpuId, idles: bool) {
        let cpus = self.idle.entry(node).or_default();
        if idles {
            cpus.insert(cpu);
        } else {
            cpus.remove(&cpu);
        }
        if cpus.is_empty() {
            self.idle.remove(&node);
        }
    }
}

fn from<T>(
    all: &BTreeMap<NodeId, T>,
    own: NodeId,
) -> impl Iterator<Item = (NodeId, bool, &T)> + '_ {
    let first = all.get(&own).map(|of| (own, false, of));
    let others = all.iter().filter(move |(node, _)| **node != own);
    first
        .into_iter()
        .chain(others.map(|(node, of)| (*node, true, of)))
}

impl Scheduler {
    /// Brings the index of the waiting up to date for one vCPU, after it began or ceased to wait or
    /// changed its place.
    pub(crate) fn reindex(&mut self, vcpu: VcpuId) {
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        let node = self.cpus.get(v.cpu).map(|c| c.place.node);
        let pinned = matches!(&v.spec.affinity, crate::Affinity::Cpus(cpus) if cpus.len() < 2);
        let key = node
            .filter(|_| v.waiting() && !pinned)
            .map(|node| (node, v.spec.class, v.waiting_since));
        if key == v.indexed {
            return;
        }
        let old = core::mem::replace(&mut v.indexed, key);
        if let Some((node, class, since)) = old {
            self.index.wait_no_more(node, class, since, vcpu);
        }
        if let Some((node, class, since)) = key {
            self.index.wait(node, class, since, vcpu);
        }
    }

    /// Brings the index of the idle up to date for one CPU.
    pub(crate) fn reindex_cpu(&mut self, cpu: CpuId) {
        let Some(c) = self.cpus.get_mut(cpu) else {
            return;
        };
        let idle = c.current.is_none() && c.is_empty();
        if idle == c.indexed_idle {
            return;
        }
        c.indexed_idle = idle;
        self.index.idles(c.place.node, cpu, idle);
    }
}
