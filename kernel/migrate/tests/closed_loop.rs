//! Scheduler, footprint and planner together on a synthetic machine of four nodes.
//!
//! The machine is the scheduler's own test harness; memory is a list of 2 MiB pages per machine and
//! a rule that says which are touched when. Every 200 ms a pass sees the touched pages, the planner
//! plans, and its orders are carried out: preferred nodes by the real scheduler, page moves at once.
//! Local-access ratio is counted here, from where vCPUs ran and where touched pages lay.

#[path = "../../sched/tests/common/mod.rs"]
mod common;

use common::{Load, Sim, vcpu};
use footprint::{
    Attribution, Coverage, DramReads, Footprint, Latencies, LeafSample, Operands, Window,
};
use migrate::*;
use sched::{Affinity, Event as Told, VcpuSpec};
use std::collections::BTreeMap;
use telemetry::{Event as Said, Hold};
use units::*;

const PASS: Nanos = Nanos::from_millis(200);
const PAGE: u64 = 2 << 20;
/// Looks at the next instructions of a machine in a pass.
const LOOKS: u64 = 20;

type Touched = Box<dyn Fn(usize, Nanos) -> bool>;

struct Vm {
    name: &'static str,
    mode: Mode,
    vcpus: u16,
    pages: Vec<NodeId>,
    touched: Touched,
    footprint: Footprint,
    cpu_nodes: Option<Vec<NodeId>>,
    run_before: BTreeMap<NodeId, Nanos>,
    /// What looks at its next instructions find: memory nodes with weights. None without looks.
    operands: Vec<(NodeId, u32)>,
    /// What counters say that it reads from memory in a second of run time. None without counters.
    reads_per_s: Option<u64>,
    /// Local and all accesses, by pass.
    local: Vec<(u64, u64)>,
}

struct Lab {
    sim: Sim,
    latencies: Latencies,
    planner: Planner,
    vms: Vec<Vm>,
    total: [u64; 4],
    link: u64,
    decisions: Vec<Decision>,
    bytes_moved: u64,
    fails: bool,
    /// How long a page's move takes, and those that are under way with their end.
    copying_takes: Nanos,
    copying: Vec<(Nanos, VmId, PageOrder)>,
}

/// 80 ns at home, 130 to a neighbour, 180 and 260 farther away: nodes in a row.
fn row() -> Latencies {
    Latencies::from_fn(4, |k, n| {
        [80, 130, 180, 260][usize::from(k.0.abs_diff(n.0))]
    })
}

impl Lab {
    fn new(latencies: Latencies) -> Self {
        Self {
            sim: Sim::new(4, 2, 1),
            latencies,
            planner: Planner::new(Tunables::default()),
            vms: Vec::new(),
            total: [1 << 30; 4],
            link: u64::MAX,
            decisions: Vec::new(),
            bytes_moved: 0,
            fails: false,
            copying_takes: Nanos::ZERO,
            copying: Vec::new(),
        }
    }

    fn vm(
        &mut self,
        name: &'static str,
        home: u16,
        pages: &[(u16, usize)],
        touched: impl Fn(usize, Nanos) -> bool + 'static,
    ) -> usize {
        self.vm_with(name, home, pages, touched, Load::Busy, None)
    }

