//! Virtualization by hardware, without a vendor's name above this line.
//!
//! Two traits carry the seam. [`Backend`] is what a processor can do: switch itself on, make a
//! virtual CPU, enter it, say why it stopped. [`VcpuState`] is what everybody above may look at
//! and change between two entries: registers, segments, pending events. The reasons for stopping
//! are one vocabulary, [`Exit`]; a backend translates its own codes into it and fills in what its
//! hardware does not decode, so the handlers in `exits/` are written once.
//!
//! The run loop is monomorphised per backend; which one runs is decided once, at boot, by CPUID.
//!
//! Reading order: `exit.rs` (the vocabulary), this file (the traits), then `svm/` and `vmx/`,
//! which lie beside each other in the same shape.

mod exit;
pub mod fpu;
mod regs;
pub mod speculation;
pub mod svm;
mod vector;
pub mod vmx;
mod words;

pub use exit::{
    ControlRegister, CrSource, Culprit, Direction, Exit, IoAccess, NestedFault, TaskSource,
};
pub use regs::{Event, EventKind, Gpr, Regs, SegmentName};
pub use vector::VectorRegisters;

use crate::arch;
use crate::vm::Hypervisor;
use core::fmt;
use guest::EntryState;
use guest::entry::{Segment, TableRegister};
use memory::table::LargeLeaves;
use spin::Once;
use units::{Frame, Gpa, Nanos, NodeId};

/// Why this processor cannot host guests, as a sentence for the operator.
#[derive(Clone, Copy, Debug)]
pub struct Unsupported(pub &'static str);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What a VM fixes for each of its virtual CPUs when they are made.
#[derive(Clone, Copy, Debug)]
pub struct VcpuSetup {
    /// Node whose memory holds the control structures.
    pub node: NodeId,
    /// CR4 bits that the guest's CPUID offers.
    pub allowed_cr4: u64,
}

/// What must be dropped from this CPU's TLB before the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbState {
    /// Nothing changed since this virtual CPU last ran here.
    Current,
    /// The nested table changed, its A/D bits were cleared, or the virtual CPU comes from elsewhere.
    Stale,
}

/// A vendor's virtualization.
pub trait Backend: fmt::Debug + Sized + Send + Sync + 'static {
    /// State of one virtual CPU.
    type Vcpu: VcpuState + fmt::Debug + Send;
    /// State of one physical CPU.
    type Cpu: fmt::Debug;
    /// Format of the nested page table.
    type Format: memory::table::TableFormat<Address = Gpa> + Send + Sync;
    /// As printed: "AMD-V".
    const NAME: &'static str;

    /// Whether this processor can host guests at all.
    fn probe() -> Result<(), Unsupported>;
    /// Switches virtualization on, on the calling CPU.
    fn enable(node: NodeId) -> Result<Self::Cpu, Unsupported>;
    /// Whether guests may execute through large leaves of the nested table.
    fn large_leaves() -> LargeLeaves {
        LargeLeaves::Executable
    }
    /// Whether the processor can log which pages guests write ([`VcpuState::log_writes`]).
    fn can_log_writes() -> bool {
        false
    }
    /// Whether processors set D in a nested leaf when a guest writes through it: without that a page is copied only
    /// while nobody can reach it.
    fn sets_dirty_bits() -> bool;
    /// A virtual CPU in power-on state.
    fn new_vcpu(setup: &VcpuSetup) -> Result<Self::Vcpu, Unsupported>;
    /// Brings the virtual CPU's unsaved state (FPU, debug registers, a few MSRs) onto this CPU.
    fn load(cpu: &mut Self::Cpu, vcpu: &mut Self::Vcpu);
    /// Takes it off again; after this the virtual CPU may be loaded elsewhere.
    fn unload(cpu: &mut Self::Cpu, vcpu: &mut Self::Vcpu);
    /// Runs the guest until something stops it. Called with interrupts off, returns so.
    fn enter(cpu: &mut Self::Cpu, vcpu: &mut Self::Vcpu, tlb: TlbState) -> Exit;
    /// Asks the processor about control structures with a random mistake each, for tests; before any guest runs.
    #[cfg(feature = "sabotage")]
    fn try_out(_cpu: &mut Self::Cpu, _node: NodeId, _seed: u64) {
        log::error!("{} has no trials of its control structures", Self::NAME);
    }
    /// The one hypervisor that runs on this backend, once it has been made.
    fn hypervisor() -> &'static Once<Hypervisor<Self>>;
}

/// Whether NMIs wait for the end of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NmiBlocking {
    /// A handler runs.
    Blocked,
    /// None runs.
    Open,
}

