//! What a decision costs: the scheduler alone, without a simulation around it.

use anyhow::Result;
use numasim::rng::Rng;
use numasim::svg::{Line, plot};
use sched::{Commands, CpuPlace, Event, Next, Scheduler, Tunables, VcpuSpec};
use std::path::Path;
use units::{CpuId, Nanos, NodeId, VcpuId, VmId};

/// Decisions that are timed for each size.
const DECISIONS: u64 = 200_000;

/// Prints ns a decision for 10 to 10,000 vCPUs, on 64 CPUs and on 1,024.
pub fn measure(out: Option<&Path>) -> Result<()> {
    let mut lines = Vec::new();
    for (nodes, per_node) in [(4_u16, 16_u32), (64, 16)] {
        let cpus = u32::from(nodes) * per_node;
        let mut points = Vec::new();
        for vcpus in [10_u32, 30, 100, 300, 1_000, 3_000, 10_000] {
            let ns = decision(nodes, per_node, vcpus);
            println!("{cpus:>5} CPUs, {vcpus:>6} vCPUs: {ns:>7.0} ns a decision");
            points.push((f64::from(vcpus), ns));
        }
        lines.push(Line {
            name: format!("{cpus} CPUs"),
            points,
        });
    }
    if let Some(out) = out {
        std::fs::create_dir_all(out)?;
        let svg = plot("Cost of a decision", "vCPUs", "ns", &lines, None);
        std::fs::write(out.join("cost.svg"), svg)?;
    }
    Ok(())
}

/// Mean time of a charge and a pick, or a block and a pick, or a wake-up, in a host whose vCPUs run 2 ms
/// and sleep now and then.
fn decision(nodes: u16, per_node: u32, vcpus: u32) -> f64 {
    let mut s = Scheduler::new(Tunables::default());
    let mut out = Commands::new();
    let mut now = Nanos::from_millis(1);
    for cpu in 0..u32::from(nodes) * per_node {
        let node = (cpu / per_node) as u16;
        let place = CpuPlace {
            node: NodeId(node),
            llc: node.into(),
            core: cpu,
        };
        let online = Event::CpuOnline {
            cpu: CpuId(cpu),
            place,
        };
        s.handle(now, online, &mut out).expect("a new CPU");
    }
    let id = |i: u32| VcpuId {
        vm: VmId(i as u16),
        index: 0,
    };
    for i in 0..vcpus {
        let spec = VcpuSpec {
            home: Some(NodeId((i % u32::from(nodes)) as u16)),
            ..VcpuSpec::default()
        };
        s.handle(now, Event::VcpuAdded { vcpu: id(i), spec }, &mut out)
            .expect("a new vCPU");
        s.handle(now, Event::Wake { vcpu: id(i) }, &mut out)
            .expect("known");
    }
    let cpus = u32::from(nodes) * per_node;
    let mut running: Vec<Option<VcpuId>> = vec![None; cpus as usize];
    let mut rng = Rng(1);
    let mut asleep: Vec<VcpuId> = Vec::new();
    let began = cpu_time();
    for i in 0..DECISIONS {
        let cpu = (i % u64::from(cpus)) as usize;
        now += Nanos(2_000_000 / u64::from(cpus));
        if let Some(vcpu) = running[cpu].take() {
            let charge = Event::Charge {
                cpu: CpuId(cpu as u32),
                vcpu,
                ran: Nanos(2_000_000),
            };
            s.handle(now, charge, &mut out).expect("it ran");
            if rng.below(4) == 0 {
                s.handle(now, Event::Block { vcpu }, &mut out)
                    .expect("known");
                asleep.push(vcpu);
            }
        }
        if asleep.len() > vcpus as usize / 4 {
            let vcpu = asleep.swap_remove(rng.below(asleep.len()));
            s.handle(now, Event::Wake { vcpu }, &mut out)
                .expect("known");
        }
        if let Next::Run { vcpu, .. } = s.pick(CpuId(cpu as u32), now, &mut out) {
            running[cpu] = Some(vcpu);
        }
        out.drain().for_each(drop);
    }
    (cpu_time() - began) / DECISIONS as f64
}

/// Time that this thread has been on a processor, in ns: what others do on the host does not count.
fn cpu_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = stat.split_whitespace().next().and_then(|n| n.parse().ok());
    ns.unwrap_or(0.0)
}
