//! Simulated counters in place of the processors', for tests: `inject` says what each VM's virtual CPUs make happen.
//!
//! They stand behind the port, where a processor's would, and count while time passes in guests. All that is above,
//! from the choice of registers to the scheduler's penalty, cannot tell the difference. The hypervisor's own time
//! makes as much happen, which must not be counted. What nodes move is injected besides ([`caches`]).

pub mod caches;

use crate::arch::{percpu, time};
use crate::sabotage;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use config::Sabotage;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use guest::cpuid::{CpuidResult, CpuidSource, Vendor};
use pmu::Kind;
use pmu::simulated::{Side, SimulatedPmu, Writes};
use spin::{Mutex, MutexGuard, Once};
use units::{Nanos, VmId};

/// One CPU's.
struct Injected {
    pmu: Mutex<SimulatedPmu>,
    /// Up to when its events have happened, in ns.
    since: AtomicU64,
}

/// How often each kind happens in a second of a VM's run time on one CPU.
type Rates = [u64; Kind::ALL.len()];

static ALL: Once<Vec<Injected>> = Once::new();
static RATES: Mutex<Vec<(VmId, Rates)>> = Mutex::new(Vec::new());

struct Host;

impl CpuidSource for Host {
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult {
        let r = core::arch::x86_64::__cpuid_count(eax, ecx);
        CpuidResult {
            eax: r.eax,
            ebx: r.ebx,
            ecx: r.ecx,
            edx: r.edx,
        }
    }
}

/// On the boot CPU, once all are there: counters of the host's vendor for each, if the configuration wants them.
pub fn prepare() {
    if !sabotage::on(Sabotage::InjectCounters) {
        return;
    }
    let model = match Vendor::of(&Host) {
        Vendor::Amd => SimulatedPmu::zen2(),
        Vendor::Intel => SimulatedPmu::skylake_sp(4, 48, Writes::Full),
    };
    let each = || Injected {
        pmu: Mutex::new(model.clone()),
        since: AtomicU64::new(0),
    };
    ALL.call_once(|| percpu::all().iter().map(|_| each()).collect());
}

fn mine() -> Option<&'static Injected> {
    ALL.get()?.get(percpu::current().cpu.index())
}

/// Whether counters are injected.
pub fn is_on() -> bool {
    ALL.get().is_some()
}

/// The calling CPU's, if there are any. Locked as long as it is held.
pub fn here() -> Option<MutexGuard<'static, SimulatedPmu>> {
    Some(mine()?.pmu.lock())
}

/// A stay begins.
pub fn begin(now: Nanos) {
    if let Some(mine) = mine() {
        mine.since.store(now.0, Relaxed);
    }
}

/// Time has passed on this side of the world switch, on behalf of `vm`.
pub fn pass(side: Side, vm: VmId) {
    let Some(mine) = mine() else { return };
    let now = time::now();
    let passed = now.since(Nanos(mine.since.swap(now.0, Relaxed)));
    let rates = RATES.lock();
    if let Some((_, rates)) = rates.iter().find(|(of, _)| *of == vm) {
        mine.pmu.lock().run(side, passed, rates);
    }
}

fn nothing_injected() -> String {
    format!(
        "no counters are injected; {} in the configuration does that\n",
        Sabotage::InjectCounters
    )
}

/// The operator says what a VM makes happen: `KIND=N`, N in a second. Kinds that are not named happen no more.
pub fn set(vm: VmId, name: &str, words: &[&str]) -> String {
    if ALL.get().is_none() {
        return nothing_injected();
    }
    let mut wanted: Rates = [0; Kind::ALL.len()];
    for word in words {
        let parsed = word
            .split_once('=')
            .and_then(|(kind, n)| Some((Kind::named(kind)?, n.parse().ok()?)));
        let Some((kind, n)) = parsed else {
            let kinds = Kind::ALL.map(Kind::as_str).join(" ");
            return format!("{word:?} is not KIND=N; kinds are {kinds}\n");
        };
        if let Some(rate) = wanted.get_mut(kind as usize) {
            *rate = n;
        }
    }
    let mut rates = RATES.lock();
    rates.retain(|(of, _)| *of != vm);
    rates.push((vm, wanted));
    format!("{name} counts what was injected from now on\n")
}
