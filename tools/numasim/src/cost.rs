//! What decisions cost: the scheduler alone, without a simulation around it.
//!
//! In the kernel one lock guards the scheduler, so two things bound a host's size: how long a call takes on average, which
//! times the calls of all CPUs must stay below one lock's time, and the longest single call, for which every CPU waits that
//! wants to pick meanwhile.

use anyhow::Result;
use numasim::rng::Rng;
use numasim::svg::{Line, plot};
use sched::{Commands, CpuPlace, Event, Next, Scheduler, Tunables, VcpuSpec};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::Instant;
use units::{CpuId, Nanos, NodeId, VcpuId, VmId};

/// Decisions that are timed for each size.
const DECISIONS: u64 = 200_000;
/// How long each vCPU runs at a time.
const SLICE: Nanos = Nanos::from_millis(5);
/// Times that a run is repeated. It is the same run each time, so of a call's times the shortest is what the call takes, and
/// what is beyond that the host did meanwhile.
const REPEATED: usize = 3;

/// What the decisions of one size cost.
struct Cost {
    /// Of all that was decided: an optimisation that should change nothing leaves it as it is.
    checksum: u64,
    /// Processor time of a decision, in ns.
    mean: f64,
    /// A thousandth of the calls takes longer, in ns.
    p999: u32,
    /// The longest call, in ns.
    longest: u32,
    /// Part of one lock's time.
    busy: f64,
}

