//! A VM's life: running, paused, off; and the machine's end when all are off.

use super::{Hypervisor, Vm};
use crate::virt::Backend;
use alloc::format;
use alloc::string::String;
use config::AtEnd;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use devices::PowerEvent;
use telemetry::{Event, OffReason, TestVerdict, VmEvent};
use units::VcpuId;

/// VMs that are off, or about to be, and whose end has not been told yet.
static ENDING: AtomicUsize = AtomicUsize::new(0);

/// Whether a VM that is seen to be off has more to say about it. Ask after its state, not before.
pub fn any_ending() -> bool {
    ENDING.load(SeqCst) > 0
}

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// Its virtual CPUs are scheduled.
    Running,
    /// Held by the operator.
    Paused,
    /// Over.
    Off(Outcome),
    /// It was over and is about to start again.
    Starting,
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest asked for a reset.
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
            Self::Starting => "starting",
            Self::Off(Outcome::PoweredOff) => "off (powered off)",
            Self::Off(Outcome::Reset) => "off (asked for a reset)",
            Self::Off(Outcome::Stopped) => "off (stopped by the operator)",
            Self::Off(Outcome::Faulted) => "off (fault)",
        })
    }
}

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
        if let Some(v) = self.vcpus.get(usize::from(vcpu.index)) {
            super::dump::try_dump(self, v);
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

    fn end(&self, hv: &Hypervisor<B>, outcome: Outcome, reason: OffReason) {
        // Counted before anybody can see the new state, so that nobody switches the host off in between.
        ENDING.fetch_add(1, SeqCst);
        self.end_counted(hv, outcome, reason);
        ENDING.fetch_sub(1, SeqCst);
    }

    fn end_counted(&self, hv: &Hypervisor<B>, outcome: Outcome, reason: OffReason) {
        let again = self.after(outcome) == AtEnd::Restart;
        {
            let mut state = self.state.lock();
            match *state {
                VmState::Off(_) => return,
                // Nothing of it runs yet: whoever is at work for it sees the state and undoes it.
                VmState::Starting => {
                    *state = VmState::Off(outcome);
                    return;
                }
                VmState::Running | VmState::Paused if again => *state = VmState::Starting,
                VmState::Running | VmState::Paused => *state = VmState::Off(outcome),
            }
        }
        {
            let mut console = self.console.lock();
            console.finish();
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
        self.leave_memory(hv);
    }

    /// What follows when it has ended like this.
    fn after(&self, outcome: Outcome) -> AtEnd {
        match outcome {
            Outcome::PoweredOff => self.config.on_poweroff,
            Outcome::Reset => self.config.on_reset,
            Outcome::Faulted => self.config.on_fault,
            Outcome::Stopped | Outcome::TestExit(_) => AtEnd::Off,
        }
    }
}
