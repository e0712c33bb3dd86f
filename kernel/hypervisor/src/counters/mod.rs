//! Performance counters around guests: [`pmu`] says what to count, this file when.
//!
//! Decided once, at boot, from CPUID ([`prepare`]). Each CPU takes its own counters ([`claim`]); one whose registers refuse counts
//! nothing, and says so. Then a virtual CPU's stay begins with [`arrive`] and ends with [`leave`], which adds what it
//! counted to the virtual CPU's [`Counts`]; around each entry the counters run, where the processor does not stop them outside
//! guests itself. `drive/counters.rs` makes something of it.
//!
//! What all that runs on a last-level cache's CPUs moves to and from memory is counted besides ([`bandwidth`]).
//!
//! Guests see no counters: neither CPUID nor an MSR shows them, and RDPMC exits.

pub mod bandwidth;
#[cfg(feature = "sabotage")]
pub mod injected;
mod port;

use crate::arch::{percpu, pmu as processor};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use config::HostConfig;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicUsize};
use pmu::{Absent, Bank, Course, Fault, Plan, Quota, Reading, Tally};
use port::Port;
use spin::{Mutex, Once};
use topology::Machine;
use units::{Nanos, NodeId, VmId};

/// What is counted on all CPUs, or why nothing is.
static PLAN: Once<Result<Plan, Absent>> = Once::new();
/// Why the first CPU that could not count could not.
static REFUSED: Once<Absent> = Once::new();
/// CPUs that count.
static COUNTING: AtomicUsize = AtomicUsize::new(0);
static CACHE_BYTES: Once<u64> = Once::new();

/// One CPU's counters. Only that CPU uses the bank.
#[derive(Debug)]
pub struct PerCpuState {
    bank: Mutex<Option<Bank>>,
    counts: AtomicBool,
    /// Whether something is to be done around each entry.
    gated: AtomicBool,
}

impl PerCpuState {
    /// Not claimed yet.
    pub const fn new() -> Self {
        Self {
            bank: Mutex::new(None),
            counts: AtomicBool::new(false),
            gated: AtomicBool::new(false),
        }
    }
}

/// What a virtual CPU's counters said. A leaf in the order of locks.
#[derive(Debug)]
pub struct Counts {
    /// Since the footprint last asked, by the node where it ran.
    by_node: Vec<Tally>,
    /// Since the kernel started.
    all: Tally,
}

impl Counts {
    /// Nothing yet, on a host with so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self {
            by_node: vec![Tally::new(); nodes],
            all: Tally::new(),
        }
    }

    fn add(&mut self, node: NodeId, reading: &Reading) {
        if let Some(tally) = self.by_node.get_mut(node.index()) {
            tally.add(reading);
        }
        self.all.add(reading);
    }

    /// Takes what was counted since the last time, by node.
    pub fn take(&mut self) -> Vec<Tally> {
        self.by_node.iter_mut().map(Tally::take).collect()
    }

    /// All that was ever counted.
    pub const fn all(&self) -> &Tally {
        &self.all
    }
}

/// On the boot CPU, before any guest: what will be counted.
pub fn prepare(machine: &Machine, config: &HostConfig) {
    #[cfg(feature = "sabotage")]
    injected::prepare();
    let unit = pmu::detect(&port::cpuid());
    let plan = unit.and_then(|unit| Plan::new(unit, Quota(config.host.counters)));
    match &plan {
        Ok(plan) => log::info!("performance counters: {}", sentence(plan)),
        Err(why) => log::info!("no performance counters: {why}"),
    }
    CACHE_BYTES.call_once(processor::last_level_cache_bytes);
    PLAN.call_once(|| plan);
    bandwidth::prepare(machine);
}

fn sentence(plan: &Plan) -> String {
    let unit = plan.unit();
    let used = plan.groups().iter().map(Vec::len).max().unwrap_or(0);
    let turns = match plan.groups().len() {
        1 => String::from("all the time"),
        turns => format!("in {turns} turns"),
    };
    format!(
        "{used} of each CPU's {} ({} bits) count {} events of {} {turns}",
        unit.counters,
        unit.width,
        unit.events.len(),
        unit.family
    )
}

