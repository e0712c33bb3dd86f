//! The decision: which vCPU a CPU enters next.

use core::cmp::Ordering;
use telemetry::{Class, Pick, Rival};
use units::{CpuId, Nanos, VcpuId, VmId};

use crate::donate::Donation;
use crate::event::{Commands, Next};
use crate::queue::Cpu;
use crate::scheduler::Scheduler;
use crate::tunables::Tunables;

/// A member of the class under consideration, with what it is compared by. The terms of the sum, in which weights are
/// divided by, are only made for the two that are shown.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) vcpu: VcpuId,
    weight: u32,
    credit: i64,
    remaining: Nanos,
    /// `remaining - credit - bonus + penalty`, not yet divided by the weight.
    numerator: i128,
    yielded: bool,
    /// Comes before every order: see [`crate::guard`].
    presses: bool,
}

impl Candidate {
    /// Who comes first. Those who press, by how much; the eligible before those in debt; those who did not yield before those who
    /// did; among the eligible the smaller key, among debtors the smaller debt; then by name.
    ///
    /// A yield gives way to those who are owed time as well. Were it to let debtors run, one that
    /// yields all the time would pile up a claim, and they a debt, without bound.
    fn order(&self, other: &Self) -> Ordering {
        let eligible = |c: &Self| c.credit >= 0;
        let by_key = || {
            let a = self.numerator * i128::from(other.weight);
            let b = other.numerator * i128::from(self.weight);
            a.cmp(&b)
        };
        let by_credit = || other.credit.cmp(&self.credit);
        let by_deadline = eligible(self) && !self.presses;
        (other.presses.cmp(&self.presses))
            .then_with(|| eligible(other).cmp(&eligible(self)))
            .then_with(|| (self.yielded && !self.presses).cmp(&(other.yielded && !other.presses)))
            .then_with(|| if by_deadline { by_key() } else { by_credit() })
            .then_with(|| self.vcpu.cmp(&other.vcpu))
    }
}

/// Whom a CPU runs and who is next best in its class.
#[derive(Clone, Copy)]
struct Choice {
    vcpu: VcpuId,
    rival: Option<Candidate>,
}

impl Cpu {
    /// While `class` runs, lower classes with members are owed their floor; what the class itself
    /// was owed is paid.
    pub(crate) fn note_floor(&mut self, class: Class, ran: Nanos, tunables: &Tunables) {
        let floor = u64::from(tunables.floor_per_mille.min(500));
        // floor / (1 - floor), so that the floor is a share of all time and not of the others'.
        let owed = Nanos(ran.0 / (1000 - floor) * floor);
        let most = tunables.request + tunables.request;
        for lower in Class::ALL {
            let queue = self.class_mut(lower);
            if lower == class {
                queue.floor_owed = queue.floor_owed - ran;
            } else if lower > class && !queue.members.is_empty() {
                queue.floor_owed = (queue.floor_owed + owed).min(most);
            }
        }
    }
}

