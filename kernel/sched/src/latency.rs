//! How long it takes from waking up until a CPU enters: by machine, and by class.
//!
//! The wait counts from the moment in which a vCPU could run (it woke, or its paused machine went on) up to its first pick,
//! time held for its machine's limit included. One that sleeps or is paused again before has not waited for anybody.

use telemetry::{Class, Histogram};
use units::{Nanos, VcpuId, VmId};

use crate::scheduler::Scheduler;

/// Of all machines, by class.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies([Histogram; Class::ALL.len()]);

impl Latencies {
    fn of(&self, class: Class) -> &Histogram {
        let [high, normal, low] = &self.0;
        match class {
            Class::High => high,
            Class::Normal => normal,
            Class::Low => low,
        }
    }

    fn add(&mut self, class: Class, waited: Nanos) {
        let [high, normal, low] = &mut self.0;
        match class {
            Class::High => high.add(waited),
            Class::Normal => normal.add(waited),
            Class::Low => low.add(waited),
        }
    }
}

impl Scheduler {
    /// Waits from waking up to running of a machine's vCPUs; None if it is not known.
    pub fn wake_latency(&self, vm: VmId) -> Option<&Histogram> {
        Some(&self.vcpus.vm(vm)?.latency)
    }

    /// The same of all vCPUs of a class, of machines that are gone as well.
    pub fn wake_latency_of(&self, class: Class) -> &Histogram {
        self.latencies.of(class)
    }

    /// A CPU enters `vcpu`: if it has not run since it woke, it has waited up to now.
    pub(crate) fn note_latency(&mut self, vcpu: VcpuId, now: Nanos) {
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        let class = v.spec.class;
        let Some(woke) = v.woke_at.take() else { return };
        let waited = now.since(woke);
        self.latencies.add(class, waited);
        if let Some(vm) = self.vcpus.vm_mut(vcpu.vm) {
            vm.latency.add(waited);
        }
    }
}
