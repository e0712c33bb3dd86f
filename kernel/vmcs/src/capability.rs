//! What a processor's VMX MSRs say (SDM 3D appendix A), and what is missing.

use crate::control::{Allowed, EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::timer::PreemptionTimer;
use bitflags::bitflags;
use core::fmt;

/// IA32_FEATURE_CONTROL (SDM 3C 24.7).
pub const FEATURE_CONTROL: u32 = 0x3a;
const BASIC: u32 = 0x480;
const PIN: u32 = 0x481;
const PRIMARY: u32 = 0x482;
const EXIT: u32 = 0x483;
const ENTRY: u32 = 0x484;
const MISC: u32 = 0x485;
const CR0_FIXED0: u32 = 0x486;
const CR0_FIXED1: u32 = 0x487;
const CR4_FIXED0: u32 = 0x488;
const CR4_FIXED1: u32 = 0x489;
const SECONDARY: u32 = 0x48b;
const EPT_VPID: u32 = 0x48c;
/// The TRUE registers lie behind the others in the same order.
const TRUE_PIN: u32 = 0x48d;
const TRUE_PRIMARY: u32 = 0x48e;
const TRUE_EXIT: u32 = 0x48f;
const TRUE_ENTRY: u32 = 0x490;

bitflags! {
    /// IA32_VMX_EPT_VPID_CAP (SDM 3D A.10).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EptVpid: u64 {
        /// Translations without read and write permission may be executed.
        const EXECUTE_ONLY = 1 << 0;
        /// Page walks of length 4.
        const FOUR_LEVELS = 1 << 6;
        /// The tables may be uncacheable.
        const UNCACHEABLE = 1 << 8;
        /// The tables may be write-back.
        const WRITE_BACK = 1 << 14;
        /// 2 MiB leaves.
        const LEAF_2M = 1 << 16;
        /// 1 GiB leaves.
        const LEAF_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty bits.
        const ACCESSED_DIRTY = 1 << 21;
        /// INVEPT of one EPT pointer.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT of everything.
        const INVEPT_ALL = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID of one address.
        const INVVPID_ADDRESS = 1 << 40;
        /// INVVPID of one tag.
        const INVVPID_SINGLE = 1 << 41;
        /// INVVPID of all tags.
        const INVVPID_ALL = 1 << 42;
    }
}

/// Whether IA32_ARCH_CAPABILITIES (0 where there is none) says that a page whose size changes while it is executed raises no
/// machine check: bit 6, IF_PSCHANGE_MC_NO (SDM 4 2.1).
#[must_use]
pub const fn page_sizes_may_change(arch_capabilities: u64) -> bool {
    arch_capabilities & 1 << 6 != 0
}

/// Where capabilities come from: RDMSR that answers `None` where it would fault.
pub trait Msrs {
    /// The register's value.
    fn read(&self, register: u32) -> Option<u64>;
}

impl<F: Fn(u32) -> Option<u64>> Msrs for F {
    fn read(&self, register: u32) -> Option<u64> {
        self(register)
    }
}

/// What firmware left in IA32_FEATURE_CONTROL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureControl {
    /// Locked, and VMXON outside SMX works.
    Enabled,
    /// Not locked: this value enables VMXON and locks.
    Unlocked(u64),
    /// Locked without it.
    Disabled,
}

impl FeatureControl {
    const LOCK: u64 = 1 << 0;
    const VMXON_OUTSIDE_SMX: u64 = 1 << 2;

    /// What a value means.
    #[must_use]
    pub const fn of(value: u64) -> Self {
        if value & Self::LOCK == 0 {
            Self::Unlocked(value | Self::LOCK | Self::VMXON_OUTSIDE_SMX)
        } else if value & Self::VMXON_OUTSIDE_SMX != 0 {
            Self::Enabled
        } else {
            Self::Disabled
        }
    }
}

