//! Work conservation: what an idle CPU may take from others, and when.

use alloc::vec::Vec;
use telemetry::{Class, MoveReason};
use units::{CpuId, Nanos, NodeId, Score, VcpuId};

use crate::event::{Command, Commands};
use crate::scheduler::Scheduler;

/// Something to take: class, whether it is far, since when it waits, its name.
type Prey = (Class, bool, Nanos, VcpuId);

impl Scheduler {
    /// How long `vcpu` must have waited before `to` may take it from its queue.
    ///
    /// Nothing inside a node. Across nodes it grows with the proximity that the move would lose and
    /// with the working set that it would leave behind, up to the limit that work conservation
    /// sets; while the gate between the nodes is closed it is that limit.
    pub(crate) fn pull_delay(&self, vcpu: VcpuId, to: CpuId) -> Nanos {
        let t = &self.tunables;
        let (Some(v), Some(dst)) = (self.vcpus.get(vcpu), self.cpus.get(to)) else {
            return t.pull_limit;
        };
        let Some(src) = self.cpus.get(v.cpu) else {
            return Nanos::ZERO;
        };
        let (from, to_node) = (src.place.node, dst.place.node);
        // An idle CPU was kicked for it and is about to come: whoever takes it away meanwhile gains
        // nothing, and two neighbours would swap theirs for ever. Only a CPU that does not come is
        // not waited for, and its neighbours go first: CPUs of other nodes wait as long again. One that
        // its core's rule keeps idle does not come. The same with one that is about to send its own elsewhere: two that
        // change places would each be taken back by the CPU that they left.
        let leaves = |id| self.vcpus.get(id).is_some_and(|v| v.move_to.is_some());
        if src.kicked && src.current.is_none_or(leaves) {
            return match from == to_node {
                true => t.kick_grace,
                false => t.kick_grace + t.kick_grace,
            };
        }
        if from == to_node {
            return Nanos::ZERO;
        }
        if !self.gates.passable(from, to_node) {
            return t.pull_limit;
        }
        let loss = self.loss(vcpu, v.cpu, to);
        (t.move_far + v.refill + Nanos(loss.of(t.pull_limit.0))).min(t.pull_limit)
    }

    /// Proximity lost by a move, as far as it matters to the vCPU; leaving the preferred node counts as
    /// a half at least.
    pub(crate) fn loss(&self, vcpu: VcpuId, from: CpuId, to: CpuId) -> Score {
        let (Some(src), Some(dst)) = (self.cpus.get(from), self.cpus.get(to)) else {
            return Score::ZERO;
        };
        let (src, dst) = (src.place.node, dst.place.node);
        let loss = self.score(vcpu, src).above(self.score(vcpu, dst));
        let loss = if self.ordered(vcpu) == Some(src) && dst != src {
            loss.max(Score(Score::ONE.0 / 2))
        } else {
            loss
        };
        self.weigh(vcpu, loss)
    }

    /// A part of proximity, as far as it matters to the vCPU.
    pub(crate) fn weigh(&self, vcpu: VcpuId, part: Score) -> Score {
        let stall = self.vcpus.get(vcpu).map_or(Score::ONE, |v| v.stall);
        Score(u32::try_from(stall.of(part.0.into())).unwrap_or(part.0))
    }

    /// Whether `cpu`, if idle, could run a vCPU that waits elsewhere.
    fn could_take(&self, cpu: CpuId, vcpu: VcpuId, now: Nanos) -> bool {
        self.core_owner(cpu).is_none_or(|vm| {
            vm == vcpu.vm && !self.core_is_due(cpu, now) && self.would_run(cpu, vcpu)
        }) && self.vcpus.get(vcpu).is_some_and(|v| v.cpu != cpu)
            && self.allowed(vcpu, cpu)
    }

    /// Whether `cpu`, whose core is its machine's, would run `vcpu` if it came. One that comes and is left to wait would be offered
    /// to the next idle CPU at once, and so on without end.
    fn would_run(&self, cpu: CpuId, vcpu: VcpuId) -> bool {
        self.best(cpu, Some(vcpu.vm)).is_none() && self.may_pay(cpu, vcpu)
    }

    /// No vCPU is taken from one node to another after a shorter wait, as [`Self::pull_delay`] has it; so a long list need not
    /// be looked through to its end.
    fn least_delay(&self, from: NodeId, to: NodeId) -> Nanos {
        let t = &self.tunables;
        let kicked = t.kick_grace + t.kick_grace;
        if from == to {
            Nanos::ZERO
        } else if self.gates.passable(from, to) {
            t.move_far.min(t.pull_limit).min(kicked)
        } else {
            t.pull_limit.min(kicked)
        }
    }

