//! The scheduler's state and its events.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use telemetry::{MoveReason, Terms};
use units::{CpuId, Nanos, NodeId, Score, VcpuId, VmId};

use crate::event::{Command, Commands, Event, Refusal, VcpuSpec};
use crate::queue::{Cpu, Vcpus, bonus_and_penalty, join_bound, move_cost, terms};
use crate::tunables::Tunables;
use crate::vcpu::Vcpu;

/// What is known of a machine as a whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vm {
    /// Proximity by node; empty is no opinion.
    pub(crate) scores: Vec<Score>,
    pub(crate) preferred: Option<NodeId>,
    pub(crate) paused: bool,
}

/// Scheduler of all CPUs of a host.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) tunables: Tunables,
    pub(crate) cpus: BTreeMap<CpuId, Cpu>,
    /// Nodes that have CPUs, ascending.
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) vcpus: Vcpus,
    pub(crate) vms: BTreeMap<VmId, Vm>,
    pub(crate) balanced_at: Nanos,
}

impl Scheduler {
    /// Without CPUs and vCPUs.
    pub fn new(tunables: Tunables) -> Self {
        Self {
            tunables,
            cpus: BTreeMap::new(),
            nodes: Vec::new(),
            vcpus: Vcpus::new(),
            vms: BTreeMap::new(),
            balanced_at: Nanos::ZERO,
        }
    }

    /// The constants in force.
    pub const fn tunables(&self) -> &Tunables {
        &self.tunables
    }

    /// Changes the constants.
    pub fn set_tunables(&mut self, tunables: Tunables) {
        self.tunables = tunables;
    }

    /// Takes in an event; what is to be done is added to `out`.
    ///
    /// # Errors
    /// [`Refusal`] when the event contradicts the state, which then is unchanged.
    pub fn handle(&mut self, now: Nanos, event: Event, out: &mut Commands) -> Result<(), Refusal> {
        match event {
            Event::CpuOnline { cpu, place } => {
                if self.cpus.contains_key(&cpu) {
                    return Err(Refusal::DuplicateCpu(cpu));
                }
                self.cpus.insert(cpu, Cpu::new(place));
                if let Err(i) = self.nodes.binary_search(&place.node) {
                    self.nodes.insert(i, place.node);
                }
            }
            Event::VcpuAdded { vcpu, spec } => self.add(now, vcpu, spec)?,
            Event::VcpuRemoved { vcpu } => self.remove(now, vcpu, out)?,
            Event::Wake { vcpu } => self.wake(now, vcpu, out)?,
            Event::Block { vcpu } => {
                self.advance(now, vcpu)?.wants = false;
                self.dequeue(now, vcpu);
            }
            Event::Yield { vcpu } => {
                let request = self.tunables.request;
                let v = self.advance(now, vcpu)?;
                v.remaining = request;
                v.yielded = true;
            }
            Event::Charge { cpu, vcpu, ran } => self.charge(now, cpu, vcpu, ran)?,
            Event::ProximityUpdated { vm, scores } => {
                self.vms.entry(vm).or_default().scores = scores;
            }
            Event::CachePenalty { vcpu, penalty } => self.known(vcpu)?.penalty = penalty,
            Event::PreferredNode { vm, node } => {
                self.vms.entry(vm).or_default().preferred = node;
                if node.is_some() {
                    self.move_to_preferred(now, vm, out);
                }
            }
            Event::Respecified { vcpu, spec } => self.respecify(now, vcpu, spec, out)?,
            Event::Paused { vm } => self.set_paused(now, vm, true, out),
            Event::Resumed { vm } => self.set_paused(now, vm, false, out),
        }
        Ok(())
    }

    fn known(&mut self, vcpu: VcpuId) -> Result<&mut Vcpu, Refusal> {
        self.vcpus
            .get_mut(&vcpu)
            .filter(|v| !v.removed)
            .ok_or(Refusal::UnknownVcpu(vcpu))
    }

