//! Mechanism that obeys policy: it tells the policy crates what happened, executes what they
//! command, and verifies it.
//!
//! * this file: what happens becomes the scheduler's events; its commands are obeyed
//! * `lock`: the scheduler's lock, and what it costs
//! * `decisions`: what the scheduler decided lately, for who asks why
//! * `schedule`: the scheduler's inputs in their order, recorded for a replay if asked for
//! * `counters`: performance counters to footprints and to the scheduler's penalties
//! * `load`: how busy nodes and links are
//! * `look`: accessed bits to footprints, `intake`: with what stopped guests were about to touch
//! * `sample`: footprints to proximity and plans
//! * `moves`: orders for pages, `carry`: how a page comes to its new node
//! * `record`: events to the log and to telemetry

mod carry;
mod counters;
mod decisions;
mod intake;
pub mod load;
mod lock;
mod look;
mod moves;
mod record;
pub mod roots;
mod sample;
pub mod schedule;

pub use decisions::Decisions;
pub use lock::Locked;
pub use moves::{Tour, queued, tally, work};
pub use record::record;
pub use sample::{
    Tracking, VmTrack, migrate_all, sample, set_mode, start as start_sampling, travel,
};

use crate::arch::time;
use crate::arch::{self, percpu};
use crate::run::{End, RESCHEDULE};
use crate::virt::Backend;
use crate::vm::{Hypervisor, NOWHERE, Vcpu, Vm, VmState};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;
use decisions::Decision;
use sched::{Command, Commands, Event, Next, Refusal};
use schedule::Trace;
use spin::Mutex;
use telemetry::{Event as Told, VmEvent};
use units::{CpuId, Nanos, VcpuId, VmId};

/// Tells the scheduler, then does what it asks for.
pub fn tell<B: Backend>(hv: &Hypervisor<B>, event: Event) {
    tell_all(hv, [event]);
}

fn tell_all<B: Backend>(hv: &Hypervisor<B>, events: impl IntoIterator<Item = Event>) {
    let mut trace = Trace::new();
    let mut done: Vec<Commands> = Vec::new();
    {
        let mut sched = hv.sched.lock();
        // Under the lock, so that time and order agree.
        let now = time::now();
        for event in events {
            match schedule::handle(&mut sched, now, event, &mut trace) {
                Ok(commands) => done.push(commands),
                // A slice that ends after its VM has ended reports about a vCPU that is gone.
                Err(refusal @ Refusal::UnknownVcpu(_)) => log::debug!("{refusal}"),
                Err(refusal) => log::warn!("{refusal}"),
            }
        }
    }
    trace.write();
    for commands in done {
        execute(hv, commands);
    }
}

/// What this CPU does next.
pub fn pick<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId) -> Next {
    let mut trace = Trace::new();
    let (now, (next, commands)) = {
        let mut sched = hv.sched.lock();
        let now = time::now();
        (now, schedule::pick(&mut sched, cpu, now, &mut trace))
    };
    trace.write();
    execute(hv, commands);
    if let Next::Run { why, .. } = &next {
        hv.decisions.note(now, Decision::Pick(*why));
    }
    next
}

fn execute<B: Backend>(hv: &Hypervisor<B>, mut commands: Commands) {
    for command in commands.drain() {
        match command {
            Command::Kick { cpu } => reschedule(cpu),
            Command::Migrate {
                vcpu,
                from,
                to,
                reason,
            } => {
                verify_left(hv, vcpu, from, to);
                let decision = Decision::Move {
                    vcpu,
                    from,
                    to,
                    reason,
                };
                hv.decisions.note(time::now(), decision);
                let node = |cpu: CpuId| {
                    hv.machine
                        .cpus
                        .get(cpu.index())
                        .map(|c| c.node)
                        .unwrap_or_default()
                };
                record(Told::VcpuMoved {
                    vcpu,
                    from,
                    from_node: node(from),
                    to,
                    to_node: node(to),
                    reason,
                });
            }
        }
    }
}

/// A moved vCPU must be in no guest on the CPU that it left. That it is entered on one CPU only is
/// enforced where it is entered, by its lock; this only says early whose mistake it was.
fn verify_left<B: Backend>(hv: &Hypervisor<B>, vcpu: VcpuId, from: CpuId, to: CpuId) {
    let runs_on = hv
        .vcpu(vcpu)
        .map_or(NOWHERE, |(_, v)| v.running_on.load(SeqCst));
    if runs_on == from.0 && from != percpu::current().cpu {
        log::error!(
            "the scheduler moved {vcpu} from {from} to {to} while {from} still runs it; {to} will refuse it"
        );
    }
}

