//! The table behind [`super::MsrPolicy`].

use super::{Direction, EmulatedMsr, MsrAction, PASSTHROUGH, StoredMsr};
use crate::cpuid::{CpuidPolicy, Vendor, allow};

/// Number of variable-range MTRRs.
pub(super) const VARIABLE_MTRRS: u8 = 8;
/// IA32_MTRRCAP: that many, fixed ranges, write-combining (SDM 3A 12.11.1).
const MTRR_CAP: u64 = VARIABLE_MTRRS as u64 | 1 << 8 | 1 << 10;
/// The fixed-range MTRRs in ascending order of address (SDM 3A table 12-9).
const FIXED_MTRRS: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F,
];

/// What the table needs to know about the processor that the guest sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    vendor: Vendor,
    mtrr: bool,
    pat: bool,
    mca: bool,
    tsc_adjust: bool,
    tsc_aux: bool,
    xss: bool,
    ibpb: bool,
    pub spec_ctrl: u64,
}

impl Facts {
    pub(super) fn of(cpuid: &CpuidPolicy) -> Self {
        let has = |f| cpuid.has(f);
        let bit = |present: bool, bit: u32| u64::from(present) << bit;
        Self {
            vendor: cpuid.vendor(),
            mtrr: has(allow::MTRR),
            pat: has(allow::PAT),
            mca: has(allow::MCA),
            tsc_adjust: has(allow::TSC_ADJUST),
            tsc_aux: has(allow::RDTSCP) || has(allow::RDPID),
            xss: cpuid.has_xsaves(),
            ibpb: has(allow::INTEL_IBRS_IBPB) || has(allow::AMD_IBPB),
            spec_ctrl: bit(has(allow::INTEL_IBRS_IBPB) || has(allow::AMD_IBRS), 0)
                | bit(has(allow::INTEL_STIBP) || has(allow::AMD_STIBP), 1)
                | bit(has(allow::INTEL_SSBD) || has(allow::AMD_SSBD), 2)
                | bit(has(allow::AMD_PSFD), 7),
        }
    }
}

pub(super) fn classify(facts: &Facts, msr: u32, direction: Direction) -> MsrAction {
    if PASSTHROUGH.contains(&msr) {
        return MsrAction::Passthrough;
    }
    emulated(facts, msr, direction)
        .map(MsrAction::Emulate)
        .or_else(|| constant(facts, msr, direction))
        .unwrap_or(MsrAction::Deny)
}

/// Registers with a state.
fn emulated(facts: &Facts, msr: u32, direction: Direction) -> Option<EmulatedMsr> {
    use EmulatedMsr as E;
    let write = direction == Direction::Write;
    let when = |present: bool, e: EmulatedMsr| present.then_some(e);
    match msr {
        0x10 => Some(E::Tsc),
        0x1B => Some(E::ApicBase),
        0x3B => when(facts.tsc_adjust, E::TscAdjust),
        0x48 => when(facts.spec_ctrl != 0, E::SpecCtrl),
        0x49 => when(facts.ibpb && write, E::PredCmd),
        0x17A => when(facts.mca, E::Stored(StoredMsr::McgStatus)),
        0x1A0 => when(
            facts.vendor == Vendor::Intel,
            E::Stored(StoredMsr::MiscEnable),
        ),
        0x1D9 => Some(E::Stored(StoredMsr::DebugCtl)),
        0x200..=0x20F => {
            let n = ((msr - 0x200) / 2) as u8;
            let stored = if msr.is_multiple_of(2) {
                StoredMsr::MtrrPhysBase(n)
            } else {
                StoredMsr::MtrrPhysMask(n)
            };
            when(facts.mtrr, E::Stored(stored))
        }
        0x250 | 0x258 | 0x259 | 0x268..=0x26F => {
            let n = (0u8..).zip(FIXED_MTRRS).find(|(_, m)| *m == msr)?.0;
            when(facts.mtrr, E::Stored(StoredMsr::MtrrFixed(n)))
        }
        0x277 => when(facts.pat, E::Pat),
        0x2FF => when(facts.mtrr, E::Stored(StoredMsr::MtrrDefType)),
        0x6E0 => Some(E::TscDeadline),
        0x800..=0x8FF => Some(E::X2Apic((msr - 0x800) as u8)),
        0xDA0 => when(facts.xss, E::Xss),
        0x4B56_4D00 => Some(E::KvmWallClock),
        0x4B56_4D01 => Some(E::KvmSystemTime),
        0x4B56_4D03 => Some(E::KvmStealTime),
        0xC000_0080 => Some(E::Efer),
        0xC000_0103 => when(facts.tsc_aux, E::TscAux),
        _ => None,
    }
}