    /// What `cpu` may take now: the highest class, near before far, longest waiting.
    fn prey(&self, cpu: CpuId, now: Nanos) -> Option<Prey> {
        let mut best: Option<Prey> = None;
        let own = self.node_of(cpu)?;
        for (node, far, waiters) in self.index.waiting_from(own) {
            let least = self.least_delay(node, own);
            for class in Class::ALL {
                if best.is_some_and(|(c, f, ..)| (c, f) < (class, far)) {
                    break;
                }
                let ready = waiters
                    .of(class)
                    .iter()
                    .take_while(|(since, _)| *since + least <= now)
                    .find(|(since, id)| {
                        self.could_take(cpu, *id, now) && *since + self.pull_delay(*id, cpu) <= now
                    });
                let found = ready.map(|(since, id)| (class, far, *since, *id));
                if let Some(found) = found
                    && best.is_none_or(|b| found < b)
                {
                    best = Some(found);
                }
            }
        }
        best
    }

    /// When `cpu` could take the first of those who wait elsewhere.
    pub(crate) fn next_pull(&self, cpu: CpuId, now: Nanos) -> Option<Nanos> {
        if !self.index.any_waiting() {
            return None;
        }
        let mut first: Option<Nanos> = None;
        let own = self.node_of(cpu)?;
        for (node, _, waiters) in self.index.waiting_from(own) {
            let least = self.least_delay(node, own);
            for class in Class::ALL {
                for &(since, id) in waiters.of(class) {
                    // Who began to wait later cannot be taken earlier than this.
                    if first.is_some_and(|f| since + least >= f || f <= now) {
                        break;
                    }
                    if self.could_take(cpu, id, now) {
                        let at = since + self.pull_delay(id, cpu);
                        first = Some(first.map_or(at, |f| f.min(at)));
                    }
                }
            }
        }
        first
    }

    /// Takes a waiting vCPU from another CPU, if one may be taken now.
    pub(crate) fn pull(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) -> bool {
        if !self.index.any_waiting() || self.core_is_due(cpu, now) {
            return false;
        }
        let Some((_, far, since, vcpu)) = self.prey(cpu, now) else {
            return false;
        };
        let Some(from) = self.vcpus.get(vcpu).map(|v| v.cpu) else {
            return false;
        };
        let waited = now.since(since);
        if far
            && waited < self.tunables.pull_limit
            && let (Some(a), Some(b)) = (self.node_of(from), self.node_of(cpu))
        {
            self.gates.pay(a, b);
        }
        self.transfer(now, vcpu, cpu, out);
        out.push(Command::Migrate {
            vcpu,
            from,
            to: cpu,
            reason: MoveReason::IdlePull { waited },
        });
        true
    }

    /// Wakes the sleeping CPU that may take a waiting vCPU soonest, unless it looks in time by
    /// itself. That CPU is then counted on: should it take another one, this is asked again.
    pub(crate) fn offer(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) {
        if !self.index.any_idle() {
            return;
        }
        let Some(v) = self.vcpus.get(vcpu).filter(|v| v.waiting()) else {
            return;
        };
        let since = v.waiting_since;
        let mut best: Option<(Nanos, CpuId)> = None;
        let Some(own) = self.node_of(v.cpu) else {
            return;
        };
        for (node, _, idle) in self.index.idle_from(own) {
            // No CPU there could take it earlier than one that was found.
            let earliest = (since + self.least_delay(own, node)).max(now);
            if best.is_some_and(|(at, _)| at < earliest) {
                continue;
            }
            // All CPUs of a node have the same delay.
            let taker = idle.iter().find(|cpu| self.could_take(**cpu, vcpu, now));
            if let Some(&cpu) = taker {
                let at = (since + self.pull_delay(vcpu, cpu)).max(now);
                if best.is_none_or(|b| (at, cpu) < b) {
                    best = Some((at, cpu));
                }
                if at == now {
                    break;
                }
            }
        }
        let Some((at, cpu)) = best else { return };
        let Some(c) = self.cpus.get_mut(cpu) else {
            return;
        };
        if !c.expected_by.contains(&vcpu) {
            c.expected_by.push(vcpu);
        }
        if !c.kicked && c.idle_until.is_none_or(|until| until > at) {
            self.kick(cpu, out);
        }
    }

    /// `cpu` has begun to run something: those who still wait in its queue, and those of other
    /// queues that counted on it, are offered to whoever still sleeps.
    pub(crate) fn offer_left_behind(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) {
        let Some(c) = self.cpus.get_mut(cpu) else {
            return;
        };
        let expected = core::mem::take(&mut c.expected_by);
        if !self.index.any_idle() {
            return;
        }
        let own: Vec<VcpuId> = self
            .cpus
            .get(cpu)
            .into_iter()
            .flat_map(|c| c.members())
            .collect();
        for vcpu in own.into_iter().chain(expected) {
            self.offer(now, vcpu, out);
        }
    }
}
