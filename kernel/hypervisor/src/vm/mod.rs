//! Virtual machines: what they are made of and who may touch which part.
//!
//! A [`Hypervisor`] is made once, after all processors are up, and never moves. It holds every
//! [`Vm`]; a VM holds its memory, its board of devices and its virtual CPUs. Each piece has one lock, and
//! they nest in one order only (outer first):
//!
//! 0. `Vm::chores`: what is done for a VM that is off; whoever does not get it comes back later
//! 1. [`Vcpu::core`]: registers; held for a whole time slice by the CPU that runs the virtual CPU
//! 2. what the operator has typed (`monitor`)
//! 3. [`Hypervisor::tracking`]: footprints and the planner
//! 4. [`Vm::board`]: devices behind ports and the I/O APIC
//! 5. [`Vcpu::apic`]: one local APIC
//! 6. [`Hypervisor::sched`]: run queues
//! 7. [`Hypervisor::timers`]: one queue per CPU
//! 8. [`Vm::ram`]'s table lock (inside), then what it notes of granules that are apart for a while, then the heap, then the frame allocators
//! 9. [`Vm::console`]
//! 10. whose line stands unfinished (`monitor`), then the UART
//!
//! [`Vm::state`], [`Vm::first_seen`], [`Vcpu::looks`], [`Vcpu::counted`], a CPU's counters and a cache's counts (`counters`) what each CPU counts of the scheduler's lock, and the lists of waiting page work and ended VMs (`drive`) are leaves: no lock
//! is taken under them but the heap's.
//!
//! Interrupts are off while any of them is held, and nobody waits for another CPU's reaction under
//! one of them, but for a change of leaves' size, which holds only the table lock and needs no lock to be answered. Who
//! finds a page on the move may wait for it under any of them but that one: its mover takes no other until it has arrived.
//!
//! Reading order: this file, `place.rs`, `filling.rs`, `create.rs`, `load.rs`,
//! `lifecycle.rs`, `restart.rs`, `bus.rs` (interrupts between vCPUs and devices), `clock.rs`,
//! `ram.rs`.

mod arrival;
mod bus;
pub mod clock;
mod create;
mod dump;
mod filling;
pub mod history;
mod lifecycle;
mod load;
mod place;
mod ram;
mod restart;
mod tables;

pub use bus::{apic_now, board_due, deliver, notify, with_board};
pub use create::{Images, World, build};
pub use dump::{dump_all, dump_if_wanted};
pub use lifecycle::{VmState, any_ending};
pub use place::Taken;
pub use ram::{GuestRam, Remapped, RootChange};
pub use restart::chores;
pub use tables::DirectTables;

use crate::counters::Counts;
use crate::drive::{Decisions, Locked, Tracking};
use crate::exits::operands::{Looks, NextLook};
use crate::timers::TimerQueue;
use crate::virt::{Backend, Event};
use alloc::string::String;
use alloc::vec::Vec;
use config::{HostConfig, NodeShare};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use devices::{Board, GuestConsole, LocalApic};
use guest::VmShape;
use guest::cpuid::CpuidPolicy;
use guest::msr::{FirstSeen, MsrPolicy, MsrState};
use memory::entry::Remembered;
use spin::Mutex;
use topology::Machine;
use units::{CpuId, Gpa, Nanos, NodeId, VcpuId, VmId};

/// Everything that runs on this machine.
#[derive(Debug)]
pub struct Hypervisor<B: Backend> {
    /// The machine.
    pub machine: &'static Machine,
    /// The operator's configuration.
    pub config: HostConfig,
    /// Virtual machines, by number.
    pub vms: Vec<Vm<B>>,
    /// Who runs where.
    pub sched: Locked,
    /// What it decided lately.
    pub decisions: Decisions,
    /// Things to do at a certain time, one queue per CPU.
    pub timers: Vec<Mutex<TimerQueue>>,
    /// Footprints and plans of all VMs.
    pub tracking: Mutex<Tracking>,
    /// Host TSC ticks in a second.
    pub tsc_hz: u64,
    /// Whether the TSCs of all CPUs agree.
    pub tsc_synchronised: bool,
    /// Seconds since 1970 when the kernel's clock started.
    pub unix_at_start_s: u64,
}

/// One virtual machine.
#[derive(Debug)]
pub struct Vm<B: Backend> {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its configuration.
    pub config: config::Vm,
    /// What the planner may move, as configured or as the operator said last; `None` is the host's.
    pub mode: Mutex<Option<config::Mode>>,
    /// An operator watches what it touches: nobody else clears accessed and dirty bits meanwhile.
    pub watched: AtomicBool,
    /// vCPUs, memory layout and virtual nodes as the guest sees them.
    pub shape: VmShape,
    /// Node where it was placed at the start.
    pub home: NodeId,
    /// Its memory.
    pub ram: GuestRam<B::Format>,
    /// Its devices.
    pub board: Mutex<Board>,
    /// When the board wants to be polled next, in guest time; `u64::MAX` for never.
    pub board_deadline: AtomicU64,
    /// Whether its 8259 asserts INTR.
    pub pic_line: AtomicBool,
    /// Its virtual CPUs.
    pub vcpus: Vec<Vcpu<B>>,
    /// What CPUID shows.
    pub cpuid: CpuidPolicy,
    /// What RDMSR and WRMSR reach.
    pub msr_policy: MsrPolicy,
    /// MSRs already logged.
    pub first_seen: Mutex<FirstSeen>,
    /// What it prints.
    pub console: Mutex<GuestConsole>,
    /// Running, paused or off.
    pub state: Mutex<VmState>,
    /// How often it went on after a pause.
    pub resumes: AtomicU32,
    /// Host time at guest time zero, in ns.
    pub started_ns: AtomicU64,
    /// Host TSC at guest time zero.
    pub tsc_at_start: AtomicU64,
    /// Which nodes held its memory at the first start.
    placement: Vec<NodeShare>,
    /// How often each CPU had come round its loop when the VM ended.
    rounds_at_end: Mutex<Vec<u64>>,
    /// What is to be done for it while it is off.
    chores: Mutex<restart::Chores>,
}

