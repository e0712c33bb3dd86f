//! The synthetic machine with its virtual ones.

use crate::common::{Load, Sim, vcpu};
use footprint::{
    Attribution, Coverage, DramReads, Footprint, Latencies, LeafSample, Operands, Window,
};
use migrate::*;
use sched::{Affinity, Event as Told, VcpuSpec};
use std::collections::BTreeMap;
use telemetry::{Event as Said, Hold};
use units::*;

pub(crate) const PASS: Nanos = Nanos::from_millis(200);
pub(crate) const PAGE: u64 = 2 << 20;
/// Looks at the next instructions of a machine in a pass.
pub(crate) const LOOKS: u64 = 20;

/// Whose vCPUs only run.
const BURNER: VmId = VmId(100);

pub(crate) type Touched = Box<dyn Fn(usize, Nanos) -> bool>;

pub(crate) struct Vm {
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    pub(crate) vcpus: u16,
    pub(crate) pages: Vec<NodeId>,
    pub(crate) touched: Touched,
    pub(crate) footprint: Footprint,
    pub(crate) cpu_nodes: Option<Vec<NodeId>>,
    pub(crate) run_before: BTreeMap<NodeId, Nanos>,
    /// What looks at its next instructions find: memory nodes with weights. None without looks.
    pub(crate) operands: Vec<(NodeId, u32)>,
    /// Pages that looks at each vCPU meet, where they are known to differ.
    pub(crate) works: Vec<Vec<usize>>,
    /// What counters say that it reads from memory in a second of run time. None without counters.
    pub(crate) reads_per_s: Option<u64>,
    /// Local and all accesses, by pass.
    pub(crate) local: Vec<(u64, u64)>,
}

pub(crate) struct Lab {
    pub(crate) sim: Sim,
    pub(crate) latencies: Latencies,
    pub(crate) planner: Planner,
    pub(crate) vms: Vec<Vm>,
    pub(crate) total: [u64; 4],
    pub(crate) link: u64,
    /// What each node's memory carries.
    pub(crate) memory_load: [Option<PerMille>; 4],
    pub(crate) decisions: Vec<Decision>,
    /// What the planner told besides.
    pub(crate) told: Vec<Said>,
    pub(crate) bytes_moved: u64,
    pub(crate) fails: bool,
    /// How long a page's move takes, and those that are under way with their end.
    pub(crate) copying_takes: Nanos,
    pub(crate) copying: Vec<(Nanos, VmId, PageOrder)>,
}

/// 80 ns at home, 130 to a neighbour, 180 and 260 farther away: nodes in a row.
pub(crate) fn row() -> Latencies {
    Latencies::from_fn(4, |k, n| {
        [80, 130, 180, 260][usize::from(k.0.abs_diff(n.0))]
    })
}

impl Lab {
    pub(crate) fn new(latencies: Latencies) -> Self {
        Self {
            sim: Sim::new(4, 2, 1),
            latencies,
            planner: Planner::new(Tunables::default()),
            vms: Vec::new(),
            total: [1 << 30; 4],
            link: u64::MAX,
            memory_load: [None; 4],
            decisions: Vec::new(),
            told: Vec::new(),
            bytes_moved: 0,
            fails: false,
            copying_takes: Nanos::ZERO,
            copying: Vec::new(),
        }
    }

    pub(crate) fn vm(
        &mut self,
        name: &'static str,
        home: u16,
        pages: &[(u16, usize)],
        touched: impl Fn(usize, Nanos) -> bool + 'static,
    ) -> usize {
        self.vm_with(name, home, pages, touched, Load::Busy, None)
    }

    pub(crate) fn vm_with(
        &mut self,
        name: &'static str,
        home: u16,
        pages: &[(u16, usize)],
        touched: impl Fn(usize, Nanos) -> bool + 'static,
        load: Load,
        cpu_nodes: Option<Vec<NodeId>>,
    ) -> usize {
        let i = self.vms.len();
        let pages = pages
            .iter()
            .flat_map(|&(n, count)| vec![NodeId(n); count])
            .collect();
        self.vms.push(Vm {
            name,
            mode: Mode::Auto,
            vcpus: 2,
            pages,
            touched: Box::new(touched),
            footprint: Footprint::new(4, footprint::Tunables::default()),
            operands: Vec::new(),
            works: Vec::new(),
            reads_per_s: None,
            cpu_nodes: cpu_nodes.clone(),
            run_before: BTreeMap::new(),
            local: Vec::new(),
        });
        for index in 0..2 {
            let affinity = cpu_nodes.clone().map_or(Affinity::Any, Affinity::Nodes);
            let spec = VcpuSpec {
                home: Some(NodeId(home)),
                affinity,
                ..VcpuSpec::default()
            };
            self.sim.add(vcpu(i as u16, index), spec, load);
        }
        i
    }