/// Something that Perigee cannot do without and the processor does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(pub &'static str);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What the processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Stands in the first four bytes of every VMCS and of the VMXON region (A.1).
    pub revision: u32,
    /// Bytes of a VMCS (A.1).
    pub region_bytes: u32,
    /// Error codes of injected exceptions are not checked against the vector (A.1, bit 56).
    pub free_error_codes: bool,
    /// Pin-based controls (A.3.1).
    pub pin: Allowed,
    /// Primary processor-based controls (A.3.2).
    pub primary: Allowed,
    /// Secondary processor-based controls (A.3.3).
    pub secondary: Allowed,
    /// VM-exit controls (A.4).
    pub exit: Allowed,
    /// VM-entry controls (A.5).
    pub entry: Allowed,
    /// Bits of CR0 that must be 1 and may be 1 (A.7).
    pub cr0: (u64, u64),
    /// Bits of CR4 that must be 1 and may be 1 (A.8).
    pub cr4: (u64, u64),
    /// IA32_VMX_MISC (A.6).
    pub misc: u64,
    /// EPT and VPID (A.10).
    pub ept_vpid: EptVpid,
}

impl Capabilities {
    /// IA32_VMX_BASIC: the TRUE registers exist (A.1, bit 55).
    const TRUE_CONTROLS: u64 = 1 << 55;
    const FREE_ERROR_CODES: u64 = 1 << 56;
    /// IA32_VMX_BASIC bits 53:50: memory type of VMCS accesses; 6 is write-back.
    const MEMORY_TYPE_SHIFT: u32 = 50;
    const WRITE_BACK: u64 = 6;

