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

/// Both indices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    waiting: BTreeMap<(NodeId, Class), BTreeSet<(Nanos, VcpuId)>>,
    idle: BTreeMap<NodeId, BTreeSet<CpuId>>,
    idle_count: usize,
    waiting_count: usize,
}

impl Index {
    /// Waiting vCPUs of a node and class, longest waiting first.
    pub(crate) fn waiting(
        &self,
        node: NodeId,
        class: Class,
    ) -> impl Iterator<Item = (Nanos, VcpuId)> + '_ {
        self.waiting
            .get(&(node, class))
            .into_iter()
            .flatten()
            .copied()
    }

    /// CPUs of a node that have nothing to run.
    pub(crate) fn idle(&self, node: NodeId) -> impl Iterator<Item = CpuId> + '_ {
        self.idle.get(&node).into_iter().flatten().copied()
    }

    /// Whether any vCPU waits that another CPU might take.
    pub(crate) const fn any_waiting(&self) -> bool {
        self.waiting_count > 0
    }

    /// Whether any CPU idles.
    pub(crate) const fn any_idle(&self) -> bool {
        self.idle_count > 0
    }
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
        if let Some((node, class, since)) = old
            && let Some(set) = self.index.waiting.get_mut(&(node, class))
        {
            set.remove(&(since, vcpu));
            self.index.waiting_count -= 1;
        }
        if let Some((node, class, since)) = key {
            let set = self.index.waiting.entry((node, class)).or_default();
            set.insert((since, vcpu));
            self.index.waiting_count += 1;
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
        let set = self.index.idle.entry(c.place.node).or_default();
        if idle {
            set.insert(cpu);
            self.index.idle_count += 1;
        } else {
            set.remove(&cpu);
            self.index.idle_count -= 1;
        }
    }
}
