//! What goes through last-level caches to memory, where processors count it ([`pmu::bandwidth`]).
//!
//! The counts of a cache can be read only on CPUs that have it, and nobody is interrupted for them: whichever CPU comes round its loop
//! reads its cache's, if nobody has for [`EVERY`]. The boot CPU adds up what they have found when it plans. A cache all of whose CPUs
//! sleep is not read; nothing goes through it.

use super::port;
use crate::arch::percpu;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use footprint::load::Counted;
use pmu::bandwidth::{Absent, Meter, Monitoring, Rates, detect, take_part};
use spin::{Mutex, Once};
use topology::Machine;
use units::{Nanos, NodeId};

/// Time between two readings of a cache.
const EVERY: Nanos = Nanos::from_millis(100);

static PLANE: Once<Result<Plane, Absent>> = Once::new();

/// All caches.
struct Plane {
    monitoring: Monitoring,
    caches: Vec<Cache>,
    /// The cache of each CPU, by their numbers.
    of_cpu: Vec<usize>,
}

/// One last-level cache.
struct Cache {
    /// Of its CPUs. Traffic of several is not told apart by its counts.
    nodes: Vec<NodeId>,
    /// When it wants to be read, in ns.
    due: AtomicU64,
    /// `None` once a register has refused. A leaf in the order of locks.
    meter: Mutex<Option<Meter>>,
}

/// On the boot CPU, before any guest: what will be counted.
pub fn prepare(machine: &Machine) {
    #[cfg(feature = "sabotage")]
    super::injected::caches::prepare(machine);
    let plane = detect(&port::cpuid()).map(|monitoring| Plane::new(machine, monitoring));
    PLANE.call_once(|| plane);
    log::info!("{}", describe());
}

impl Plane {
    fn new(machine: &Machine, monitoring: Monitoring) -> Self {
        let of_cpu: Vec<usize> = machine.cpus.iter().map(|cpu| cpu.llc as usize).collect();
        let count = of_cpu.iter().max().map_or(0, |last| last + 1);
        let cache = |number: usize| Cache {
            nodes: nodes_of(machine, number),
            due: AtomicU64::new(0),
            meter: Mutex::new(Some(Meter::new(monitoring))),
        };
        Self {
            monitoring,
            caches: (0..count).map(cache).collect(),
            of_cpu,
        }
    }

    /// That of the calling CPU.
    fn here(&self) -> Option<&Cache> {
        let cache = self.of_cpu.get(percpu::current().cpu.index())?;
        self.caches.get(*cache)
    }
}

/// The nodes of CPUs that have this cache.
fn nodes_of(machine: &Machine, cache: usize) -> Vec<NodeId> {
    let cpus = machine.cpus.iter().filter(|cpu| cpu.llc as usize == cache);
    let mut nodes: Vec<NodeId> = cpus.map(|cpu| cpu.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

fn plane() -> Option<&'static Plane> {
    PLANE.get()?.as_ref().ok()
}

/// On each CPU that hosts guests: what it does counts.
pub fn claim() {
    if plane().is_none() {
        return;
    }
    if let Err(fault) = take_part(&mut port::cache_here()) {
        let cpu = percpu::current().cpu;
        log::warn!("what {cpu} moves to and from memory may not be counted: {fault}");
    }
}

/// The calling CPU comes round: it reads its cache's counts if it is time to. Whoever finds that another CPU is reading them goes on.
pub fn poll(now: Nanos) {
    let Some(cache) = plane().and_then(Plane::here) else {
        return;
    };
    if now.0 < cache.due.load(Relaxed) {
        return;
    }
    let Some(mut held) = cache.meter.try_lock() else {
        return;
    };
    cache.due.store((now + EVERY).0, Relaxed);
    let Some(meter) = held.as_mut() else { return };
    let Err(fault) = meter.read(&mut port::cache_here(), now) else {
        return;
    };
    *held = None;
    drop(held);
    let cpu = percpu::current().cpu;
    log::error!("what the cache of {cpu} moves is not counted from now on: {fault}");
}

impl Cache {
    /// What is known of it, nothing once it cannot be read.
    fn rates(&self, now: Nanos) -> Rates {
        let meter = self.meter.lock();
        meter
            .as_ref()
            .map(|meter| meter.rates(now))
            .unwrap_or_default()
    }
}

/// What processors of a node move, as far as all of its caches are known and no other node's CPUs have any of them.
pub fn counted(node: NodeId, now: Nanos) -> Counted {
    let caches = plane().map_or(&[][..], |plane| &plane.caches);
    let own = || caches.iter().filter(|cache| cache.nodes.contains(&node));
    if own().next().is_none() || own().any(|cache| cache.nodes.len() > 1) {
        return Counted::default();
    }
    let rates: Vec<Rates> = own().map(|cache| cache.rates(now)).collect();
    let sum = |of: fn(&Rates) -> Option<u64>| {
        let mut all = rates.iter().map(of);
        all.try_fold(0u64, |sum, rate| Some(sum.saturating_add(rate?)))
    };
    Counted {
        total: sum(|rates| rates.total),
        local: sum(|rates| rates.local),
    }
}

/// The document that says what is counted; nothing where nothing is.
pub fn source() -> Option<&'static str> {
    plane().map(|plane| plane.monitoring.source)
}

/// What is counted, as a sentence, and each cache about which there is something to say.
pub fn describe() -> String {
    let plane = match PLANE.get() {
        Some(Ok(plane)) => plane,
        Some(Err(why)) => return format!("memory bandwidth is not counted: {why}"),
        None => return String::from("memory bandwidth is not counted yet"),
    };
    let Monitoring {
        factor,
        width,
        total,
        local,
        source,
    } = plane.monitoring;
    let events = match (total, local) {
        (true, true) => "to all memory and to near memory",
        (true, false) => "to all memory",
        (false, _) => "to near memory",
    };
    format!(
        "memory bandwidth: each of {} last-level caches counts bytes {events}, in units of {factor} with {width} bits ({source})",
        plane.caches.len()
    )
}

/// Caches of which there is something to say, a line each.
pub fn troubles(now: Nanos) -> String {
    let mut text = String::new();
    let caches = plane().map_or(&[][..], |plane| &plane.caches);
    for (number, cache) in caches.iter().enumerate() {
        let rates = cache.rates(now);
        let trouble = match (cache.nodes.len(), rates.trouble) {
            (2.., _) => {
                String::from("serves CPUs of several nodes, whose traffic it does not tell apart")
            }
            (_, Some(trouble)) => {
                let since = now.since(rates.known).as_millis();
                format!("has said nothing for {since} ms: {trouble}")
            }
            _ if cache.meter.lock().is_none() => String::from("cannot be read any more"),
            _ => continue,
        };
        text.push_str(&format!("last-level cache {number} {trouble}\n"));
    }
    text
}
