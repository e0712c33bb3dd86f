//! The engine: events in order of time, each with its consequences.
//!
//! A CPU that runs a vCPU has one timer: the end of the slice, of the burst, of the way to the lock, or of
//! the patience with which it spins. Whatever changes a vCPU's speed settles first what it did at the
//! old speed. Interrupts between CPUs take 2 us, a switch of vCPUs 2 us more, and a vCPU that comes to
//! another last-level cache fills it with its working set first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::measure::Measure;
use crate::policy::{Acts, Left, Next, Policy};
use crate::rng::Rng;
use crate::world::World;

/// Time of an interrupt between CPUs.
const IPI: u64 = 2_000;
/// Time of a world switch to another vCPU.
const SWITCH: f64 = 2_000.0;
/// Bytes per ns at which a cache is filled.
const FILL: f64 = 8.0;
/// Spinning after which the processor reports a PAUSE loop (4096 cycles and the exit).
const PATIENCE: u64 = 20_000;
/// Time between two looks at the traffic.
const EPOCH: u64 = 2_000_000;
/// Time of moving a page: the copy at 4 GiB/s and its shootdowns.
const PAGE_MOVE: u64 = 500_000;
/// What the VM loses by it: faults on the frozen page.
const PAGE_STALL: f64 = 60_000.0;
/// Work that counts as none.
const DONE: f64 = 1.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ev {
    Epoch,
    Tick,
    Phase(usize),
    PageDone(usize, usize, usize),
    Wake(usize),
    Kick(usize),
    /// With the generation that must still hold.
    Timer(usize, u64),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    settled: u64,
    since: u64,
    slice_end: u64,
    generation: u64,
    kicked: bool,
    last: Option<usize>,
    pub(crate) spin_since: u64,
}

/// One run of one policy.
#[derive(Debug)]
pub struct Engine<'p, P: Policy + ?Sized> {
    /// The host.
    pub world: World,
    policy: &'p mut P,
    pub(crate) cpus: Vec<Cpu>,
    heap: BinaryHeap<Reverse<(u64, u64, Ev)>>,
    seq: u64,
    pub(crate) rng: Rng,
    acts: Acts,
    /// What is counted.
    pub measure: Measure,
    /// Events handled.
    pub events: u64,
}

impl<'p, P: Policy + ?Sized> Engine<'p, P> {
    /// A host whose VMs start to work within the first 10 ms.
    pub fn new(world: World, policy: &'p mut P, seed: u64) -> Self {
        let measure = Measure::new(&world);
        let mut engine = Self {
            cpus: vec![Cpu::default(); world.machine.cpus.len()],
            world,
            policy,
            heap: BinaryHeap::new(),
            seq: 0,
            rng: Rng(seed),
            acts: Acts::default(),
            measure,
            events: 0,
        };
        engine.policy.start(&engine.world, &mut engine.acts);
        engine.obey();
        for vcpu in 0..engine.world.vcpus.len() {
            let at = engine.rng.below(10_000_000) as u64;
            engine.at(at, Ev::Wake(vcpu));
        }
        for vm in 0..engine.world.vms.len() {
            if let Some(period) = engine.world.vms[vm].kind.phase() {
                let first = engine.rng.below(period as usize) as u64 + period / 2;
                engine.at(first, Ev::Phase(vm));
            }
        }
        engine.at(EPOCH, Ev::Epoch);
        engine.at(1, Ev::Tick);
        engine
    }

    fn at(&mut self, time: u64, ev: Ev) {
        self.seq += 1;
        self.heap
            .push(Reverse((time.max(self.world.now), self.seq, ev)));
    }

    /// Runs until `end`.
    pub fn run(&mut self, end: u64) {
        while let Some(Reverse((time, _, ev))) = self.heap.peek().copied() {
            if time > end {
                break;
            }
            self.heap.pop();
            self.world.now = time;
            self.events += 1;
            self.handle(ev);
        }
        self.world.now = end;
        for cpu in 0..self.cpus.len() {
            self.settle(cpu);
        }
    }

