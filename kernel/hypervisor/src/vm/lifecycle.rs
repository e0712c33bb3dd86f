//! A VM's life: running, paused, off; and the machine's end when all are off.

use super::{Hypervisor, Vm};
use crate::arch::time;
use crate::sabotage;
use crate::virt::{Backend, VcpuState};
use alloc::format;
use alloc::string::String;
use config::Sabotage;
use core::fmt;
use core::sync::atomic::Ordering::SeqCst;
use devices::PowerEvent;
use telemetry::{Event, OffReason, TestVerdict, VmEvent};
use units::{Nanos, VcpuId};

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// Its virtual CPUs are scheduled.
    Running,
    /// Held by the operator.
    Paused,
    /// Over.
    Off(Outcome),
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest asked for a reset, which Perigee answers by stopping it.
    Reset,
    /// The operator stopped it.
    Stopped,
    /// It did something that cannot be honoured.
    Faulted,
    /// A test kernel ended with this value.
    TestExit(u32),
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off(Outcome::TestExit(value)) => {
                return write!(f, "off (test {})", TestVerdict::of(*value).word());
            }
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Off(Outcome::PoweredOff) => "off (powered off)",
            Self::Off(Outcome::Reset) => "off (asked for a reset)",
            Self::Off(Outcome::Stopped) => "off (stopped by the operator)",
            Self::Off(Outcome::Faulted) => "off (fault)",
        })
    }
}

/// How long [`Vm::release`] scrubs in one go. A time and no size: an emulator may be a thousand times slower
/// than a server.
const RELEASE_TIME: Nanos = Nanos::from_millis(5);
/// Memory between two looks at the clock.
const RELEASE_STEP_BYTES: u64 = 2 << 20;

impl<B: Backend> Vm<B> {
    /// What it is doing.
    pub fn state(&self) -> VmState {
        *self.state.lock()
    }

    /// The guest asked the board for a power event.
    pub fn power_event(&self, hv: &Hypervisor<B>, event: PowerEvent) {
        match event {
            PowerEvent::Off => self.end(hv, Outcome::PoweredOff, OffReason::PowerOff),
            PowerEvent::Reset => self.end(hv, Outcome::Reset, OffReason::Reset),
            PowerEvent::Exit(value) => {
                self.end(hv, Outcome::TestExit(value), OffReason::TestExit { value });
            }
        }
    }

    /// The operator stops it.
    pub fn stop(&self, hv: &Hypervisor<B>) {
        self.end(hv, Outcome::Stopped, OffReason::Stopped);
    }

    /// It did something that cannot be honoured: it stops, nobody else does.
    pub fn fault(&self, hv: &Hypervisor<B>, vcpu: VcpuId, sentence: String) {
        log::error!("{}: {vcpu} stopped the VM: {sentence}", self.name);
        if let Some(v) = self.vcpus.get(usize::from(vcpu.index))
            && let Some(core) = v.core.try_lock()
        {
            dump(&core.hw);
        }
        self.end(hv, Outcome::Faulted, OffReason::Fault { what: sentence });
    }

    /// Holds or releases it. Guest time goes on while it is held, so its clock never steps back; each virtual CPU
    /// is told when it comes back ([`super::clock::resumed`]).
    pub fn set_paused(&self, hv: &Hypervisor<B>, paused: bool) -> Result<(), String> {
        {
            let mut state = self.state.lock();
            match (*state, paused) {
                (VmState::Running, true) => *state = VmState::Paused,
                (VmState::Paused, false) => {
                    self.resumes.fetch_add(1, SeqCst);
                    *state = VmState::Running;
                }
                (now, _) => return Err(format!("{} is {now}; nothing was done", self.name)),
            }
        }
        crate::drive::paused(hv, self, paused);
        Ok(())
    }

    /// Whether it ended in a way that nobody asked for, or says itself that it failed.
    pub fn failed(&self) -> bool {
        match self.state() {
            VmState::Off(Outcome::Faulted | Outcome::Reset) => true,
            VmState::Off(Outcome::TestExit(value)) => TestVerdict::of(value) != TestVerdict::Passed,
            _ => false,
        }
    }

    /// Gives a part of its memory back, once no CPU runs it any more. To be called until [`super::GuestRam`] is
    /// empty: scrubbing takes a while, and the caller has guests that wait.
    ///
    /// No CPU can be about to enter: one that is first says so in [`super::Vcpu::running_on`] and then looks at
    /// the state, which became [`VmState::Off`] before this call.
    pub fn release(&self) {
        let running = self
            .vcpus
            .iter()
            .any(|v| v.running_on.load(SeqCst) != super::NOWHERE);
        if running {
            return;
        }
        let began = time::now();
        while time::now().since(began) < RELEASE_TIME && !self.ram.is_empty() {
            let taken = self.ram.take_leaves(RELEASE_STEP_BYTES);
            let kept = usize::from(sabotage::on(Sabotage::LeakFrame) && self.ram.is_empty());
            for (frame, size) in taken.into_iter().skip(kept) {
                crate::mm::free(frame, size);
            }
        }
    }

    fn end(&self, hv: &Hypervisor<B>, outcome: Outcome, reason: OffReason) {
        {
            let mut state = self.state.lock();
            if matches!(*state, VmState::Off(_)) {
                return;
            }
            *state = VmState::Off(outcome);
        }
        {
            let mut console = self.console.lock();
            console.finish(self);
        }
        crate::drive::record(Event::Vm {
            vm: self.id,
            name: self.name.clone(),
            what: VmEvent::Off(reason),
        });
        for vcpu in &self.vcpus {
            vcpu.blocked.store(false, SeqCst);
        }
        crate::drive::vm_ended(hv, self);
    }
}

/// The registers that say most about where a guest went wrong.
fn dump(hw: &impl VcpuState) {
    use crate::virt::{ControlRegister, Gpr, SegmentName};
    let r = |n| hw.regs().get(Gpr(n));
    log::error!(
        "  rip {:04x}:{:016x} rflags {:x} cpl {} efer {:x}",
        hw.segment(SegmentName::Cs).selector,
        hw.rip(),
        hw.rflags(),
        hw.cpl(),
        hw.efer()
    );
    log::error!(
        "  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
        r(0),
        r(3),
        r(1),
        r(2)
    );
    log::error!(
        "  rsi {:016x} rdi {:016x} rbp {:016x} rsp {:016x}",
        r(6),
        r(7),
        r(5),
        r(4)
    );
    log::error!(
        "  cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x}",
        hw.cr(ControlRegister::Cr0),
        hw.cr(ControlRegister::Cr2),
        hw.cr(ControlRegister::Cr3),
        hw.cr(ControlRegister::Cr4)
    );
}