    fn vm_with(
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

    fn free(&self, node: usize) -> u64 {
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
    fn harvest(&mut self, i: usize) {
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
        vm.footprint.record(&window, touched);
        let scores = vm.footprint.proximity(&self.latencies);
        self.sim.event(Told::ProximityUpdated {
            vm: VmId(i as u16),
            scores,
        });
    }

    fn plan(&mut self) {
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
    }

    /// Ends the page moves whose time is up.
    fn copy(&mut self) {
        let now = self.sim.now;
        let due = self.copying.extract_if(.., |(end, ..)| *end <= now);
        let due: Vec<_> = due.collect();
        due.into_iter()
            .for_each(|(_, vm, order)| self.move_page(vm, order));
    }

    fn move_page(&mut self, vm: VmId, order: PageOrder) {
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

    fn run(&mut self, time: Nanos) {
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
    fn local(&self, vm: usize, passes: usize) -> u64 {
        let (local, all) = self.vms[vm]
            .local
            .iter()
            .rev()
            .take(passes)
            .fold((0, 0), |(l, a), (local, all)| (l + local, a + all));
        local * 1000 / all.max(1)
    }

    fn orders(&self) -> Vec<&Decision> {
        self.decisions.iter().filter(|d| d.acts()).collect()
    }

    fn far_moves(&self) -> usize {
        let node = |cpu: CpuId| cpu.0 / 2;
        self.sim
            .moves
            .iter()
            .filter(|m| node(m.2) != node(m.3))
            .count()
    }

    fn assert_nothing_moved(&self) {
        assert!(self.orders().is_empty(), "{:?}", self.orders());
        assert_eq!(self.bytes_moved, 0);
        assert_eq!(self.far_moves(), 0, "{:?}", self.sim.moves);
    }

    fn sentences(&self) -> String {
        self.decisions
            .iter()
            .map(|d| format!("{}\n", d.event))
            .collect()
    }

    fn holds(&self, vm: usize) -> Vec<Hold> {
        let mine = self.decisions.iter().filter(|d| d.vm == VmId(vm as u16));
        mine.filter_map(|d| match d.action {
            Action::Stay(hold) => Some(hold),
            _ => None,
        })
        .collect()
    }

    fn vcpus_on(&self, vm: usize) -> Vec<u16> {
        (0..self.vms[vm].vcpus)
            .map(|i| self.sim.node(vcpu(vm as u16, i)).0)
            .collect()
    }
}

const SECONDS: fn(u64) -> Nanos = Nanos::from_secs;

#[test]
fn a_machine_far_from_its_memory_ends_local_by_itself() {
    let mut lab = Lab::new(row());
    let alpha = lab.vm("alpha", 1, &[(1, 128)], |p, _| p < 48);
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(Nanos::from_millis(400));
    assert_eq!(lab.local(beta, 2), 0, "it starts remote");
    lab.run(SECONDS(4));
    assert_eq!(lab.vcpus_on(beta), [3, 3]);
    assert!(lab.local(beta, 5) >= 990, "{}", lab.local(beta, 5));
    assert!(lab.local(alpha, 20) >= 990, "alpha is left alone");
    assert_eq!(
        lab.bytes_moved, 0,
        "moving two vCPUs is cheaper than 96 MiB"
    );
    assert_eq!(lab.far_moves(), 2, "{:?}", lab.sim.moves);
    let orders = lab.orders();
    // The scheduler may have got there by proximity alone before the planner asked.
    for d in &orders {
        assert_eq!(d.vm, VmId(beta as u16));
        let text = d.event.to_string();
        for part in [
            "beta runs on node0",
            "100 % of its accesses go to node3",
            "260 vs 80 ns",
            "pays back in",
        ] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
        assert!(matches!(&d.event, Said::Plan { alternatives, .. } if alternatives.len() > 1));
    }
    let passes = orders.len();
    lab.run(SECONDS(20));
    assert_eq!(
        lab.orders().len(),
        passes,
        "and that is all: {}",
        lab.sentences()
    );
}

#[test]
fn where_vcpus_are_pinned_the_pages_come() {
    let mut lab = Lab::new(row());
    let pin = Some(vec![NodeId(0)]);
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [0, 0]);
    assert!(
        lab.local(beta, 5) >= 990,
        "{}\n{}",
        lab.local(beta, 5),
        lab.sentences()
    );
    assert_eq!(lab.bytes_moved, 48 * PAGE, "only what is touched");
}

#[test]
fn counted_reads_decide_whether_memory_is_worth_moving() {
    let run = |reads_per_s: Option<u64>| {
        let mut lab = Lab::new(row());
        let pin = Some(vec![NodeId(0)]);
        let beta = lab.vm_with("beta", 0, &[(3, 48)], |_, _| true, Load::Busy, pin);
        lab.vms[beta].reads_per_s = reads_per_s;
        lab.run(SECONDS(8));
        (lab.bytes_moved, lab.local(beta, 5), lab.sentences())
    };
    let (without, local, _) = run(None);
    assert!(without > 0 && local > 990);
    // What waits for memory gets it near: as often as is taken where nothing counts.
    let (bytes, local, said) = run(Some(8_000_000));
    assert!(bytes == without && local > 990, "{said}");
    // What lives in its caches touches as many pages and gains nothing.
    let (bytes, _, said) = run(Some(1_000_000 / 8));
    assert_eq!(bytes, 0, "{said}");
}

#[test]
fn slow_moves_are_waited_for_and_go_on_without_new_evidence() {
    let mut lab = Lab::new(row());
    lab.copying_takes = Nanos::from_millis(200);
    let pin = Some(vec![NodeId(0)]);
    // Two orders' worth, the first of which takes longer than an order may be silent.
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
    lab.run(SECONDS(15));
    assert_eq!(lab.bytes_moved, 48 * PAGE, "{}", lab.sentences());
    assert_eq!(lab.orders().len(), 2, "{}", lab.sentences());
    let waited = lab.holds(beta).into_iter();
    let waited = waited.filter(|h| matches!(h, Hold::Waiting { .. }));
    assert_eq!(waited.count(), 1, "{}", lab.sentences());
}

#[test]
fn accesses_decide_and_not_bytes() {
    // Most memory on node 3, all accesses to node 1.
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 0, &[(3, 96), (1, 32)], |p, _| p >= 96);
    lab.run(SECONDS(5));
    assert_eq!(lab.vcpus_on(beta), [1, 1]);
    assert!(lab.local(beta, 5) >= 990);
    assert_eq!(lab.bytes_moved, 0);
}

#[test]
fn what_would_follow_does_not_speak_against_a_step_that_does_most_of_the_good() {
    // A small working set on node 1, and a kernel that grazes twice as many pages on node 3.
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 3, &[(3, 96), (1, 4)], |p, _| !(8..96).contains(&p));
    lab.vms[beta].operands = vec![(NodeId(1), 95), (NodeId(3), 5)];
    lab.run(SECONDS(5));
    let said = lab.sentences();
    assert_eq!(lab.vcpus_on(beta), [1, 1], "{said}");
    let first = lab.orders().first().map(|d| d.action.clone());
    assert_eq!(first, Some(Action::PreferNode(NodeId(1))), "{said}");
}

#[test]
fn off_means_nothing_at_all() {
    let mut lab = Lab::new(row());
    // The kernel sends no scores for such a machine either; the scheduler would follow them.
    let pin = Some(vec![NodeId(0)]);
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
    lab.vms[beta].mode = Mode::Off;
    lab.run(SECONDS(10));
    lab.assert_nothing_moved();
    assert!(lab.decisions.is_empty());
}

#[test]
fn an_idle_machine_is_left_alone() {
    let mut lab = Lab::new(row());
    let ticks = Load::Bursts {
        run: Nanos::from_micros(200),
        sleep: Nanos::from_millis(8),
    };
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p % 8 == 0, ticks, None);
    lab.run(SECONDS(20));
    lab.assert_nothing_moved();
    assert!(
        lab.holds(beta).iter().all(|h| *h == Hold::Idle),
        "{}",
        lab.sentences()
    );
}