    fn handle(&mut self, ev: Ev) {
        match ev {
            Ev::Epoch => {
                for cpu in 0..self.cpus.len() {
                    self.settle(cpu);
                }
                self.world.measure(EPOCH as f64);
                self.at(self.world.now + EPOCH, Ev::Epoch);
            }
            Ev::Tick => {
                let next = self.policy.tick(&self.world, &mut self.acts);
                self.obey();
                self.at(next.max(self.world.now + 1), Ev::Tick);
            }
            Ev::Phase(vm) => {
                self.settle_vm(vm);
                self.world.next_phase(vm);
                let period = self.world.vms[vm].kind.phase().unwrap_or(u64::MAX / 2);
                self.at(self.world.now + period, Ev::Phase(vm));
            }
            Ev::PageDone(vm, page, to) => {
                self.settle_vm(vm);
                let from = self.world.vms[vm].pages[page].node;
                self.world.relocate(vm, page, to);
                self.measure.page_moved();
                self.policy.page_moved(&self.world, vm, page, from);
            }
            Ev::Wake(vcpu) => self.wake(vcpu),
            Ev::Kick(cpu) => {
                self.cpus[cpu].kicked = false;
                self.leave(cpu, Left::Preempted);
                self.pick(cpu);
            }
            Ev::Timer(cpu, generation) => {
                if self.cpus[cpu].generation == generation {
                    self.timer(cpu);
                }
            }
        }
    }

    fn settle_vm(&mut self, vm: usize) {
        for i in 0..self.world.vms[vm].vcpus.len() {
            if let Some(cpu) = self.world.vcpus[self.world.vms[vm].vcpus[i]].on {
                self.settle(cpu);
            }
        }
    }

    /// Does what the policy asked for.
    fn obey(&mut self) {
        let mut acts = core::mem::take(&mut self.acts);
        for cpu in acts.kicks.drain(..) {
            if !core::mem::replace(&mut self.cpus[cpu].kicked, true) {
                self.at(self.world.now + IPI, Ev::Kick(cpu));
            }
        }
        // One page of a VM after the other.
        let mut ready = self.world.now;
        for (vm, page, to) in acts.pages.drain(..) {
            let p = &mut self.world.vms[vm].pages[page];
            if p.moving.is_some() || p.node == to || self.world.free[to] == 0 {
                continue;
            }
            p.moving = Some(to);
            self.world.free[to] -= 1;
            ready += PAGE_MOVE;
            self.at(ready, Ev::PageDone(vm, page, to));
            for i in 0..self.world.vms[vm].vcpus.len() {
                let vcpu = self.world.vms[vm].vcpus[i];
                self.world.vcpus[vcpu].debt += PAGE_STALL;
            }
        }
        for (vcpu, ns) in acts.charges.drain(..) {
            self.world.vcpus[vcpu].debt += ns;
        }
        self.acts = acts;
    }

    fn wake(&mut self, vcpu: usize) {
        let kind = self.world.kind(vcpu);
        let left = match (kind.rhythm(), kind.lock()) {
            (Some((work, _)), _) => work * self.rng.range(0.5, 1.5),
            (_, Some((outside, _))) => outside * self.rng.range(0.5, 1.5),
            _ => f64::INFINITY,
        };
        let v = &mut self.world.vcpus[vcpu];
        v.awake = true;
        v.left = left;
        v.woken = Some(self.world.now);
        self.policy.wake(&self.world, vcpu, &mut self.acts);
        self.obey();
    }

    /// Brings the work of the vCPU on `cpu` up to now.
    pub(crate) fn settle(&mut self, cpu: usize) {
        let now = self.world.now;
        let time = (now - self.cpus[cpu].settled) as f64;
        self.cpus[cpu].settled = now;
        let Some(vcpu) = self.world.running[cpu] else {
            return;
        };
        let node = self.world.node_of(cpu);
        let spins = self.world.spins(vcpu);
        let pace = self.world.time_per_work(vcpu, cpu);
        let misses = self.world.kind(vcpu).misses();
        let v = &mut self.world.vcpus[vcpu];
        v.ran += time as u64;
        v.ran_on[node] += time as u64;
        let paid = v.debt.min(time);
        v.debt -= paid;
        if spins {
            return;
        }
        let work = ((time - paid) / pace).min(v.left);
        v.left -= work;
        v.work += work;
        self.measure
            .accesses(v.vm, work * misses / 1000.0, v.spread[node]);
    }

    /// Arms the timer of a CPU that runs something.
    pub(crate) fn arm(&mut self, cpu: usize) {
        let Some(vcpu) = self.world.running[cpu] else {
            return;
        };
        let (now, slice_end) = (self.world.now, self.cpus[cpu].slice_end);
        let v = &self.world.vcpus[vcpu];
        let until = if self.world.spins(vcpu) {
            slice_end
                .min(self.cpus[cpu].spin_since + PATIENCE)
                .max(now + 1)
        } else if v.left.is_finite() {
            let ns = v.debt + v.left * self.world.time_per_work(vcpu, cpu);
            slice_end.min(now + ns.ceil() as u64).max(now + 1)
        } else {
            slice_end.max(now + 1)
        };
        self.cpus[cpu].generation += 1;
        let generation = self.cpus[cpu].generation;
        self.at(until, Ev::Timer(cpu, generation));
    }

