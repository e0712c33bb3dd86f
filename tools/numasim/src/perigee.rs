//! Perigee itself: the kernel's policy crates, unchanged, driven as the kernel drives them.
//!
//! What `kernel/hypervisor/src/drive` does with hardware is done here with the simulated host: events
//! go to `sched`, accessed bits become samples for `footprint`, the planner of `migrate` names nodes and
//! pages. Commands are obeyed and verified: a vCPU that was moved while a CPU runs it ends the run.

use footprint::{Attribution, Coverage, Footprint, Latencies, LeafSample, Window};
use migrate::{
    HostView, LinkView, MoveOutcome, MoveResult, NodeView, PageOrder, Planner, VcpuView, VmView,
};
use sched::{Affinity, Command, Commands, CpuPlace, Event, Scheduler, VcpuSpec};
use units::{CpuId, Gpa, Nanos, NodeId, PageSize, PerMille, Score, VcpuId, VmId};

use crate::looks::Looks;
use crate::policy::{Acts, Left, Next, Policy};
use crate::workload::Owner;
use crate::world::World;

/// Bytes of a page.
pub const PAGE: u64 = 2 << 20;

/// What may differ between runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The scheduler's constants.
    pub tunables: sched::Tunables,
    /// Time between two harvests of accessed bits, in ns.
    pub sample: u64,
    /// Time between two plans, in ns.
    pub plan: u64,
    /// Whether a PMU tells what a working set's refill costs.
    pub pmu: bool,
    /// What it knows of nodes.
    pub knows: Knows,
    /// Whether the planner's sentences are printed.
    pub say: bool,
}

/// What is known of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knows {
    /// Nothing: the host is one node and nobody looks at memory. What is left is fairness, so a run that knows all
    /// against this one shows what knowing does.
    Nothing,
    /// Where CPUs are and where each VM began, but not what it touches: nothing moves for the sake of memory. That is
    /// `mode = "off"`, by which the harm of the other modes is measured.
    Places,
    /// What each VM touches as well.
    Touches,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // The baselines share cores between machines, so the comparison does.
            tunables: sched::Tunables {
                share_cores: true,
                ..sched::Tunables::default()
            },
            sample: 100_000_000,
            plan: 1_000_000_000,
            pmu: true,
            knows: Knows::Touches,
            say: false,
        }
    }
}

/// The policy crates with what the kernel remembers for them.
pub struct Perigee {
    options: Options,
    sched: Scheduler,
    out: Commands,
    latencies: Latencies,
    footprints: Vec<Footprint>,
    looks: Looks,
    planner: Planner,
    /// Run time by vCPU and node, and work by vCPU, at the last harvest.
    seen: Vec<(Vec<u64>, f64)>,
    sampled: u64,
    planned: u64,
}

impl core::fmt::Debug for Perigee {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Perigee").finish_non_exhaustive()
    }
}

fn id(w: &World, vcpu: usize) -> VcpuId {
    let v = &w.vcpus[vcpu];
    VcpuId {
        vm: VmId(v.vm as u16),
        index: v.index as u16,
    }
}

fn number(w: &World, id: VcpuId) -> usize {
    w.vms[usize::from(id.vm.0)].vcpus[usize::from(id.index)]
}

