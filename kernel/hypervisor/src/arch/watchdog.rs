//! The watchdog: CPUs look after each other.
//!
//! Every run loop says in each round that it is alive ([`super::percpu::PerCpu::beat`]) and calls
//! [`check`], which once a second, on whichever CPU comes first, looks at all of them. So the
//! watchdog works as long as one CPU does. A stuck CPU is named with what it runs; an NMI fetches
//! where it is. A CPU that waits for an interrupt is silent by right.

use core::sync::atomic::{AtomicU64, Ordering};

use units::Nanos;

use super::percpu::{self, Activity, PerCpu};
use super::symbols::Symbolised;
use super::{apic, time};

/// How long a CPU may be silent; emulators are slow, hence generous.
const LIMIT: Nanos = Nanos::from_secs(10);
/// How long a CPU may take to answer the NMI.
const ANSWER_TIME: Nanos = Nanos::from_millis(200);

/// When the next look is due.
static NEXT_NS: AtomicU64 = AtomicU64::new(0);

/// A CPU that does not answer, as [`check`] found it.
#[derive(Clone, Copy, Debug)]
pub struct Stuck {
    /// The CPU.
    pub cpu: &'static PerCpu,
    /// For how long its run loop has been silent.
    pub silent: Nanos,
}

/// Once a second, on the CPU that comes first: looks at all CPUs, logs each that is newly found
/// stuck, and gives it to `found` (for telemetry).
pub fn check(now: Nanos, mut found: impl FnMut(Stuck)) {
    let due = NEXT_NS.load(Ordering::Relaxed);
    let next = now + Nanos::from_secs(1);
    if now.0 < due {
        return;
    }
    if NEXT_NS
        .compare_exchange(due, next.0, Ordering::Relaxed, Ordering::Relaxed)
        .is_err()
    {
        return;
    }
    for cpu in percpu::online() {
        let silent = now.since(cpu.last_beat());
        let waits = matches!(cpu.activity(), Activity::Idle | Activity::Booting);
        if silent > LIMIT && !waits && !cpu.reported.swap(true, Ordering::AcqRel) {
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