/// Prints what decisions cost with 10 to 10,000 vCPUs, on 64 CPUs and on 1,024, or only with as many as `only` says of both.
pub fn measure(out: Option<&Path>, only: (Option<u32>, Option<u32>)) -> Result<()> {
    let skipped = |asked: Option<u32>, there: u32| asked.is_some_and(|n| n != there);
    let mut lines = Vec::new();
    for (nodes, per_node) in [(4_u16, 16_u32), (64, 16)] {
        let cpus = u32::from(nodes) * per_node;
        let mut points = Vec::new();
        for vcpus in [10_u32, 30, 100, 300, 1_000, 3_000, 10_000] {
            if skipped(only.0, cpus) || skipped(only.1, vcpus) {
                continue;
            }
            let cost = cost(nodes, per_node, vcpus);
            println!(
                "{cpus:>5} CPUs, {vcpus:>6} vCPUs: {:>7.0} ns a decision; calls p99.9 {:>6.1} us, longest {:>8.1} us; lock busy {:>5.1} %; decisions {:016x}",
                cost.mean,
                f64::from(cost.p999) / 1e3,
                f64::from(cost.longest) / 1e3,
                cost.busy * 100.0,
                cost.checksum,
            );
            points.push((f64::from(vcpus), cost.mean));
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

fn cost(nodes: u16, per_node: u32, vcpus: u32) -> Cost {
    let mut host = Host::new(nodes, per_node, vcpus);
    let began = cpu_time();
    decide(&mut host, |s, call| call(s), |_, _| {});
    let mean = (cpu_time() - began) / DECISIONS as f64;
    let cpus = f64::from(u32::from(nodes) * per_node);
    let (mut calls, checksum) = calls(nodes, per_node, vcpus);
    calls.sort_unstable();
    let longest = calls.last().copied().unwrap_or(0);
    let rank = calls.len() - calls.len() / 1000;
    Cost {
        checksum,
        mean,
        p999: calls.get(rank).copied().unwrap_or(longest),
        longest,
        busy: mean * cpus / SLICE.0 as f64,
    }
}

/// How long each call takes, and a checksum of the decisions.
fn calls(nodes: u16, per_node: u32, vcpus: u32) -> (Vec<u32>, u64) {
    let mut calls: Vec<u32> = Vec::new();
    let mut checksum = 0;
    for round in 0..REPEATED {
        let mut at = 0;
        let timed = |s: &mut Scheduler, call: &mut dyn FnMut(&mut Scheduler)| {
            let began = Instant::now();
            call(s);
            let took = u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX);
            match calls.get_mut(at) {
                Some(least) => *least = took.min(*least),
                None => calls.push(took),
            }
            at += 1;
        };
        let mut hasher = DefaultHasher::new();
        let said = |next: &Next, commands: &Commands| {
            if round == 0 {
                format!("{next:?} {commands:?}").hash(&mut hasher);
            }
        };
        decide(&mut Host::new(nodes, per_node, vcpus), timed, said);
        if round == 0 {
            checksum = hasher.finish();
        }
    }
    (calls, checksum)
}

/// A host whose vCPUs run a slice and sleep now and then.
struct Host {
    sched: Scheduler,
    now: Nanos,
    cpus: u32,
    vcpus: u32,
}

impl Host {
    fn new(nodes: u16, per_node: u32, vcpus: u32) -> Self {
        let mut sched = Scheduler::new(Tunables::default());
        let mut out = Commands::new();
        let now = Nanos::from_millis(1);
        let cpus = u32::from(nodes) * per_node;
        for cpu in 0..cpus {
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
            sched.handle(now, online, &mut out).expect("a new CPU");
        }
        for i in 0..vcpus {
            let vcpu = vcpu(i);
            let spec = VcpuSpec {
                home: Some(NodeId((i % u32::from(nodes)) as u16)),
                ..VcpuSpec::default()
            };
            let events = [Event::VcpuAdded { vcpu, spec }, Event::Wake { vcpu }];
            for event in events {
                sched.handle(now, event, &mut out).expect("a new vCPU");
            }
        }
        Self {
            sched,
            now,
            cpus,
            vcpus,
        }
    }
}

fn vcpu(i: u32) -> VcpuId {
    VcpuId {
        vm: VmId(i as u16),
        index: 0,
    }
}

/// Lets the host's CPUs decide one after the other: each charges whom it ran, which may sleep then, and picks; and somebody
/// wakes. `timed` makes each call, `said` is told what came of them.
fn decide(
    host: &mut Host,
    mut timed: impl FnMut(&mut Scheduler, &mut dyn FnMut(&mut Scheduler)),
    mut said: impl FnMut(&Next, &Commands),
) {
    let mut out = Commands::new();
    let mut running: Vec<Option<VcpuId>> = vec![None; host.cpus as usize];
    let mut rng = Rng(1);
    let mut asleep: Vec<VcpuId> = Vec::new();
    for i in 0..DECISIONS {
        let at = (i % u64::from(host.cpus)) as usize;
        let cpu = CpuId(at as u32);
        host.now += Nanos(SLICE.0 / u64::from(host.cpus));
        let now = host.now;
        if let Some(vcpu) = running[at].take() {
            let ran = SLICE;
            let sleeps = rng.below(4) == 0;
            timed(&mut host.sched, &mut |s| {
                let charge = Event::Charge { cpu, vcpu, ran };
                s.handle(now, charge, &mut out).expect("it ran");
                if sleeps {
                    s.handle(now, Event::Block { vcpu }, &mut out)
                        .expect("known");
                }
            });
            asleep.extend(sleeps.then_some(vcpu));
        }
        if asleep.len() > host.vcpus as usize / 4 {
            let vcpu = asleep.swap_remove(rng.below(asleep.len()));
            timed(&mut host.sched, &mut |s| {
                s.handle(now, Event::Wake { vcpu }, &mut out)
                    .expect("known");
            });
        }
        let mut next = Next::Idle { until: None };
        timed(&mut host.sched, &mut |s| next = s.pick(cpu, now, &mut out));
        if let Next::Run { vcpu, .. } = next {
            running[at] = Some(vcpu);
        }
        said(&next, &out);
        out.drain().for_each(drop);
    }
}

/// Time that this thread has been on a processor, in ns: what others do on the host does not count.
fn cpu_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = stat.split_whitespace().next().and_then(|n| n.parse().ok());
    ns.unwrap_or(0.0)
}
