//! The scheduler's state and its events.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use telemetry::{Histogram, MoveReason};
use units::{CpuId, Nanos, NodeId, Score, VcpuId, VmId};

use crate::event::{Command, Commands, CpuPlace, Event, Refusal, VcpuSpec};
use crate::gate::Gates;
use crate::latency::Latencies;
use crate::purse::Purse;
use crate::queue::Cpu;
use crate::round::Round;
use crate::score::mean;
use crate::table::{Cpus, MAX_CPUS, Vcpus};
use crate::tunables::Tunables;
use crate::vcpu::Vcpu;
use crate::waiting::Index;

/// What is known of a machine as a whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vm {
    /// Proximity by node; empty is no opinion.
    pub(crate) scores: Vec<Score>,
    /// Their mean over nodes with CPUs.
    pub(crate) mean: Score,
    pub(crate) preferred: Option<NodeId>,
    pub(crate) paused: bool,
    /// Its limit, if it has one.
    pub(crate) purse: Option<Purse>,
    /// Waits of its vCPUs from waking up to running.
    pub(crate) latency: Histogram,
}

/// Scheduler of all CPUs of a host.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) tunables: Tunables,
    pub(crate) cpus: Cpus,
    /// Nodes that have CPUs, ascending.
    pub(crate) nodes: Vec<NodeId>,
    /// The CPUs of each of them, ascending.
    pub(crate) node_cpus: BTreeMap<NodeId, Vec<CpuId>>,
    pub(crate) vcpus: Vcpus,
    pub(crate) index: Index,
    pub(crate) gates: Gates,
    /// When the last round began.
    pub(crate) balanced_at: Nanos,
    pub(crate) round: Round,
    /// When a node's vCPUs were last to be divided anew.
    pub(crate) packed_at: Nanos,
    pub(crate) latencies: Latencies,
}

impl Scheduler {
    /// Without CPUs and vCPUs.
    pub fn new(tunables: Tunables) -> Self {
        Self {
            tunables,
            cpus: Cpus::default(),
            nodes: Vec::new(),
            node_cpus: BTreeMap::new(),
            vcpus: Vcpus::default(),
            index: Index::default(),
            gates: Gates::default(),
            balanced_at: Nanos::ZERO,
            round: Round::default(),
            packed_at: Nanos::ZERO,
            latencies: Latencies::default(),
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
            Event::CpuOnline { cpu, place } => self.online(cpu, place)?,
            Event::VcpuAdded { vcpu, spec } => self.add(now, vcpu, spec)?,
            Event::VcpuRemoved { vcpu } => self.remove(now, vcpu, out)?,
            Event::Wake { vcpu } => self.wake(now, vcpu, out)?,
            Event::Block { vcpu } => {
                let v = self.advance(now, vcpu)?;
                v.wants = false;
                v.woke_at = None;
                v.note_sleep();
                self.dequeue(now, vcpu, out);
            }
            Event::Yield { vcpu } => {
                self.advance(now, vcpu)?;
                self.note_yield(vcpu);
                self.give_up(now, vcpu);
            }
            Event::Spin { vcpu } => self.spin(now, vcpu, out)?,
            Event::Charge { cpu, vcpu, ran } => self.charge(now, cpu, vcpu, ran)?,
            Event::ProximityUpdated { vm, scores } => {
                let mean = mean(&scores, &self.nodes);
                if let Some(vm) = self.vcpus.vm_mut(vm) {
                    (vm.scores, vm.mean) = (scores, mean);
                }
            }
            Event::VcpuProximity { vcpu, scores } => self.set_own(vcpu, scores)?,
            Event::Overhead { vm, took } => self.overhead(now, vm, took),
            Event::BonusWeighed { part } => self.tunables.proximity_per_mille = part.0,
            Event::Donating { on } => self.tunables.donate = on,
            Event::CachePenalty {
                vcpu,
                stall,
                penalty,
                refill,
            } => {
                let v = self.known(vcpu)?;
                (v.stall, v.penalty, v.refill) = (stall, penalty, refill);
            }
            Event::PreferredNode { vm, node } => {
                if let Some(vm) = self.vcpus.vm_mut(vm) {
                    vm.preferred = node;
                }
                if node.is_some() {
                    self.move_to_preferred(now, vm, |_| true, out);
                }
            }
            Event::Respecified { vcpu, spec } => self.respecify(now, vcpu, spec, out)?,
            Event::Paused { vm } => self.set_paused(now, vm, true, out),
            Event::Resumed { vm } => self.set_paused(now, vm, false, out),
        }
        Ok(())
    }

