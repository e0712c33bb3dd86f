//! Things to do at a certain time: one queue for each CPU.
//!
//! A CPU's hardware timer is armed for the earliest of its queue and its time slice. Entries are
//! never taken back: one that has become pointless (the virtual CPU woke by other means, the board
//! was polled early) is looked at, found idle, and dropped.

use crate::arch;
use crate::arch::percpu::Activity;
use crate::virt::Backend;
use crate::vm::{self, Hypervisor};
use alloc::vec::Vec;
use telemetry::Event;
use units::{Nanos, VcpuId, VmId};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A waiting virtual CPU's local APIC timer runs out.
    Vcpu(VcpuId),
    /// A VM's board wants to be polled.
    Board(VmId),
    /// Something is to be done for a VM that is off.
    Chores(VmId),
    /// Another page may be moved by this CPU.
    Pages,
    /// Time to look at footprints.
    Sample,
    /// Time to look whether the neighbour is alive.
    Watchdog,
}

/// One CPU's queue: at most one entry for each [`Timer`], so that a guest that arms its timer a million
/// times holds no more of the kernel's memory than one that does so once.
#[derive(Debug, Default)]
pub struct TimerQueue {
    /// Latest first.
    entries: Vec<(Nanos, Timer)>,
}

impl TimerQueue {
    /// When the first entry is due.
    pub fn next(&self) -> Option<Nanos> {
        self.entries.last().map(|(at, _)| *at)
    }
    /// Adds an entry. If there is one for the same, the earlier of the two stays: what is looked at
    /// too early is armed again.
    pub fn push(&mut self, at: Nanos, what: Timer) {
        match self.entries.iter().position(|(_, other)| *other == what) {
            Some(i) if self.entries.get(i).is_some_and(|(old, _)| *old <= at) => return,
            Some(i) => {
                self.entries.remove(i);
            }
            None => {}
        }
        let place = self.entries.partition_point(|(other, _)| *other > at);
        self.entries.insert(place, (at, what));
    }
    /// Takes the first entry if it is due.
    pub fn pop_due(&mut self, now: Nanos) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.entries.pop().map(|(_, what)| what)
    }
}

/// Adds an entry to the calling CPU's queue.
pub fn arm<B: Backend>(hv: &Hypervisor<B>, at: Nanos, what: Timer) {
    if let Some(queue) = hv.timers.get(arch::percpu::current().cpu.index()) {
        queue.lock().push(at, what);
    }
}

/// Does everything that is due on the calling CPU.
pub fn run_due<B: Backend>(hv: &Hypervisor<B>, now: Nanos) {
    let Some(queue) = hv.timers.get(arch::percpu::current().cpu.index()) else {
        return;
    };
    loop {
        let due = queue.lock().pop_due(now);
        match due {
            None => return,
            Some(Timer::Vcpu(id)) => {
                if let Some((vm, vcpu)) = hv.vcpu(id) {
                    vcpu_due(hv, vm, vcpu);
                }
            }
            Some(Timer::Board(id)) => {
                if let Some(vm) = hv.vm(id) {
                    vm::board_due(hv, vm);
                }
            }
            Some(Timer::Chores(id)) => vm::chores(hv, id),
            Some(Timer::Pages) => crate::drive::work(hv),
            Some(Timer::Sample) => crate::drive::sample(hv, now),
            Some(Timer::Watchdog) => watch(hv, now),
        }
    }
}

/// How often a CPU looks after its neighbour.
const WATCH_PERIOD: Nanos = Nanos::from_secs(1);

/// Looks whether the neighbour is alive; the first call starts it.
pub fn watch<B: Backend>(hv: &Hypervisor<B>, now: Nanos) {
    arm(hv, now + WATCH_PERIOD, Timer::Watchdog);
    arch::watchdog::check(now, |stuck| {
        let running = match stuck.cpu.activity() {
            Activity::Guest(vcpu) => Some(vcpu),
            _ => None,
        };
        crate::drive::record(Event::Watchdog {
            cpu: stuck.cpu.cpu,
            running,
            silent_for: stuck.silent,
        });
    });
}

/// Wakes a virtual CPU whose APIC timer has run out; one that still waits is looked at again later.
fn vcpu_due<B: Backend>(hv: &Hypervisor<B>, vm: &vm::Vm<B>, vcpu: &vm::Vcpu<B>) {
    if !vcpu.blocked.load(core::sync::atomic::Ordering::SeqCst) {
        return; // it runs or waits for a CPU: the entry path polls its timer
    }
    let (fired, next) = {
        let mut apic = vcpu.apic.lock();
        let offset = vm::clock::tsc_offset_here(hv, vm, vcpu);
        let fired = apic.poll(vm::apic_now(vm, offset));
        (fired, apic.next_deadline())
    };
    if fired {
        vm::notify(hv, vm, vcpu);
    } else if let Some(at) = next {
        arm(hv, vm.host_time(at), Timer::Vcpu(vcpu.id));
    }
}