/// What a write to a register of [`constant`] does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    Ignored,
    Denied,
}

/// Registers that always read the same.
fn constant(facts: &Facts, msr: u32, direction: Direction) -> Option<MsrAction> {
    let common = match msr {
        // P5_MC_ADDR, P5_MC_TYPE: read by anybody who lists machine checks.
        0x0 | 0x1 => (0, Writes::Ignored),
        0xFE if facts.mtrr => (MTRR_CAP, Writes::Denied),
        // IA32_MCG_CAP: no banks. Their registers read as zero nevertheless, for guests that do not look.
        0x179 if facts.mca => (0, Writes::Denied),
        0x400..=0x47F if facts.mca => (0, Writes::Ignored),
        // Last branch and last interrupt, from and to.
        0x1DB..=0x1DE => (0, Writes::Ignored),
        _ => match facts.vendor {
            Vendor::Amd => amd(msr)?,
            Vendor::Intel => intel(msr)?,
        },
    };
    let (value, writes) = common;
    Some(match (direction, writes) {
        (Direction::Read, _) => MsrAction::ReadConst(value),
        (Direction::Write, Writes::Ignored) => MsrAction::IgnoreWrite,
        (Direction::Write, Writes::Denied) => MsrAction::Deny,
    })
}

/// LS_CFG (0xC001_1020) is missing on purpose: where it can be read, Linux switches the speculative
/// store bypass through it on each task switch.
fn amd(msr: u32) -> Option<(u64, Writes)> {
    Some(match msr {
        // PATCH_LEVEL: any that is not zero; loaders stay away under a hypervisor.
        0x8B => (0x0100_0065, Writes::Ignored),
        // SYSCFG: no memory encryption, no TOM2, fixed MTRRs without modification.
        0xC001_0010 => (0, Writes::Ignored),
        // HWCR: TscFreqSel, the TSC counts at the P0 frequency; Linux complains if it is clear.
        0xC001_0015 => (1 << 24, Writes::Ignored),
        // PERF_CTL0 to 3 and PERF_CTR0 to 3 are there on every processor, whatever CPUID says (APM 2 13.2.1).
        // These never count.
        0xC001_0000..=0xC001_0007 => (0, Writes::Ignored),
        // NB_CFG1, PATCH_LOADER, interrupt pending message, MMIO configuration base.
        0xC001_001F | 0xC001_0020 | 0xC001_0055 | 0xC001_0058 => (0, Writes::Ignored),
        // IC_CFG, DC_CFG, BU_CFG (TW_CFG), BU_CFG2, EX_CFG: chicken bits of errata that are the host's business.
        0xC001_1021 | 0xC001_1022 | 0xC001_1023 | 0xC001_102A | 0xC001_102C => (0, Writes::Ignored),
        // DE_CFG: LFENCE is dispatch serialising, which the host has seen to.
        0xC001_1029 => (1 << 1, Writes::Ignored),
        _ => return None,
    })
}

fn intel(msr: u32) -> Option<(u64, Writes)> {
    Some(match msr {
        // IA32_PLATFORM_ID
        0x17 => (0, Writes::Denied),
        // EBL_CR_POWERON
        0x2A => (0, Writes::Ignored),
        // EBC_FREQUENCY_ID: a bus multiplier of one.
        0x2C => (1 << 24, Writes::Denied),
        // SMI_COUNT
        0x34 => (0, Writes::Denied),
        // IA32_FEATURE_CONTROL: locked, nothing enabled.
        0x3A => (1, Writes::Denied),
        // IA32_BIOS_UPDT_TRIG
        0x79 => (0, Writes::Ignored),
        // IA32_BIOS_SIGN_ID: revision 1 in the upper half; Linux writes 0 before it reads.
        0x8B => (1 << 32, Writes::Ignored),
        // FSB_FREQ
        0xCD => (3, Writes::Denied),
        // BBL_CR_CTL3: L2 cache configured and enabled.
        0x11E => (0xBE70_2111, Writes::Ignored),
        // IA32_PERF_STATUS, IA32_PERF_CTL
        0x198 => (1000 | 4 << 40, Writes::Denied),
        0x199 => (0, Writes::Ignored),
        _ => return None,
    })
}
