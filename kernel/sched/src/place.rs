//! Where a vCPU goes when it wakes, and how it gets from one CPU to another.

use alloc::vec::Vec;
use telemetry::MoveReason;
use units::{CpuId, Nanos, Score, VcpuId};

use crate::event::{Command, Commands, Refusal, VcpuSpec};
use crate::queue::{Cpu, move_cost, total_weight};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Where a new vCPU begins: on its home node if that has a CPU for it, where fewest are.
    pub(crate) fn first_cpu(&self, spec: &VcpuSpec) -> Option<CpuId> {
        let crowd = |cpu: CpuId| self.vcpus.values().filter(|v| v.cpu == cpu).count();
        self.cpus
            .iter()
            .filter(|&(&cpu, c)| spec.affinity.allows(cpu, &c.place))
            .min_by_key(|&(&cpu, c)| {
                (
                    spec.home.is_some_and(|home| home != c.place.node),
                    crowd(cpu),
                    cpu,
                )
            })
            .map(|(&cpu, _)| cpu)
    }

    pub(crate) fn wake(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        out: &mut Commands,
    ) -> Result<(), Refusal> {
        let tunables = self.tunables;
        let v = self.vcpus.get_mut(&vcpu).filter(|v| !v.removed);
        let v = v.ok_or(Refusal::UnknownVcpu(vcpu))?;
        if v.wants {
            return Ok(());
        }
        v.advance(now, &tunables);
        v.wants = true;
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
        let Some(v) = self.vcpus.get(&vcpu) else {
            return;
        };
        let (from, ran_before) = (v.cpu, v.last_cpu.is_some());
        self.enqueue(now, vcpu, to);
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
        let v = self.vcpus.get(&vcpu)?;
        // Its last CPU may still be leaving it; only there can nothing go wrong.
        if let Some(cpu) = v.on_cpu.filter(|cpu| self.allowed(vcpu, *cpu)) {
            return Some(cpu);
        }
        let last = v.last_cpu.and_then(|l| Some((l, self.cpus.get(&l)?.place)));
        self.cpus
            .iter()
            .filter(|&(&cpu, _)| self.allowed(vcpu, cpu))
            .min_by_key(|&(&cpu, c)| {
                let far = Nanos(self.remoteness(vcpu, c).of(self.tunables.pull_limit.0));
                let moving = move_cost(last, (cpu, c.place), &self.tunables);
                let sibling = if self.sibling_busy(cpu, c) {
                    self.tunables.move_near
                } else {
                    Nanos::ZERO
                };
                let elsewhere = last.is_none() && cpu != v.cpu;
                (
                    self.wait_on(vcpu, c) + far + moving + sibling,
                    elsewhere,
                    cpu,
                )
            })
            .map(|(&cpu, _)| cpu)
    }

    /// How much farther `c` is from its memory than where it is now; other nodes than the
    /// preferred one count as half a machine away at least.
    ///
    /// A nearer node earns nothing here: whether to change nodes for proximity is the planner's
    /// question, which waits for evidence. A wake-up that followed every score would flutter.
    fn remoteness(&self, vcpu: VcpuId, c: &Cpu) -> Score {
        let vm = self.vms.get(&vcpu.vm);
        let now = self
            .vcpus
            .get(&vcpu)
            .and_then(|v| Some(self.cpus.get(&v.cpu)?.place.node));
        let lost = match now {
            Some(now) if vm.is_some_and(|vm| !vm.scores.is_empty()) => {
                self.score(vcpu, now).above(self.score(vcpu, c.place.node))
            }
            // Without an opinion its home is near, and it returns there.
            _ => Score::ONE.above(self.score(vcpu, c.place.node)),
        };
        match vm.and_then(|vm| vm.preferred) {
            Some(node) if node == c.place.node => Score::ZERO,
            Some(_) => lost.max(Score(Score::ONE.0 / 2)),
            None => lost,
        }
    }

    /// About how long it would wait there: its turn comes after a request of each other, as far
    /// as their weight is not less than its own.
    fn wait_on(&self, vcpu: VcpuId, c: &Cpu) -> Nanos {
        let Some(v) = self.vcpus.get(&vcpu) else {
            return Nanos::ZERO;
        };
        let mut wait = Nanos::ZERO;
        for class in telemetry::Class::ALL {
            let queue = c.class(class);
            let others = queue.members.iter().filter(|m| **m != vcpu).count() as u64;
            if class > v.spec.class || others == 0 {
                continue;
            }
            let weight = total_weight(&queue.members, &self.vcpus);
            let share = if class < v.spec.class {
                Score::ONE
            } else {
                Score::ratio(weight.into(), (weight + u64::from(v.weight)).into())
            };
            wait += Nanos(share.of(self.tunables.request.0.saturating_mul(others + 1)));
        }
        wait
    }

    fn sibling_busy(&self, cpu: CpuId, c: &Cpu) -> bool {
        self.cpus.iter().any(|(&other, o)| {
            other != cpu
                && o.place.node == c.place.node
                && o.place.core == c.place.core
                && o.current.is_some()
        })
    }

    /// A vCPU began to wait in its queue: wakes its CPU if that sleeps or should run it at once,
    /// else offers it to a sleeping one.
    pub(crate) fn announce(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) {
        let Some(v) = self.vcpus.get(&vcpu) else {
            return;
        };
        let cpu = v.cpu;
        let Some(c) = self.cpus.get(&cpu) else { return };
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

    /// Wakes the sleeping CPU that may take a waiting vCPU soonest, unless it looks in time by
    /// itself.
    fn offer(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) {
        let Some(since) = self.vcpus.get(&vcpu).map(|v| v.waiting_since) else {
            return;
        };
        let taker = self
            .cpus
            .iter()
            .filter(|&(&cpu, c)| c.current.is_none() && c.is_empty() && self.allowed(vcpu, cpu))
            .map(|(&cpu, c)| ((since + self.pull_delay(vcpu, cpu)).max(now), cpu, c))
            .min_by_key(|&(at, cpu, _)| (at, cpu));
        if let Some((at, cpu, c)) = taker
            && !c.kicked
            && c.idle_until.is_none_or(|until| until > at)
        {
            self.kick(cpu, out);
        }
    }

    /// After a pick: whoever waits is offered to sleeping CPUs. Not only this CPU's own, because
    /// it may have been the one that another queue's vCPU counted on.
    pub(crate) fn offer_waiting(&mut self, now: Nanos, out: &mut Commands) {
        if self.cpus.values().all(|c| c.current.is_some()) {
            return;
        }
        let waiting: Vec<VcpuId> = self
            .vcpus
            .iter()
            .filter(|(_, v)| v.waiting())
            .map(|(id, _)| *id)
            .collect();
        for vcpu in waiting {
            self.offer(now, vcpu, out);
        }
    }

    /// Moves a vCPU that nobody runs into another queue.
    pub(crate) fn transfer(&mut self, now: Nanos, vcpu: VcpuId, to: CpuId) {
        let queued = self.dequeue(now, vcpu);
        let Some(v) = self.vcpus.get_mut(&vcpu) else {
            return;
        };
        let since = v.waiting_since;
        v.cpu = to;
        v.moved_at = now;
        if queued {
            self.enqueue(now, vcpu, to);
            // It goes on waiting: a move does not make it younger.
            if let Some(v) = self.vcpus.get_mut(&vcpu) {
                v.waiting_since = since;
            }
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
        let Some(v) = self.vcpus.get_mut(&vcpu) else {
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
        self.transfer(now, vcpu, to);
        out.push(Command::Migrate {
            vcpu,
            from,
            to,
            reason,
        });
        self.announce(now, vcpu, out);
    }
}
