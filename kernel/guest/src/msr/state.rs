//! Registers that only hold a value, and what hardware checks when one is written.

use super::table::VARIABLE_MTRRS;
use super::{Gp, StoredMsr};
use crate::cpuid::CpuidPolicy;
use crate::shape::{DEVICE_HOLE_BASE, FOUR_GIB};

/// Memory types (SDM 3A table 12-2).
const UNCACHEABLE: u8 = 0;
const WRITE_PROTECTED: u8 = 5;
const WRITE_BACK: u8 = 6;
/// UC-, which the PAT alone knows.
const UNCACHED: u8 = 7;

/// IA32_PAT after reset: WB WT UC- UC, twice (SDM 3A 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MTRR_DEF_TYPE: MTRRs on, fixed ranges on.
const MTRR_ENABLED: u64 = 0b11 << 10;
/// Bits of IA32_MTRR_DEF_TYPE that exist.
const MTRR_DEF_TYPE_BITS: u64 = 0xCFF;
/// IA32_MTRR_PHYSMASKn: valid.
const MTRR_VALID: u64 = 1 << 11;
/// IA32_MISC_ENABLE: fast strings; no branch trace, no PEBS.
const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// IA32_MCG_STATUS: RIPV, EIPV, MCIP.
const MCG_STATUS_BITS: u64 = 0b111;
/// IA32_DEBUGCTL: LBR, BTF.
const DEBUGCTL_BITS: u64 = 0b11;

/// The stored registers of one vCPU.
///
/// They begin as a PC's firmware leaves them, so that every processor agrees with the others:
/// MTRRs on, memory write-back, the legacy video range and the device hole uncacheable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsrState {
    pat: u64,
    mtrr_def_type: u64,
    mtrr_base: [u64; VARIABLE_MTRRS as usize],
    mtrr_mask: [u64; VARIABLE_MTRRS as usize],
    mtrr_fixed: [u64; 11],
    misc_enable: u64,
    mcg_status: u64,
    debug_ctl: u64,
    /// Bits that a physical address can have.
    physical: u64,
}

impl MsrState {
    /// The state in which a vCPU starts.
    #[must_use]
    pub fn new(cpuid: &CpuidPolicy) -> Self {
        let physical = (1u64 << cpuid.physical_bits()) - 1;
        let fill = |kind: u8| u64::from_le_bytes([kind; 8]);
        let mut state = Self {
            pat: PAT_RESET,
            mtrr_def_type: MTRR_ENABLED | u64::from(WRITE_BACK),
            mtrr_base: [0; VARIABLE_MTRRS as usize],
            mtrr_mask: [0; VARIABLE_MTRRS as usize],
            // 0 to 640 KiB in two registers, the video range in one, eight for the firmware's 256 KiB.
            mtrr_fixed: [fill(WRITE_PROTECTED); 11],
            misc_enable: MISC_ENABLE_RESET,
            mcg_status: 0,
            debug_ctl: 0,
            physical,
        };
        state.mtrr_fixed[0] = fill(WRITE_BACK);
        state.mtrr_fixed[1] = fill(WRITE_BACK);
        state.mtrr_fixed[2] = fill(UNCACHEABLE);
        state.mtrr_base[0] = DEVICE_HOLE_BASE.0 | u64::from(UNCACHEABLE);
        state.mtrr_mask[0] = !(FOUR_GIB.0 - DEVICE_HOLE_BASE.0 - 1) & physical | MTRR_VALID;
        state
    }

    /// The value of a register; 0 for an MTRR that does not exist.
    #[must_use]
    pub fn read(&self, msr: StoredMsr) -> u64 {
        let at = |values: &[u64], n: u8| values.get(usize::from(n)).copied().unwrap_or(0);
        match msr {
            StoredMsr::Pat => self.pat,
            StoredMsr::MtrrDefType => self.mtrr_def_type,
            StoredMsr::MtrrPhysBase(n) => at(&self.mtrr_base, n),
            StoredMsr::MtrrPhysMask(n) => at(&self.mtrr_mask, n),
            StoredMsr::MtrrFixed(n) => at(&self.mtrr_fixed, n),
            StoredMsr::MiscEnable => self.misc_enable,
            StoredMsr::McgStatus => self.mcg_status,
            StoredMsr::DebugCtl => self.debug_ctl,
        }
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`Gp`] for a reserved bit or memory type (SDM 3A 12.11.2, 12.12.2), and for an MTRR that does not
    /// exist; nothing was changed then.
    pub fn write(&mut self, msr: StoredMsr, value: u64) -> Result<(), Gp> {
        let low = value as u8;
        let physical = self.physical;
        let (place, valid) = match msr {
            StoredMsr::Pat => (&mut self.pat, pat_is_valid(value)),
            StoredMsr::MtrrDefType => (
                &mut self.mtrr_def_type,
                value & !MTRR_DEF_TYPE_BITS == 0 && is_mtrr_type(low),
            ),
            StoredMsr::MtrrPhysBase(n) => (
                self.mtrr_base.get_mut(usize::from(n)).ok_or(Gp)?,
                value & !(physical & !0xF00) == 0 && is_mtrr_type(low),
            ),
            StoredMsr::MtrrPhysMask(n) => (
                self.mtrr_mask.get_mut(usize::from(n)).ok_or(Gp)?,
                value & !(physical & !0x7FF) == 0,
            ),
            StoredMsr::MtrrFixed(n) => (
                self.mtrr_fixed.get_mut(usize::from(n)).ok_or(Gp)?,
                value.to_le_bytes().into_iter().all(is_mtrr_type),
            ),
            // Its bits switch things that are not there; a processor takes them as well.
            StoredMsr::MiscEnable => (&mut self.misc_enable, true),
            StoredMsr::McgStatus => (&mut self.mcg_status, value & !MCG_STATUS_BITS == 0),
            StoredMsr::DebugCtl => (&mut self.debug_ctl, value & !DEBUGCTL_BITS == 0),
        };
        if !valid {
            return Err(Gp);
        }
        *place = value;
        Ok(())
    }
}

/// Whether IA32_PAT takes this value: eight memory types, none reserved (SDM 3A 12.12.2).
#[must_use]
pub fn pat_is_valid(value: u64) -> bool {
    value
        .to_le_bytes()
        .into_iter()
        .all(|t| is_mtrr_type(t) || t == UNCACHED)
}

/// UC, WC, WT, WP, WB.
const fn is_mtrr_type(t: u8) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6)
}