#[test]
fn equal_distances_move_nothing() {
    let mut lab = Lab::new(Latencies::from_fn(4, |_, _| 100));
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(SECONDS(10));
    lab.assert_nothing_moved();
    assert!(lab.holds(beta).iter().all(|h| *h == Hold::Flat));
}

#[test]
fn remote_but_untouched_memory_moves_nothing() {
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 0, &[(3, 96), (0, 32)], |p, _| p >= 96);
    lab.run(SECONDS(10));
    lab.assert_nothing_moved();
    assert!(matches!(
        lab.holds(beta).last(),
        Some(Hold::Near {
            proximity: Score::ONE,
            ..
        })
    ));
}

#[test]
fn after_the_vcpus_the_hot_remainder_follows_as_pages() {
    let mut lab = Lab::new(row());
    let beta = lab.vm("beta", 0, &[(3, 60), (0, 20), (1, 48)], |p, _| p < 80);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [3, 3], "{}", lab.sentences());
    assert_eq!(lab.bytes_moved, 20 * PAGE, "{}", lab.sentences());
    assert!(lab.local(beta, 5) >= 990);
}

#[test]
fn modes_do_what_they_say() {
    let run = |mode| {
        let mut lab = Lab::new(row());
        // Pinned for the scheduler, free for the planner: what it orders is seen, not followed.
        let pin = Some(vec![NodeId(0)]);
        let beta = lab.vm_with("beta", 0, &[(3, 128)], |p, _| p < 48, Load::Busy, pin);
        lab.vms[beta].cpu_nodes = None;
        lab.vms[beta].mode = mode;
        lab.run(SECONDS(3));
        let vcpus = lab
            .orders()
            .iter()
            .any(|d| d.action == Action::PreferNode(NodeId(3)));
        (vcpus, lab.bytes_moved > 0, lab.sentences())
    };
    let (vcpus, pages, said) = run(Mode::DryRun);
    assert!(
        !vcpus && !pages && said.contains("dry run: beta runs on node0"),
        "{said}"
    );
    assert!(said.contains("move 2 vCPUs to node3"), "{said}");
    let (vcpus, pages, _) = run(Mode::VcpuOnly);
    assert!(vcpus && !pages);
    let (vcpus, pages, _) = run(Mode::PagesOnly);
    assert!(!vcpus && pages);
    let (vcpus, pages, said) = run(Mode::Auto);
    assert!(
        vcpus && pages,
        "first the cheap way; when that does not come about, pages:\n{said}"
    );
}