    /// Brings a vCPU's averages up to date, before its state changes.
    fn advance(&mut self, now: Nanos, vcpu: VcpuId) -> Result<&mut Vcpu, Refusal> {
        let tunables = self.tunables;
        let v = self.known(vcpu)?;
        v.advance(now, &tunables);
        Ok(v)
    }

    fn add(&mut self, now: Nanos, vcpu: VcpuId, spec: VcpuSpec) -> Result<(), Refusal> {
        if self.vcpus.contains_key(&vcpu) {
            return Err(Refusal::DuplicateVcpu(vcpu));
        }
        let cpu = self.first_cpu(&spec).ok_or(Refusal::NowhereToRun(vcpu))?;
        let mut v = Vcpu::new(spec, cpu, now, &self.tunables);
        v.paused = self.vms.entry(vcpu.vm).or_default().paused;
        self.vcpus.insert(vcpu, v);
        Ok(())
    }

    fn remove(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) -> Result<(), Refusal> {
        self.known(vcpu)?;
        self.dequeue(now, vcpu);
        let v = self.known(vcpu)?;
        v.removed = true;
        match v.on_cpu {
            Some(cpu) => self.kick(cpu, out),
            None => {
                self.vcpus.remove(&vcpu);
            }
        }
        if !self
            .vcpus
            .iter()
            .any(|(id, v)| id.vm == vcpu.vm && !v.removed)
        {
            self.vms.remove(&vcpu.vm);
        }
        Ok(())
    }

    fn respecify(
        &mut self,
        now: Nanos,
        vcpu: VcpuId,
        spec: VcpuSpec,
        out: &mut Commands,
    ) -> Result<(), Refusal> {
        self.known(vcpu)?;
        if self.first_cpu(&spec).is_none() {
            return Err(Refusal::NowhereToRun(vcpu));
        }
        // Out and in again: class and weight are the queue's business.
        let queued = self.dequeue(now, vcpu);
        let v = self.advance(now, vcpu)?;
        v.respecify(spec, now);
        v.throttled = v.throttled && v.limit.is_some();
        let (at, runnable) = (v.cpu, v.runnable());
        let stays = self.allowed(vcpu, at);
        if queued || runnable {
            self.enqueue(now, vcpu, at);
        }
        if !stays && let Some(to) = self.place(vcpu) {
            self.send(now, vcpu, to, MoveReason::Affinity, out);
        } else if self.vcpus.get(&vcpu).is_some_and(Vcpu::waiting) {
            self.announce(now, vcpu, out);
        }
        Ok(())
    }

    fn set_paused(&mut self, now: Nanos, vm: VmId, paused: bool, out: &mut Commands) {
        self.vms.entry(vm).or_default().paused = paused;
        let mine: Vec<VcpuId> = self
            .vcpus
            .keys()
            .copied()
            .filter(|id| id.vm == vm)
            .collect();
        for id in mine {
            let Ok(v) = self.advance(now, id) else {
                continue;
            };
            v.paused = paused;
            let (on_cpu, runnable) = (v.on_cpu, v.runnable());
            if paused {
                self.dequeue(now, id);
                if let Some(cpu) = on_cpu {
                    self.kick(cpu, out);
                }
            } else if runnable {
                self.start(now, id, out);
            }
        }
    }

    fn charge(&mut self, now: Nanos, cpu: CpuId, vcpu: VcpuId, ran: Nanos) -> Result<(), Refusal> {
        let tunables = self.tunables;
        let c = self.cpus.get_mut(&cpu).ok_or(Refusal::UnknownCpu(cpu))?;
        if c.current != Some(vcpu) {
            return Err(Refusal::NotRunningHere(vcpu, cpu));
        }
        let ran = ran.min(now.since(c.charged_at));
        c.charged_at = now;
        c.ran += ran;
        let Some(v) = self.vcpus.get_mut(&vcpu) else {
            return Err(Refusal::UnknownVcpu(vcpu));
        };
        v.advance(now, &tunables);
        v.pay(ran, &tunables);
        let class = v.spec.class;
        if v.queued {
            c.class(class).charge(vcpu, ran, &mut self.vcpus);
        }
        c.note_floor(class, ran, &tunables);
        Ok(())
    }

