//! The decision: which vCPU a CPU enters next.

use alloc::vec::Vec;
use core::cmp::Ordering;
use telemetry::{Class, MoveReason, Pick, Rival, Terms};
use units::{CpuId, Nanos, Score, VcpuId};

use crate::event::{Command, Commands, Next};
use crate::queue::Cpu;
use crate::scheduler::Scheduler;
use crate::tunables::Tunables;

/// A member of the class under consideration.
struct Candidate {
    vcpu: VcpuId,
    terms: Terms,
    /// `remaining - credit - bonus + penalty`, not yet divided by the weight.
    numerator: i128,
    yielded: bool,
}

impl Candidate {
    /// Who comes first. Those who did not yield before those who did; the eligible before those
    /// in debt; among the eligible the smaller key, among debtors the smaller debt; then by name.
    fn order(&self, other: &Self) -> Ordering {
        let eligible = |c: &Self| c.terms.credit.0 >= 0;
        let by_key = || {
            let a = self.numerator * i128::from(other.terms.weight);
            let b = other.numerator * i128::from(self.terms.weight);
            a.cmp(&b)
        };
        let by_debt = || other.terms.credit.cmp(&self.terms.credit);
        self.yielded
            .cmp(&other.yielded)
            .then_with(|| eligible(other).cmp(&eligible(self)))
            .then_with(|| if eligible(self) { by_key() } else { by_debt() })
            .then_with(|| self.vcpu.cmp(&other.vcpu))
    }
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
        self.end_limits(cpu, now);
        if now.since(self.balanced_at) >= self.tunables.balance_period {
            self.balance(now, out);
        }
        let mut choice = self.choose(cpu, continuing);
        if choice.is_none() && self.pull(cpu, now, out) {
            choice = self.choose(cpu, None);
        }
        let next = match choice {
            Some(vcpu) => self.start_running(cpu, vcpu, now),
            None => self.go_idle(cpu, now),
        };
        self.offer_waiting(now, out);
        next
    }

    /// The CPU has left its vCPU. Returns the vCPU if it may be protected from preemption.
    fn release(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) -> Option<VcpuId> {
        let min_run = self.tunables.min_run;
        let c = self.cpus.get_mut(&cpu)?;
        c.kicked = false;
        c.idle_until = None;
        let ran = c.ran;
        let vcpu = c.current.take()?;
        let v = self.vcpus.get_mut(&vcpu)?;
        v.on_cpu = None;
        if v.removed {
            self.vcpus.remove(&vcpu);
            return None;
        }
        v.last_cpu = Some(cpu);
        v.waiting_since = now;
        let pending = v.move_to.take();
        let fresh = ran < min_run && !v.yielded;
        if let Some(limit) = &mut v.limit {
            limit.fill(now, self.tunables.request);
            // A rest that is not worth another entry is saved.
            if v.queued && limit.left().0 < self.tunables.min_run.0 / 8 {
                v.throttled = true;
                self.dequeue(now, vcpu);
            }
        }
        if let Some((to, reason)) = pending.filter(|(to, _)| self.allowed(vcpu, *to)) {
            self.send(now, vcpu, to, reason, out);
            return None;
        }
        let queued = self.vcpus.get(&vcpu).is_some_and(|v| v.queued);
        (fresh && queued).then_some(vcpu)
    }

    /// Lets those run again whose limit has filled up.
    fn end_limits(&mut self, cpu: CpuId, now: Nanos) {
        let (request, worth) = (self.tunables.request, self.limit_grain());
        let mut ready = Vec::new();
        for (id, v) in self
            .vcpus
            .iter_mut()
            .filter(|(_, v)| v.cpu == cpu && v.throttled)
        {
            let Some(limit) = &mut v.limit else { continue };
            limit.fill(now, request);
            if limit.left() >= worth {
                v.throttled = false;
                ready.push(*id);
            }
        }
        for id in ready {
            self.enqueue(now, id, cpu);
        }
    }

    /// A capped vCPU saves up this much before it runs again, so that slices stay worth a switch.
    fn limit_grain(&self) -> Nanos {
        self.tunables.min_run
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

    /// The members of a class that `cpu` could enter, best first.
    fn ranked(&self, cpu: CpuId, class: Class) -> Vec<Candidate> {
        let Some(c) = self.cpus.get(&cpu) else {
            return Vec::new();
        };
        let mut ranked: Vec<Candidate> = c
            .class(class)
            .members
            .iter()
            .filter_map(|&vcpu| {
                let v = self.vcpus.get(&vcpu)?;
                // Never on two CPUs: one that another CPU may still be inside is not a candidate.
                if v.on_cpu.is_some_and(|on| on != cpu) {
                    return None;
                }
                let terms = self.terms_on(vcpu, cpu)?;
                let numerator = i128::from(terms.remaining.0)
                    - i128::from(terms.credit.0)
                    - i128::from(terms.bonus.0)
                    + i128::from(terms.penalty.0);
                Some(Candidate {
                    vcpu,
                    terms,
                    numerator,
                    yielded: v.yielded,
                })
            })
            .collect();
        ranked.sort_by(Candidate::order);
        ranked
    }

    fn choose(&self, cpu: CpuId, continuing: Option<VcpuId>) -> Option<VcpuId> {
        let c = self.cpus.get(&cpu)?;
        let class = self.class_due(c)?;
        let ranked = self.ranked(cpu, class);
        continuing
            .filter(|id| ranked.iter().any(|r| r.vcpu == *id))
            .or_else(|| ranked.first().map(|r| r.vcpu))
            .or_else(|| {
                // The class whose turn it is may only have members that other CPUs are leaving.
                Class::ALL
                    .into_iter()
                    .find_map(|c| Some(self.ranked(cpu, c).first()?.vcpu))
            })
    }

    /// The decision for `vcpu` on `cpu` with its terms and the best of the others.
    pub(crate) fn explain_pick(&self, cpu: CpuId, vcpu: VcpuId, slice: Nanos) -> Option<Pick> {
        let own = self.vcpus.get(&vcpu)?.spec.class;
        let same = self.ranked(cpu, own);
        let others = || Class::ALL.into_iter().filter(|c| *c != own);
        let rival = same
            .into_iter()
            .find(|r| r.vcpu != vcpu)
            .or_else(|| others().find_map(|c| self.ranked(cpu, c).into_iter().next()));
        Some(Pick {
            cpu,
            vcpu,
            slice,
            terms: self.terms_on(vcpu, cpu)?,
            runnable: u16::try_from(self.cpus.get(&cpu)?.members().count()).unwrap_or(u16::MAX),
            alternative: rival.map(|r| Rival {
                vcpu: r.vcpu,
                terms: r.terms,
            }),
        })
    }

    fn start_running(&mut self, cpu: CpuId, vcpu: VcpuId, now: Nanos) -> Next {
        let slice = self.slice(cpu, vcpu, now);
        let why = self.explain_pick(cpu, vcpu, slice);
        if let Some(c) = self.cpus.get_mut(&cpu) {
            // Yielding lasts for one pick.
            for id in c.members() {
                if let Some(v) = self.vcpus.get_mut(&id) {
                    v.yielded = false;
                }
            }
            c.current = Some(vcpu);
            c.picked_at = now;
            c.charged_at = now;
            c.ran = Nanos::ZERO;
        }
        if let Some(v) = self.vcpus.get_mut(&vcpu) {
            v.on_cpu = Some(cpu);
        }
        match why {
            Some(why) => Next::Run { vcpu, slice, why },
            // Chosen among the CPU's members, so both are known and this is not reached.
            None => Next::Idle { until: None },
        }
    }

    /// Until its request is done, its limit is used up, or a capped neighbour is ready.
    fn slice(&self, cpu: CpuId, vcpu: VcpuId, now: Nanos) -> Nanos {
        let Some(v) = self.vcpus.get(&vcpu) else {
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

    fn next_limit_end(&self, cpu: CpuId) -> Option<Nanos> {
        let worth = self.limit_grain();
        self.vcpus
            .values()
            .filter(|v| v.cpu == cpu && v.throttled && v.wants && !v.paused)
            .filter_map(|v| Some(v.limit.as_ref()?.ready_at(worth)))
            .min()
    }

    fn go_idle(&mut self, cpu: CpuId, now: Nanos) -> Next {
        let pull = self.pullable(cpu).into_iter().map(|(at, ..)| at).min();
        let until = [pull, self.next_limit_end(cpu)].into_iter().flatten().min();
        let until = until.map(|t| t.max(now + Nanos(1)));
        if let Some(c) = self.cpus.get_mut(&cpu) {
            c.idle_until = until;
        }
        Next::Idle { until }
    }

    /// How long `vcpu` must have waited before `to` may take it from its queue.
    ///
    /// Nothing inside a node. Across nodes it grows with the proximity that the move would lose,
    /// up to the limit that work conservation sets.
    pub(crate) fn pull_delay(&self, vcpu: VcpuId, to: CpuId) -> Nanos {
        let t = &self.tunables;
        let (Some(v), Some(dst)) = (self.vcpus.get(&vcpu), self.cpus.get(&to)) else {
            return t.pull_limit;
        };
        let Some(src) = self.cpus.get(&v.cpu) else {
            return Nanos::ZERO;
        };
        let base = if src.place.node == dst.place.node {
            Nanos::ZERO
        } else {
            t.move_far
        };
        let loss = self.loss(vcpu, v.cpu, to);
        // An idle CPU was kicked for it and is about to come: whoever takes it away meanwhile gains
        // nothing, and two neighbours would swap theirs for ever. Only a CPU that does not come is not
        // waited for.
        if src.current.is_none() {
            return t.kick_grace;
        }
        (base + Nanos(loss.of(t.pull_limit.0))).min(t.pull_limit)
    }

    /// Proximity lost by a move; leaving the preferred node counts as a half at least.
    pub(crate) fn loss(&self, vcpu: VcpuId, from: CpuId, to: CpuId) -> Score {
        let (Some(src), Some(dst)) = (self.cpus.get(&from), self.cpus.get(&to)) else {
            return Score::ZERO;
        };
        let (src, dst) = (src.place.node, dst.place.node);
        let loss = self.score(vcpu, src).above(self.score(vcpu, dst));
        let preferred = self.vms.get(&vcpu.vm).and_then(|vm| vm.preferred);
        if preferred == Some(src) && dst != src {
            loss.max(Score(Score::ONE.0 / 2))
        } else {
            loss
        }
    }

    /// What waits elsewhere and may run on `cpu`: from when on, and how good it would be to take
    /// it (class, distance, time of waiting, name).
    fn pullable(&self, cpu: CpuId) -> Vec<(Nanos, Class, bool, Nanos, VcpuId)> {
        let node = self.cpus.get(&cpu).map(|c| c.place.node);
        self.vcpus
            .iter()
            .filter(|(id, v)| v.waiting() && v.cpu != cpu && self.allowed(**id, cpu))
            .map(|(&id, v)| {
                let far = self.cpus.get(&v.cpu).map(|c| c.place.node) != node;
                let from = v.waiting_since + self.pull_delay(id, cpu);
                (from, v.spec.class, far, v.waiting_since, id)
            })
            .collect()
    }

    /// Takes a waiting vCPU from another CPU, if one may be taken now.
    fn pull(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) -> bool {
        let best = self
            .pullable(cpu)
            .into_iter()
            .filter(|(from, ..)| *from <= now)
            .min_by_key(|&(_, class, far, since, id)| (class, far, since, id));
        let Some((.., since, vcpu)) = best else {
            return false;
        };
        let Some(from) = self.vcpus.get(&vcpu).map(|v| v.cpu) else {
            return false;
        };
        self.transfer(now, vcpu, cpu);
        let reason = MoveReason::IdlePull {
            waited: now.since(since),
        };
        out.push(Command::Migrate {
            vcpu,
            from,
            to: cpu,
            reason,
        });
        true
    }
}