    /// A processor is there: it learns who shares its core, and means over nodes are taken anew.
    fn online(&mut self, cpu: CpuId, place: CpuPlace) -> Result<(), Refusal> {
        if self.cpus.get(cpu).is_some() {
            return Err(Refusal::DuplicateCpu(cpu));
        }
        if cpu.0 >= MAX_CPUS {
            return Err(Refusal::CpuOutOfRange(cpu));
        }
        let mut fresh = Cpu::new(place);
        fresh.siblings = self
            .cpus
            .iter()
            .filter(|(_, c)| c.place.node == place.node && c.place.core == place.core)
            .map(|(id, _)| id)
            .collect();
        for sibling in fresh.siblings.clone() {
            if let Some(c) = self.cpus.get_mut(sibling) {
                c.siblings.push(cpu);
            }
        }
        self.cpus.insert(cpu, fresh);
        let cpus = self.node_cpus.entry(place.node).or_default();
        if let Err(i) = cpus.binary_search(&cpu) {
            cpus.insert(i, cpu);
        }
        if let Err(i) = self.nodes.binary_search(&place.node) {
            self.nodes.insert(i, place.node);
            let vms: Vec<VmId> = self.vcpus.vms().map(|(vm, _)| vm).collect();
            for vm in vms {
                if let Some(vm) = self.vcpus.vm_mut(vm) {
                    vm.mean = mean(&vm.scores, &self.nodes);
                }
            }
            self.own_means();
        }
        self.reindex_cpu(cpu);
        // One that is under way has counted other CPUs.
        self.round = Round::default();
        Ok(())
    }

    fn known(&mut self, vcpu: VcpuId) -> Result<&mut Vcpu, Refusal> {
        self.vcpus
            .get_mut(vcpu)
            .filter(|v| !v.removed)
            .ok_or(Refusal::UnknownVcpu(vcpu))
    }

    /// Brings a vCPU's averages up to date, before its state changes.
    pub(crate) fn advance(&mut self, now: Nanos, vcpu: VcpuId) -> Result<&mut Vcpu, Refusal> {
        let tunables = self.tunables;
        let v = self.known(vcpu)?;
        v.advance(now, &tunables);
        Ok(v)
    }