impl Perigee {
    /// For one run.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            sched: Scheduler::new(options.tunables),
            out: Commands::new(),
            latencies: Latencies::from_fn(0, |_, _| 0),
            footprints: Vec::new(),
            looks: Looks::new(17),
            planner: Planner::new(migrate::Tunables::default()),
            seen: Vec::new(),
            sampled: 0,
            planned: 0,
        }
    }

    fn tell(&mut self, w: &World, event: Event, acts: &mut Acts) {
        let told = self.sched.handle(Nanos(w.now), event, &mut self.out);
        told.expect("the engine tells the truth");
        self.obey(w, acts);
    }

    fn obey(&mut self, w: &World, acts: &mut Acts) {
        for command in self.out.drain() {
            match command {
                Command::Kick { cpu } => acts.kicks.push(cpu.index()),
                Command::Migrate {
                    vcpu,
                    from,
                    to,
                    reason,
                } => {
                    let node = |cpu: CpuId| w.machine.cpus[cpu.index()].node;
                    if self.options.say && node(from) != node(to) {
                        let at = w.now as f64 / 1e9;
                        println!("{at:>7.3} s {vcpu}: from {from} to {to}: {reason}");
                    }
                    let v = &w.vcpus[number(w, vcpu)];
                    assert!(v.on.is_none(), "{vcpu} was moved while a CPU runs it");
                }
            }
        }
    }

    /// A harvest: touched pages since the last one to the footprint, its scores to the scheduler.
    fn harvest(&mut self, w: &World, vm: usize, length: u64, acts: &mut Acts) {
        let v = &w.vms[vm];
        let nodes = w.machine.nodes();
        let mut run_time = vec![Nanos::ZERO; nodes];
        // Misses of each vCPU.
        let mut misses = Vec::new();
        for vcpu in &v.vcpus {
            let (now, seen) = (&w.vcpus[*vcpu], &mut self.seen[*vcpu]);
            let mut ran = 0;
            for (sum, (a, b)) in run_time.iter_mut().zip(now.ran_on.iter().zip(&seen.0)) {
                *sum += Nanos(a - b);
                ran += a - b;
            }
            let (accessor, met) = self.looks.at(w, *vcpu, ran);
            let groups = self.footprints[vm].groups_mut();
            let index = now.index as u16;
            met.into_iter()
                .for_each(|(gpa, node)| groups.look(index, accessor, &[(gpa, node, 1)]));
            misses.push((now.work - seen.1) * v.kind.misses() / 1000.0);
            *seen = (now.ran_on.clone(), now.work);
        }
        let all: f64 = misses.iter().sum();
        let shared = v.shared;
        let leaves = v.pages.iter().enumerate().map(|(i, page)| {
            let touches = match page.owner {
                Owner::Shared => all * shared,
                Owner::Vcpu(index) => misses[index] * (1.0 - shared),
            };
            LeafSample::shared(
                Gpa(i as u64 * PAGE),
                PageSize::Size2M,
                NodeId(page.node as u16),
                touches * page.weight >= 1.0,
                false,
            )
        });
        let window = Window {
            length: Nanos(length),
            run_time: &run_time,
            attribution: Attribution::ByRunTime,
            coverage: Coverage::EveryLeaf,
            operands: None,
        };
        let footprint = &mut self.footprints[vm];
        footprint.record(&window, leaves);
        let scores = footprint.proximity(&self.latencies);
        let opinions = footprint.groups_mut().opinions(&scores, &self.latencies);
        let vm = VmId(vm as u16);
        self.tell(w, Event::ProximityUpdated { vm, scores }, acts);
        for (index, scores) in opinions {
            let vcpu = VcpuId { vm, index };
            self.tell(w, Event::VcpuProximity { vcpu, scores }, acts);
        }
    }

    fn plan(&mut self, w: &World, acts: &mut Acts) {
        let nodes = self.node_views(w);
        let links = links(w);
        let mut vcpus: Vec<Vec<VcpuView>> = vec![Vec::new(); w.vms.len()];
        for r in self.sched.vcpus() {
            vcpus[usize::from(r.vcpu.vm.0)].push(VcpuView {
                vcpu: r.vcpu,
                node: r.node,
                demand: r.demand.per_mille(),
            });
        }
        let host = HostView {
            latencies: &self.latencies,
            nodes: &nodes,
            links: &links,
            link_bytes_per_s: u64::MAX,
        };
        let views: Vec<VmView<'_>> = vcpus
            .iter()
            .enumerate()
            .map(|(vm, vcpus)| VmView {
                vm: VmId(vm as u16),
                name: "vm",
                mode: migrate::Mode::Auto,
                footprint: &self.footprints[vm],
                vcpus,
                cpu_nodes: None,
                memory_nodes: None,
            })
            .collect();
        let decisions = self.planner.plan(Nanos(w.now), &host, &views);
        if self.options.say {
            for d in &decisions {
                println!("{:>7.3} s {}: {}", w.now as f64 / 1e9, d.vm, d.event);
            }
        }
        let turned = self.planner.take_told();
        if self.options.say {
            for event in &turned {
                println!("{:>7.3} s {event}", w.now as f64 / 1e9);
            }
        }
        let part = self.planner.adapter().settings().bonus;
        if self.sched.tunables().proximity_per_mille != part.0 {
            self.tell(w, Event::BonusWeighed { part }, acts);
        }
        for decision in decisions.into_iter().filter(|d| d.acts()) {
            let wish = Event::PreferredNode {
                vm: decision.vm,
                node: decision.preferred,
            };
            self.tell(w, wish, acts);
            if let migrate::Action::MovePages(orders) = decision.action {
                let vm = usize::from(decision.vm.0);
                let order = |o: &PageOrder| (vm, (o.gpa.0 / PAGE) as usize, o.to.index());
                acts.pages.extend(orders.iter().map(order));
            }
        }
    }

    fn node_views(&self, w: &World) -> Vec<NodeView> {
        let mut demand = vec![0u64; w.machine.nodes()];
        for c in self.sched.cpus() {
            demand[c.node.index()] += c.demand;
        }
        let view = |n: usize| NodeView {
            node: NodeId(n as u16),
            cpus: w.machine.node_cpus[n].len() as u16,
            demand: ((demand[n] * 1000) >> 16) as u32,
            free_bytes: w.free[n] as u64 * PAGE,
            total_bytes: w.machine.pages[n] as u64 * PAGE,
            memory_load: Some(used(w.controller_use[n])),
        };
        (0..w.machine.nodes()).map(view).collect()
    }
}

/// A share that was in use.
fn used(share: f64) -> PerMille {
    PerMille((share * 1000.0).round() as u16)
}

