//! Exit reasons and what their qualifications say (SDM 3D appendix C, SDM 3C 28.2.1).

/// Bit 31 of the exit reason: the entry failed.
pub const ENTRY_FAILURE: u32 = 1 << 31;

/// Basic exit reasons: bits 15:0 (SDM 3D table C-1).
pub mod basic {
    #![expect(missing_docs, reason = "the names are the manual's")]
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INIT: u16 = 3;
    pub const SIPI: u16 = 4;
    pub const IO_SMI: u16 = 5;
    pub const OTHER_SMI: u16 = 6;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const INVLPG: u16 = 14;
    pub const RDPMC: u16 = 15;
    pub const RDTSC: u16 = 16;
    pub const RSM: u16 = 17;
    pub const VMCALL: u16 = 18;
    /// VMCLEAR; the VMX instructions follow up to [`VMXON`].
    pub const VMCLEAR: u16 = 19;
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const DEBUG_REGISTER: u16 = 29;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const INVALID_GUEST_STATE: u16 = 33;
    pub const MSR_LOADING: u16 = 34;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const PAUSE: u16 = 40;
    pub const MACHINE_CHECK_AT_ENTRY: u16 = 41;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const VMFUNC: u16 = 59;
    pub const ENCLS: u16 = 60;
    pub const LOG_FULL: u16 = 62;
}

/// Whether the instruction-length field is defined for this reason: the guest executed an instruction that
/// the host completes (SDM 3C 28.2.5).
#[must_use]
pub const fn has_instruction_length(reason: u16) -> bool {
    use basic::*;
    matches!(
        reason,
        CPUID | HLT | INVD | INVLPG | RDPMC | RDTSC | VMCALL
            ..=WRMSR
                | MWAIT
                | MONITOR
                | PAUSE
                | INVEPT
                | INVVPID
                | WBINVD
                | XSETBV
                | VMFUNC
                | ENCLS
    )
}

/// The qualification of a port access (SDM 3C table 28-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// First port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With a REP prefix.
    pub repeated: bool,
}

impl Port {
    /// Decodes.
    #[must_use]
    pub const fn of(qualification: u64) -> Self {
        Self {
            port: (qualification >> 16) as u16,
            size: (qualification & 7) as u8 + 1,
            input: qualification & 1 << 3 != 0,
            string: qualification & 1 << 4 != 0,
            repeated: qualification & 1 << 5 != 0,
        }
    }
}

/// What was done with a control register (SDM 3C table 28-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrAccess {
    /// MOV to CR `register` from GPR `gpr`.
    Load {
        /// Number of the control register.
        register: u8,
        /// Number of the general-purpose register.
        gpr: u8,
    },
    /// MOV from CR `register` to GPR `gpr`.
    Store {
        /// Number of the control register.
        register: u8,
        /// Number of the general-purpose register.
        gpr: u8,
    },
    /// CLTS.
    Clts,
    /// LMSW with this operand.
    Lmsw(u16),
}

impl CrAccess {
    /// Decodes.
    #[must_use]
    pub const fn of(qualification: u64) -> Self {
        let register = (qualification & 15) as u8;
        let gpr = (qualification >> 8 & 15) as u8;
        match qualification >> 4 & 3 {
            0 => Self::Load { register, gpr },
            1 => Self::Store { register, gpr },
            2 => Self::Clts,
            _ => Self::Lmsw((qualification >> 16) as u16),
        }
    }

    /// The value that CLTS or LMSW gives CR0; LMSW loads bits 3:0 and cannot clear PE (SDM 2A LMSW).
    #[must_use]
    pub const fn new_cr0(self, cr0: u64) -> Option<u64> {
        const PE: u64 = 1 << 0;
        const TS: u64 = 1 << 3;
        match self {
            Self::Clts => Some(cr0 & !TS),
            Self::Lmsw(word) => Some(cr0 & !0xf | word as u64 & 0xf | cr0 & PE),
            Self::Load { .. } | Self::Store { .. } => None,
        }
    }
}

/// The qualification of an EPT violation (SDM 3C table 28-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation {
    /// A store.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The access was to an entry of the guest's own page tables.
    pub walk: bool,
    /// The guest-linear address is known, and it is the access's own.
    pub linear: bool,
}

impl EptViolation {
    /// Decodes.
    #[must_use]
    pub const fn of(qualification: u64) -> Self {
        let linear_is_valid = qualification & 1 << 7 != 0;
        let is_final = qualification & 1 << 8 != 0;
        Self {
            write: qualification & 1 << 1 != 0,
            fetch: qualification & 1 << 2 != 0,
            walk: linear_is_valid && !is_final,
            linear: linear_is_valid && is_final,
        }
    }
}

/// What a debug exception's qualification (SDM 3C table 28-1) adds to DR6, as its delivery would have done (SDM 3B 18.2.3):
/// B0 to B3, BD and BS are set, B0 to B3 of earlier exceptions cleared, and RTM, which is
/// inverted, cleared if the exception came from within a transaction.
#[must_use]
pub const fn debug_status(dr6: u64, qualification: u64) -> u64 {
    const BREAKPOINTS: u64 = 0xf;
    const BD_BS: u64 = 1 << 13 | 1 << 14;
    const RTM: u64 = 1 << 16;
    (dr6 & !BREAKPOINTS | RTM | qualification & (BREAKPOINTS | BD_BS)) & !(qualification & RTM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let out_byte = Port::of(0x03f8_0000);
        assert_eq!(
            out_byte,
            Port {
                port: 0x3f8,
                size: 1,
                input: false,
                string: false,
                repeated: false
            }
        );
        let rep_insd = Port::of(0x01f0_003b);
        assert_eq!(
            rep_insd,
            Port {
                port: 0x1f0,
                size: 4,
                input: true,
                string: true,
                repeated: true
            }
        );
    }

    #[test]
    fn control_registers() {
        assert_eq!(
            CrAccess::of(0x0b04),
            CrAccess::Load {
                register: 4,
                gpr: 11
            }
        );
        assert_eq!(
            CrAccess::of(0x0018),
            CrAccess::Store {
                register: 8,
                gpr: 0
            }
        );
        assert_eq!(CrAccess::of(0x20).new_cr0(0x8000_003b), Some(0x8000_0033));
        assert_eq!(
            CrAccess::of(0x000e_0030).new_cr0(0x11),
            Some(0x1f),
            "LMSW does not clear PE"
        );
        assert_eq!(CrAccess::of(0x0b04).new_cr0(0), None);
    }

    #[test]
    fn violations() {
        let store = EptViolation::of(0x182);
        assert_eq!((store.write, store.fetch, store.walk), (true, false, false));
        let walk = EptViolation::of(0x81);
        assert!(walk.walk && !walk.write && !walk.linear);
        assert!(store.linear && !EptViolation::of(0x102).linear);
        assert!(EptViolation::of(0x184).fetch);
    }

    #[test]
    fn debug_status_is_what_delivery_would_have_left() {
        assert_eq!(debug_status(0xffff_0ff1, 1 << 14), 0xffff_4ff0);
        assert_eq!(debug_status(0xffff_0ff0, 1 << 16 | 2), 0xfffe_0ff2);
    }
}