    fn add(&mut self, now: Nanos, vcpu: VcpuId, spec: VcpuSpec) -> Result<(), Refusal> {
        if self.vcpus.get(vcpu).is_some() {
            return Err(Refusal::DuplicateVcpu(vcpu));
        }
        let cpu = self.first_cpu(&spec).ok_or(Refusal::NowhereToRun(vcpu))?;
        let mut v = Vcpu::new(spec, cpu, now, &self.tunables);
        v.paused = self.vcpus.vm_mut(vcpu.vm).is_some_and(|vm| vm.paused);
        self.set_limit(now, vcpu.vm, v.spec.cap);
        self.vcpus.insert(vcpu, v);
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.residents.push(vcpu);
        }
        Ok(())
    }

    fn remove(&mut self, now: Nanos, vcpu: VcpuId, out: &mut Commands) -> Result<(), Refusal> {
        self.known(vcpu)?;
        self.dequeue(now, vcpu, out);
        let v = self.known(vcpu)?;
        v.removed = true;
        match v.on_cpu {
            Some(cpu) => self.kick(cpu, out),
            None => self.drop_vcpu(vcpu),
        }
        if self.vcpus.of(vcpu.vm).all(|(_, v)| v.removed) {
            self.vcpus.forget_vm(vcpu.vm);
        }
        Ok(())
    }

    /// Forgets a vCPU that no CPU is inside.
    pub(crate) fn drop_vcpu(&mut self, vcpu: VcpuId) {
        if let Some(c) = self
            .vcpus
            .get(vcpu)
            .map(|v| v.cpu)
            .and_then(|cpu| self.cpus.get_mut(cpu))
        {
            c.residents.retain(|id| *id != vcpu);
        }
        self.leave_line(vcpu);
        self.vcpus.remove(vcpu);
    }

    /// Makes `cpu` the one that a vCPU belongs to.
    pub(crate) fn settle_on(&mut self, vcpu: VcpuId, cpu: CpuId) {
        let Some(v) = self.vcpus.get_mut(vcpu) else {
            return;
        };
        let throttled = v.throttled;
        let old = core::mem::replace(&mut v.cpu, cpu);
        if old == cpu {
            return;
        }
        if let Some(c) = self.cpus.get_mut(old) {
            c.residents.retain(|id| *id != vcpu);
        }
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.residents.push(vcpu);
            if throttled {
                c.throttled.push(vcpu);
            }
        }
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
        let queued = self.dequeue(now, vcpu, out);
        self.set_limit(now, vcpu.vm, spec.cap);
        // Whoever waited for the old limit asks again.
        self.leave_line(vcpu);
        let v = self.advance(now, vcpu)?;
        v.respecify(spec);
        let (at, runnable) = (v.cpu, v.runnable());
        let stays = self.allowed(vcpu, at);
        if queued || runnable {
            self.enqueue(now, vcpu, at, out);
        }
        if !stays && let Some(to) = self.place(vcpu) {
            self.send(now, vcpu, to, MoveReason::Affinity, out);
        } else if self.vcpus.get(vcpu).is_some_and(Vcpu::waiting) {
            self.announce(now, vcpu, out);
        }
        Ok(())
    }

    fn set_paused(&mut self, now: Nanos, vm: VmId, paused: bool, out: &mut Commands) {
        if let Some(vm) = self.vcpus.vm_mut(vm) {
            vm.paused = paused;
        }
        let mine: Vec<VcpuId> = self.vcpus.of(vm).map(|(id, _)| id).collect();
        for id in mine {
            let Ok(v) = self.advance(now, id) else {
                continue;
            };
            v.paused = paused;
            let (on_cpu, runnable) = (v.on_cpu, v.runnable());
            if paused {
                v.woke_at = None;
                self.dequeue(now, id, out);
                if let Some(cpu) = on_cpu {
                    self.kick(cpu, out);
                }
            } else if runnable {
                self.start(now, id, out);
            }
        }
    }

    pub(crate) fn kick(&mut self, cpu: CpuId, out: &mut Commands) {
        if let Some(c) = self.cpus.get_mut(cpu) {
            c.kicked = true;
            out.push(Command::Kick { cpu });
        }
    }

    /// Whether `vcpu` may run on `cpu`.
    pub(crate) fn allowed(&self, vcpu: VcpuId, cpu: CpuId) -> bool {
        match (self.vcpus.get(vcpu), self.cpus.get(cpu)) {
            (Some(v), Some(c)) => v.spec.affinity.allows(cpu, &c.place),
            _ => false,
        }
    }

    pub(crate) fn node_of(&self, cpu: CpuId) -> Option<NodeId> {
        self.cpus.get(cpu).map(|c| c.place.node)
    }

    /// CPU time asked for on `cpu`, 65536 = one CPU.
    pub(crate) fn demand_on(&self, cpu: CpuId) -> u64 {
        let residents = self.cpus.get(cpu).map_or(&[][..], |c| &c.residents);
        residents
            .iter()
            .filter_map(|id| self.vcpus.get(*id))
            .map(|v| u64::from(v.demand.0))
            .sum()
    }
}
