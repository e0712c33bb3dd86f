//! The state of a simulated host: vCPUs, pages, traffic, and what an access costs at the moment.

use crate::machine::Machine;
use crate::workload::{Kind, OVERLAP, Page, VmSpec, heat, pages, spread};

/// Service time of a controller or link in ns, the scale of its queueing delay.
const SERVICE: f64 = 15.0;
/// Use up to which the queueing formula is believed.
const FULL: f64 = 0.95;
/// Bytes of a miss.
const LINE: f64 = 64.0;
/// How much longer work takes while the core's other thread runs too.
const SMT: f64 = 1.6;

/// Where a vCPU with a lock is in its cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cycle {
    /// It takes no lock, or works outside of it.
    Outside,
    /// It waits for the lock, spinning whenever it runs.
    Wants,
    /// It holds the lock.
    Inside,
}

/// One vCPU.
#[derive(Clone, Debug)]
pub struct Vcpu {
    /// Its VM.
    pub vm: usize,
    /// Its number there.
    pub index: usize,
    /// The CPU that runs it.
    pub on: Option<usize>,
    /// The CPU that ran it last.
    pub last: Option<usize>,
    /// Whether it has work.
    pub awake: bool,
    /// Work left before it sleeps or reaches the lock, in ns.
    pub left: f64,
    /// Time that it loses before it gets on (refill, faults), in ns.
    pub debt: f64,
    /// Since when it is ready without running after a wake-up.
    pub woken: Option<u64>,
    /// Its place in the lock's cycle.
    pub cycle: Cycle,
    /// Part of its misses by node.
    pub spread: Vec<f64>,
    /// Nodes that have such a part, with it: on a large host, few.
    pub touched: Vec<(usize, f64)>,
    /// Work done, in ns.
    pub work: f64,
    /// Times around the lock.
    pub rounds: u64,
    /// Time run.
    pub ran: u64,
    /// Time run by node.
    pub ran_on: Vec<u64>,
}

/// One VM.
#[derive(Clone, Debug)]
pub struct Vm {
    /// What it does.
    pub kind: Kind,
    /// Its scheduling weight.
    pub weight: u32,
    /// Node where it starts.
    pub start: usize,
    /// Its vCPUs.
    pub vcpus: Vec<usize>,
    /// Its memory.
    pub pages: Vec<Page>,
    /// Part of the misses that go to shared pages.
    pub shared: f64,
    /// Counts changes of what is hot.
    pub phase: u64,
    /// Who holds the lock.
    pub holder: Option<usize>,
    /// Who wants it, in order of asking.
    pub wants: Vec<usize>,
}

/// The host.
#[derive(Debug)]
pub struct World {
    /// The hardware.
    pub machine: Machine,
    /// Its VMs.
    pub vms: Vec<Vm>,
    /// All their vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Time since the start in ns.
    pub now: u64,
    /// Whom each CPU runs.
    pub running: Vec<Option<usize>>,
    /// Loaded latency, row = accessing node.
    pub latency: Vec<Vec<f64>>,
    /// Use of each controller, 1 = all its bandwidth.
    pub controller_use: Vec<f64>,
    /// Use of each link.
    pub link_use: Vec<f64>,
    /// Free pages of each node.
    pub free: Vec<usize>,
    /// Bytes copied by page moves since the last epoch, by (from, to).
    pub copied: Vec<(usize, usize, f64)>,
}

impl World {
    /// A host with sleeping VMs.
    pub fn new(machine: Machine, specs: &[VmSpec]) -> Self {
        let nodes = machine.nodes();
        let mut w = Self {
            running: vec![None; machine.cpus.len()],
            latency: machine.latency.clone(),
            controller_use: vec![0.0; nodes],
            link_use: vec![0.0; machine.links.len()],
            free: machine.pages.clone(),
            copied: Vec::new(),
            machine,
            vms: Vec::new(),
            vcpus: Vec::new(),
            now: 0,
        };
        for spec in specs {
            let vm = w.vms.len();
            let first = w.vcpus.len();
            for index in 0..spec.vcpus {
                w.vcpus.push(Vcpu {
                    vm,
                    index,
                    on: None,
                    last: None,
                    awake: false,
                    left: f64::INFINITY,
                    debt: 0.0,
                    woken: None,
                    cycle: Cycle::Outside,
                    spread: Vec::new(),
                    touched: Vec::new(),
                    work: 0.0,
                    rounds: 0,
                    ran: 0,
                    ran_on: vec![0; nodes],
                });
            }
            for node in &spec.pages {
                w.free[*node] = w.free[*node].saturating_sub(1);
            }
            w.vms.push(Vm {
                kind: spec.kind,
                weight: spec.weight,
                start: spec.start,
                vcpus: (first..first + spec.vcpus).collect(),
                pages: pages(spec),
                shared: spec.shared,
                phase: 0,
                holder: None,
                wants: Vec::new(),
            });
            w.respread(vm);
        }
        w
    }

