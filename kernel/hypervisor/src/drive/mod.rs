//! Mechanism that obeys policy: it tells the policy crates what happened, executes what they
//! command, and verifies it.
//!
//! * this file: the scheduler's events and commands
//! * `sample`: accessed bits to footprints, footprints to proximity and plans
//! * `moves`: pages to their new node
//! * `record`: events to the log and to telemetry

mod moves;
mod record;
mod sample;

pub use moves::work;
pub use record::record;
pub use sample::{cpu_scores, migrate_all, sample, start as start_sampling, Tracking};

use crate::arch::{self, percpu};
use crate::run::{End, RESCHEDULE};
use crate::arch::time;
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vcpu, Vm, VmState, NOWHERE};
use core::sync::atomic::Ordering::SeqCst;
use sched::{Command, Commands, Event, Next};
use telemetry::{Event as Told, VmEvent};
use units::{CpuId, Nanos, VcpuId, VmId};

/// Tells the scheduler, then does what it asks for.
pub fn tell<B: Backend>(hv: &Hypervisor<B>, event: Event) {
    tell_all(hv, [event]);
}

fn tell_all<B: Backend>(hv: &Hypervisor<B>, events: impl IntoIterator<Item = Event>) {
    let now = time::now();
    let mut commands = Commands::new();
    {
        let mut sched = hv.sched.lock();
        for event in events {
            if let Err(refusal) = sched.handle(now, event, &mut commands) {
                log::warn!("{refusal}");
            }
        }
    }
    execute(hv, commands);
}

/// What this CPU does next.
pub fn pick<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId, now: Nanos) -> Next {
    let mut commands = Commands::new();
    let next = hv.sched.lock().pick(cpu, now, &mut commands);
    execute(hv, commands);
    next
}

fn execute<B: Backend>(hv: &Hypervisor<B>, mut commands: Commands) {
    for command in commands.drain() {
        match command {
            Command::Kick { cpu } => reschedule(cpu),
            Command::Migrate { vcpu, from, to, reason } => {
                if let Some((_, v)) = hv.vcpu(vcpu) {
                    let at = v.running_on.load(SeqCst);
                    if at != NOWHERE && at != percpu::current().cpu.0 {
                        log::error!("the scheduler moved {vcpu} from {from} to {to} while it runs on cpu{at}; it will be refused there");
                    }
                }
                let node = |cpu: CpuId| hv.machine.cpus.get(cpu.index()).map(|c| c.node).unwrap_or_default();
                record(Told::VcpuMoved { vcpu, from, from_node: node(from), to, to_node: node(to), reason });
            }
        }
    }
}

/// Makes a CPU pick again.
fn reschedule(cpu: CpuId) {
    let Some(target) = percpu::of(cpu) else { return };
    target.defer(RESCHEDULE);
    if cpu != percpu::current().cpu {
        arch::apic::kick(cpu);
    }
}

/// A slice is over: the time is charged, and the scheduler learns why it ended.
pub fn slice_ended<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId, vcpu: &Vcpu<B>, end: &End, ran: Nanos) {
    let charge = Event::Charge { cpu, vcpu: vcpu.id, ran };
    match end {
        End::Waits => {
            vcpu.blocked.store(true, SeqCst);
            tell_all(hv, [charge, Event::Block { vcpu: vcpu.id }]);
        }
        End::Yields => tell_all(hv, [charge, Event::Yield { vcpu: vcpu.id }]),
        End::Preempted | End::Gone | End::Fault(_) => tell_all(hv, [charge]),
    }
}

/// A pick that could not be carried out.
pub fn refused<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId, vcpu: VcpuId) {
    tell_all(hv, [Event::Charge { cpu, vcpu, ran: Nanos::ZERO }, Event::Yield { vcpu }]);
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
    record(Told::Vm { vm: vm.id, name: vm.name.clone(), what });
}

/// A VM is off: its virtual CPUs leave the run queues.
pub fn vm_ended<B: Backend>(hv: &Hypervisor<B>, vm: &Vm<B>) {
    tell_all(hv, vm.vcpus.iter().map(|v| Event::VcpuRemoved { vcpu: v.id }));
}

/// Gives back what ended VMs held, and ends the run when all are off. Called from the sampling timer: no
/// virtual CPU is being run by the caller.
pub fn tidy<B: Backend>(hv: &Hypervisor<B>) {
    let mut running = false;
    for vm in &hv.vms {
        match vm.state() {
            VmState::Off(_) => vm.release(),
            VmState::Running | VmState::Paused => running = true,
        }
    }
    if !running && hv.config.host.poweroff {
        crate::start::shutdown(hv);
    }
}

/// Names the VM for events.
pub fn name_of<B: Backend>(hv: &Hypervisor<B>, vm: VmId) -> alloc::string::String {
    hv.vm(vm).map(|v| v.name.clone()).unwrap_or_default()
}
