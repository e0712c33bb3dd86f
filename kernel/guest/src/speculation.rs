//! What the hypervisor must do against leaks by speculation on this processor, and whether it can.
//!
//! A decision from CPUID and IA32_ARCH_CAPABILITIES alone, so that it can be tested for processors that are not
//! at hand. Sources: SDM 3A 2.8 and 4 2.1 (IA32_ARCH_CAPABILITIES), Intel's and AMD's guidance for software on
//! Spectre v2 (IBPB, IBRS, return stack), MDS, TAA and stale MMIO data (VERW), L1TF (flush of the first-level cache), TSA.
//!
//! | measure | when | against |
//! |---|---|---|
//! | IBPB | another VM comes to the CPU | branch targets trained by the one before |
//! | SPEC_CTRL | at each entry and exit | the guest's choice holds for the guest, the host's for the host |
//! | return stack | after each exit | returns of the host predicted by the guest's calls |
//! | VERW | before each entry | data left in fill, load and store buffers |
//! | L1D flush | before each entry | host data in the cache, read through a not-present entry of the guest's tables |
//!
//! Not covered: branch history (BHI) and indirect targets of the same predictor domain (ITS, retbleed) are left to the
//! host's IBRS, which is on wherever the processor has it; without IBRS the host's own indirect branches, of which the
//! exit path has few, are predicted as they come. What threads of one core leak to
//! each other is the scheduler's affair.

use crate::cpuid::{CpuidSource, Vendor};

/// What CPUID and IA32_ARCH_CAPABILITIES say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whose rules hold.
    pub vendor: Vendor,
    /// CPUID 7.0 EDX.
    pub leaf7_edx: u32,
    /// CPUID 8000_0008 EBX.
    pub leaf8_ebx: u32,
    /// CPUID 8000_0021 EAX.
    pub leaf21_eax: u32,
    /// CPUID 8000_0021 ECX.
    pub leaf21_ecx: u32,
    /// IA32_ARCH_CAPABILITIES, 0 where there is none.
    pub capabilities: u64,
}

/// CPUID 7.0 EDX: VERW clears buffers.
const MD_CLEAR: u32 = 1 << 10;
/// CPUID 7.0 EDX: IBRS and IBPB.
const INTEL_IBRS_IBPB: u32 = 1 << 26;
/// CPUID 7.0 EDX: STIBP, SSBD.
const INTEL_STIBP_SSBD: u32 = 1 << 27 | 1 << 31;
/// CPUID 7.0 EDX: IA32_FLUSH_CMD.
const L1D_FLUSH: u32 = 1 << 28;
/// CPUID 7.0 EDX: IA32_ARCH_CAPABILITIES.
pub const ARCH_CAPABILITIES: u32 = 1 << 29;
/// CPUID 8000_0008 EBX: IBPB; IBRS; STIBP and SSBD.
const AMD_IBPB: u32 = 1 << 12;
const AMD_IBRS: u32 = 1 << 14;
const AMD_STIBP_SSBD: u32 = 1 << 15 | 1 << 24;
/// CPUID 8000_0021 EAX: VERW clears what TSA leaks; EFER has automatic IBRS.
const AMD_VERW_CLEAR: u32 = 1 << 5;
const AMD_AUTO_IBRS: u32 = 1 << 8;
/// CPUID 8000_0021 ECX: not affected by TSA in the store queue and in the L1.
const TSA_NO: u32 = 1 << 1 | 1 << 2;
/// IA32_ARCH_CAPABILITIES.
const RDCL_NO: u64 = 1 << 0;
const SKIP_L1DFL: u64 = 1 << 3;
const MDS_NO: u64 = 1 << 5;
const TAA_NO: u64 = 1 << 8;
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO: no stale MMIO data.
const MMIO_NO: u64 = 0b111 << 13;
const RFDS_NO: u64 = 1 << 27;
/// IA32_SPEC_CTRL.IBRS.
pub const SPEC_CTRL_IBRS: u64 = 1;

impl Facts {
    /// The host's.
    pub fn of(host: &impl CpuidSource, vendor: Vendor, capabilities: u64) -> Self {
        let basic = host.leaf(0, 0).eax;
        let extended = host.leaf(0x8000_0000, 0).eax;
        let leaf7 = if basic >= 7 {
            host.leaf(7, 0)
        } else {
            Default::default()
        };
        let at = |leaf: u32| match extended >= leaf && extended >> 16 == 0x8000 {
            true => host.leaf(leaf, 0),
            false => Default::default(),
        };
        Self {
            vendor,
            leaf7_edx: leaf7.edx,
            leaf8_ebx: at(0x8000_0008).ebx,
            leaf21_eax: at(0x8000_0021).eax,
            leaf21_ecx: at(0x8000_0021).ecx,
            capabilities,
        }
    }

