//! Footprints to proximity, proximity to plans.
//!
//! Every `sample_ms` the boot CPU lets `look` look at the accessed bits of the VMs whose time has come; what was seen
//! becomes a footprint at each pass, and the scheduler learns the scores. Every `plan_ms` the boot CPU asks
//! [`migrate`] what pays, and carries it out: a preferred node goes to the scheduler, page moves go to `moves`.

use super::counters::{self, Waits};
use super::load;
use super::look::Watch;
use super::moves::{self, PageWork, Tour};
use super::{record, tell, tidy};
use crate::arch::time;
use crate::mm;
use crate::timers::{self, Timer};
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm, VmState};
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use config::{Affinity, HostConfig};
use core::sync::atomic::Ordering::SeqCst;
use footprint::groups::Group;
use footprint::load::Capacities;
use footprint::roots::RootPolicy;
use footprint::{Footprint, Latencies};
use migrate::{
    Action, Decision, HostView, MoveOutcome, MoveResult, PageOrder, Planner, VcpuView, VmView,
};
use telemetry::{Event, GroupReport};
use topology::Machine;
use units::{Nanos, NodeId, PageSize, Score, VcpuId, VmId};

/// Longest time between two passes: about half of what a rate needs to be proved.
const PASS: Nanos = Nanos::from_secs(1);

/// What is known of all VMs, and who plans for them.
#[derive(Debug)]
pub struct Tracking {
    /// Latencies between nodes that policy uses.
    pub latencies: Latencies,
    /// What memories and links can carry.
    pub capacities: Capacities,
    /// One for each VM that was built.
    pub vms: Vec<VmTrack>,
    /// The one of them whose pass comes first at the next look.
    turn: usize,
    planner: Planner,
    next_plan: Nanos,
}

/// What is known of one VM.
#[derive(Debug)]
pub struct VmTrack {
    /// Whose.
    pub vm: VmId,
    /// Who touches what.
    pub footprint: Footprint,
    /// What is looked at for that.
    pub watch: Watch,
    /// How much its virtual CPUs wait for memory, where that is counted.
    pub waits: Waits,
    /// Which nodes are worth page tables of its own.
    pub roots: RootPolicy,
    /// What the planner said last.
    pub last_word: String,
}

impl Tracking {
    /// Nothing is known yet.
    pub fn new<B: Backend>(machine: &Machine, config: &HostConfig, vms: &[Vm<B>]) -> Self {
        let nodes = machine.nodes.len();
        let vms = vms.iter().map(|vm| VmTrack {
            vm: vm.id,
            footprint: Footprint::new(nodes, footprint::Tunables::default()),
            watch: Watch::over(vm, &config.host, nodes, time::now()),
            waits: Waits::default(),
            roots: RootPolicy::new(nodes),
            last_word: String::from("nothing yet"),
        });
        Self {
            latencies: Latencies::from_fn(nodes, |from, to| machine.latency_ns(from, to)),
            capacities: load::capacities(machine),
            vms: vms.collect(),
            turn: 0,
            planner: Planner::new(migrate::Tunables {
                adapt: config.host.adapt,
                ..migrate::Tunables::default()
            }),
            next_plan: time::now() + Nanos::from_millis(config.host.plan_ms.into()),
        }
    }

    /// Who plans, and what it follows.
    pub const fn planner(&self) -> &Planner {
        &self.planner
    }

    /// What a VM may have copied between two nodes while the host is at rest, in bytes per second.
    pub fn copy_budget(&self) -> u64 {
        let link = load::copy_bytes_per_s(&self.capacities);
        self.planner.tunables().budget_bytes_per_s.min(link)
    }

    /// What is known of this VM.
    pub fn of(&self, vm: VmId) -> Option<&VmTrack> {
        self.vms.iter().find(|t| t.vm == vm)
    }
}

/// Starts the passes, on the boot CPU.
pub fn start<B: Backend>(hv: &Hypervisor<B>) {
    timers::arm(hv, time::now() + interval(hv), Timer::Sample);
}

fn interval<B: Backend>(hv: &Hypervisor<B>) -> Nanos {
    Nanos::from_millis(hv.config.host.sample_ms.into())
}