    fn timer(&mut self, cpu: usize) {
        self.settle(cpu);
        let Some(vcpu) = self.world.running[cpu] else {
            return self.pick(cpu);
        };
        let spins = self.world.spins(vcpu);
        if !spins && self.world.vcpus[vcpu].left <= DONE {
            let kind = self.world.kind(vcpu);
            if let Some((_, sleep)) = kind.rhythm() {
                let ns = sleep * self.rng.range(0.5, 1.5);
                self.world.vcpus[vcpu].awake = false;
                self.measure.burst_done(self.world.vcpus[vcpu].vm);
                self.at(self.world.now + ns as u64, Ev::Wake(vcpu));
                self.leave(cpu, Left::Slept);
                return self.pick(cpu);
            }
            self.step_lock(cpu, vcpu, kind);
        }
        if self.world.now >= self.cpus[cpu].slice_end {
            self.leave(cpu, Left::Preempted);
            self.pick(cpu);
        } else if spins && self.world.now >= self.cpus[cpu].spin_since + PATIENCE {
            self.leave(cpu, Left::Spun);
            self.pick(cpu);
        } else {
            self.arm(cpu);
        }
    }

    /// A CPU leaves what it runs.
    fn leave(&mut self, cpu: usize, how: Left) {
        self.settle(cpu);
        let Some(vcpu) = self.world.running[cpu] else {
            return;
        };
        self.settle_sibling(cpu);
        self.world.running[cpu] = None;
        self.world.vcpus[vcpu].on = None;
        self.world.vcpus[vcpu].last = Some(cpu);
        let ran = self.world.now - self.cpus[cpu].since;
        self.policy
            .left(&self.world, cpu, vcpu, ran, how, &mut self.acts);
        self.obey();
    }

    fn settle_sibling(&mut self, cpu: usize) {
        if let Some(sibling) = self.world.machine.cpus[cpu].sibling {
            self.settle(sibling);
        }
    }

    fn pick(&mut self, cpu: usize) {
        self.cpus[cpu].generation += 1;
        self.settle_sibling(cpu);
        let next = self.policy.pick(&self.world, cpu, &mut self.acts);
        self.obey();
        let now = self.world.now;
        match next {
            Next::Run(vcpu, slice) => {
                let v = &self.world.vcpus[vcpu];
                assert!(v.on.is_none(), "vCPU {vcpu} on two CPUs");
                assert!(v.awake, "vCPU {vcpu} sleeps");
                self.begin(cpu, vcpu, slice);
            }
            Next::Idle(until) => {
                if let Some(until) = until {
                    let generation = self.cpus[cpu].generation;
                    self.at(until.max(now + 1), Ev::Timer(cpu, generation));
                }
            }
        }
    }

    fn begin(&mut self, cpu: usize, vcpu: usize, slice: u64) {
        let now = self.world.now;
        let kind = self.world.kind(vcpu);
        let machine = &self.world.machine;
        let (here, last) = (machine.cpus[cpu], self.world.vcpus[vcpu].last);
        let mut debt = if self.cpus[cpu].last == Some(vcpu) {
            0.0
        } else {
            SWITCH
        };
        if let Some(last) = last.map(|l| machine.cpus[l]) {
            if last.node != here.node {
                debt += 1.5 * kind.working_set() / FILL;
                self.measure.node_move(self.world.vcpus[vcpu].vm);
            } else if last.llc != here.llc {
                debt += kind.working_set() / FILL;
            }
        }
        let v = &mut self.world.vcpus[vcpu];
        v.debt += debt;
        v.on = Some(cpu);
        if let Some(woken) = v.woken.take() {
            self.measure.wake_latency(v.vm, kind, now - woken);
        }
        self.world.running[cpu] = Some(vcpu);
        let c = &mut self.cpus[cpu];
        (c.settled, c.since, c.slice_end) = (now, now, now + slice.max(1));
        (c.last, c.spin_since) = (Some(vcpu), now);
        if let Some((_, inside)) = kind.lock()
            && self.world.spins(vcpu)
            && self.world.vms[self.world.vcpus[vcpu].vm].holder.is_none()
        {
            self.take_lock(vcpu, inside);
        }
        self.arm(cpu);
    }
}