impl<B: Backend> Vm<B> {
    /// What the planner may move on a host configured like this.
    pub fn mode_on(&self, host: &config::Host) -> config::Mode {
        self.mode.lock().unwrap_or(host.mode)
    }
    /// Guest time at host time `now`.
    pub fn guest_time(&self, now: Nanos) -> Nanos {
        now.since(Nanos(self.started_ns.load(Relaxed)))
    }
    /// Host time at guest time `at`.
    pub fn host_time(&self, at: Nanos) -> Nanos {
        at + Nanos(self.started_ns.load(Relaxed))
    }
}

/// One virtual CPU.
#[derive(Debug)]
pub struct Vcpu<B: Backend> {
    /// Its name.
    pub id: VcpuId,
    /// Its local APIC; anybody may deliver to it.
    pub apic: Mutex<LocalApic>,
    /// Its registers; the CPU that runs it holds this for the slice.
    pub core: Mutex<VcpuCore<B>>,
    /// The CPU that runs it now, or [`NOWHERE`].
    pub running_on: AtomicU32,
    /// It waits for an interrupt and is off the run queues.
    pub blocked: AtomicBool,
    /// It halted with interrupts off: maskable ones do not wake it.
    pub deaf: AtomicBool,
    /// What the guest wrote to its TSC, relative to the VM's common TSC. Its runner changes it; whoever
    /// looks after its timer while it waits reads it.
    pub tsc_adjust: AtomicU64,
    /// Time it has run, in ns.
    pub ran_ns: AtomicU64,
    /// Time it has run on each node since the footprint last asked, in ns.
    pub ran_on_node_ns: Vec<AtomicU64>,
    /// The operator wants to see its state when its CPU leaves it.
    pub dump_wanted: AtomicBool,
    /// The sample generation that its CPU had flushed for when it last entered the guest.
    pub flushed: AtomicU64,
    /// Entries that flushed.
    pub flushes: AtomicU64,
    /// Exits it has taken.
    pub exits: AtomicU64,
    /// Those among them that the end of its time brought, without an interrupt.
    pub times_up: AtomicU64,
    /// Exits by a full log of written pages.
    pub logs_full: AtomicU64,
    /// How often it changed the CPU.
    pub moves: AtomicU64,
    /// What looks at it found since the footprint last asked.
    pub looks: Mutex<Looks>,
    /// What performance counters said of it.
    pub counted: Mutex<Counts>,
}

/// [`Vcpu::running_on`] of one that does not run.
pub const NOWHERE: u32 = u32::MAX;

/// The part of a virtual CPU that only its runner touches.
#[derive(Debug)]
pub struct VcpuCore<B: Backend> {
    /// Registers.
    pub hw: B::Vcpu,
    /// MSRs that only hold a value.
    pub msrs: MsrState,
    /// IA32_XSS.
    pub xss: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// Where the guest wants its clock, and which version of it was last written.
    pub clock: Option<clock::ClockPage>,
    /// Where the guest wants its steal time.
    pub steal: Option<clock::StealPage>,
    /// Guest TSC minus host TSC on the CPU that runs it.
    pub tsc_offset: u64,
    /// What its tag on the CPU that it is on has seen of the nested table.
    pub seen: Remembered,
    /// Where it ran last.
    pub last_cpu: Option<CpuId>,
    /// The value of [`Vm::resumes`] that its clock has told the guest.
    pub seen_resumes: u32,
    /// Since when it could run but did not.
    pub runnable_since: Option<Nanos>,
    /// An event that gave way to an exception and follows it.
    pub postponed: Option<Event>,
    /// What it did last.
    pub history: history::History,
    /// When it is looked at next, and with what.
    pub look: NextLook,
    /// Which of its events are counted now.
    pub course: pmu::Course,
    /// The instruction that was last handed back to the processor, and how often in a row.
    pub handed_back: Option<HandedBack>,
    /// Instructions that guests do not have, executed all the same.
    pub refusals: u64,
}

/// An instruction that met a nested fault and that software could make nothing of.
#[derive(Clone, Copy, Debug)]
pub struct HandedBack {
    /// Where it is.
    pub rip: u64,
    /// What it reached for.
    pub gpa: Gpa,
    /// How often in a row.
    pub times: u32,
}

impl<B: Backend> Vcpu<B> {
    /// Whether anything waits that ends its HLT.
    pub fn has_reason_to_wake(&self, vm: &Vm<B>) -> bool {
        let apic = self.apic.lock();
        if self.deaf.load(SeqCst) {
            return apic.has_unmaskable_work();
        }
        apic.has_work() || vm.pic_line.load(SeqCst) && apic.extint_enabled()
    }
}

impl<B: Backend> Hypervisor<B> {
    /// The VM with this number.
    pub fn vm(&self, id: VmId) -> Option<&Vm<B>> {
        // Not by position: a VM that was refused has a number and no place.
        self.vms.iter().find(|vm| vm.id == id)
    }
    /// The virtual CPU with this name, and its VM.
    pub fn vcpu(&self, id: VcpuId) -> Option<(&Vm<B>, &Vcpu<B>)> {
        let vm = self.vm(id.vm)?;
        Some((vm, vm.vcpus.get(usize::from(id.index))?))
    }
}
