//! Where a vCPU goes when it wakes, and how it gets from one CPU to another.

use telemetry::MoveReason;
use units::{CpuId, Nanos, Score, VcpuId};

use crate::event::{Command, Commands, Refusal, VcpuSpec};
use crate::queue::{Cpu, move_cost};
use crate::scheduler::Scheduler;
use crate::vcpu::Vcpu;

impl Scheduler {
    /// Where a new vCPU begins: on its home node if that has a CPU for it, where fewest are, on a
    /// core of its own as long as there is one.
    pub(crate) fn first_cpu(&self, spec: &VcpuSpec) -> Option<CpuId> {
        let crowd = |id: &CpuId| self.cpus.get(*id).map_or(0, |c| c.residents.len());
        self.cpus
            .iter()
            .filter(|(cpu, c)| spec.affinity.allows(*cpu, &c.place))
            .min_by_key(|(cpu, c)| {
                (
                    spec.home.is_some_and(|home| home != c.place.node),
                    c.residents.len(),
                    c.siblings.iter().map(crowd).sum::<usize>(),
                    *cpu,
                )
            })
            .map(|(cpu, _)| cpu)
    }

    pub(crate) fn wake(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        out: &mut Commands,
    ) -> Result<(), Refusal> {
        let tunables = self.tunables;
        let v = self.vcpus.get_mut(vcpu).filter(|v| !v.removed);
        let v = v.ok_or(Refusal::UnknownVcpu(vcpu))?;
        if v.wants {
            return Ok(());
        }
        v.advance(now, &tunables);
        v.wants = true;
        v.note_wake(&tunables);
        // Credits of the past neither pay for nor burden a new burst beyond one quantum.
        let bound = i64::try_from(tunables.quantum.0).unwrap_or(i64::MAX);
        v.account = v.account.clamp(-bound, bound);
        if v.runnable() {
            self.start(now, vcpu, out);
        }
        Ok(())
    }

    /// A vCPU became runnable: finds it a CPU and tells whoever must know.
    pub(crate) fn start(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) {
        let Some(to) = self.place(vcpu) else { return };
        let Some(v) = self.vcpus.get(vcpu) else {
            return;
        };
        let (from, ran_before) = (v.cpu, v.last_cpu.is_some());
        if let Some(v) = self.vcpus.get_mut(vcpu) {
            v.woke_at = Some(now);
        }
        self.enqueue(now, vcpu, to, out);
        if from != to && ran_before {
            out.push(Command::Migrate {
                vcpu,
                from,
                to,
                reason: MoveReason::WakeUp,
            });
        }
        self.announce(now, vcpu, out);
    }

    /// The CPU where a runnable vCPU would lose least: by waiting, by distance to its memory, by
    /// moving its cache contents, by a busy sibling thread. All in nanoseconds.
    pub(crate) fn place(&self, vcpu: VcpuId) -> Option<CpuId> {
        let v = self.vcpus.get(vcpu)?;
        // Its last CPU may still be leaving it; only there can nothing go wrong.
        if let Some(cpu) = v.on_cpu.filter(|cpu| self.allowed(vcpu, *cpu)) {
            return Some(cpu);
        }
        let own = self.node_of(v.cpu)?;
        let wish = match self.wish(vcpu) {
            None if !self.has_scores(vcpu) => v.spec.home,
            wish => wish,
        };
        // Where it is and where it should be, every CPU is weighed; elsewhere only one that idles,
        // since who waits there would gain nothing by the way.
        let near = [own].into_iter().chain(wish.filter(|w| *w != own));
        let in_near = near.filter_map(|n| self.node_cpus.get(&n)).flatten();
        let best_of = |cpus: &mut dyn Iterator<Item = CpuId>| {
            cpus.filter(|cpu| self.allowed(vcpu, *cpu))
                .filter_map(|cpu| Some((self.cost_on(vcpu, v, cpu)?, cpu)))
                .min()
        };
        let best = best_of(&mut in_near.copied());
        if best.is_some_and(|((cost, _), _)| cost <= self.tunables.move_near) {
            return best.map(|(_, cpu)| cpu);
        }
        let idle = self.index.idle_from(own);
        let elsewhere = idle.filter(|(node, far, _)| *far && Some(*node) != wish);
        let free = |cpu: &CpuId| self.core_owner(*cpu).is_none_or(|owner| owner == vcpu.vm);
        let mut idle = elsewhere.filter_map(|(_, _, idle)| {
            let mut idle = idle.iter().copied();
            idle.find(|cpu| self.allowed(vcpu, *cpu) && free(cpu))
        });
        let best = best.into_iter().chain(best_of(&mut idle)).min();
        // Nowhere near and nobody idle: anything that it may run on.
        let any = || best_of(&mut self.cpus.iter().map(|(cpu, _)| cpu));
        best.or_else(any).map(|(_, cpu)| cpu)
    }

