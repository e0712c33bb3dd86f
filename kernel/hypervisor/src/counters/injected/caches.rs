//! Simulated counts of last-level caches: `inject node` says what the CPUs of a node move to and from memory.

use crate::arch::{percpu, time};
use crate::sabotage;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use config::Sabotage;
use guest::cpuid::Vendor;
use pmu::CpuidValues;
use pmu::bandwidth::simulated::SimulatedCache;
use spin::{Mutex, MutexGuard, Once};
use topology::Machine;
use units::{Nanos, NodeId};

/// Bytes in a MB, as HMAT counts them.
const MB: u64 = 1_000_000;
/// Bytes until the first wrap, so that every run has one.
const TO_WRAP: u128 = 1 << 28;

/// One cache.
struct Injected {
    cache: Mutex<SimulatedCache>,
    flow: Mutex<Flow>,
}

/// Bytes per second, and up to when they have gone through.
struct Flow {
    total: u64,
    local: u64,
    since: Nanos,
}

struct All {
    caches: Vec<Injected>,
    /// Cache and node of each CPU, by their numbers.
    of_cpu: Vec<(usize, NodeId)>,
}

static ALL: Once<All> = Once::new();

/// On the boot CPU, once all are there: a cache of the host's vendor for each that it has, if the configuration wants them.
pub fn prepare(machine: &Machine) {
    if !sabotage::on(Sabotage::InjectCounters) {
        return;
    }
    let cpus = machine.cpus.iter();
    let of_cpu: Vec<(usize, NodeId)> = cpus.map(|cpu| (cpu.llc as usize, cpu.node)).collect();
    let count = of_cpu.iter().map(|(cache, _)| cache + 1).max();
    let each = |_| {
        // As the first ones that counted: SDM 3B 18.18.8, APM 2 table 19-7.
        let mut cache = match Vendor::of(&super::Host) {
            Vendor::Intel => SimulatedCache::new(1 << 16, 24),
            Vendor::Amd => SimulatedCache::new(64, 44),
        };
        let turn = u128::from(cache.factor) << cache.width;
        cache.pass(turn - TO_WRAP, turn - TO_WRAP);
        Injected {
            cache: Mutex::new(cache),
            flow: Mutex::new(Flow {
                total: 0,
                local: 0,
                since: time::now(),
            }),
        }
    };
    ALL.call_once(|| All {
        caches: (0..count.unwrap_or(0)).map(each).collect(),
        of_cpu,
    });
}

/// Adds them to what CPUID says.
pub fn describe(cpuid: &mut CpuidValues) {
    if let Some(first) = ALL.get().and_then(|all| all.caches.first()) {
        first.cache.lock().describe(cpuid);
    }
}

impl Injected {
    /// Lets through what has come up to now.
    fn settled(&self) -> (MutexGuard<'_, SimulatedCache>, MutexGuard<'_, Flow>) {
        let (mut flow, mut cache) = (self.flow.lock(), self.cache.lock());
        let now = time::now();
        let passed = now.since(flow.since);
        flow.since = flow.since.max(now);
        cache.run(passed, flow.total, flow.local);
        (cache, flow)
    }
}

/// That of the calling CPU, if there are any. Locked as long as it is held.
pub fn here() -> Option<MutexGuard<'static, SimulatedCache>> {
    let all = ALL.get()?;
    let (cache, _) = all.of_cpu.get(percpu::current().cpu.index())?;
    Some(all.caches.get(*cache)?.settled().0)
}

/// The operator says what CPUs of a node move: `mb-s=N`, N MB in a second to and from any memory, `far-mb-s=N` of them that of other nodes.
pub fn set(node: &str, words: &[&str]) -> String {
    let Some(all) = ALL.get() else {
        return super::nothing_injected();
    };
    let number: Option<u16> = node.strip_prefix("node").unwrap_or(node).parse().ok();
    let mut caches: Vec<usize> = (all.of_cpu.iter())
        .filter(|(_, on)| number == Some(on.0))
        .map(|(cache, _)| *cache)
        .collect();
    caches.sort_unstable();
    caches.dedup();
    if caches.is_empty() {
        return format!("{node:?} is no node with CPUs\n");
    }
    let (mut total, mut far) = (0u64, 0u64);
    for word in words {
        let parsed = word.split_once('=');
        match parsed.map(|(name, n)| (name, n.parse::<u32>())) {
            Some(("mb-s", Ok(n))) => total = u64::from(n) * MB,
            Some(("far-mb-s", Ok(n))) => far = u64::from(n) * MB,
            _ => return format!("{word:?} is neither mb-s=N nor far-mb-s=N\n"),
        }
    }
    let share = caches.len() as u64;
    for cache in caches.iter().filter_map(|cache| all.caches.get(*cache)) {
        let (_held, mut flow) = cache.settled();
        flow.total = total / share;
        flow.local = total.saturating_sub(far) / share;
    }
    format!("the CPUs of {node} move what was injected from now on\n")
}
