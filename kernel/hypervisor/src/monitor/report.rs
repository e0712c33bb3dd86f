//! What the operator's questions are answered with.
//!
//! Each report is put together first, under whatever locks it needs, and printed afterwards: a slow serial
//! line holds nobody up.

use super::table::{Table, ranges};
use crate::arch::percpu::{self, Activity};
use crate::arch::time;
use crate::drive;
use crate::shootdown;
use crate::virt::Backend;
use crate::virt::speculation::{self, Counted};
use crate::vm::{Hypervisor, NOWHERE, Vcpu, Vm};
use crate::{mm, platform};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use guest::speculation::Measure;
use sched::Explanation;
use topology::Machine;
use units::{CpuId, Nanos, NodeId, PAGE_BYTES, PageSize, VcpuId};

/// Past decisions about a vCPU that are told.
const LATELY: usize = 6;

/// Seconds with three digits.
fn seconds(time: Nanos) -> String {
    format!(
        "{}.{:03} s",
        time.0 / 1_000_000_000,
        time.0 / 1_000_000 % 1000
    )
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn cpus_of<B: Backend>(hv: &Hypervisor<B>, node: NodeId) -> String {
    ranges(
        hv.machine
            .cpus
            .iter()
            .filter(|c| c.node == node)
            .map(|c| c.id),
    )
}

/// A vCPU as the operator names it.
pub(super) fn name<B: Backend>(hv: &Hypervisor<B>, id: VcpuId) -> String {
    match hv.vm(id.vm) {
        Some(vm) => format!("{}.{}", vm.name, id.index),
        None => id.to_string(),
    }
}

/// Nodes, CPUs, distances.
pub fn topology<B: Backend>(hv: &Hypervisor<B>) -> String {
    let m = hv.machine;
    let mut nodes = Table::new(["node", "firmware calls it", "memory", "CPUs"]);
    for node in &m.nodes {
        nodes.row([
            node.id.to_string(),
            node.domain.to_string(),
            mib(node.memory_bytes()),
            cpus_of(hv, node.id),
        ]);
    }
    let latencies = by_pair(m, |from, to| m.latency_ns(from, to).to_string());
    let bandwidths = by_pair(m, |from, to| {
        m.bandwidth_mb_s(from, to)
            .map_or("?".into(), |mb_s| mb_s.to_string())
    });
    let measured = platform::discovery().map_or(&[][..], |found| &found.measured);
    let measured: String = measured.iter().map(|line| format!("{line}\n")).collect();
    format!(
        "{nodes}latency in ns ({}):\n{latencies}bandwidth in MB/s (measured where repeats agree, else HMAT):\n{bandwidths}{measured}{}\n",
        m.latency_source,
        crate::counters::describe()
    )
}

/// A row for each node that accesses, a column for each node that holds the memory.
fn by_pair(m: &Machine, cell: impl Fn(NodeId, NodeId) -> String) -> Table {
    let mut headings = alloc::vec![String::from("from \\ to")];
    headings.extend(m.nodes.iter().map(|n| n.id.to_string()));
    let mut table = Table::new(headings);
    for from in &m.nodes {
        let cells = m.nodes.iter().map(|to| cell(from.id, to.id));
        table.row(core::iter::once(from.id.to_string()).chain(cells));
    }
    table
}

/// Free memory of each node.
pub fn memory() -> String {
    let mut table = Table::new([
        "node",
        "free",
        "total",
        "blocks given",
        "taken from other nodes",
        "refused",
    ]);
    for node in mm::stats() {
        let c = &node.counters;
        table.row([
            node.node.to_string(),
            mib(c.free * PAGE_BYTES),
            mib(c.total * PAGE_BYTES),
            c.allocations.to_string(),
            c.fallbacks.to_string(),
            c.failures.to_string(),
        ]);
    }
    table.to_string()
}

/// All VMs, a line each.
pub fn vms<B: Backend>(hv: &Hypervisor<B>) -> String {
    let mut table = Table::new(["key", "name", "state", "vCPUs", "memory", "lies on", "ran"]);
    for (key, vm) in (1_u32..).zip(&hv.vms) {
        let ran: u64 = vm.vcpus.iter().map(|v| v.ran_ns.load(Relaxed)).sum();
        table.row([
            key.to_string(),
            vm.name.clone(),
            vm.state().to_string(),
            vm.vcpus.len().to_string(),
            mib(vm.config.memory_bytes),
            lies_on(hv, vm),
            seconds(Nanos(ran)),
        ]);
    }
    match hv.vms.is_empty() {
        true => String::from("no VM was started\n"),
        false => format!("{table}Ctrl-A and the key: input goes to that VM; vm NAME tells more\n"),
    }
}

/// The nodes that hold a VM's memory, those with most of it first.
fn lies_on<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    let mut held: Vec<(u64, NodeId)> = vm
        .ram
        .bytes_by_node()
        .into_iter()
        .zip(hv.machine.nodes.iter().map(|n| n.id))
        .collect();
    held.retain(|(bytes, _)| *bytes > 0);
    held.sort_by_key(|(bytes, node)| (core::cmp::Reverse(*bytes), *node));
    match held.as_slice() {
        [] => String::from("nowhere"),
        [(_, node)] => node.to_string(),
        several => several
            .iter()
            .map(|(bytes, node)| format!("{node} ({})", mib(*bytes)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// One VM and its vCPUs.
pub fn vm<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    let mut table = Table::new([
        "vCPU",
        "state",
        "ran",
        "exits",
        "ended by time",
        "changed its CPU",
    ]);
    for v in &vm.vcpus {
        table.row([
            name(hv, v.id),
            doing(v),
            seconds(Nanos(v.ran_ns.load(Relaxed))),
            v.exits.load(Relaxed).to_string(),
            v.times_up.load(Relaxed).to_string(),
            format!("{} times", v.moves.load(Relaxed)),
        ]);
    }
    let moving = match drive::queued(vm.id) {
        0 => String::new(),
        leaves => format!("; {leaves} leaves wait to be moved"),
    };
    let executed = match vm.ram.fetched() {
        0 => String::new(),
        granules => format!("; {granules} pages of 2 MiB became small ones to be executed"),
    };
    format!(
        "{} is {}; it began on {}, its {} lie on {}{moving}{executed}\n{table}",
        vm.name,
        vm.state(),
        vm.home,
        mib(vm.config.memory_bytes),
        lies_on(hv, vm)
    )
}

fn doing<B: Backend>(v: &Vcpu<B>) -> String {
    match v.running_on.load(Relaxed) {
        NOWHERE if v.blocked.load(Relaxed) => String::from("halted"),
        NOWHERE => String::from("off its CPU"),
        cpu => format!("runs on {}", CpuId(cpu)),
    }
}

/// What each CPU runs.
pub fn cpus<B: Backend>(hv: &Hypervisor<B>) -> String {
    let mut table = Table::new([
        "CPU",
        "node",
        "does",
        "others waiting",
        "load",
        "kept idle",
        "timer interrupts",
    ]);
    let sched = hv.sched.lock();
    for report in sched.cpus() {
        let doing = match percpu::of(report.cpu).map(|c| c.activity()) {
            Some(Activity::Guest(vcpu)) => name(hv, vcpu),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        table.row([
            report.cpu.to_string(),
            report.node.to_string(),
            doing,
            report.waiting.to_string(),
            format!("{} %", (report.demand * 100) >> 16),
            report.kept_idle.to_string(),
            percpu::of(report.cpu)
                .map_or(0, |c| c.timer_interrupts())
                .to_string(),
        ]);
    }
    table.to_string()
}

/// Who touches which node's memory.
pub fn footprint<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    let tracking = hv.tracking.lock();
    let Some(track) = tracking.of(vm.id) else {
        return format!("{} is not followed\n", vm.name);
    };
    let f = &track.footprint;
    let matrix = f.matrix().rows();
    let accessors: Vec<(NodeId, &Vec<u64>)> = hv
        .machine
        .nodes
        .iter()
        .map(|n| n.id)
        .zip(&matrix)
        .filter(|(_, row)| row.iter().any(|cell| *cell > 0))
        .collect();
    let mut headings: Vec<String> = ["memory on", "holds", "of its accesses"]
        .map(String::from)
        .to_vec();
    headings.extend(
        accessors
            .iter()
            .map(|(node, _)| format!("touched from {node}")),
    );
    let mut table = Table::new(headings);
    let held = vm.ram.bytes_by_node();
    for (((index, node), bytes), share) in hv
        .machine
        .nodes
        .iter()
        .enumerate()
        .zip(held)
        .zip(f.shares())
    {
        let mut row = alloc::vec![node.id.to_string(), mib(bytes), share.to_string()];
        row.extend(accessors.iter().map(|(_, cells)| {
            (cells.get(index).copied().unwrap_or(0) / footprint::TOUCH).to_string()
        }));
        table.row(row);
    }
    let activity = if f.is_idle() { "idle" } else { "busy" };
    format!(
        "{}: {activity}, {} passes, confidence {}\n{table}{}{}{}{}",
        vm.name,
        f.passes(),
        f.confidence(),
        super::groups::touches(f),
        page_tables(vm),
        looks(vm, track, &tracking),
        super::counters::opinion(f)
    )
}

/// Where the nested tables are that its CPUs walk, and what they are for.
fn page_tables<B: Backend>(vm: &Vm<B>) -> String {
    vm.ram.with_table(|tables| {
        let nodes: Vec<String> = tables.all().iter().map(|t| t.node().to_string()).collect();
        let kib = (tables.table_frames() * units::PAGE_BYTES) >> 10;
        let bytes: u64 = vm
            .ram
            .bytes_by_node()
            .into_iter()
            .fold(0, u64::saturating_add);
        let (apart, overtaken) = vm.ram.count_apart();
        // Without a look at every small page, of which there may be very many.
        let large = tables.count(PageSize::Size2M) + apart;
        let small = (bytes / PAGE_BYTES).saturating_sub(large * PageSize::Size2M.pages());
        format!(
            "page tables on {}: {kib} KiB for {large} large pages and {small} of 4 KiB; \
             {apart} large ones are small for a while, and \
             {overtaken} close looks ended early as their pages moved\n",
            nodes.join(", "),
        )
    })
}

/// What looking costs.
fn looks<B: Backend>(vm: &Vm<B>, track: &drive::VmTrack, all: &drive::Tracking) -> String {
    let watch = &track.watch;
    let notes = watch.metadata_bytes(vm.vcpus.len()) + track.footprint.metadata_bytes();
    let memory = vm.shape.memory.bytes().max(1);
    let millionths = notes as u64 * 1_000_000 / memory;
    let (looks, lost) = watch.intake.count();
    let cost = watch.cost;
    let by_looks: u64 = all.vms.iter().map(|t| t.watch.cost.interrupted).sum();
    let flushes: u64 = vm.vcpus.iter().map(|v| v.flushes.load(Relaxed)).sum();
    format!(
        "looked {} times ({} stale) in {}, now every {} ms at {} regions, with {} KiB of notes, {}.{:03} % of its memory; {} entries flushed\n\
         looked closely at {} granules by {} shootdowns, {} in all, that interrupted {} CPUs; {} were interrupted for shootdowns of all kinds and VMs, {by_looks} of them by close looks\n\
         looked {looks} times at what a stopped virtual CPU was about to touch; nobody took in {lost} in time\n",
        cost.intervals,
        cost.stale,
        seconds(cost.time),
        watch.sampler.interval().as_millis(),
        watch.sampler.regions().len(),
        notes >> 10,
        millionths / 10_000,
        millionths % 10_000 / 10,
        flushes,
        cost.splits,
        cost.shootdowns,
        seconds(cost.waiting),
        cost.interrupted,
        shootdown::kicks(),
    )
}

/// How near the CPUs of each node are to what the VM touches: they are all alike.
pub fn proximity<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) -> String {
    let tracking = hv.tracking.lock();
    let Some(track) = tracking.of(vm.id) else {
        return format!("{} is not followed\n", vm.name);
    };
    let mut table = Table::new(["CPUs", "node", "proximity"]);
    for (node, score) in hv
        .machine
        .nodes
        .iter()
        .zip(track.footprint.proximity(&tracking.latencies))
    {
        if node.has_cpus() {
            table.row([cpus_of(hv, node.id), node.id.to_string(), score.to_string()]);
        }
    }
    format!(
        "{}: 1 is nearest to what it touches, 0 farthest\n{table}{}",
        vm.name,
        super::groups::near(hv, &track.footprint, &tracking.latencies)
    )
}

/// The planner's last word and the scheduler's sums.
pub fn why<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, only: Option<u16>) -> String {
    let mut text = String::new();
    if let Some(track) = hv.tracking.lock().of(vm.id) {
        text.push_str(&format!("{}: {}\n", vm.name, track.last_word));
    }
    if let Some(index) = only.filter(|i| usize::from(*i) >= vm.vcpus.len()) {
        return format!(
            "{} has no vCPU {index}; it has 0 to {}\n",
            vm.name,
            vm.vcpus.len().saturating_sub(1)
        );
    }
    let sched = hv.sched.lock();
    for vcpu in vm
        .vcpus
        .iter()
        .filter(|v| only.is_none_or(|i| v.id.index == i))
    {
        match sched.why(time::now(), vcpu.id) {
            Some(explanation) => {
                text.push_str(&sum(hv, &explanation));
                if only.is_some() {
                    text.push_str(&lately(hv, vcpu.id));
                }
            }
            None => text.push_str(&format!(
                "  {} is not scheduled any more\n",
                name(hv, vcpu.id)
            )),
        }
    }
    text
}

/// What was decided about a vCPU before, oldest first.
fn lately<B: Backend>(hv: &Hypervisor<B>, vcpu: VcpuId) -> String {
    let lines = hv.decisions.about(vcpu, LATELY);
    let line = |(at, decision)| format!("    at {at}: {decision}\n");
    lines.into_iter().map(line).collect()
}

/// One vCPU's sum, a thought a line.
fn sum<B: Backend>(hv: &Hypervisor<B>, e: &Explanation) -> String {
    let (r, t) = (&e.report, &e.terms);
    let state = match e.state {
        sched::State::Running => format!("runs on {} ({})", r.cpu, r.node),
        sched::State::Waiting { for_ } => format!("has waited {for_} for {} ({})", r.cpu, r.node),
        sched::State::Halted => format!("is halted, last on {} ({})", r.cpu, r.node),
        sched::State::Capped => format!("has used up its cap, on {} ({})", r.cpu, r.node),
        sched::State::Paused => format!("is paused, last on {} ({})", r.cpu, r.node),
    };
    let mut text = format!(
        "  {} {state}; class {}, weight {}\n",
        name(hv, r.vcpu),
        t.class,
        t.weight
    );
    let eligible = if r.credit.0 < 0 {
        "; not eligible until its credit is paid back"
    } else {
        ""
    };
    text.push_str(&format!(
        "    deadline {} (remaining {} - credit {}) - proximity {} + cache {} = key {}{eligible}\n",
        t.deadline, t.remaining, t.credit, t.bonus, t.penalty, t.key
    ));
    if let Some((rival, terms)) = &e.rival {
        text.push_str(&format!(
            "    there runs {} with key {}\n",
            name(hv, *rival),
            terms.key
        ));
    }
    let preferred = e
        .preferred
        .map_or(String::from("no node is preferred"), |node| {
            format!("{node} is preferred")
        });
    text.push_str(&format!(
        "    wants {} of a CPU, is owed {} machine-wide; {preferred}\n",
        r.demand, r.account
    ));
    text
}

/// Registers the operator's order to move pages; the answer.
pub fn migrate<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, node: NodeId) -> String {
    let away: u64 = {
        let held = vm.ram.bytes_by_node();
        held.iter()
            .enumerate()
            .filter(|(index, _)| *index != node.index())
            .map(|(_, bytes)| bytes)
            .sum()
    };
    if away == 0 {
        return format!("all of {} is on {node} already\n", vm.name);
    }
    let free = mm::free_bytes(node);
    let leaves = drive::migrate_all(hv, vm, node);
    let room = match free < away {
        true => format!("; {node} has {} free, so not all will arrive", mib(free)),
        false => String::new(),
    };
    format!(
        "{leaves} leaves of {} ({}) are on their way to {node}{room}\n",
        vm.name,
        mib(away)
    )
}