/// One look at all VMs whose interval is over, passes that are due, and a plan if it is time for one.
pub fn sample<B: Backend>(hv: &Hypervisor<B>, now: Nanos) {
    timers::arm(hv, now + interval(hv), Timer::Sample);
    tidy(hv);
    let mut tracking = hv.tracking.lock();
    let tracking = &mut *tracking;
    for vm in super::take_ended() {
        if let Some(track) = tracking.vms.iter_mut().find(|t| t.vm == vm) {
            // What starts again in its place has touched nothing yet.
            let nodes = hv.machine.nodes.len();
            if let Some(vm) = hv.vm(vm) {
                track.watch.take_in(vm, &mut track.footprint);
                track.watch = Watch::over(vm, &hv.config.host, nodes, now);
            }
            track.footprint = Footprint::new(nodes, footprint::Tunables::default());
            track.waits = Waits::default();
            track.roots = RootPolicy::new(nodes);
        }
        tracking.planner.handle(now, migrate::Event::VmGone(vm));
    }
    // Passes of many VMs are spread over the looks between two, as whoever else this CPU has waits for each. Where looks come late
    // there are not enough for all, and each VM has its turn.
    let every = PASS.min(Nanos::from_millis(hv.config.host.plan_ms.into()));
    let looks = (every.0 / interval(hv).0.max(1)).max(1);
    let mut passes = (tracking.vms.len() as u64).div_ceil(looks);
    let (later, first) = tracking.vms.split_at_mut(tracking.turn);
    let turns = (tracking.turn..).zip(first).chain((0..).zip(later));
    for (turn, track) in turns {
        let looks = |vm: &&Vm<B>| vm.state() == VmState::Running && !vm.watched.load(SeqCst);
        if let Some(vm) = hv.vm(track.vm).filter(looks) {
            let idle = track.footprint.is_idle();
            track.watch.look(vm, idle, now);
            track.watch.take_in(vm, &mut track.footprint);
            if passes == 0 || !track.watch.pass_is_due(every, now) {
                continue;
            }
            passes -= 1;
            tracking.turn = turn + 1;
            let counted = counters::take(vm);
            if let Some(reads) = counted.as_ref().and_then(counters::Counted::reads) {
                track.footprint.count(&reads);
            }
            let (length, run_time) = track.watch.pass(vm, &mut track.footprint, now);
            let (policy, rule) = (&mut track.roots, hv.config.host.roots);
            super::roots::pass(vm, policy, rule, length, &run_time);
            let took = track.watch.take_bill();
            tell(hv, sched::Event::Overhead { vm: vm.id, took });
            if let Some(counted) = &counted {
                let (waits, footprint) = (&mut track.waits, &track.footprint);
                waits.pass(hv, vm, counted, footprint, &tracking.latencies);
            }
            // Scores steer the scheduler's own choices, which is for modes that may move vCPUs.
            let own = if vm.mode_on(&hv.config.host).moves_vcpus() {
                let scores = track.footprint.proximity(&tracking.latencies);
                let groups = track.footprint.groups_mut();
                let own = groups.opinions(&scores, &tracking.latencies);
                tell(hv, sched::Event::ProximityUpdated { vm: vm.id, scores });
                own
            } else {
                track.footprint.groups_mut().retract()
            };
            for (index, scores) in own {
                let vcpu = VcpuId { vm: vm.id, index };
                tell(hv, sched::Event::VcpuProximity { vcpu, scores });
            }
        }
    }
    if now >= tracking.next_plan {
        tracking.next_plan = now + Nanos::from_millis(hv.config.host.plan_ms.into());
        plan(hv, tracking, now);
    }
}

/// Asks the planner, and does what it says.
fn plan<B: Backend>(hv: &Hypervisor<B>, tracking: &mut Tracking, now: Nanos) {
    let traffic = load::traffic(hv, tracking, now);
    let nodes = load::node_views(hv, &traffic, &tracking.capacities);
    let links = load::links(hv.machine, &traffic, &tracking.capacities);
    let inputs: Vec<Input> = hv
        .vms
        .iter()
        .filter(|vm| vm.state() == VmState::Running)
        .map(|vm| Input::of(hv, vm))
        .collect();
    let vms: Vec<VmView<'_>> = inputs
        .iter()
        .filter_map(|input| {
            let track = tracking.vms.iter().find(|t| t.vm == input.vm)?;
            tell_footprint(hv, track, &tracking.latencies);
            Some(input.view(&track.footprint))
        })
        .collect();
    let host = HostView {
        latencies: &tracking.latencies,
        nodes: &nodes,
        links: &links,
        link_bytes_per_s: load::copy_bytes_per_s(&tracking.capacities),
    };
    let decisions = tracking.planner.plan(now, &host, &vms);
    adapt(hv, tracking);
    for decision in decisions {
        if let Some(track) = tracking.vms.iter_mut().find(|t| t.vm == decision.vm) {
            let said = decision.event.to_string();
            // A reason to stay is told once, not at every pass.
            if decision.acts() || said != track.last_word {
                record(decision.event.clone());
            }
            track.last_word = said;
        }
        act(hv, decision);
    }
}

