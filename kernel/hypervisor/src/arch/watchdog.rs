//! The watchdog: CPUs look after each other.
//!
//! Every run loop calls [`crate::arch::percpu::PerCpu::beat`] in each round and [`check`] about once
//! a second. A check looks at the next CPU in a ring, and goes on to the one after while it
//! finds CPUs that are stuck, so that neighbours that hang together are both found and no CPU has
//! to look at all the others. A CPU that waits for an interrupt is silent by right. A stuck CPU is named with what it ran; an NMI fetches where it is.

use core::sync::atomic::{AtomicU64, Ordering};

use units::Nanos;

use super::percpu::{self, Activity, PerCpu};
use super::symbols::Symbolised;
use super::{apic, time};

/// How long a CPU may be silent; emulators are slow, hence generous.
pub const DEFAULT_LIMIT: Nanos = Nanos::from_secs(10);
/// How long a CPU may take to answer the NMI.
const ANSWER_TIME: Nanos = Nanos::from_millis(200);

static LIMIT_NS: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT.0);

/// Changes how long a CPU may be silent; zero switches the watchdog off.
pub fn set_limit(limit: Nanos) {
    LIMIT_NS.store(limit.0, Ordering::Relaxed);
}

/// A CPU that does not answer, as [`check`] found it.
#[derive(Clone, Copy, Debug)]
pub struct Stuck {
    /// The CPU.
    pub cpu: &'static PerCpu,
    /// For how long its run loop has been silent.
    pub silent: Nanos,
}

/// Looks at the calling CPU's neighbour in the ring; logs each CPU that is newly found stuck and
/// gives it to `found` (for telemetry).
pub fn check(now: Nanos, mut found: impl FnMut(Stuck)) {
    let limit = Nanos(LIMIT_NS.load(Ordering::Relaxed));
    if limit == Nanos::ZERO {
        return;
    }
    let me = percpu::current();
    let all = percpu::all();
    let ring = all.iter().cycle().skip(me.cpu.index() + 1).take(all.len().saturating_sub(1));
    for cpu in ring.copied().filter(|c| c.is_online()) {
        let silent = now.since(cpu.last_beat());
        if silent <= limit || cpu.activity() == Activity::Idle {
            return;
        }
        if !cpu.reported.swap(true, Ordering::AcqRel) {
            report(Stuck { cpu, silent });
            found(Stuck { cpu, silent });
        }
    }
}

fn report(stuck: Stuck) {
    let Stuck { cpu, silent } = stuck;
    log::error!(
        "watchdog: {} ({}, {}) has not come round its run loop for {silent}; it runs {}",
        cpu.cpu,
        cpu.apic,
        cpu.node,
        cpu.activity(),
    );
    let ticket = cpu.snapshot.request();
    apic::send_nmi(cpu.apic);
    let asked = time::now();
    while !cpu.snapshot.answered(ticket) {
        if time::now().since(asked) > ANSWER_TIME {
            log::error!("watchdog: {} does not answer an NMI either", cpu.cpu);
            return;
        }
        core::hint::spin_loop();
    }
    let (rip, rsp, flags) = cpu.snapshot.registers();
    let interrupts = if flags & 0x200 != 0 { "on" } else { "off" };
    log::error!(
        "watchdog: {} is at {} with interrupts {interrupts}, rsp {rsp:#x}, called from",
        cpu.cpu,
        Symbolised(rip)
    );
    for (depth, address) in cpu.snapshot.calls().enumerate().skip(1) {
        log::error!("watchdog:   {depth:2} {}", Symbolised(address));
    }
}