impl Scheduler {
    /// What `cpu` does next. It has left its last vCPU, charged for it, and saved its state.
    pub fn pick(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) -> Next {
        let continuing = self.release(cpu, now, out);
        self.end_limits(cpu, now, out);
        self.balance(now, out);
        let donation = self.take_donation(cpu);
        self.balance_core(cpu, now, out);
        if donation.is_none() && self.gives_way(cpu) {
            if let Some(c) = self.cpus.get_mut(cpu) {
                c.protected = Nanos::ZERO;
            }
            return self.go_idle(cpu, now, Some(now + self.tunables.request), out);
        }
        let mut choice = match donation {
            Some(d) => Some(Choice {
                vcpu: d.to,
                rival: self.best(cpu, None).filter(|b| b.vcpu != d.to),
            }),
            None => self.choose_paid(cpu, now, continuing, out),
        };
        if choice.is_none() && self.pull(cpu, now, out) {
            choice = self.choose_paid(cpu, now, None, out);
        }
        let protected = continuing.filter(|(vcpu, _)| choice.is_some_and(|c| c.vcpu == *vcpu));
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.protected = protected.map_or(Nanos::ZERO, |(_, ran)| ran);
        }
        match choice {
            Some(choice) => self.start_running(cpu, choice, now, donation, out),
            None => {
                let kept = self.core_owner(cpu).map(|_| now + self.tunables.request);
                self.go_idle(cpu, now, kept, out)
            }
        }
    }

    /// The CPU has left its vCPU. Returns the vCPU if it may be protected from preemption, and what it ran.
    fn release(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) -> Option<(VcpuId, Nanos)> {
        let min_run = self.tunables.min_run;
        let c = self.cpus.get_mut(cpu)?;
        c.kicked = false;
        c.idle_until = None;
        let (ran, donated) = (c.protected + c.ran, c.payer.take().is_some());
        c.protected = Nanos::ZERO;
        let vcpu = c.current.take()?;
        self.settle_grant(vcpu, now, out);
        let v = self.vcpus.get_mut(vcpu)?;
        v.on_cpu = None;
        if v.removed {
            self.drop_vcpu(vcpu);
            return None;
        }
        v.last_cpu = Some(cpu);
        v.waiting_since = now;
        let pending = v.move_to.take();
        let fresh = ran < min_run && !v.yielded && !donated;
        // A rest that is not worth another entry is saved.
        if self.vcpus.get(vcpu).is_some_and(|v| v.queued) {
            self.hold_if_exhausted(now, vcpu, out);
        }
        self.reindex(vcpu);
        if let Some((to, reason)) = pending.filter(|(to, _)| self.allowed(vcpu, *to)) {
            self.send(now, vcpu, to, reason, out);
            return None;
        }
        let queued = self.vcpus.get(vcpu).is_some_and(|v| v.queued);
        (fresh && queued).then_some((vcpu, ran))
    }

    /// The class whose turn it is: the lowest one whose floor is due, else the highest.
    fn class_due(&self, c: &Cpu) -> Option<Class> {
        let present = |class: &Class| !c.class(*class).members.is_empty();
        let due = |class: &Class| c.class(*class).floor_owed >= self.tunables.request;
        let highest = Class::ALL.into_iter().find(present)?;
        let owed = Class::ALL
            .into_iter()
            .rev()
            .find(|class| present(class) && due(class));
        Some(owed.unwrap_or(highest))
    }

    /// The member of a class that `cpu` could best enter and the next best one, of one machine only
    /// if `only` says so.
    fn best_two(
        &self,
        cpu: CpuId,
        class: Class,
        only: Option<VmId>,
    ) -> (Option<Candidate>, Option<Candidate>) {
        let Some(c) = self.cpus.get(cpu) else {
            return (None, None);
        };
        let (mut first, mut second): (Option<Candidate>, Option<Candidate>) = (None, None);
        for &vcpu in &c.class(class).members {
            let Some(v) = self.vcpus.get(vcpu) else {
                continue;
            };
            // Never on two CPUs: one that another CPU may still be inside is not a candidate.
            if v.on_cpu.is_some_and(|on| on != cpu) || only.is_some_and(|vm| vm != vcpu.vm) {
                continue;
            }
            let (bonus, penalty) = self.bonus_on(vcpu, v, cpu, c);
            let this = Candidate {
                vcpu,
                weight: v.weight,
                credit: v.credit,
                remaining: v.remaining,
                numerator: i128::from(v.remaining.0) - i128::from(v.credit) - i128::from(bonus)
                    + i128::from(penalty),
                yielded: v.yielded,
                presses: self.tunables.presses(v.credit),
            };
            if first.is_none_or(|f| this.order(&f).is_lt()) {
                second = first.replace(this);
            } else if second.is_none_or(|s| this.order(&s).is_lt()) {
                second = Some(this);
            }
        }
        (first, second)
    }

    /// The best of what `cpu` has in its own queues, and the next best of the same class.
    fn best_of_queues(
        &self,
        cpu: CpuId,
        only: Option<VmId>,
    ) -> Option<(Candidate, Option<Candidate>)> {
        let c = self.cpus.get(cpu)?;
        let due = self.class_due(c)?;
        let two = |class| {
            let (first, second) = self.best_two(cpu, class, only);
            Some((first?, second))
        };
        // The class whose turn it is may only have members that other CPUs are leaving.
        two(due).or_else(|| Class::ALL.into_iter().find_map(two))
    }

    /// The best of what `cpu` has in its own queues.
    pub(crate) fn best(&self, cpu: CpuId, only: Option<VmId>) -> Option<Candidate> {
        Some(self.best_of_queues(cpu, only)?.0)
    }

    /// Whether a vCPU that was given the CPU a moment ago leaves it to `best` all the same: that one is through before its
    /// turn would come, so that to wait costs it more than to let it pass costs the other.
    ///
    /// A tenth of the protected time remains protected, so that a switch is worth its price.
    fn lets_pass(&self, ran: Nanos, best: &Candidate) -> bool {
        let short = Nanos(self.tunables.min_run.0 / 2);
        let enough = Nanos(self.tunables.min_run.0 / 10);
        best.remaining <= short && best.credit >= 0 && ran >= enough
    }

    /// Whom `cpu` runs and who is next best, among those whose machines' limits leave them something.
    fn choose_paid(
        &mut self,
        cpu: CpuId,
        now: Nanos,
        continuing: Option<(VcpuId, Nanos)>,
        out: &mut Commands,
    ) -> Option<Choice> {
        loop {
            let choice = self.choose(cpu, now, continuing)?;
            if !self.hold_if_exhausted(now, choice.vcpu, out) {
                return Some(choice);
            }
        }
    }

    /// Whom `cpu` runs and who is next best.
    fn choose(
        &self,
        cpu: CpuId,
        now: Nanos,
        continuing: Option<(VcpuId, Nanos)>,
    ) -> Option<Choice> {
        let only = self.core_owner(cpu);
        if only.is_some() && self.core_is_due(cpu, now) {
            return None;
        }
        let (best, next) = self.best_of_queues(cpu, only)?;
        // What the core's owner may still have is not worth another's lag.
        if only.is_some() && !self.may_pay(cpu, best.vcpu) {
            return None;
        }
        let class = |id: VcpuId| self.vcpus.get(id).map(|v| v.spec.class);
        let stays = continuing.filter(|(id, ran)| {
            class(*id) == class(best.vcpu)
                && !best.presses
                && !self.lets_pass(*ran, &best)
                && only.is_none_or(|vm| vm == id.vm)
                && self
                    .vcpus
                    .get(*id)
                    .is_some_and(|v| v.queued && v.cpu == cpu)
        });
        let vcpu = stays.map_or(best.vcpu, |(id, _)| id);
        let rival = if vcpu == best.vcpu { next } else { Some(best) };
        Some(Choice { vcpu, rival })
    }

    /// The decision for `vcpu` on `cpu` with its terms and the best of the others.
    pub(crate) fn explain_pick(&self, cpu: CpuId, vcpu: VcpuId, slice: Nanos) -> Option<Pick> {
        let own = self.vcpus.get(vcpu)?.spec.class;
        let (first, second) = self.best_two(cpu, own, None);
        let rival = first.filter(|c| c.vcpu != vcpu).or(second);
        self.explain(cpu, vcpu, slice, rival)
    }

    /// The same, where the best of the same class is known.
    fn explain(
        &self,
        cpu: CpuId,
        vcpu: VcpuId,
        slice: Nanos,
        rival: Option<Candidate>,
    ) -> Option<Pick> {
        let own = self.vcpus.get(vcpu)?.spec.class;
        let rest = Class::ALL.into_iter().filter(|c| *c != own);
        let rival = rival.or_else(|| rest.map(|c| self.best_two(cpu, c, None).0).find_map(|c| c));
        Some(Pick {
            cpu,
            vcpu,
            slice,
            terms: self.terms_on(vcpu, cpu)?,
            runnable: u16::try_from(self.cpus.get(cpu)?.len()).unwrap_or(u16::MAX),
            alternative: rival.and_then(|r| {
                Some(Rival {
                    vcpu: r.vcpu,
                    terms: self.terms_on(r.vcpu, cpu)?,
                })
            }),
        })
    }

    fn start_running(
        &mut self,
        cpu: CpuId,
        choice: Choice,
        now: Nanos,
        donation: Option<Donation>,
        out: &mut Commands,
    ) -> Next {
        let vcpu = choice.vcpu;
        let mut slice = match donation {
            Some(d) => d.slice.min(self.slice(cpu, d.donor, now)),
            None => self.slice(cpu, vcpu, now),
        };
        // Protection ends: whoever would have run instead is not left out for a whole slice.
        let protected = self.cpus.get(cpu).map_or(Nanos::ZERO, |c| c.protected);
        if protected > Nanos::ZERO {
            let rest = self.tunables.min_run - protected;
            let behind = self.best(cpu, None).is_some_and(|b| b.vcpu != vcpu);
            slice = if behind {
                slice.min(rest).max(Nanos(1))
            } else {
                slice
            };
        }
        let slice = self.guarded(cpu, donation.map_or(vcpu, |d| d.donor), slice);
        let slice = self.grant(vcpu, slice, now);
        let why = self.explain(cpu, vcpu, slice, choice.rival);
        let core_since = self.core_since(cpu, now);
        if let Some(c) = self.cpus.get_mut(cpu) {
            // Yielding lasts for one pick.
            if core::mem::take(&mut c.yielded) {
                for id in c.members() {
                    if let Some(v) = self.vcpus.get_mut(id) {
                        v.yielded = false;
                    }
                }
            }
            c.current = Some(vcpu);
            c.until = now + slice;
            c.charged_at = now;
            c.charged_ahead = Nanos::ZERO;
            c.ran = Nanos::ZERO;
            c.payer = donation.map(|d| d.donor);
            c.core_since = core_since;
        }
        if let Some(v) = self.vcpus.get_mut(vcpu) {
            v.on_cpu = Some(cpu);
            v.spun = false;
        }
        self.note_latency(vcpu, now);
        self.reindex(vcpu);
        self.reindex_cpu(cpu);
        self.offer_left_behind(cpu, now, out);
        self.invite_siblings(cpu, vcpu.vm, out);
        match why {
            Some(why) => Next::Run { vcpu, slice, why },
            // Chosen among the CPU's members, so both are known and this is not reached.
            None => Next::Idle { until: None },
        }
    }

    /// `forced` is until when it is kept idle for another machine's sake, if it is.
    fn go_idle(
        &mut self,
        cpu: CpuId,
        now: Nanos,
        forced: Option<Nanos>,
        out: &mut Commands,
    ) -> Next {
        self.reindex_cpu(cpu);
        let until = [self.next_pull(cpu, now), self.next_limit_end(cpu), forced];
        let until = until.into_iter().flatten().min();
        let until = until.map(|t| t.max(now + Nanos(1)));
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.idle_until = until;
            if forced.is_some() && c.members().next().is_some() {
                c.kept_idle += 1;
            }
        }
        self.free_siblings(cpu, out);
        if forced.is_some() {
            // What counted on this CPU, or waits here, may have a better place.
            self.offer_left_behind(cpu, now, out);
        }
        Next::Idle { until }
    }
}