/// The way between two nodes is as busy as its busiest link.
fn links(w: &World) -> Vec<LinkView> {
    let nodes = 0..w.machine.nodes();
    let pairs = nodes
        .clone()
        .flat_map(|k| nodes.clone().map(move |n| (k, n)));
    let load = |(k, n): (usize, usize)| {
        let links = w.machine.routes[k][n].iter().map(|l| w.link_use[*l]);
        let busiest = links.reduce(f64::max)?;
        Some(LinkView {
            from: NodeId(k as u16),
            to: NodeId(n as u16),
            load: Some(used(busiest)),
        })
    };
    pairs.filter_map(load).collect()
}

impl Policy for Perigee {
    fn name(&self) -> &'static str {
        match self.options.knows {
            Knows::Touches => "perigee",
            Knows::Places => "perigee-off",
            Knows::Nothing => "perigee-flat",
        }
    }

    fn start(&mut self, w: &World, acts: &mut Acts) {
        let nodes = w.machine.nodes();
        let places = self.options.knows != Knows::Nothing;
        let row = |k: NodeId, n: NodeId| w.machine.latency[k.index()][n.index()].round() as u32;
        self.latencies = Latencies::from_fn(nodes, row);
        for (i, c) in w.machine.cpus.iter().enumerate() {
            let place = CpuPlace {
                node: NodeId(if places { c.node as u16 } else { 0 }),
                llc: c.llc as u32,
                core: c.core as u32,
            };
            let cpu = CpuId(i as u32);
            self.tell(w, Event::CpuOnline { cpu, place }, acts);
        }
        for vm in &w.vms {
            let tunables = footprint::Tunables::default();
            self.footprints.push(Footprint::new(nodes, tunables));
            for vcpu in &vm.vcpus {
                self.seen.push((vec![0; nodes], 0.0));
                let spec = VcpuSpec {
                    weight: vm.weight,
                    affinity: Affinity::Any,
                    home: places.then_some(NodeId(vm.start as u16)),
                    ..VcpuSpec::default()
                };
                let id = id(w, *vcpu);
                self.tell(w, Event::VcpuAdded { vcpu: id, spec }, acts);
                if self.options.pmu {
                    let wait = vm.kind.misses() / 1000.0 * 80.0 / crate::workload::OVERLAP;
                    let refill = Event::CachePenalty {
                        vcpu: id,
                        stall: Score((wait / (1.0 + wait) * 65536.0) as u32),
                        penalty: Nanos::ZERO,
                        refill: Nanos((1.5 * vm.kind.working_set() / 8.0) as u64),
                    };
                    self.tell(w, refill, acts);
                }
            }
        }
    }

    fn wake(&mut self, w: &World, vcpu: usize, acts: &mut Acts) {
        let vcpu = id(w, vcpu);
        self.tell(w, Event::Wake { vcpu }, acts);
    }

    fn left(&mut self, w: &World, cpu: usize, vcpu: usize, ran: u64, how: Left, acts: &mut Acts) {
        let vcpu = id(w, vcpu);
        let charge = Event::Charge {
            cpu: CpuId(cpu as u32),
            vcpu,
            ran: Nanos(ran),
        };
        self.tell(w, charge, acts);
        match how {
            Left::Preempted => {}
            Left::Slept => self.tell(w, Event::Block { vcpu }, acts),
            Left::Spun => self.tell(w, Event::Spin { vcpu }, acts),
        }
    }

    fn pick(&mut self, w: &World, cpu: usize, acts: &mut Acts) -> Next {
        let cpu = CpuId(cpu as u32);
        let next = self.sched.pick(cpu, Nanos(w.now), &mut self.out);
        self.obey(w, acts);
        match next {
            sched::Next::Run { vcpu, slice, .. } => Next::Run(number(w, vcpu), slice.0),
            sched::Next::Idle { until } => Next::Idle(until.map(|t| t.0)),
        }
    }

    fn tick(&mut self, w: &World, acts: &mut Acts) -> u64 {
        if self.options.knows != Knows::Touches {
            return u64::MAX;
        }
        if w.now >= self.sampled + self.options.sample {
            let length = w.now - self.sampled;
            self.sampled = w.now;
            for vm in 0..w.vms.len() {
                self.harvest(w, vm, length, acts);
            }
        }
        if w.now >= self.planned + self.options.plan {
            self.planned = w.now;
            self.plan(w, acts);
        }
        let next = self.sampled + self.options.sample;
        next.min(self.planned + self.options.plan)
    }

    fn page_moved(&mut self, w: &World, vm: usize, page: usize, from: usize) {
        let to = NodeId(w.vms[vm].pages[page].node as u16);
        let gpa = Gpa(page as u64 * PAGE);
        self.footprints[vm].relocated(gpa, to);
        let order = PageOrder {
            gpa,
            size: PageSize::Size2M,
            from: NodeId(from as u16),
            to,
        };
        let result = MoveResult {
            vm: VmId(vm as u16),
            order,
            outcome: MoveOutcome::Moved,
        };
        self.planner
            .handle(Nanos(w.now), migrate::Event::Moved(result));
    }
}
