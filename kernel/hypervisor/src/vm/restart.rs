//! What is done for a VM that is off: its memory goes back, and, if somebody wants that, it starts again.
//!
//! Zeroing memory takes a while and the CPU that does it has guests that wait. So it is done by a timer
//! ([`chores`]), a few milliseconds in one go and then as long a rest.
//!
//! Nothing is touched before every CPU has come round its outer loop once since the VM ended: none can be in one of
//! its virtual CPUs then, about to enter one, or about to tell the scheduler of one. What a start makes is new
//! (virtual CPUs, local APICs, devices, clock); what stays is the VM's place, its nested table's root, and what the
//! operator said of it.

use super::create::{self, World};
use super::filling::Filling;
use super::lifecycle::{Outcome, VmState};
use super::{Hypervisor, Vm};
use crate::arch::{percpu, time, tsc};
use crate::sabotage;
use crate::timers::{self, Timer};
use crate::virt::{Backend, VcpuSetup};
use alloc::string::String;
use alloc::vec::Vec;
use config::{NodeShare, Sabotage};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use devices::GuestConsole;
use guest::msr::FirstSeen;
use telemetry::{Event, OffReason, VmEvent};
use units::{Nanos, VmId};

/// Longest work in one go. A time and no size: an emulator may be a thousand times slower than a server.
const GO: Nanos = Nanos::from_millis(5);
/// Shortest rest, and how long to wait for other CPUs before looking again.
const REST: Nanos = Nanos::from_millis(1);
/// Memory between two looks at the clock.
const STEP_BYTES: u64 = 2 << 20;
/// A guest that resets itself at once is not started more often than this.
const SHORTEST_LIFE: Nanos = Nanos::from_secs(1);

/// How far the work for a VM that is off has come.
#[derive(Debug, Default)]
pub struct Chores {
    /// Memory for the next start.
    filling: Option<Filling>,
    /// Not to be started before.
    not_before: Nanos,
}

/// Works for a VM that is off; comes back by a timer until nothing is left to do.
pub fn chores<B: Backend>(hv: &Hypervisor<B>, id: VmId) {
    let Some(vm) = hv.vm(id) else { return };
    let began = time::now();
    let unfinished = match vm.chores.try_lock() {
        Some(mut chores) => vm.work_while_off(hv, &mut chores),
        None => true,
    };
    if unfinished {
        let now = time::now();
        let rest = now.since(began).max(REST);
        timers::arm(hv, now + rest, Timer::Chores(id));
    }
}

impl<B: Backend> Vm<B> {
    /// Wants it to start again.
    ///
    /// # Errors
    /// It is not off.
    pub fn start(&self, hv: &Hypervisor<B>) -> Result<(), String> {
        {
            let mut state = self.state.lock();
            match *state {
                VmState::Off(_) => *state = VmState::Starting,
                now => return Err(alloc::format!("{} is {now}; nothing was done", self.name)),
            }
        }
        timers::arm(hv, time::now(), Timer::Chores(self.id));
        Ok(())
    }

    /// It has ended: notes where each CPU is, and sees to it that all come round.
    pub(super) fn leave_memory(&self, hv: &Hypervisor<B>) {
        *self.rounds_at_end.lock() = percpu::all().iter().map(|c| c.rounds()).collect();
        crate::drive::call_all_cpus();
        timers::arm(hv, time::now() + REST, Timer::Chores(self.id));
    }

    /// Whether every CPU has come round since the VM ended.
    fn is_left(&self) -> bool {
        let then = self.rounds_at_end.lock();
        let mut cpus = percpu::all().iter().zip(then.iter());
        cpus.all(|(cpu, then)| !cpu.is_online() || cpu.rounds() != *then)
    }

    /// One go; whether more is to be done.
    fn work_while_off(&self, hv: &Hypervisor<B>, chores: &mut Chores) -> bool {
        let starting = match self.state() {
            VmState::Running | VmState::Paused => return false,
            VmState::Off(_) => {
                chores.filling = None;
                false
            }
            VmState::Starting => true,
        };
        if !self.is_left() {
            return true;
        }
        if chores.filling.is_none() && !self.ram.is_empty() {
            self.give_memory_back(hv);
            return starting || !self.ram.is_empty();
        }
        if starting {
            return self.go_on_starting(hv, chores);
        }
        false
    }