/// Makes a CPU pick again.
pub fn reschedule(cpu: CpuId) {
    let Some(target) = percpu::of(cpu) else {
        return;
    };
    target.defer(RESCHEDULE);
    if cpu != percpu::current().cpu {
        arch::apic::kick(cpu);
    }
}

/// A slice is over: the time is charged, and the scheduler learns why it ended.
pub fn slice_ended<B: Backend>(
    hv: &Hypervisor<B>,
    cpu: CpuId,
    vcpu: &Vcpu<B>,
    end: &End,
    ran: Nanos,
) {
    let charge = Event::Charge {
        cpu,
        vcpu: vcpu.id,
        ran,
    };
    match end {
        End::Waits => {
            tell_all(hv, [charge, Event::Block { vcpu: vcpu.id }]);
            // Only now may others wake it: a wake-up that reached the scheduler before the block would do
            // nothing there and be spent. What came before is seen by the caller's last look.
            vcpu.blocked.store(true, SeqCst);
        }
        End::Spins => tell_all(hv, [charge, Event::Spin { vcpu: vcpu.id }]),
        End::Preempted | End::Gone | End::Fault(_) => tell_all(hv, [charge]),
    }
}

/// A pick that could not be carried out.
pub fn refused<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId, vcpu: VcpuId) {
    tell_all(
        hv,
        [
            Event::Charge {
                cpu,
                vcpu,
                ran: Nanos::ZERO,
            },
            Event::Yield { vcpu },
        ],
    );
}

/// A waiting virtual CPU has something to do.
pub fn woken<B: Backend>(hv: &Hypervisor<B>, vcpu: VcpuId) {
    tell(hv, Event::Wake { vcpu });
}

/// The operator held or released a VM.
pub fn paused<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>, paused: bool) {
    let (event, what) = if paused {
        (Event::Paused { vm: vm.id }, VmEvent::Paused)
    } else {
        (Event::Resumed { vm: vm.id }, VmEvent::Resumed)
    };
    tell(hv, event);
    record(Told::Vm {
        vm: vm.id,
        name: vm.name.clone(),
        what,
    });
}

/// Whether a spinning virtual CPU leaves its slice to a preempted one of its VM.
pub fn donates<B: Backend>(hv: &Hypervisor<B>) -> bool {
    hv.sched.lock().tunables().donate
}

/// The operator says whether it does from now on.
pub fn set_donation<B: Backend>(hv: &Hypervisor<B>, on: bool) {
    tell(hv, Event::Donating { on });
}

/// Makes every CPU come round its loop: each ends the slice that it is in.
pub fn call_all_cpus() {
    percpu::online().for_each(|cpu| reschedule(cpu.cpu));
}

/// A VM may run: its virtual CPUs come to the run queues, the first one wakes.
pub fn vm_started<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) {
    let added = |v: &Vcpu<B>| Event::VcpuAdded {
        vcpu: v.id,
        spec: crate::start::spec(vm),
    };
    tell_all(hv, vm.vcpus.iter().map(added));
    record(Told::Vm {
        vm: vm.id,
        name: vm.name.clone(),
        what: VmEvent::Started,
    });
    if let Some(first) = vm.vcpus.first() {
        crate::run::wake(hv, first);
    }
}

/// A VM is off: its virtual CPUs leave the run queues.
pub fn vm_ended<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) {
    tell_all(
        hv,
        vm.vcpus.iter().map(|v| Event::VcpuRemoved { vcpu: v.id }),
    );
    ENDED.lock().push(vm.id);
}

/// VMs whose end the planner has not heard of: an end may come while the planner's lock is held.
static ENDED: Mutex<Vec<VmId>> = Mutex::new(Vec::new());

/// Takes them.
fn take_ended() -> Vec<VmId> {
    core::mem::take(&mut *ENDED.lock())
}

/// Ends the run when all VMs are off for good, and their ends have been told.
pub fn tidy<B: Backend>(hv: &Hypervisor<B>) {
    let off = |vm: &Vm<B>| matches!(vm.state(), VmState::Off(_));
    if hv.config.host.poweroff && hv.vms.iter().all(off) && !crate::vm::any_ending() {
        crate::start::shutdown(hv);
    }
}

/// Names the VM for events.
pub fn name_of<B: Backend>(hv: &Hypervisor<B>, vm: VmId) -> alloc::string::String {
    hv.vm(vm).map(|v| v.name.clone()).unwrap_or_default()
}