/// Puts thresholds that the load has changed into effect.
fn adapt<B: Backend>(hv: &Hypervisor<B>, tracking: &mut Tracking) {
    tracking.planner.take_told().into_iter().for_each(record);
    let settings = *tracking.planner.adapter().settings();
    for track in &mut tracking.vms {
        track.watch.set_stretch(settings.interval_times);
    }
    let given = hv.sched.lock().tunables().proximity_per_mille;
    if given != settings.bonus.0 {
        let part = settings.bonus;
        tell(hv, sched::Event::BonusWeighed { part });
    }
}

fn act<B: Backend>(hv: &Hypervisor<B>, decision: Decision) {
    let reason = decision.event.to_string();
    if decision.acts() {
        // With page orders too: a wish that found no room is withdrawn by them.
        tell(
            hv,
            sched::Event::PreferredNode {
                vm: decision.vm,
                node: decision.preferred,
            },
        );
    }
    match decision.action {
        Action::PreferNode(_) => {}
        Action::MovePages(orders) => order_pages(hv, decision.vm, orders, &reason),
        Action::Stay(_) => {}
    }
}

/// Hands page orders to the CPUs of their target nodes.
fn order_pages<B: Backend>(hv: &Hypervisor<B>, vm: VmId, orders: Vec<PageOrder>, reason: &str) {
    let mut targets: Vec<NodeId> = orders.iter().map(|o| o.to).collect();
    targets.sort_unstable();
    targets.dedup();
    for to in targets {
        let leaves: VecDeque<PageOrder> = orders.iter().filter(|o| o.to == to).copied().collect();
        moves::order(hv, PageWork::new(vm, to, leaves, String::from(reason)));
    }
}

/// What the operator's orders are recorded with.
const BY_HAND: &str = "the operator asked for it";

/// The operator wants all of a VM's pages on a node. Returns how many leaves are on their way.
pub fn migrate_all<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, to: NodeId) -> usize {
    let orders = away(vm, to);
    let count = orders.len();
    order_pages(hv, vm.id, orders, BY_HAND);
    count
}

/// An order for each leaf that is elsewhere. What small pages map for a while is one.
fn away<B: Backend>(vm: &Vm<B>, to: NodeId) -> Vec<PageOrder> {
    vm.ram.with_table(|table| {
        let leaves = table.all_leaves().filter(|leaf| !leaf.frozen);
        let orders = leaves.filter_map(|leaf| {
            let from = mm::node_of(leaf.frame)?;
            let granule = leaf.at.align_down(PageSize::Size2M);
            let is_apart = leaf.size == PageSize::Size4K && vm.ram.apart(granule).is_some();
            let (gpa, size) = match is_apart {
                true => (granule, PageSize::Size2M),
                false => (leaf.at, leaf.size),
            };
            let order = PageOrder {
                gpa,
                size,
                from,
                to,
            };
            (from != to).then_some(order)
        });
        let mut orders: Vec<PageOrder> = orders.collect();
        orders.dedup_by_key(|order| order.gpa);
        orders
    })
}

/// Brings all pages of a VM to the node behind `here`, as long as there are stops left; says at the end how it was.
pub fn travel<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, here: NodeId, tour: Tour) {
    let mut tour = tour;
    let nodes = hv.machine.nodes.iter().filter(|n| n.memory_bytes() > 0);
    let ids: Vec<NodeId> = nodes.map(|n| n.id).collect();
    let first = ids.iter().position(|n| *n > here).unwrap_or(0);
    for to in ids.iter().cycle().skip(first).take(ids.len()) {
        let orders = away(vm, *to);
        if tour.stops == 0 || vm.state() != VmState::Running {
            break;
        }
        if !orders.is_empty() {
            tour.stops -= 1;
            let work = PageWork::new(vm.id, *to, orders.into(), String::from(BY_HAND));
            return moves::order(hv, work.on(tour));
        }
    }
    log::info!(
        "{}: its pages have been around: {} leaves moved, {} of them written meanwhile, {} could not be moved",
        vm.name,
        tour.leaves,
        tour.written,
        tour.failed
    );
}

/// The operator says what the planner may move of a VM from now on. Where it may no longer move vCPUs, the
/// scheduler forgets what it was told for that.
pub fn set_mode<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, mode: config::Mode) {
    *vm.mode.lock() = Some(mode);
    if !mode.moves_vcpus() {
        tell(
            hv,
            sched::Event::PreferredNode {
                vm: vm.id,
                node: None,
            },
        );
        tell(
            hv,
            sched::Event::ProximityUpdated {
                vm: vm.id,
                scores: Vec::new(),
            },
        );
    }
}