    /// What a vCPU that wakes would lose on `cpu`, and whether that is another than its own.
    fn cost_on(&self, vcpu: VcpuId, v: &Vcpu, cpu: CpuId) -> Option<(Nanos, bool)> {
        let c = self.cpus.get(cpu)?;
        let t = &self.tunables;
        let last = v.last_cpu.and_then(|l| Some((l, self.cpus.get(l)?.place)));
        let far = self.weigh(vcpu, self.remoteness(vcpu, c));
        let far = Nanos(far.of(t.pull_limit.0));
        let moving = move_cost(last, (cpu, c.place), v.refill, t);
        let sibling = match self.running_sibling(cpu) {
            None => Nanos::ZERO,
            // Another machine's core: this one would wait for it.
            Some(_) if self.core_owner(cpu).is_some_and(|owner| owner != vcpu.vm) => t.request,
            Some(_) => t.move_near,
        };
        let elsewhere = last.is_none() && cpu != v.cpu;
        Some((self.wait_on(vcpu, c) + far + moving + sibling, elsewhere))
    }

    /// How much farther `c` is from its memory than where it is now; other nodes than the
    /// preferred one count as half a machine away at least.
    ///
    /// A nearer node earns nothing here: whether to change nodes for proximity is the planner's
    /// question, which waits for evidence. A wake-up that followed every score would flutter.
    fn remoteness(&self, vcpu: VcpuId, c: &Cpu) -> Score {
        let now = self.vcpus.get(vcpu).and_then(|v| self.node_of(v.cpu));
        let lost = match now {
            Some(now) if self.has_scores(vcpu) => {
                self.score(vcpu, now).above(self.score(vcpu, c.place.node))
            }
            // Without an opinion its home is near, and it returns there.
            _ => Score::ONE.above(self.score(vcpu, c.place.node)),
        };
        match self.ordered(vcpu) {
            Some(node) if node == c.place.node => Score::ZERO,
            Some(_) => lost.max(Score(Score::ONE.0 / 2)),
            None => lost,
        }
    }

    /// About how long it would wait there: its turn comes after a request of each other, as far
    /// as their weight is not less than its own.
    fn wait_on(&self, vcpu: VcpuId, c: &Cpu) -> Nanos {
        let Some(v) = self.vcpus.get(vcpu) else {
            return Nanos::ZERO;
        };
        let mut wait = Nanos::ZERO;
        for class in telemetry::Class::ALL {
            let queue = c.class(class);
            let itself = v.queued && class == v.spec.class && queue.members.contains(&vcpu);
            let others = queue.members.len() as u64 - u64::from(itself);
            if class > v.spec.class || others == 0 {
                continue;
            }
            let weight = queue.weight;
            let share = if class < v.spec.class {
                Score::ONE
            } else {
                Score::ratio(weight.into(), (weight + u64::from(v.weight)).into())
            };
            wait += Nanos(share.of(self.tunables.request.0.saturating_mul(others + 1)));
        }
        wait
    }

    /// A vCPU began to wait in its queue: wakes its CPU if that sleeps or should run it at once,
    /// else offers it to a sleeping one.
    pub(crate) fn announce(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) {
        let Some(v) = self.vcpus.get(vcpu) else {
            return;
        };
        let cpu = v.cpu;
        let Some(c) = self.cpus.get(cpu) else { return };
        match c.current {
            None => self.kick(cpu, out),
            Some(running) if running != vcpu && self.preempts(vcpu, running, cpu) => {
                self.kick(cpu, out);
            }
            Some(_) => self.offer(now, vcpu, out),
        }
    }

    /// Whether `vcpu` should run on `cpu` before `running` does.
    fn preempts(&self, vcpu: VcpuId, running: VcpuId, cpu: CpuId) -> bool {
        let (Some(a), Some(b)) = (self.terms_on(vcpu, cpu), self.terms_on(running, cpu)) else {
            return false;
        };
        a.class < b.class || (a.class == b.class && a.credit.0 >= 0 && a.key < b.key)
    }

    /// Moves a vCPU that nobody runs into another queue.
    pub(crate) fn transfer(&mut self, now: Nanos, vcpu: VcpuId, to: CpuId, out: &mut Commands) {
        let queued = self.dequeue(now, vcpu, out);
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        let since = v.waiting_since;
        v.moved_at = now;
        // Wherever it was to go from the CPU that it leaves, it is on another way now.
        v.move_to = None;
        self.settle_on(vcpu, to);
        if queued {
            self.enqueue(now, vcpu, to, out);
            // It goes on waiting: a move does not make it younger.
            if let Some(v) = self.vcpus.get_mut(vcpu) {
                v.waiting_since = since;
            }
            self.reindex(vcpu);
        }
    }

    /// Sends a vCPU to another CPU: now if nobody runs it, else as soon as its CPU has left it.
    pub(crate) fn send(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        to: CpuId,
        reason: MoveReason,
        out: &mut Commands,
    ) {
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        let from = v.cpu;
        if from == to {
            return;
        }
        if let Some(on) = v.on_cpu {
            v.move_to = Some((to, reason));
            self.kick(on, out);
            return;
        }
        self.transfer(now, vcpu, to, out);
        out.push(Command::Migrate {
            vcpu,
            from,
            to,
            reason,
        });
        self.announce(now, vcpu, out);
    }
}