#[test]
fn a_node_with_busy_cpus_gets_no_vcpus_and_the_pages_come_instead() {
    let mut lab = Lab::new(row());
    for name in ["gamma", "delta"] {
        lab.vm_with(
            name,
            3,
            &[(3, 64)],
            |p, _| p < 40,
            Load::Busy,
            Some(vec![NodeId(3)]),
        );
    }
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [0, 0], "{:?}", lab.sim.moves);
    assert!(lab.local(beta, 5) >= 990, "{}", lab.sentences());
    assert!(
        lab.sentences().contains("its CPUs are busy"),
        "{}",
        lab.sentences()
    );
}

#[test]
fn no_room_anywhere_is_said_and_nothing_breaks() {
    let mut lab = Lab::new(row());
    for (name, node) in [
        ("gamma", 3),
        ("delta", 3),
        ("epsilon", 1),
        ("zeta", 1),
        ("eta", 2),
        ("theta", 2),
    ] {
        let pin = Some(vec![NodeId(node)]);
        lab.vm_with(name, node, &[(node, 64)], |p, _| p < 40, Load::Busy, pin);
    }
    lab.total = [16 << 20, 256 << 20, 256 << 20, 512 << 20];
    let beta = lab.vm("beta", 0, &[(3, 128)], |p, _| p < 48);
    lab.run(SECONDS(10));
    assert_eq!(lab.vcpus_on(beta), [0, 0]);
    // What fits was moved, then the refusal was said.
    assert!(lab.bytes_moved <= 16 << 20);
    let refused = lab
        .holds(beta)
        .iter()
        .any(|h| matches!(h, Hold::NoRoom { .. }));
    assert!(refused, "{}", lab.sentences());
}

#[test]
fn pages_that_cannot_be_moved_are_not_tried_all_the_time() {
    let mut lab = Lab::new(row());
    lab.fails = true;
    let pin = Some(vec![NodeId(0)]);
    lab.vm_with("beta", 0, &[(3, 32)], |_, _| true, Load::Busy, pin);
    lab.run(SECONDS(60));
    let tried: usize = lab
        .orders()
        .iter()
        .map(|d| match &d.action {
            Action::MovePages(orders) => orders.len(),
            _ => 0,
        })
        .sum();
    assert!(
        (32..=32 * 7).contains(&tried),
        "{tried} attempts in a minute"
    );
}

#[test]
fn the_copy_budget_is_obeyed() {
    let mut lab = Lab::new(row());
    lab.link = 8 << 20;
    let pin = Some(vec![NodeId(0)]);
    let beta = lab.vm_with("beta", 0, &[(3, 128)], |_, _| true, Load::Busy, pin);
    for second in 1..=10u64 {
        lab.run(SECONDS(1));
        assert!(
            lab.bytes_moved <= (8 << 20) * second + (4 << 20),
            "{} B",
            lab.bytes_moved
        );
    }
    assert!(
        lab.bytes_moved >= 60 << 20,
        "and it is used: {}",
        lab.bytes_moved
    );
    assert!(
        lab.holds(beta)
            .iter()
            .any(|h| matches!(h, Hold::Budget { .. }))
    );
}

#[test]
fn a_phase_shift_is_followed_and_a_flutter_is_not() {
    // One shift: from node 1 to node 3 after 10 s.
    let mut lab = Lab::new(row());
    let shift = |p: usize, now: Nanos| (p < 64) == (now < Nanos::from_secs(10));
    let beta = lab.vm("beta", 1, &[(1, 64), (3, 64)], shift);
    lab.run(SECONDS(20));
    assert!(lab.local(beta, 10) >= 990, "{}", lab.sentences());

    // Memory use that flips every 400 ms: chasing it would be late each time.
    let mut lab = Lab::new(row());
    let flip = |p: usize, now: Nanos| (p < 64) == (now.as_millis() / 400).is_multiple_of(2);
    lab.vm("beta", 1, &[(1, 64), (3, 64)], flip);
    lab.run(SECONDS(30));
    let before = (lab.orders().len(), lab.far_moves(), lab.bytes_moved);
    lab.run(SECONDS(60));
    let after = (lab.orders().len(), lab.far_moves(), lab.bytes_moved);
    assert!(
        after.0 - before.0 <= 10,
        "{} orders in a minute",
        after.0 - before.0
    );
    assert!(
        after.1 - before.1 <= 20,
        "{} vCPU moves in a minute",
        after.1 - before.1
    );
}

#[test]
fn the_same_run_gives_the_same_decisions() {
    let run = || {
        let mut lab = Lab::new(row());
        lab.vm("alpha", 2, &[(1, 50), (2, 50)], |p, now| {
            (p as u64 + now.as_millis() / 1000).is_multiple_of(3)
        });
        lab.vm("beta", 0, &[(3, 100)], |p, _| p < 40);
        lab.run(SECONDS(5));
        (lab.sentences(), lab.sim.moves.clone())
    };
    assert_eq!(run(), run());
}
