//! Limits: how much CPU time all vCPUs of a machine may use together, and those who wait for more.
//!
//! A limit is one purse for the whole machine ([`crate::purse`]). Who starts to run is granted a slice from it, and gives
//! back what it did not use; so what is granted never exceeds what came in, however many run at a
//! time. Who finds too little stands in line outside of the queues, and those in line have their turn before others of the
//! machine are granted anything, so that no vCPU lives on what another one waits for.

use alloc::vec::Vec;
use units::{CpuId, Credits, Nanos, PerMille, VcpuId, VmId};

use crate::event::Commands;
use crate::purse::Purse;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// The limit that a vCPU's specification sets for its machine.
    pub(crate) fn set_limit(&mut self, now: Nanos, vm: VmId, cap: Option<PerMille>) {
        let Some(vm) = self.vcpus.vm_mut(vm) else {
            return;
        };
        if vm.purse.as_ref().map(Purse::cap) != cap {
            vm.purse = cap.map(|cap| Purse::new(cap, now));
        }
    }

    /// A machine's purse, if it is known and limited.
    fn purse_mut(&mut self, vm: VmId) -> Option<&mut Purse> {
        self.vcpus.vm(vm)?.purse.as_ref()?;
        self.vcpus.vm_mut(vm)?.purse.as_mut()
    }

    /// The same with all that has come in up to now.
    fn filled_purse(&mut self, vm: VmId, now: Nanos) -> Option<&mut Purse> {
        let (request, grain) = (self.tunables.request, self.limit_grain());
        let purse = self.purse_mut(vm)?;
        purse.fill(now, request, grain);
        Some(purse)
    }

    /// vCPUs of the machine that run, `vcpu` counted in.
    fn running_with(&self, vcpu: VcpuId) -> u64 {
        let others = self.vcpus.of(vcpu.vm).filter(|(id, _)| *id != vcpu);
        others.filter(|(_, v)| v.on_cpu.is_some()).count() as u64 + 1
    }

    /// A machine pays for what the kernel did on its account: from its limit, and each of its vCPUs that want to run a part
    /// from what it is owed machine-wide. Queues and their lags have no part in it: nobody there ran longer or waited less.
    pub(crate) fn overhead(&mut self, now: Nanos, vm: VmId, took: Nanos) {
        let tunables = self.tunables;
        let price = Credits::for_time(took).0;
        if let Some(purse) = self.purse_mut(vm) {
            purse.pay(price);
        }
        let wanting = self.vcpus.of(vm).filter(|(_, v)| v.runnable());
        let payers: Vec<VcpuId> = wanting.map(|(id, _)| id).collect();
        let part = price / i64::try_from(payers.len().max(1)).unwrap_or(i64::MAX);
        for id in payers {
            if let Some(v) = self.vcpus.get_mut(id) {
                v.advance(now, &tunables);
                v.account = v.account.saturating_sub(part);
            }
        }
    }

    /// Whether its machine's limit leaves `vcpu` nothing that is worth an entry.
    fn is_exhausted(&mut self, vcpu: VcpuId, now: Nanos) -> bool {
        let worth = self.limit_grain();
        let Some(purse) = self.filled_purse(vcpu.vm, now) else {
            return false;
        };
        // Whose turn has come was told that a whole grain is there; who goes on may do so with less.
        let enough = if purse.in_line(vcpu) {
            worth.0
        } else {
            worth.0 / 8
        };
        let exhausted = purse.left_for(vcpu, worth).0 < enough;
        let running = self.running_with(vcpu);
        exhausted
            && self
                .purse_mut(vcpu.vm)
                .is_some_and(|purse| !purse.covers(vcpu, running))
    }

    /// Takes a vCPU that nobody runs out of its queue if its machine's limit is used up; true if it was.
    pub(crate) fn hold_if_exhausted(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        out: &mut Commands,
    ) -> bool {
        if !self.is_exhausted(vcpu, now) {
            return false;
        }
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return false;
        };
        v.throttled = true;
        let at = v.cpu;
        self.dequeue(now, vcpu, out);
        if let Some(purse) = self.purse_mut(vcpu.vm) {
            purse.stand_in_line(vcpu);
        }
        if let Some(c) = self.cpus.get_mut(at) {
            c.throttled.push(vcpu);
        }
        true
    }

    /// A vCPU no longer waits for its machine's limit, whatever the reason.
    pub(crate) fn leave_line(&mut self, vcpu: VcpuId) {
        if let Some(v) = self.vcpus.get_mut(vcpu) {
            v.throttled = false;
        }
        if let Some(purse) = self.purse_mut(vcpu.vm) {
            purse.leave_line(vcpu);
        }
    }

    /// Grants `vcpu` a slice of at most `wanted`, which its machine pays in advance.
    pub(crate) fn grant(&mut self, vcpu: VcpuId, wanted: Nanos, now: Nanos) -> Nanos {
        let worth = self.limit_grain();
        if self.filled_purse(vcpu.vm, now).is_none() {
            return wanted;
        }
        let running = self.running_with(vcpu);
        let Some(purse) = self.purse_mut(vcpu.vm) else {
            return wanted;
        };
        let granted = wanted.min(purse.lasts(vcpu, running, worth)).max(Nanos(1));
        purse.leave_line(vcpu);
        purse.pay(Credits::for_time(granted).0);
        if let Some(v) = self.vcpus.get_mut(vcpu) {
            v.granted = Credits::for_time(granted).0;
        }
        granted
    }

    /// `vcpu` has left its CPU: what was granted beyond what it ran goes back, and who waits for it is told.
    pub(crate) fn settle_grant(&mut self, vcpu: VcpuId, now: Nanos, out: &mut Commands) {
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        let left = v.on_cpu;
        let rest = core::mem::take(&mut v.granted);
        let worth = self.limit_grain();
        if let Some(purse) = self.purse_mut(vcpu.vm) {
            purse.pay(rest.saturating_neg());
        }
        if rest == 0 || self.filled_purse(vcpu.vm, now).is_none() {
            return;
        }
        // It counted on a later time; its own CPU is about to look anyway.
        let next = self.first_ready(vcpu.vm, worth);
        if let Some(cpu) = next.filter(|cpu| Some(*cpu) != left) {
            self.kick(cpu, out);
        }
    }

    /// The CPU of the first in line who is still outside of the queues, if there is enough for it. Who is in a queue already
    /// and was not granted anything yet needs no telling: its CPU would look, give back what its own vCPU was granted, tell
    /// another CPU so, and the two could go on like this for ever.
    fn first_ready(&self, vm: VmId, worth: Nanos) -> Option<CpuId> {
        let purse = self.vcpus.vm(vm)?.purse.as_ref()?;
        let outside = |id: &VcpuId| self.vcpus.get(*id).filter(|v| v.throttled);
        let (id, v) = purse.line().find_map(|id| Some((id, outside(&id)?)))?;
        (purse.left() >= purse.needs(id, worth)).then_some(v.cpu)
    }

    /// Lets those run again whose limit has filled up.
    pub(crate) fn end_limits(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) {
        let worth = self.limit_grain();
        let Some(c) = self.cpus.get_mut(cpu) else {
            return;
        };
        if c.throttled.is_empty() {
            return;
        }
        let all: Vec<VcpuId> = core::mem::take(&mut c.throttled);
        let (mut ready, mut rest) = (Vec::new(), Vec::new());
        for id in all {
            // Respecified or moved meanwhile: no longer this list's.
            if self
                .vcpus
                .get(id)
                .is_none_or(|v| !v.throttled || v.cpu != cpu)
            {
                continue;
            }
            let purse = self.filled_purse(id.vm, now);
            let filled = purse.is_none_or(|purse| purse.left() >= purse.needs(id, worth));
            if filled {
                ready.push(id);
            } else {
                rest.push(id);
            }
        }
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.throttled = rest;
        }
        // They keep their places in line until something is granted to them.
        for id in ready {
            if let Some(v) = self.vcpus.get_mut(id) {
                v.throttled = false;
            }
            self.enqueue(now, id, cpu, out);
        }
    }

    /// A machine that has used up its limit saves up this much before a vCPU of it runs again, so that
    /// slices stay worth a switch.
    fn limit_grain(&self) -> Nanos {
        self.tunables.min_run
    }

    /// Until its request is done or a vCPU that waits for its limit is ready.
    pub(crate) fn slice(&self, cpu: CpuId, vcpu: VcpuId, now: Nanos) -> Nanos {
        let Some(v) = self.vcpus.get(vcpu) else {
            return self.tunables.min_run;
        };
        let mut slice = v.remaining.min(self.tunables.request);
        if let Some(at) = self.next_limit_end(cpu) {
            slice = slice.min(at.since(now).max(self.tunables.min_run));
        }
        slice.max(Nanos(1))
    }

    pub(crate) fn next_limit_end(&self, cpu: CpuId) -> Option<Nanos> {
        let worth = self.limit_grain();
        let throttled = &self.cpus.get(cpu)?.throttled;
        let waits = |id: &VcpuId| {
            let v = self.vcpus.get(*id)?;
            let waits = v.cpu == cpu && v.throttled && v.wants && !v.paused;
            let purse = self.vcpus.vm(id.vm)?.purse.as_ref().filter(|_| waits)?;
            Some(purse.ready_at(purse.needs(*id, worth)))
        };
        throttled.iter().filter_map(waits).min()
    }
}