    /// Reads the registers. `has_vmx` is CPUID.1:ECX bit 5.
    ///
    /// # Errors
    /// What is missing for a guest to be hosted.
    pub fn read(has_vmx: bool, msrs: &impl Msrs) -> Result<Self, Missing> {
        if !has_vmx {
            return Err(Missing(
                "the processor has no VT-x (CPUID 1 ECX bit 5 is clear)",
            ));
        }
        // A processor without the register does not let firmware disable VT-x (some emulators).
        let disabled = |value| FeatureControl::of(value) == FeatureControl::Disabled;
        if msrs.read(FEATURE_CONTROL).is_some_and(disabled) {
            return Err(Missing(
                "VT-x is disabled by firmware (IA32_FEATURE_CONTROL is locked with bit 2 clear): enable it in the firmware's setup",
            ));
        }
        let need = |register: u32| {
            msrs.read(register).ok_or(Missing(
                "a VMX capability register that every processor with VT-x has cannot be read",
            ))
        };
        let basic = need(BASIC)?;
        let has_true = basic & Self::TRUE_CONTROLS != 0;
        let control = |plain: u32, precise: u32| {
            need(if has_true { precise } else { plain }).map(Allowed::from_msr)
        };
        let primary = control(PRIMARY, TRUE_PRIMARY)?;
        let secondary = if primary.offers(Primary::SECONDARY.bits()) {
            Allowed::from_msr(need(SECONDARY)?)
        } else {
            Allowed::default()
        };
        let nested = secondary.may & (Secondary::EPT | Secondary::VPID).bits() != 0;
        let this = Self {
            revision: basic as u32 & 0x7fff_ffff,
            region_bytes: (basic >> 32) as u32 & 0x1fff,
            free_error_codes: basic & Self::FREE_ERROR_CODES != 0,
            pin: control(PIN, TRUE_PIN)?,
            primary,
            secondary,
            exit: control(EXIT, TRUE_EXIT)?,
            entry: control(ENTRY, TRUE_ENTRY)?,
            cr0: (need(CR0_FIXED0)?, need(CR0_FIXED1)?),
            cr4: (need(CR4_FIXED0)?, need(CR4_FIXED1)?),
            misc: need(MISC)?,
            ept_vpid: EptVpid::from_bits_retain(if nested { need(EPT_VPID)? } else { 0 }),
        };
        if basic >> Self::MEMORY_TYPE_SHIFT & 0xf != Self::WRITE_BACK {
            return Err(Missing(
                "the processor wants its VMCS in uncacheable memory (IA32_VMX_BASIC bits 53:50), which is not supported",
            ));
        }
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<(), Missing> {
        let secondary = |bit: Secondary| self.secondary.offers(bit.bits());
        let ept = |bit: EptVpid| self.ept_vpid.contains(bit);
        let requirements = [
            (
                self.region_bytes <= 4096,
                "the processor's VMCS is larger than a page",
            ),
            (
                self.pin.offers((Pin::EXTERNAL_INTERRUPT | Pin::NMI).bits()),
                "VT-x cannot exit on interrupts and NMIs",
            ),
            (
                self.pin.offers(Pin::VIRTUAL_NMI.bits()),
                "VT-x has no virtual NMIs (IA32_VMX_PINBASED_CTLS bit 37 is clear)",
            ),
            (
                self.primary.offers(Primary::MSR_BITMAP.bits()),
                "VT-x has no MSR bitmaps (IA32_VMX_PROCBASED_CTLS bit 60 is clear)",
            ),
            (
                self.primary.offers(Primary::IO_BITMAPS.bits()),
                "VT-x has no I/O bitmaps (IA32_VMX_PROCBASED_CTLS bit 57 is clear)",
            ),
            (
                self.primary.offers(Primary::SECONDARY.bits()),
                "VT-x has no secondary controls, so no extended page tables (IA32_VMX_PROCBASED_CTLS bit 63 is clear)",
            ),
            (
                secondary(Secondary::EPT),
                "VT-x has no extended page tables (IA32_VMX_PROCBASED_CTLS2 bit 33 is clear)",
            ),
            (
                secondary(Secondary::UNRESTRICTED),
                "VT-x cannot run guests without paging (unrestricted guest: IA32_VMX_PROCBASED_CTLS2 bit 39 is clear)",
            ),
            (
                ept(EptVpid::FOUR_LEVELS),
                "extended page tables have no 4-level walk (IA32_VMX_EPT_VPID_CAP bit 6 is clear)",
            ),
            (
                ept(EptVpid::WRITE_BACK),
                "extended page tables cannot be write-back (IA32_VMX_EPT_VPID_CAP bit 14 is clear)",
            ),
            (
                ept(EptVpid::LEAF_2M),
                "extended page tables have no 2 MiB leaves (IA32_VMX_EPT_VPID_CAP bit 16 is clear)",
            ),
            (
                ept(EptVpid::INVEPT | EptVpid::INVEPT_ALL),
                "INVEPT is missing (IA32_VMX_EPT_VPID_CAP bits 20 and 26)",
            ),
            (
                self.exit.offers(
                    (ExitControls::HOST_64 | ExitControls::LOAD_EFER | ExitControls::LOAD_PAT)
                        .bits(),
                ),
                "VT-x cannot switch IA32_EFER and IA32_PAT at exits (IA32_VMX_EXIT_CTLS bits 51 and 53)",
            ),
            (
                self.entry.offers(
                    (EntryControls::IA32E_GUEST
                        | EntryControls::LOAD_EFER
                        | EntryControls::LOAD_PAT)
                        .bits(),
                ),
                "VT-x cannot switch IA32_EFER and IA32_PAT at entries (IA32_VMX_ENTRY_CTLS bits 46 and 47)",
            ),
        ];
        requirements
            .iter()
            .find(|(met, _)| !met)
            .map_or(Ok(()), |(_, sentence)| Err(Missing(sentence)))
    }

    /// Whether translations can be tagged, and all tags dropped.
    #[must_use]
    pub fn has_vpid(&self) -> bool {
        self.secondary.offers(Secondary::VPID.bits())
            && self
                .ept_vpid
                .contains(EptVpid::INVVPID | EptVpid::INVVPID_ALL)
    }

    /// How the preemption timer counts (A.6), where the pin-based controls have it.
    #[must_use]
    pub const fn preemption_timer(&self) -> PreemptionTimer {
        PreemptionTimer::from_misc(self.misc)
    }

    /// Whether extended page tables have accessed and dirty bits.
    #[must_use]
    pub fn has_accessed_dirty(&self) -> bool {
        self.ept_vpid.contains(EptVpid::ACCESSED_DIRTY)
    }

    /// The EPT pointer of a table: 4 levels, write-back, A/D bits where they exist (SDM 3C 25.6.11).
    #[must_use]
    pub fn ept_pointer(&self, root: u64) -> u64 {
        const WALK_LENGTH_4: u64 = 3 << 3;
        const ACCESSED_DIRTY: u64 = 1 << 6;
        root | Self::WRITE_BACK
            | WALK_LENGTH_4
            | if self.has_accessed_dirty() {
                ACCESSED_DIRTY
            } else {
                0
            }
    }
}

#[cfg(test)]
mod tests;