    /// So many vCPUs that do nothing but run, until [`Lab::rest`].
    pub(crate) fn burn(&mut self, count: u16) {
        (0..count).for_each(|i| self.sim.busy(vcpu(BURNER.0, i), sched::DEFAULT_WEIGHT));
    }

    pub(crate) fn rest(&mut self) {
        self.sim.event(Told::Paused { vm: BURNER });
    }

    pub(crate) fn free(&self, node: usize) -> u64 {
        let used = self
            .vms
            .iter()
            .flat_map(|vm| &vm.pages)
            .filter(|n| n.index() == node)
            .count();
        self.total[node]
            .checked_sub(used as u64 * PAGE)
            .expect("no node is overfilled")
    }

    /// One pass over one machine.
    pub(crate) fn harvest(&mut self, i: usize) {
        let now = self.sim.now;
        let vm = &mut self.vms[i];
        let mut run = [Nanos::ZERO; 4];
        for (n, run) in (0u16..).zip(&mut run) {
            let so_far = self.sim.run_on.get(&(VmId(i as u16), NodeId(n))).copied();
            let so_far = so_far.unwrap_or_default();
            let before = vm.run_before.insert(NodeId(n), so_far).unwrap_or_default();
            *run = so_far.since(before);
        }
        let touched: Vec<LeafSample> = vm
            .pages
            .iter()
            .enumerate()
            .filter(|(p, _)| (vm.touched)(*p, now))
            .map(|(p, n)| {
                LeafSample::shared(Gpa(p as u64 * PAGE), PageSize::Size2M, *n, true, true)
            })
            .collect();
        let operands = (!vm.operands.is_empty()).then(|| {
            let busiest = (0u16..).zip(&run).max_by_key(|(_, time)| **time);
            let accessor = NodeId(busiest.map_or(0, |(n, _)| n));
            let mut operands = Operands::new(4);
            for _ in 0..LOOKS {
                operands.look(accessor, vm.operands.iter().copied());
            }
            operands
        });
        let here = |leaf: &LeafSample| run[leaf.node.index()].0 / 1000;
        let all: u64 = run.iter().map(|t| t.0 / 1000).sum();
        vm.local
            .push((touched.iter().map(here).sum(), all * touched.len() as u64));
        let mut resident = [0u64; 4];
        vm.pages.iter().for_each(|n| resident[n.index()] += PAGE);
        let window = Window {
            length: PASS,
            run_time: &run,
            attribution: Attribution::ByRunTime,
            coverage: Coverage::TouchedLeaves {
                resident: &resident,
            },
            operands: operands.as_ref(),
        };
        if let Some(per_s) = vm.reads_per_s {
            let mut reads = DramReads::new(4);
            for (n, time) in (0u16..).map(NodeId).zip(&run) {
                let all = per_s * (time.0 / 1000) / 1_000_000;
                let pages = vm.pages.len().max(1) as u64;
                let near = vm.pages.iter().filter(|on| **on == n).count() as u64;
                reads.add(n, all / pages * near, all / pages * (pages - near));
            }
            vm.footprint.count(&reads);
        }
        for (index, works) in (0u16..).zip(&vm.works) {
            let accessor = self.sim.node(vcpu(i as u16, index));
            for _ in 0..LOOKS {
                let page = works[self.sim.rng.below(works.len() as u64) as usize];
                let met = (Gpa(page as u64 * PAGE), vm.pages[page], 1);
                vm.footprint.groups_mut().look(index, accessor, &[met]);
            }
        }
        vm.footprint.record(&window, touched);
        let scores = vm.footprint.proximity(&self.latencies);
        let groups = vm.footprint.groups_mut();
        let own = groups.opinions(&scores, &self.latencies);
        let vm = VmId(i as u16);
        self.sim.event(Told::ProximityUpdated { vm, scores });
        for (index, scores) in own {
            let vcpu = VcpuId { vm, index };
            self.sim.event(Told::VcpuProximity { vcpu, scores });
        }
    }