/// What is done against leaks by speculation.
pub fn security<B: Backend>(hv: &Hypervisor<B>) -> String {
    let counts = [
        Counted::Ibpb,
        Counted::SpecCtrl,
        Counted::ReturnStack,
        Counted::Verw,
        Counted::L1d,
    ];
    let mut table = Table::new(["measure", "state", "done", "because"]);
    for ((name, measure), counted) in speculation::plan().measures().into_iter().zip(counts) {
        let (state, why) = match measure {
            Measure::Active(why) => ("active", why),
            Measure::Spared(why) => ("not needed", why),
            Measure::Missing(why) => ("MISSING", why),
        };
        table.row([name, state, &speculation::total(counted).to_string(), why]);
    }
    let sched = hv.sched.lock();
    let threads = sched.cpus().any(|cpu| sched.has_siblings(cpu.cpu));
    let (state, why) = match (threads, sched.tunables().share_cores) {
        (false, _) => ("not needed", "no core has two threads here"),
        (true, false) => ("active", "threads of a core share caches and buffers"),
        (true, true) => ("off", "`share_cores = true` in the configuration"),
    };
    let kept_idle: u64 = sched.cpus().map(|cpu| cpu.kept_idle).sum();
    table.row(["one VM to a core", state, &kept_idle.to_string(), why]);
    table.to_string()
}
