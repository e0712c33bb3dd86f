//! How long a slice lasts, and those who wait for their limit to fill up.

use alloc::vec::Vec;
use units::{CpuId, Nanos, VcpuId};

use crate::scheduler::Scheduler;

impl Scheduler {
    /// Lets those run again whose limit has filled up.
    pub(crate) fn end_limits(&mut self, cpu: CpuId, now: Nanos) {
        let (request, worth) = (self.tunables.request, self.limit_grain());
        let Some(c) = self.cpus.get_mut(cpu) else {
            return;
        };
        if c.throttled.is_empty() {
            return;
        }
        let all: Vec<VcpuId> = core::mem::take(&mut c.throttled);
        let (mut ready, mut rest) = (Vec::new(), Vec::new());
        for id in all {
            let Some(v) = self.vcpus.get_mut(id) else {
                continue;
            };
            // Respecified or moved meanwhile: no longer this list's.
            if !v.throttled || v.cpu != cpu {
                continue;
            }
            let filled = v.limit.as_mut().is_none_or(|limit| {
                limit.fill(now, request);
                limit.left() >= worth
            });
            if filled {
                v.throttled = false;
                ready.push(id);
            } else {
                rest.push(id);
            }
        }
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.throttled = rest;
        }
        for id in ready {
            self.enqueue(now, id, cpu);
        }
    }

    /// A capped vCPU saves up this much before it runs again, so that slices stay worth a switch.
    fn limit_grain(&self) -> Nanos {
        self.tunables.min_run
    }

    /// Until its request is done, its limit is used up, or a capped neighbour is ready.
    pub(crate) fn slice(&self, cpu: CpuId, vcpu: VcpuId, now: Nanos) -> Nanos {
        let Some(v) = self.vcpus.get(vcpu) else {
            return self.tunables.min_run;
        };
        let mut slice = v.remaining.min(self.tunables.request);
        if let Some(limit) = &v.limit {
            slice = slice.min(limit.lasts());
        }
        if let Some(at) = self.next_limit_end(cpu) {
            slice = slice.min(at.since(now).max(self.tunables.min_run));
        }
        slice.max(Nanos(1))
    }

    pub(crate) fn next_limit_end(&self, cpu: CpuId) -> Option<Nanos> {
        let worth = self.limit_grain();
        let throttled = &self.cpus.get(cpu)?.throttled;
        throttled
            .iter()
            .filter_map(|id| self.vcpus.get(*id))
            .filter(|v| v.cpu == cpu && v.throttled && v.wants && !v.paused)
            .filter_map(|v| Some(v.limit.as_ref()?.ready_at(worth)))
            .min()
    }
}