    pub(crate) fn plan(&mut self) {
        let sim = &self.sim;
        let nodes: Vec<NodeView> = (0u16..4)
            .map(|n| {
                let cpus: Vec<_> = sim.sched.cpus().filter(|c| c.node == NodeId(n)).collect();
                NodeView {
                    node: NodeId(n),
                    cpus: cpus.len() as u16,
                    demand: cpus.iter().map(|c| ((c.demand * 1000) >> 16) as u32).sum(),
                    free_bytes: self.free(n.into()),
                    total_bytes: self.total[usize::from(n)],
                    memory_load: self.memory_load[usize::from(n)],
                }
            })
            .collect();
        let vcpus: Vec<Vec<VcpuView>> = (0..self.vms.len())
            .map(|i| {
                sim.sched
                    .vcpus()
                    .filter(|v| v.vcpu.vm == VmId(i as u16))
                    .map(|v| VcpuView {
                        vcpu: v.vcpu,
                        node: v.node,
                        demand: v.demand.per_mille(),
                    })
                    .collect()
            })
            .collect();
        let views: Vec<VmView> = self
            .vms
            .iter()
            .enumerate()
            .map(|(i, vm)| VmView {
                vm: VmId(i as u16),
                name: vm.name,
                mode: vm.mode,
                footprint: &vm.footprint,
                vcpus: &vcpus[i],
                cpu_nodes: vm.cpu_nodes.as_deref(),
                memory_nodes: None,
            })
            .collect();
        let host = HostView {
            latencies: &self.latencies,
            nodes: &nodes,
            links: &[],
            link_bytes_per_s: self.link,
        };
        let decisions = self.planner.plan(self.sim.now, &host, &views);
        for d in &decisions {
            if d.acts() {
                self.sim.event(Told::PreferredNode {
                    vm: d.vm,
                    node: d.preferred,
                });
            }
            let Action::MovePages(orders) = &d.action else {
                continue;
            };
            let last = self.copying.last().map_or(self.sim.now, |(end, ..)| *end);
            for (i, order) in (1..).zip(orders) {
                let end = last.max(self.sim.now) + Nanos(self.copying_takes.0 * i);
                self.copying.push((end, d.vm, *order));
            }
        }
        self.copy();
        self.decisions.extend(decisions);
        self.told.extend(self.planner.take_told());
    }

    /// Ends the page moves whose time is up.
    pub(crate) fn copy(&mut self) {
        let now = self.sim.now;
        let due = self.copying.extract_if(.., |(end, ..)| *end <= now);
        let due: Vec<_> = due.collect();
        due.into_iter()
            .for_each(|(_, vm, order)| self.move_page(vm, order));
    }

    pub(crate) fn move_page(&mut self, vm: VmId, order: PageOrder) {
        let page = (order.gpa.0 / PAGE) as usize;
        let outcome = if self.fails {
            MoveOutcome::Failed
        } else {
            let vm = &mut self.vms[usize::from(vm.0)];
            assert_eq!(
                vm.pages[page], order.from,
                "the planner knows where pages are"
            );
            vm.pages[page] = order.to;
            vm.footprint.relocated(order.gpa, order.to);
            self.bytes_moved += order.size.bytes();
            MoveOutcome::Moved
        };
        self.free(order.to.index());
        let result = MoveResult { vm, order, outcome };
        self.planner.handle(self.sim.now, Event::Moved(result));
    }

    pub(crate) fn run(&mut self, time: Nanos) {
        let end = self.sim.now + time;
        while self.sim.now < end {
            self.sim.run(PASS);
            self.copy();
            for i in 0..self.vms.len() {
                self.harvest(i);
            }
            self.plan();
        }
    }

    /// Thousandths of accesses that were local in the last `passes` passes.
    pub(crate) fn local(&self, vm: usize, passes: usize) -> u64 {
        let (local, all) = self.vms[vm]
            .local
            .iter()
            .rev()
            .take(passes)
            .fold((0, 0), |(l, a), (local, all)| (l + local, a + all));
        local * 1000 / all.max(1)
    }

    pub(crate) fn orders(&self) -> Vec<&Decision> {
        self.decisions.iter().filter(|d| d.acts()).collect()
    }

    pub(crate) fn far_moves(&self) -> usize {
        let node = |cpu: CpuId| cpu.0 / 2;
        self.sim
            .moves
            .iter()
            .filter(|m| node(m.2) != node(m.3))
            .count()
    }

    pub(crate) fn assert_nothing_moved(&self) {
        assert!(self.orders().is_empty(), "{:?}", self.orders());
        assert_eq!(self.bytes_moved, 0);
        assert_eq!(self.far_moves(), 0, "{:?}", self.sim.moves);
    }

    pub(crate) fn sentences(&self) -> String {
        self.decisions
            .iter()
            .map(|d| format!("{}\n", d.event))
            .collect()
    }

    pub(crate) fn holds(&self, vm: usize) -> Vec<Hold> {
        let mine = self.decisions.iter().filter(|d| d.vm == VmId(vm as u16));
        mine.filter_map(|d| match d.action {
            Action::Stay(hold) => Some(hold),
            _ => None,
        })
        .collect()
    }

    pub(crate) fn vcpus_on(&self, vm: usize) -> Vec<u16> {
        (0..self.vms[vm].vcpus)
            .map(|i| self.sim.node(vcpu(vm as u16, i)).0)
            .collect()
    }
}

pub(crate) const SECONDS: fn(u64) -> Nanos = Nanos::from_secs;