/// What may be looked at and changed between two entries.
pub trait VcpuState {
    /// General-purpose registers; `rsp` and `rax` included.
    fn regs(&self) -> &Regs;
    /// The same, to change.
    fn regs_mut(&mut self) -> &mut Regs;
    /// Instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: u64);
    /// A control register as the guest sees it (0, 2, 3, 4).
    fn cr(&self, register: ControlRegister) -> u64;
    /// Sets CR0, CR2, CR3 or CR4; the caller has checked the value.
    fn set_cr(&mut self, register: ControlRegister, value: u64);
    /// Takes the four page-directory pointers of PAE paging, where the processor does not load them itself when software
    /// completes a MOV to CR0 or CR4; `false` if one has a reserved bit, which makes the MOV a #GP.
    fn accept_pdptes(&mut self, _pdptes: [u64; 4]) -> bool {
        true
    }
    /// EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Sets EFER; the caller has checked the value.
    fn set_efer(&mut self, efer: u64);
    /// XCR0 of the guest.
    fn xcr0(&self) -> u64;
    /// Sets XCR0 of the guest; the caller has checked the value.
    fn set_xcr0(&mut self, xcr0: u64);
    /// PKRU of the guest, 0 without protection keys; only while it is loaded.
    fn pkru(&self) -> u32;
    /// PAT of the guest.
    fn set_pat(&mut self, pat: u64);
    /// TSC_AUX of the guest.
    fn tsc_aux(&self) -> u64;
    /// Sets TSC_AUX of the guest; only while it is loaded.
    fn set_tsc_aux(&mut self, value: u64);
    /// A segment register.
    fn segment(&self, name: SegmentName) -> Segment;
    /// Sets a segment register; the caller has checked it.
    fn set_segment(&mut self, name: SegmentName, segment: Segment);
    /// The global descriptor table.
    fn gdtr(&self) -> TableRegister;
    /// Current privilege level.
    fn cpl(&self) -> u8;
    /// Sets the privilege level, where it is not the stack segment's.
    fn set_cpl(&mut self, _cpl: u8) {}
    /// DR6 of the guest.
    fn dr6(&self) -> u64;
    /// Sets DR6; only while the virtual CPU is loaded.
    fn set_dr6(&mut self, value: u64);
    /// DR7 of the guest.
    fn dr7(&mut self) -> u64;
    /// Sets DR7.
    fn set_dr7(&mut self, value: u64);
    /// The guest is to stop at `at`, whatever it does; asked for before every entry. Where the processor has no timer of its
    /// own for that, the local APIC's interrupts.
    fn stop_at(&mut self, at: Nanos) {
        arch::timer::arm(at);
    }
    /// The guest's memory is what this table says; said before every entry. Whether it was another before.
    fn walk_from(&mut self, root: Frame) -> bool;
    /// Whether the processor is to log which pages the guest writes, where it can; asked for before every entry.
    fn log_writes(&mut self, _wanted: bool) {}
    /// Hands on what it has logged. Asked for after every exit, before this CPU counts as outside of the guest.
    fn take_log(&mut self, _name: impl FnMut(Gpa)) {}
    /// What is added to the host's TSC when the guest reads its own.
    fn set_tsc_offset(&mut self, offset: u64);
    /// The task priority as CR8 shows it.
    fn cr8(&self) -> u8;
    /// Sets it.
    fn set_cr8(&mut self, cr8: u8);

    /// Sets all architectural state, as after reset, SIPI or a direct start.
    fn reset(&mut self, state: &EntryState);
    /// Whether an external interrupt would be taken at the next instruction.
    fn interruptible(&self) -> bool;
    /// Whether an NMI would be taken.
    fn nmi_allowed(&self) -> bool;
    /// Whether the guest is in the handler of one, from its delivery to the end of the IRET.
    fn nmi_blocked(&self) -> bool;
    /// Whether an event waits to be delivered at the next entry already.
    fn event_pending(&self) -> bool;
    /// The event that waits to be delivered at the next entry.
    fn pending_event(&self) -> Option<Event>;
    /// What the hardware said at the last exit, by the manual's names.
    fn vendor_exit(&self) -> [(&'static str, u64); 6];
    /// GDTR, IDTR, LDTR and TR: base and limit.
    fn descriptor_tables(&self) -> [(&'static str, u64, u32); 4];
    /// Delivers `event` at the next entry.
    fn inject(&mut self, event: Event);
    /// Software has delivered an NMI, or executed the IRET that ends its handler, where the processor would have
    /// blocked NMIs or let them in again.
    fn set_nmi_blocking(&mut self, _blocking: NmiBlocking) {}
    /// The event whose delivery the last exit interrupted, taken out.
    fn take_interrupted_event(&mut self) -> Option<Event>;
    /// Asks for (or no longer for) an exit as soon as [`Self::interruptible`] becomes true.
    fn want_interrupt_window(&mut self, wanted: bool);
    /// Forgets the shadow of STI and MOV SS: an instruction has been completed by software.
    fn clear_interrupt_shadow(&mut self);
    /// Holds interrupts back until the next instruction is done: software has executed a MOV SS.
    fn set_interrupt_shadow(&mut self);
    /// Length of the instruction that exited, when the hardware says it.
    fn instruction_length(&self) -> Option<u8>;
    /// Bytes at the instruction pointer, when the hardware fetched them.
    fn instruction_bytes(&self) -> &[u8];
}
