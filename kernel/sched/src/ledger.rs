//! Who is charged for what, and who comes into and out of a queue.

use telemetry::Class;
use units::{CpuId, Credits, Nanos, Score, VcpuId};

use crate::event::{Commands, Refusal};
use crate::queue::join_bound;
use crate::scheduler::Scheduler;
use crate::table::Vcpus;

impl Scheduler {
    /// `vcpu` ran for `ran` since the last time that this was said or since it was picked.
    pub(crate) fn charge(
        &mut self,
        now: Nanos,
        cpu: CpuId,
        vcpu: VcpuId,
        ran: Nanos,
    ) -> Result<(), Refusal> {
        let c = self.cpus.get_mut(cpu).ok_or(Refusal::UnknownCpu(cpu))?;
        if c.current != Some(vcpu) {
            return Err(Refusal::NotRunningHere(vcpu, cpu));
        }
        let ahead = core::mem::take(&mut c.charged_ahead);
        let rest = (ran - ahead).min(now.since(c.charged_at));
        self.account(now, cpu, rest);
        Ok(())
    }

    /// Charges whom `cpu` runs up to now, before its queue changes. The CPU's own word for it comes later and is not
    /// charged again.
    fn accrue(&mut self, now: Nanos, cpu: CpuId) {
        let Some(c) = self.cpus.get_mut(cpu) else {
            return;
        };
        let ran = now.since(c.charged_at);
        if c.current.is_some() && ran > Nanos::ZERO {
            c.charged_ahead += ran;
            self.account(now, cpu, ran);
        }
    }

    /// Whom `cpu` runs ran for `ran` up to now.
    fn account(&mut self, now: Nanos, cpu: CpuId, ran: Nanos) {
        let tunables = self.tunables;
        let Some(c) = self.cpus.get_mut(cpu) else {
            return;
        };
        c.charged_at = now;
        c.ran += ran;
        let (Some(vcpu), donor) = (c.current, c.payer) else {
            return;
        };
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        v.advance(now, &tunables);
        v.ran += ran;
        v.burst += ran;
        // What goes beyond the grant, after a late interruption, the machine owes.
        v.granted = v.granted.saturating_sub(Credits::for_time(ran).0);
        let class = v.spec.class;
        // A donor that has left the queue meanwhile cannot pay there: who runs pays.
        let queued =
            |id: VcpuId, all: &Vcpus| all.get(id).is_some_and(|v| v.queued && v.cpu == cpu);
        let payer = donor.filter(|d| queued(*d, &self.vcpus)).unwrap_or(vcpu);
        if let Some(v) = self.vcpus.get_mut(payer) {
            v.advance(now, &tunables);
            v.pay(ran, &tunables);
        }
        if queued(payer, &self.vcpus) {
            c.class(class).charge(payer, ran, &mut self.vcpus);
        }
        c.note_floor(class, ran, &tunables);
    }

    /// Puts a runnable vCPU into the queue of `cpu`.
    pub(crate) fn enqueue(&mut self, now: Nanos, vcpu: VcpuId, cpu: CpuId, out: &mut Commands) {
        let bound = self.tunables.request;
        if self
            .vcpus
            .get(vcpu)
            .is_none_or(|v| v.queued || !v.runnable())
            || self.cpus.get(cpu).is_none()
        {
            return;
        }
        self.accrue(now, cpu);
        self.settle_on(vcpu, cpu);
        let missed = self.missed(now, vcpu, cpu);
        let (Some(v), Some(c)) = (self.vcpus.get_mut(vcpu), self.cpus.get_mut(cpu)) else {
            return;
        };
        v.waiting_since = now;
        c.yielded |= v.yielded;
        let class = v.spec.class;
        let weights = c.class(class).weight + u64::from(v.weight);
        let earned = Score::ratio(v.weight.into(), weights.into()).of(missed.0);
        let credit = v.credit_on_return(now - missed, bound) + Credits::for_time(Nanos(earned)).0;
        let credit = credit.min(Credits::for_time(bound).0);
        c.class_mut(class)
            .join(vcpu, credit, join_bound(&self.tunables), &mut self.vcpus);
        self.requeued(now, vcpu, cpu, class, out);
    }

    /// What `vcpu` slept of the slice that runs on `cpu`. It comes as if at the beginning of that, so that a CPU in the midst
    /// of a long slice does not answer later than one that is about to pick. Who comes from another queue slept for no time.
    fn missed(&self, now: Nanos, vcpu: VcpuId, cpu: CpuId) -> Nanos {
        let of = |id: VcpuId| self.vcpus.get(id);
        let running = self
            .cpus
            .get(cpu)
            .and_then(|c| Some((c.ran, of(c.current?)?)));
        match (running, of(vcpu)) {
            (Some((ran, r)), Some(v)) if r.spec.class == v.spec.class => {
                ran.min(now.since(v.left.0))
            }
            _ => Nanos::ZERO,
        }
    }

    /// Takes a vCPU out of its queue; false if it was in none.
    pub(crate) fn dequeue(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) -> bool {
        let Some(v) = self.vcpus.get(vcpu) else {
            return false;
        };
        let (queued, class, cpu) = (v.queued, v.spec.class, v.cpu);
        if !queued {
            return false;
        }
        self.accrue(now, cpu);
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.class_mut(class).leave(vcpu, now, &mut self.vcpus);
            let paid = c.payer == Some(vcpu);
            self.requeued(now, vcpu, cpu, class, out);
            // Nobody pays any more for whom it left its slice to.
            if paid {
                self.kick(cpu, out);
            }
        }
        true
    }

    /// A queue has changed by `vcpu`.
    fn requeued(&mut self, now: Nanos, vcpu: VcpuId, cpu: CpuId, class: Class, out: &mut Commands) {
        self.reindex(vcpu);
        self.reindex_cpu(cpu);
        self.look_again(now, cpu, class, out);
    }

    /// A vCPU lets the others of its queue come first, once.
    pub(crate) fn note_yield(&mut self, vcpu: VcpuId) {
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        v.yielded = true;
        if let Some(c) = self.cpus.get_mut(v.cpu) {
            c.yielded = true;
        }
    }

    /// A vCPU gives up the rest of its request: the next one begins behind those of the others. A
    /// claim beyond what a newcomer may bring is forgiven: who yields again and again while others
    /// run would pile it up without bound.
    pub(crate) fn give_up(&mut self, now: Nanos, vcpu: VcpuId) {
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        v.remaining = v.request(&self.tunables);
        let most = join_bound(&self.tunables);
        let (cpu, class) = (v.cpu, v.spec.class);
        if !v.queued || v.credit <= most {
            return;
        }
        if let Some(c) = self.cpus.get_mut(cpu) {
            let queue = c.class_mut(class);
            queue.leave(vcpu, now, &mut self.vcpus);
            queue.join(vcpu, most, most, &mut self.vcpus);
        }
    }
}