    /// Puts a runnable vCPU into the queue of `cpu`.
    pub(crate) fn enqueue(&mut self, now: Nanos, vcpu: VcpuId, cpu: CpuId) {
        let bound = self.tunables.request;
        let Some(v) = self.vcpus.get_mut(&vcpu) else {
            return;
        };
        if v.queued || !v.runnable() {
            return;
        }
        let Some(c) = self.cpus.get_mut(&cpu) else {
            return;
        };
        v.cpu = cpu;
        v.waiting_since = now;
        let (class, credit) = (v.spec.class, v.credit_on_return(now, bound));
        c.class_mut(class)
            .join(vcpu, credit, join_bound(&self.tunables), &mut self.vcpus);
    }

    /// Takes a vCPU out of its queue; false if it was in none.
    pub(crate) fn dequeue(&mut self, now: Nanos, vcpu: VcpuId) -> bool {
        let Some(v) = self.vcpus.get(&vcpu) else {
            return false;
        };
        let (queued, class) = (v.queued, v.spec.class);
        if queued && let Some(c) = self.cpus.get_mut(&v.cpu) {
            c.class_mut(class).leave(vcpu, now, &mut self.vcpus);
        }
        queued
    }

    pub(crate) fn kick(&mut self, cpu: CpuId, out: &mut Commands) {
        if let Some(c) = self.cpus.get_mut(&cpu) {
            c.kicked = true;
            out.push(Command::Kick { cpu });
        }
    }

    /// How near `cpu` is to what `vcpu` touches. Before the first footprint, its home counts as
    /// near and everything else as half as near.
    pub(crate) fn score(&self, vcpu: VcpuId, node: NodeId) -> Score {
        let known = self
            .vms
            .get(&vcpu.vm)
            .and_then(|vm| vm.scores.get(node.index()));
        let home = self.vcpus.get(&vcpu).and_then(|v| v.spec.home);
        match (known, home) {
            (Some(score), _) => *score,
            (None, Some(home)) if home != node => Score(Score::ONE.0 / 2),
            (None, _) => Score::ONE,
        }
    }

    /// Mean of [`Self::score`] over the nodes that have CPUs.
    fn mean_score(&self, vcpu: VcpuId) -> Score {
        let sum: u64 = self
            .nodes
            .iter()
            .map(|n| u64::from(self.score(vcpu, *n).0))
            .sum();
        let mean = sum / (self.nodes.len() as u64).max(1);
        Score(u32::try_from(mean).unwrap_or(Score::ONE.0))
    }

    /// The sum of `vcpu` on `cpu`.
    pub(crate) fn terms_on(&self, vcpu: VcpuId, cpu: CpuId) -> Option<Terms> {
        let (v, c) = (self.vcpus.get(&vcpu)?, self.cpus.get(&cpu)?);
        let last = v.last_cpu.and_then(|l| Some((l, self.cpus.get(&l)?.place)));
        let cost = move_cost(last, (cpu, c.place), &self.tunables);
        let proximity = self.score(vcpu, c.place.node);
        let (bonus, penalty) =
            bonus_and_penalty(v, proximity, self.mean_score(vcpu), cost, &self.tunables);
        Some(terms(v, bonus, penalty))
    }

    /// Whether `vcpu` may run on `cpu`.
    pub(crate) fn allowed(&self, vcpu: VcpuId, cpu: CpuId) -> bool {
        match (self.vcpus.get(&vcpu), self.cpus.get(&cpu)) {
            (Some(v), Some(c)) => v.spec.affinity.allows(cpu, &c.place),
            _ => false,
        }
    }

    /// CPU time asked for on `cpu`, 65536 = one CPU.
    pub(crate) fn demand_on(&self, cpu: CpuId) -> u64 {
        self.vcpus
            .values()
            .filter(|v| v.cpu == cpu)
            .map(|v| u64::from(v.demand.0))
            .sum()
    }
}