/// What became of a page.
pub fn moved<B: Backend>(hv: &Hypervisor<B>, result: MoveResult) {
    let now = time::now();
    let mut tracking = hv.tracking.lock();
    if result.outcome == MoveOutcome::Moved
        && let Some(track) = tracking.vms.iter_mut().find(|t| t.vm == result.vm)
    {
        track.footprint.relocated(result.order.gpa, result.order.to);
    }
    tracking.planner.handle(now, migrate::Event::Moved(result));
}

/// A VM's vCPUs and limits, owned for the time of a plan.
struct Input {
    vm: VmId,
    name: String,
    mode: migrate::Mode,
    vcpus: Vec<VcpuView>,
    cpu_nodes: Option<Vec<NodeId>>,
}

impl Input {
    fn of<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> Self {
        let vcpus = {
            let sched = hv.sched.lock();
            vm.vcpus
                .iter()
                .filter_map(|v| sched.vcpu(v.id))
                .map(|r| VcpuView {
                    vcpu: r.vcpu,
                    node: r.node,
                    demand: r.demand.per_mille(),
                })
                .collect()
        };
        let cpu_nodes = match &vm.config.affinity {
            Affinity::Auto => None,
            Affinity::Nodes(nodes) => Some(nodes.clone()),
            Affinity::Cpus(cpus) => {
                let mut nodes: Vec<NodeId> = cpus
                    .iter()
                    .filter_map(|c| hv.machine.cpus.get(c.index()))
                    .map(|c| c.node)
                    .collect();
                nodes.sort_unstable();
                nodes.dedup();
                Some(nodes)
            }
        };
        let mode = match vm.mode_on(&hv.config.host) {
            config::Mode::Auto => migrate::Mode::Auto,
            config::Mode::DryRun => migrate::Mode::DryRun,
            config::Mode::VcpuOnly => migrate::Mode::VcpuOnly,
            config::Mode::PagesOnly => migrate::Mode::PagesOnly,
            config::Mode::Off => migrate::Mode::Off,
        };
        Self {
            vm: vm.id,
            name: vm.name.clone(),
            mode,
            vcpus,
            cpu_nodes,
        }
    }

    fn view<'a>(&'a self, footprint: &'a Footprint) -> VmView<'a> {
        VmView {
            vm: self.vm,
            name: &self.name,
            mode: self.mode,
            footprint,
            vcpus: &self.vcpus,
            cpu_nodes: self.cpu_nodes.as_deref(),
            memory_nodes: None,
        }
    }
}

/// Tells what a VM touches and how near each CPU is to that.
fn tell_footprint<B: Backend>(hv: &Hypervisor<B>, track: &VmTrack, latencies: &Latencies) {
    let name = super::name_of(hv, track.vm);
    let f = &track.footprint;
    record(Event::Footprint {
        vm: track.vm,
        name: name.clone(),
        pass: f.passes(),
        matrix: f.matrix().rows(),
        shares: f.shares(),
        resident: bytes_by_node(hv, track.vm),
        confidence: f.confidence(),
        groups: groups(f),
    });
    record(Event::Proximity {
        vm: track.vm,
        name,
        scores: cpu_scores(hv, f, latencies),
    });
}

/// vCPUs that work on memory of their own.
fn groups(footprint: &Footprint) -> Vec<GroupReport> {
    let groups = footprint.groups();
    let report = |(i, group): (usize, &Group)| GroupReport {
        vcpus: group.vcpus.clone(),
        primary: groups.matrix(i).primaries(),
        confidence: groups.confidence(i),
    };
    groups.groups().iter().enumerate().map(report).collect()
}

/// Memory of a VM on each node, touched or not.
pub fn bytes_by_node<B: Backend>(hv: &Hypervisor<B>, vm: VmId) -> Vec<u64> {
    hv.vm(vm)
        .map(|vm| vm.ram.bytes_by_node())
        .unwrap_or_default()
}

/// How near each CPU is to what a VM touches, by CPU number.
fn cpu_scores<B: Backend>(
    hv: &Hypervisor<B>,
    footprint: &Footprint,
    latencies: &Latencies,
) -> Vec<Score> {
    let by_node = footprint.proximity(latencies);
    hv.machine
        .cpus
        .iter()
        .map(|c| by_node.get(c.node.index()).copied().unwrap_or(Score::ZERO))
        .collect()
}
