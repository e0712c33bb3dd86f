//! A spinning vCPU leaves its slice to a preempted neighbour.
//!
//! Who spins in a PAUSE loop waits for another vCPU of its machine, and if that has no CPU the
//! rest of the slice is lost on both. So the slice goes to a neighbour that was preempted (not one
//! that spun itself): the one that has waited longest, which passes through all of them when the
//! first was not the holder of the lock (KVM's directed yield does the same, `kvm_vcpu_on_spin`).
//! The neighbour comes to the spinner's CPU if it waits on another one of the same node, and goes home after the slice: two of
//! one machine that stayed on one CPU would get no more than that between them, however much is theirs. From another node the
//! way would cost more than a slice.
//!
//! No more is left than the donor can pay for within the bound of its lag, and nothing while somebody else presses
//! (`guard`).
//!
//! Nobody else pays: the donor's credit, limit and account are charged for what the neighbour runs,
//! so a machine gains no time by spinning and other machines' lags are what they would be.

use telemetry::MoveReason;
use units::{CpuId, Nanos, VcpuId};

use crate::event::{Command, Commands, Refusal};
use crate::scheduler::Scheduler;

/// A slice on its way to a neighbour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Donation {
    pub(crate) donor: VcpuId,
    pub(crate) to: VcpuId,
    pub(crate) slice: Nanos,
}

impl Scheduler {
    /// `vcpu` spins on its CPU.
    pub(crate) fn spin(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        out: &mut Commands,
    ) -> Result<(), Refusal> {
        let v = self.advance(now, vcpu)?;
        v.spun = true;
        let (cpu, slice) = (v.on_cpu, v.remaining);
        self.note_yield(vcpu);
        let to = cpu
            .filter(|cpu| self.tunables.donate && self.may_pay(*cpu, vcpu))
            .and_then(|cpu| Some((cpu, self.preempted_neighbour(vcpu, cpu)?)));
        let Some((cpu, to)) = to else {
            // As if it had yielded.
            self.give_up(now, vcpu);
            return Ok(());
        };
        let from = self.vcpus.get(to).map_or(cpu, |v| v.cpu);
        if from != cpu {
            self.transfer(now, to, cpu, out);
            if let Some(v) = self.vcpus.get_mut(to) {
                v.move_to = Some((from, MoveReason::Visited));
            }
            out.push(Command::Migrate {
                vcpu: to,
                from,
                to: cpu,
                reason: MoveReason::Donated { by: vcpu },
            });
        }
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.donation = Some(Donation {
                donor: vcpu,
                to,
                slice,
            });
        }
        Ok(())
    }

    /// The neighbour that has waited longest after a preemption and may run on `cpu`.
    fn preempted_neighbour(&self, donor: VcpuId, cpu: CpuId) -> Option<VcpuId> {
        let class = self.vcpus.get(donor)?.spec.class;
        let node = self.cpus.get(cpu)?.place.node;
        self.vcpus
            .of(donor.vm)
            .filter(|(id, v)| {
                *id != donor
                    && v.waiting()
                    && !v.spun
                    && v.spec.class == class
                    && self.node_of(v.cpu) == Some(node)
                    && self.allowed(*id, cpu)
            })
            .min_by_key(|(id, v)| (v.waiting_since, *id))
            .map(|(id, _)| id)
    }

    /// What `cpu` was left by the vCPU that it has just put down, if it still holds.
    pub(crate) fn take_donation(&mut self, cpu: CpuId) -> Option<Donation> {
        let donation = self.cpus.get_mut(cpu)?.donation.take()?;
        let here = |id: VcpuId| {
            self.vcpus
                .get(id)
                .is_some_and(|v| v.waiting() && v.cpu == cpu)
        };
        let holds = here(donation.to) && here(donation.donor) && self.may_pay(cpu, donation.donor);
        holds.then_some(donation)
    }
}
