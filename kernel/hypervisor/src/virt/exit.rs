//! Why a guest stopped: one vocabulary for both vendors.

use super::Gpr;
use core::fmt;
use units::Gpa;

/// Which way data flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device or register to the guest.
    Read,
    /// From the guest.
    Write,
}

/// A port access.
#[derive(Clone, Copy, Debug)]
pub struct IoAccess {
    /// First port.
    pub port: u16,
    /// IN or OUT.
    pub direction: Direction,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// INS or OUTS: data is in memory.
    pub string: bool,
    /// With a REP prefix.
    pub repeated: bool,
}

/// An access that the nested page table did not allow.
#[derive(Clone, Copy, Debug)]
pub struct NestedFault {
    /// Where.
    pub gpa: Gpa,
    /// A store.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The access was the guest's own page walk rather than its final address.
    pub walk: bool,
    /// The linear address of the access, where the hardware tells.
    pub linear: Option<u64>,
}

/// A control register that guests may be stopped at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRegister {
    /// CR0.
    Cr0,
    /// CR2.
    Cr2,
    /// CR3.
    Cr3,
    /// CR4.
    Cr4,
    /// CR8, the task priority.
    Cr8,
}

/// What a control-register exit is about, as far as the hardware tells.
#[derive(Clone, Copy, Debug)]
pub enum CrSource {
    /// A MOV between a general-purpose register and the control register.
    Mov(Gpr),
    /// CLTS or LMSW: the register's new value.
    Value(u64),
    /// The hardware does not say: the instruction must be decoded.
    Undecoded,
}

/// A field of the guest's state that the hardware does not accept.
#[derive(Clone, Copy, Debug)]
pub struct Culprit {
    /// Its name.
    pub field: &'static str,
    /// What it holds.
    pub value: u64,
    /// The rule that it breaks.
    pub rule: &'static str,
    /// Where the manual says so.
    pub section: &'static str,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            value,
            rule,
            section,
        } = self;
        write!(f, "{field} is {value:#x}, but {rule} ({section})")
    }
}

/// What asked for a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSource {
    /// A far CALL.
    Call,
    /// IRET.
    Iret,
    /// A far JMP.
    Jump,
    /// An event whose gate is a task gate; it is the one whose delivery the exit interrupted.
    Gate,
}

/// Why a guest stopped.
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    /// An interrupt for the host.
    Interrupt,
    /// The time is over that [`super::VcpuState::stop_at`] gave it.
    TimeUp,
    /// The log of written pages is full ([`super::VcpuState::log_writes`]).
    LogFull,
    /// An NMI for the host.
    Nmi,
    /// The guest can take an interrupt now.
    InterruptWindow,
    /// The guest left its NMI handler.
    NmiWindow,
    /// A port.
    Io(IoAccess),
    /// RDMSR or WRMSR.
    Msr(Direction),
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// PAUSE, often enough to look like waiting for a lock.
    Pause,
    /// The nested table stopped an access.
    NestedFault(NestedFault),
    /// A control register was written (or CR8 read).
    Cr {
        /// Which.
        register: ControlRegister,
        /// Direction.
        direction: Direction,
        /// How.
        source: CrSource,
    },
    /// XSETBV.
    Xsetbv,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// INVD or WBINVD.
    CacheFlush,
    /// An exception that is intercepted (#AC, #DB, #MC).
    Exception {
        /// Vector.
        vector: u8,
        /// Error code, when the vector has one.
        error: u32,
    },
    /// An instruction that this guest's CPUID does not offer: it becomes #UD.
    NotOffered(&'static str),
    /// An instruction that privileged software uses but this guest may not: it becomes #GP.
    NotAllowed(&'static str),
    /// A hardware task switch, which software must do.
    TaskSwitch {
        /// Selector of the incoming task's TSS.
        selector: u16,
        /// What asked for it.
        source: TaskSource,
    },
    /// The guest triple-faulted.
    Shutdown,
    /// SMI or INIT arrived for the host.
    PlatformEvent(&'static str),
    /// The hardware rejected the guest's state.
    InvalidState {
        /// Vendor's code for it.
        detail: u64,
        /// The field that breaks a rule, where it could be found.
        culprit: Option<Culprit>,
    },
    /// A code that nobody asked for.
    Unexpected {
        /// Vendor's exit code.
        code: u64,
        /// Its first qualification.
        info1: u64,
        /// Its second.
        info2: u64,
    },
}

impl Exit {
    /// Whether the guest stopped at a moment that it did not choose.
    pub fn is_from_outside(&self) -> bool {
        matches!(self, Self::Interrupt | Self::TimeUp)
    }
}