    /// Takes anew which nodes a VM's misses go to.
    pub fn respread(&mut self, vm: usize) {
        let nodes = self.machine.nodes();
        let v = &self.vms[vm];
        for (index, vcpu) in v.vcpus.iter().enumerate() {
            let spread = spread(&v.pages, nodes, index, v.shared);
            let parts = spread.iter().copied().enumerate();
            self.vcpus[*vcpu].touched = parts.filter(|(_, part)| *part > 0.0).collect();
            self.vcpus[*vcpu].spread = spread;
        }
    }

    /// Another part of a VM's memory becomes hot.
    pub fn next_phase(&mut self, vm: usize) {
        let v = &mut self.vms[vm];
        v.phase += 1;
        heat(&mut v.pages, v.vcpus.len(), v.phase);
        self.respread(vm);
    }

    /// A page is on another node now.
    pub fn relocate(&mut self, vm: usize, page: usize, to: usize) {
        let p = &mut self.vms[vm].pages[page];
        let from = core::mem::replace(&mut p.node, to);
        p.moving = None;
        self.free[from] += 1;
        self.copied.push((from, to, 2.0 * 1024.0 * 1024.0));
        self.respread(vm);
    }

    /// The node of a CPU.
    pub fn node_of(&self, cpu: usize) -> usize {
        self.machine.cpus[cpu].node
    }

    /// The kind of a vCPU's VM.
    pub fn kind(&self, vcpu: usize) -> Kind {
        self.vms[self.vcpus[vcpu].vm].kind
    }

    /// Time that a unit of work takes on `cpu` at the moment.
    pub fn time_per_work(&self, vcpu: usize, cpu: usize) -> f64 {
        let v = &self.vcpus[vcpu];
        let row = &self.latency[self.node_of(cpu)];
        let ns: f64 = v.touched.iter().map(|(n, part)| part * row[*n]).sum();
        let alone = 1.0 + self.vms[v.vm].kind.misses() / 1000.0 * ns / OVERLAP;
        let sibling = self.machine.cpus[cpu].sibling;
        if sibling.is_some_and(|s| self.running[s].is_some()) {
            alone * SMT
        } else {
            alone
        }
    }

    /// Whether it spins: it runs without getting on.
    pub fn spins(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].cycle == Cycle::Wants
    }

    /// Measures the traffic of an epoch of `ns` and takes latencies anew, half old, half new, which
    /// keeps load and latency from chasing each other.
    pub fn measure(&mut self, ns: f64) {
        let nodes = self.machine.nodes();
        let mut controller = vec![0.0; nodes];
        let mut link = vec![0.0; self.machine.links.len()];
        for (cpu, vcpu) in self.running.iter().enumerate() {
            let Some(vcpu) = *vcpu else { continue };
            if self.spins(vcpu) {
                continue;
            }
            let rate = self.kind(vcpu).misses() / 1000.0 * LINE / self.time_per_work(vcpu, cpu);
            let k = self.node_of(cpu);
            for (n, part) in &self.vcpus[vcpu].touched {
                controller[*n] += rate * part;
                for l in &self.machine.routes[k][*n] {
                    link[*l] += rate * part;
                }
            }
        }
        for (from, to, bytes) in self.copied.drain(..) {
            controller[from] += bytes / ns;
            controller[to] += bytes / ns;
            for l in &self.machine.routes[from][to] {
                link[*l] += bytes / ns;
            }
        }
        for (used, (bytes, most)) in self
            .controller_use
            .iter_mut()
            .zip(controller.iter().zip(&self.machine.controller))
        {
            *used = (*used + bytes / most) / 2.0;
        }
        for (used, (bytes, link)) in self
            .link_use
            .iter_mut()
            .zip(link.iter().zip(&self.machine.links))
        {
            *used = (*used + bytes / link.bandwidth) / 2.0;
        }
        let waits: Vec<f64> = self.link_use.iter().map(|u| queueing(*u)).collect();
        for k in 0..nodes {
            for n in 0..nodes {
                let links: f64 = self.machine.routes[k][n].iter().map(|l| waits[*l]).sum();
                self.latency[k][n] =
                    self.machine.latency[k][n] + queueing(self.controller_use[n]) + links;
            }
        }
    }
}

/// Delay at a resource in use: `s x rho / (1 - rho)` up to 95 %, and beyond that as much more as makes
/// those who ask slow down to what it can give.
pub fn queueing(used: f64) -> f64 {
    let rho = used.min(FULL);
    SERVICE * rho / (1.0 - rho) * (used / FULL).max(1.0).powi(2)
}