    /// Gives a part of its memory back.
    fn give_memory_back(&self, hv: &Hypervisor<B>) {
        let began = time::now();
        while time::now().since(began) < GO && !self.ram.is_empty() {
            let taken = self.ram.take_leaves(STEP_BYTES);
            let last = self.ram.is_empty();
            let kept = usize::from(sabotage::on(Sabotage::LeakFrame) && last);
            for (frame, size) in taken.into_iter().skip(kept) {
                crate::mm::free(frame, size);
            }
            if last {
                crate::drive::roots::end(self, hv.config.host.roots);
                let nodes = crate::mm::stats();
                let free: Vec<String> = nodes
                    .iter()
                    .map(|n| alloc::format!("{} {}", n.node, n.counters.free))
                    .collect();
                let free = free.join(", ");
                log::info!(
                    "{}: its memory is free again; free frames: {free}",
                    self.name
                );
            }
        }
    }

    /// A part of a start; whether more is to be done.
    fn go_on_starting(&self, hv: &Hypervisor<B>, chores: &mut Chores) -> bool {
        let began = time::now();
        if began < chores.not_before {
            return true;
        }
        let done = match &mut chores.filling {
            Some(filling) => {
                filling.go_on(&self.ram, &self.shape, || time::now().since(began) < GO)
            }
            None => self.claim(hv).map(|filling| {
                chores.filling = Some(filling);
                false
            }),
        };
        let ready = match done {
            Ok(false) => return true,
            Ok(true) => {
                chores.filling = None;
                self.renew(hv)
            }
            Err(why) => Err(why),
        };
        match ready {
            Ok(()) => {
                chores.not_before = time::now() + SHORTEST_LIFE;
                !self.run(hv)
            }
            Err(why) => {
                chores.filling = None;
                self.cannot_start(why);
                true // what is mapped already goes back
            }
        }
    }

    /// Memory as at the first start; if that is taken and the guest need not see the same nodes, from wherever there is some.
    fn claim(&self, hv: &Hypervisor<B>) -> Result<Filling, String> {
        Filling::claim(&self.placement).or_else(|why| {
            if self.config.vnuma || !self.config.memory_nodes.is_empty() {
                return Err(why);
            }
            let anywhere = config::Vm {
                start_node: Some(self.home),
                ..self.config.clone()
            };
            let placement: Vec<NodeShare> =
                super::place::place(hv.machine, &anywhere, &super::Taken::none(hv.machine))?;
            Filling::claim(&placement)
        })
    }

    /// Makes everything but the memory new. Nobody else uses the VM meanwhile.
    fn renew(&self, hv: &Hypervisor<B>) -> Result<(), String> {
        let world = World::of(hv);
        let entry = super::load::load(
            &self.config,
            &crate::start::BootImages,
            &self.shape,
            &self.ram,
        )?;
        let setup = VcpuSetup {
            node: self.home,
            allowed_cr4: self.cpuid.allowed_cr4(),
        };
        *self.board.lock() = create::new_board(world, &self.config);
        self.board_deadline.store(Nanos::MAX.0, Relaxed);
        self.pic_line.store(false, SeqCst);
        *self.first_seen.lock() = FirstSeen::default();
        *self.console.lock() = GuestConsole::default();
        self.started_ns.store(time::now().0, Relaxed);
        self.tsc_at_start.store(tsc::read(), Relaxed);
        for vcpu in &self.vcpus {
            let index = vcpu.id.index;
            *vcpu.core.lock() = create::new_core(&setup, &self.shape, &self.cpuid, &entry, index)?;
            *vcpu.apic.lock() = create::new_apic(world, &self.shape, &self.cpuid, index);
            vcpu.deaf.store(false, SeqCst);
            vcpu.tsc_adjust.store(0, Relaxed);
            vcpu.blocked.store(true, SeqCst);
        }
        Ok(())
    }

    /// Lets it run, unless it was stopped meanwhile.
    fn run(&self, hv: &Hypervisor<B>) -> bool {
        {
            let mut state = self.state.lock();
            if *state != VmState::Starting {
                return false;
            }
            *state = VmState::Running;
        }
        crate::drive::vm_started(hv, self);
        true
    }

    fn cannot_start(&self, why: String) {
        *self.state.lock() = VmState::Off(Outcome::Faulted);
        crate::drive::record(Event::Vm {
            vm: self.id,
            name: self.name.clone(),
            what: VmEvent::Off(OffReason::Fault { what: why }),
        });
    }
}
