//! Which model-specific registers a guest may touch.
use crate::cpuid::CpuidPolicy;

/// RDMSR or WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAction {
    /// The guest's value lives in hardware while it runs; the bitmap lets the access through. (An exit that
    /// happens nevertheless is a defect of the bitmap.)
    Passthrough,
    /// The kernel answers.
    Emulate(EmulatedMsr),
    /// Reads give this.
    ReadConst(u64),
    /// Writes vanish.
    IgnoreWrite,
    /// #GP(0).
    Deny,
}

/// Registers that the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EmulatedMsr {
    /// IA32_APIC_BASE.
    ApicBase,
    /// x2APIC register: MSR 0x800 + this; MMIO offset = this * 16.
    X2Apic(u8),
    /// IA32_TSC_DEADLINE.
    TscDeadline,
    /// IA32_TIME_STAMP_COUNTER.
    Tsc,
    /// IA32_TSC_ADJUST.
    TscAdjust,
    /// IA32_TSC_AUX.
    TscAux,
    /// IA32_EFER.
    Efer,
    /// IA32_PAT; stored in [`MsrState`] too, but hardware must learn of it (G_PAT).
    Pat,
    /// IA32_XSS.
    Xss,
    /// IA32_SPEC_CTRL.
    SpecCtrl,
    /// IA32_PRED_CMD.
    PredCmd,
    /// MSR_KVM_WALL_CLOCK_NEW (and the old number).
    KvmWallClock,
    /// MSR_KVM_SYSTEM_TIME_NEW (and the old number).
    KvmSystemTime,
    /// MSR_KVM_STEAL_TIME.
    KvmStealTime,
    /// Plain storage in [`MsrState`].
    Stored(StoredMsr),
}

/// Registers that only hold a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoredMsr {
    /// IA32_PAT.
    Pat,
    /// IA32_MTRR_DEF_TYPE.
    MtrrDefType,
    /// IA32_MTRR_PHYSBASEn.
    MtrrPhysBase(u8),
    /// IA32_MTRR_PHYSMASKn.
    MtrrPhysMask(u8),
    /// Fixed-range MTRR, 0 to 10 in ascending order of address.
    MtrrFixed(u8),
    /// IA32_MISC_ENABLE.
    MiscEnable,
    /// IA32_MCG_STATUS.
    McgStatus,
}

/// #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// The policy of one VM.
#[derive(Clone, Debug)]
pub struct MsrPolicy {}

impl MsrPolicy {
    /// Agrees with what CPUID shows.
    pub fn new(_cpuid: &CpuidPolicy) -> Self {
        Self {}
    }
    /// What to do with an access.
    pub fn classify(&self, _msr: u32, _direction: Direction) -> MsrAction {
        MsrAction::Deny
    }
    /// Every register whose accesses need no exit, both ways: clear these in the MSR bitmap.
    pub fn passthrough(&self) -> &'static [u32] {
        &[]
    }
}

/// Values of one vCPU's stored registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrState {}

impl MsrState {
    /// After reset.
    pub fn new(_cpuid: &CpuidPolicy) -> Self {
        Self {}
    }
    /// Reads.
    pub fn read(&self, _msr: StoredMsr) -> u64 {
        0
    }
    /// Writes.
    pub fn write(&mut self, _msr: StoredMsr, _value: u64) -> Result<(), Gp> {
        Err(Gp)
    }
}

/// Remembers which unknown registers were already logged; bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstSeen {}

impl FirstSeen {
    /// Whether this access is the first of its kind and should be logged; false when full.
    pub fn insert(&mut self, _msr: u32, _direction: Direction) -> bool {
        false
    }
}