/// On each CPU that hosts guests, before the first: takes its counters.
pub fn claim() {
    bandwidth::claim();
    let Some(Ok(plan)) = PLAN.get() else { return };
    let here = percpu::current();
    let state = &here.counters;
    // Not in the match below, whose arms may want the port as well.
    let claimed = Bank::claim(plan, &mut port::here());
    match claimed {
        Ok(bank) => {
            if !bank.counts_all(plan) {
                log::warn!(
                    "{} counts part of the events only: firmware uses some of its counters",
                    here.cpu
                );
            }
            let gated = !plan.unit().style.tells_guests() || port::is_injected();
            state.gated.store(gated, Relaxed);
            *state.bank.lock() = Some(bank);
            state.counts.store(true, Relaxed);
            COUNTING.fetch_add(1, Relaxed);
        }
        Err(why) => {
            if REFUSED.get().is_none() {
                log::warn!("{} counts nothing: {why}", here.cpu);
            }
            REFUSED.call_once(|| why);
        }
    }
}

/// What is counted, or why nothing is.
///
/// # Errors
/// There is nothing to count with, or no CPU could take its counters.
pub fn state() -> Result<&'static Plan, Absent> {
    match PLAN.get() {
        Some(Ok(plan)) if COUNTING.load(Relaxed) > 0 => Ok(plan),
        Some(Ok(_)) => Err(REFUSED.get().copied().unwrap_or(Absent::Taken)),
        Some(Err(why)) => Err(*why),
        None => Err(Absent::NotOffered),
    }
}

/// What is counted and on how many CPUs, as a sentence.
pub fn describe() -> String {
    match state() {
        Ok(plan) => format!(
            "performance counters: {}, on {} of {} CPUs",
            sentence(plan),
            COUNTING.load(Relaxed),
            percpu::online().count()
        ),
        Err(why) => format!("performance counters: absent, {why}"),
    }
}

/// Bytes of the last-level cache; 0 if they are not known.
pub fn cache_bytes() -> u64 {
    CACHE_BYTES.get().copied().unwrap_or(0)
}

/// A virtual CPU comes to the calling CPU.
pub fn arrive(course: &mut Course, now: Nanos) {
    if PLAN.get().is_none_or(Result::is_err) {
        return;
    }
    #[cfg(feature = "sabotage")]
    injected::begin(now);
    with_bank(|bank, port| bank.load(port, course, now));
}

/// It leaves after a stay of `stayed`.
pub fn leave(counts: &Mutex<Counts>, course: &mut Course, now: Nanos, stayed: Nanos) {
    if PLAN.get().is_none_or(Result::is_err) {
        return;
    }
    let reading = with_bank(|bank, port| bank.unload(port, course, now)).flatten();
    // A stay that nobody counted is one about which the others speak.
    let reading = reading.unwrap_or(Reading::of(stayed));
    counts.lock().add(percpu::current().node, &reading);
}

/// Right before a guest of `vm` is entered.
#[inline]
pub fn before_entry(vm: VmId) {
    if percpu::current().counters.gated.load(Relaxed) {
        open(vm);
    }
}

/// Right after it has exited.
#[inline]
pub fn after_exit(vm: VmId) {
    if percpu::current().counters.gated.load(Relaxed) {
        close(vm);
    }
}

#[cfg_attr(
    not(feature = "sabotage"),
    expect(unused_variables, reason = "only tests ask")
)]
fn open(vm: VmId) {
    #[cfg(feature = "sabotage")]
    injected::pass(pmu::simulated::Side::Host, vm);
    with_bank(|bank, port| bank.open(port));
}

#[cfg_attr(
    not(feature = "sabotage"),
    expect(unused_variables, reason = "only tests ask")
)]
fn close(vm: VmId) {
    #[cfg(feature = "sabotage")]
    injected::pass(pmu::simulated::Side::Guest, vm);
    with_bank(|bank, port| bank.close(port));
}

/// Works with the calling CPU's counters; a register that refuses is the end of them.
fn with_bank<R>(work: impl FnOnce(&mut Bank, &mut Port) -> Result<R, Fault>) -> Option<R> {
    let here = percpu::current();
    let state = &here.counters;
    if !state.counts.load(Relaxed) {
        return None;
    }
    let mut bank = state.bank.lock();
    let done = work(bank.as_mut()?, &mut port::here());
    match done {
        Ok(done) => Some(done),
        Err(fault) => {
            state.counts.store(false, Relaxed);
            COUNTING.fetch_sub(1, Relaxed);
            state.gated.store(false, Relaxed);
            log::error!("{} counts nothing from now on: {fault}", here.cpu);
            REFUSED.call_once(|| Absent::Refused(fault));
            None
        }
    }
}