    fn has7(&self, bits: u32) -> bool {
        self.leaf7_edx & bits != 0
    }
    fn has8(&self, bits: u32) -> bool {
        self.vendor == Vendor::Amd && self.leaf8_ebx & bits != 0
    }
    fn says(&self, bits: u64) -> bool {
        self.capabilities & bits == bits
    }
}

/// What is done about one leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// It is taken, for this reason.
    Active(&'static str),
    /// It is not needed, for this reason.
    Spared(&'static str),
    /// It is needed and cannot be taken, for this reason.
    Missing(&'static str),
}

impl Measure {
    /// Whether it is taken.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Active(_))
    }
}

/// What is done about all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// IBPB when another VM comes to a CPU.
    pub ibpb: Measure,
    /// IA32_SPEC_CTRL switched at entry and exit.
    pub spec_ctrl: Measure,
    /// The return stack filled after each exit.
    pub return_stack: Measure,
    /// VERW before each entry.
    pub verw: Measure,
    /// First-level cache flushed before each entry.
    pub l1d_flush: Measure,
    /// The host's own IA32_SPEC_CTRL.
    pub host_spec_ctrl: u64,
    /// EFER.AIBRSE is to be set.
    pub auto_ibrs: bool,
}

impl Plan {
    /// Decides.
    #[must_use]
    pub fn decide(facts: &Facts) -> Self {
        let ibrs = facts.has7(INTEL_IBRS_IBPB) || facts.has8(AMD_IBRS);
        Self {
            ibpb: ibpb(facts),
            spec_ctrl: spec_ctrl(facts, ibrs),
            return_stack: Measure::Active("guests train the return stack that the host uses"),
            verw: verw(facts),
            l1d_flush: l1d_flush(facts),
            host_spec_ctrl: if ibrs { SPEC_CTRL_IBRS } else { 0 },
            auto_ibrs: facts.vendor == Vendor::Amd && facts.leaf21_eax & AMD_AUTO_IBRS != 0,
        }
    }

    /// All measures with their names.
    pub fn measures(&self) -> [(&'static str, Measure); 5] {
        [
            ("IBPB between VMs", self.ibpb),
            ("SPEC_CTRL switched", self.spec_ctrl),
            ("return stack filled", self.return_stack),
            ("VERW before entry", self.verw),
            ("L1D flush before entry", self.l1d_flush),
        ]
    }
}

fn ibpb(facts: &Facts) -> Measure {
    match facts.has7(INTEL_IBRS_IBPB) || facts.has8(AMD_IBPB) {
        true => Measure::Active("VMs share branch predictors"),
        false => Measure::Missing("VMs share branch predictors, and CPUID lists no IBPB"),
    }
}

fn spec_ctrl(facts: &Facts, ibrs: bool) -> Measure {
    let others = facts.has7(INTEL_STIBP_SSBD) || facts.has8(AMD_STIBP_SSBD);
    match ibrs || others {
        true => Measure::Active("guests are offered the register"),
        false => Measure::Spared("CPUID lists none of its bits, and guests are offered none"),
    }
}

fn verw(facts: &Facts) -> Measure {
    if facts.vendor == Vendor::Amd {
        let listed = facts.leaf21_eax & AMD_VERW_CLEAR != 0;
        return match (listed, facts.leaf21_ecx & TSA_NO == TSA_NO) {
            (_, true) => Measure::Spared("CPUID says that TSA does not affect the processor"),
            (true, false) => Measure::Active("CPUID says that VERW clears what TSA leaks"),
            (false, false) => Measure::Spared("CPUID lists no need of it on this processor"),
        };
    }
    if facts.says(MDS_NO | TAA_NO | MMIO_NO | RFDS_NO) {
        return Measure::Spared("ARCH_CAPABILITIES says that buffers do not leak");
    }
    match facts.has7(MD_CLEAR) {
        true => Measure::Active("ARCH_CAPABILITIES does not say that buffers do not leak"),
        false => Measure::Missing("buffers may leak, and VERW does not clear them (no MD_CLEAR)"),
    }
}

fn l1d_flush(facts: &Facts) -> Measure {
    if facts.vendor == Vendor::Amd {
        return Measure::Spared("L1TF does not affect AMD's processors");
    }
    if facts.says(RDCL_NO) || facts.says(SKIP_L1DFL) {
        return Measure::Spared("ARCH_CAPABILITIES says that it is not needed");
    }
    match facts.has7(L1D_FLUSH) {
        true => Measure::Active("ARCH_CAPABILITIES does not say that it is not needed"),
        false => Measure::Missing("L1TF may leak, and there is no IA32_FLUSH_CMD"),
    }
}

#[cfg(test)]
mod tests;
