//! Which model-specific registers a guest may touch, and how.
//!
//! [`MsrPolicy::classify`] answers for each register and direction; whatever is not listed is
//! denied with #GP, as on a processor that lacks the register. The list holds what the features
//! shown by [`crate::cpuid`] promise, and what Linux 6.1 to 6.12 reads without being ready for a
//! #GP on the processors of both vendors. Registers that only hold a value live in [`MsrState`],
//! with the checks that hardware makes on writes. [`FirstSeen`] keeps the log of denied registers
//! short.
//!
//! Numbers and meanings: SDM 4 chapter 2, APM 2 appendix A, Linux' `asm/msr-index.h` and
//! Documentation/virt/kvm/x86/msr.rst.

mod first_seen;
mod state;
mod table;

pub use first_seen::FirstSeen;
pub use state::{MsrState, pat_is_valid};

use crate::cpuid::CpuidPolicy;
use table::Facts;

/// RDMSR or WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// What to do with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAction {
    /// The guest's value is in hardware while it runs: the MSR bitmap lets the access through
    /// ([`PASSTHROUGH`]), and an exit for it is a defect of the bitmap.
    Passthrough,
    /// The kernel answers.
    Emulate(EmulatedMsr),
    /// The read gives this value.
    ReadConst(u64),
    /// The write has no effect.
    IgnoreWrite,
    /// #GP(0).
    Deny,
}

/// Registers that the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EmulatedMsr {
    /// IA32_APIC_BASE.
    ApicBase,
    /// An x2APIC register: MSR 0x800 plus this number, which is the MMIO offset divided by 16. Outside of
    /// x2APIC mode it is #GP.
    X2Apic(u8),
    /// IA32_TSC_DEADLINE.
    TscDeadline,
    /// IA32_TIME_STAMP_COUNTER.
    Tsc,
    /// IA32_TSC_ADJUST.
    TscAdjust,
    /// IA32_TSC_AUX, 32 bits; switched with the vCPU, as RDTSCP and RDPID read it.
    TscAux,
    /// IA32_EFER; writes must stay within [`CpuidPolicy::allowed_efer`].
    Efer,
    /// IA32_PAT; [`MsrState`] checks and holds it, and nested paging must learn of it.
    Pat,
    /// IA32_XSS; writes must stay within [`CpuidPolicy::allowed_xss`].
    Xss,
    /// IA32_SPEC_CTRL; writes must stay within [`MsrPolicy::spec_ctrl_mask`]; switched with the vCPU.
    SpecCtrl,
    /// IA32_PRED_CMD; only 0 and 1 (IBPB) may be written, and a 1 must reach the processor.
    PredCmd,
    /// MSR_KVM_WALL_CLOCK_NEW: a guest-physical address, where [`crate::pvclock::WallClock`] is written once.
    KvmWallClock,
    /// MSR_KVM_SYSTEM_TIME_NEW: see [`crate::pvclock::SharedPage::decode_system_time`].
    KvmSystemTime,
    /// MSR_KVM_STEAL_TIME: see [`crate::pvclock::SharedPage::decode_steal_time`].
    KvmStealTime,
    /// A value in [`MsrState`] and nothing else.
    Stored(StoredMsr),
}

/// Registers whose value [`MsrState`] holds.
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
    /// A fixed-range MTRR, 0 to 10 in ascending order of address.
    MtrrFixed(u8),
    /// IA32_MISC_ENABLE.
    MiscEnable,
    /// IA32_MCG_STATUS.
    McgStatus,
    /// IA32_DEBUGCTL; LBR and BTF can be set, but have no effect.
    DebugCtl,
}

/// A write that hardware answers with #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// Registers whose accesses need no exit: VMLOAD and VMSAVE (APM 2 15.5.2) or the VMCS and the
/// kernel's vCPU switch keep the guest's values in hardware while it runs.
pub const PASSTHROUGH: &[u32] = &[
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0xC000_0081, // STAR
    0xC000_0082, // LSTAR
    0xC000_0083, // CSTAR
    0xC000_0084, // SFMASK
    0xC000_0100, // FS.base
    0xC000_0101, // GS.base
    0xC000_0102, // KernelGSbase
];

/// The MSR policy of one VM.
#[derive(Clone, Debug)]
pub struct MsrPolicy {
    facts: Facts,
}

impl MsrPolicy {
    /// The policy that agrees with what CPUID shows.
    #[must_use]
    pub fn new(cpuid: &CpuidPolicy) -> Self {
        Self {
            facts: Facts::of(cpuid),
        }
    }

    /// What to do with an access to register `msr`.
    #[must_use]
    pub fn classify(&self, msr: u32, direction: Direction) -> MsrAction {
        table::classify(&self.facts, msr, direction)
    }

    /// [`PASSTHROUGH`]: clear both bits of each in the MSR bitmap.
    #[must_use]
    pub const fn passthrough(&self) -> &'static [u32] {
        PASSTHROUGH
    }

    /// Bits that a guest may set in IA32_SPEC_CTRL.
    #[must_use]
    pub const fn spec_ctrl_mask(&self) -> u64 {
        self.facts.spec_ctrl
    }
}

#[cfg(test)]
mod tests;
