//! What the operator's questions are answered with.

use crate::arch::{percpu, time};
use crate::console;
use crate::drive;
use crate::mm;
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vm};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use units::{Nanos, VcpuId};

macro_rules! say {
    ($($arg:tt)*) => { console::print(format_args!("{}\n", format_args!($($arg)*))) };
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(" ")
}

/// Nodes, CPUs, distances.
pub fn topology<B: Backend>(hv: &Hypervisor<B>) {
    let m = hv.machine;
    for node in &m.nodes {
        let cpus = joined(m.cpus.iter().filter(|c| c.node == node.id).map(|c| c.id));
        let total = node.memory_bytes() >> 20;
        let cpus = if cpus.is_empty() { "no CPUs" } else { &cpus };
        say!("{} ({}): {total} MiB for guests and kernel, {cpus}", node.id, node.domain);
    }
    say!("latency in ns, row = accessing node ({}):", m.latency_source);
    for from in &m.nodes {
        say!("  {}: {}", from.id, joined(m.nodes.iter().map(|to| m.latency_ns(from.id, to.id))));
    }
}

/// Free memory of each node.
pub fn memory() {
    for node in mm::stats() {
        say!("{node}");
    }
}

/// One VM.
pub fn vm<B: Backend>(vm: &Vm<B>) {
    say!("{} ({}): {}, {} vCPUs, {} MiB, home {}", vm.name, vm.id, vm.state(), vm.vcpus.len(), vm.config.memory_bytes >> 20, vm.home);
    for v in &vm.vcpus {
        let at = v.running_on.load(Relaxed);
        let place = match at {
            crate::vm::NOWHERE if v.blocked.load(Relaxed) => String::from("waits"),
            crate::vm::NOWHERE => String::from("ready"),
            cpu => alloc::format!("runs on cpu{cpu}"),
        };
        say!("  {}: {place}, ran {}, {} exits, changed its CPU {} times", v.id, Nanos(v.ran_ns.load(Relaxed)), v.exits.load(Relaxed), v.moves.load(Relaxed));
    }
}

/// What each CPU runs.
pub fn cpus<B: Backend>(hv: &Hypervisor<B>) {
    let sched = hv.sched.lock();
    for report in sched.cpus() {
        let doing = percpu::of(report.cpu).map(|c| c.activity().to_string()).unwrap_or_default();
        say!("{} ({}): {doing}; {} more wait; {}.{:02} CPUs asked for", report.cpu, report.node, report.waiting, report.demand >> 16, (report.demand & 0xffff) * 100 >> 16);
    }
}

/// Who touches which node's memory.
pub fn footprint<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) {
    let tracking = hv.tracking.lock();
    let Some(track) = tracking.of(vm.id) else { return };
    let f = &track.footprint;
    say!("{}: {} passes, {}, confidence {}", vm.name, f.passes(), if f.is_idle() { "idle" } else { "busy" }, f.confidence());
    say!("  accesses go to:  {}", joined(hv.machine.nodes.iter().zip(f.shares()).map(|(n, s)| alloc::format!("{} {s}", n.id))));
    say!("  memory lies on:  {}", joined(hv.machine.nodes.iter().zip(vm.ram.bytes_by_node(hv.machine.nodes.len())).map(|(n, b)| alloc::format!("{} {} MiB", n.id, b >> 20))));
    for (from, row) in hv.machine.nodes.iter().zip(f.matrix().rows()) {
        if row.iter().any(|cell| *cell > 0) {
            say!("  touches from {}: {}", from.id, joined(row));
        }
    }
}

/// How near each CPU is.
pub fn proximity<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) {
    let tracking = hv.tracking.lock();
    let Some(track) = tracking.of(vm.id) else { return };
    let scores = drive::cpu_scores(hv, &track.footprint, &tracking.latencies);
    say!("{}: {}", vm.name, joined(hv.machine.cpus.iter().zip(scores).map(|(c, s)| alloc::format!("{} {s}", c.id))));
}

/// The scheduler's sum and the planner's last word.
pub fn why<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, only: Option<u16>) {
    if let Some(track) = hv.tracking.lock().of(vm.id) {
        say!("{}: {}", vm.name, track.last_word);
    }
    if let Some(index) = only.filter(|i| usize::from(*i) >= vm.vcpus.len()) {
        return say!("perigee: {} has no vCPU {index}", vm.name);
    }
    let sched = hv.sched.lock();
    for vcpu in vm.vcpus.iter().filter(|v| only.is_none_or(|i| v.id.index == i)) {
        let id: VcpuId = vcpu.id;
        if let Some(explanation) = sched.why(time::now(), id) {
            say!("  {explanation}");
        }
    }
}
