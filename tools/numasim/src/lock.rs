//! The lock of a lock-heavy VM: taken, wanted, handed over.

use crate::engine::Engine;
use crate::policy::Policy;
use crate::workload::Kind;
use crate::world::Cycle;

impl<P: Policy + ?Sized> Engine<'_, P> {
    /// A vCPU reached the lock, or is through with it.
    pub(crate) fn step_lock(&mut self, cpu: usize, vcpu: usize, kind: Kind) {
        let Some((outside, inside)) = kind.lock() else {
            self.world.vcpus[vcpu].left = f64::INFINITY;
            return;
        };
        let vm = self.world.vcpus[vcpu].vm;
        if self.world.vcpus[vcpu].cycle == Cycle::Inside {
            let work = outside * self.rng.range(0.5, 1.5);
            let v = &mut self.world.vcpus[vcpu];
            v.cycle = Cycle::Outside;
            v.left = work;
            v.rounds += 1;
            self.world.vms[vm].holder = None;
            self.hand_over(vm, inside);
        } else if self.world.vms[vm].holder.is_none() {
            self.take_lock(vcpu, inside);
        } else {
            self.world.vcpus[vcpu].cycle = Cycle::Wants;
            self.world.vms[vm].wants.push(vcpu);
            self.cpus[cpu].spin_since = self.world.now;
        }
    }

    pub(crate) fn take_lock(&mut self, vcpu: usize, inside: f64) {
        let vm = self.world.vcpus[vcpu].vm;
        self.world.vms[vm].holder = Some(vcpu);
        self.world.vms[vm].wants.retain(|w| *w != vcpu);
        let v = &mut self.world.vcpus[vcpu];
        v.cycle = Cycle::Inside;
        v.left = inside;
    }

    /// The lock is free: the first who spins on a CPU has it.
    fn hand_over(&mut self, vm: usize, inside: f64) {
        let vcpus = &self.world.vcpus;
        let next = self.world.vms[vm]
            .wants
            .iter()
            .copied()
            .find(|w| vcpus[*w].on.is_some());
        if let Some(next) = next
            && let Some(cpu) = self.world.vcpus[next].on
        {
            self.settle(cpu);
            self.take_lock(next, inside);
            self.arm(cpu);
        }
    }
}
