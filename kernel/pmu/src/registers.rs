//! Numbers and bits of the registers.
//!
//! Intel: SDM 3B 20.2 (architectural performance monitoring; in the numbering where 16 is machine checks) and 18.18 (monitoring of shared
//! resources), SDM 4 table 2-2. AMD: APM 2 13.2, 19.3, appendix A.

use crate::events::Event;

/// IA32_PMC0; the others follow. A write takes 32 bits and extends bit 31 (SDM 3B 20.2.8).
pub const IA32_PMC0: u32 = 0xc1;
/// IA32_PERFEVTSEL0; the others follow.
pub const IA32_PERFEVTSEL0: u32 = 0x186;
/// IA32_PERF_CAPABILITIES, where CPUID leaf 1 ECX bit 15 (PDCM) says so.
pub const IA32_PERF_CAPABILITIES: u32 = 0x345;
/// Of [`IA32_PERF_CAPABILITIES`]: [`IA32_A_PMC0`] is there.
pub const FW_WRITE: u64 = 1 << 13;
/// IA32_PERF_GLOBAL_STATUS: bit n says that counter n has overflowed.
pub const IA32_PERF_GLOBAL_STATUS: u32 = 0x38e;
/// IA32_PERF_GLOBAL_CTRL: bit n lets counter n run.
pub const IA32_PERF_GLOBAL_CTRL: u32 = 0x38f;
/// IA32_PERF_GLOBAL_OVF_CTRL, from version 4 on IA32_PERF_GLOBAL_STATUS_RESET: a 1 clears the status bit.
pub const IA32_PERF_GLOBAL_OVF_CTRL: u32 = 0x390;
/// IA32_A_PMC0: another way to IA32_PMC0 by which all bits of the counter's width can be written.
pub const IA32_A_PMC0: u32 = 0x4c1;

/// IA32_QM_EVTSEL: of which event (7:0) and RMID (from 32 on) [`IA32_QM_CTR`] tells (SDM 3B 18.18.7; APM 2 19.3.1.2).
pub const IA32_QM_EVTSEL: u32 = 0xc8d;
/// IA32_QM_CTR: a count, or why there is none.
pub const IA32_QM_CTR: u32 = 0xc8e;
/// IA32_PQR_ASSOC: the calling CPU's RMID, and from bit 32 on its class of service (SDM 3B 18.18.6; APM 2 19.3.1.1).
pub const IA32_PQR_ASSOC: u32 = 0xc8f;

/// PERF_CTL0 of the extended counters; PERF_CTR0 follows, then PERF_CTL1 (APM 2 13.2.1).
pub const PERF_CTL0: u32 = 0xc001_0200;
/// PerfCntrGlobalStatus (APM 2 13.2.1, with CPUID 0x8000_0022 EAX bit 0).
pub const PERF_CNTR_GLOBAL_STATUS: u32 = 0xc000_0300;
/// PerfCntrGlobalCtl.
pub const PERF_CNTR_GLOBAL_CTL: u32 = 0xc000_0301;
/// PerfCntrGlobalStatusClr.
pub const PERF_CNTR_GLOBAL_STATUS_CLR: u32 = 0xc000_0302;

/// Of an event select register: counts in rings above 0.
pub const USR: u64 = 1 << 16;
/// Counts in ring 0.
pub const OS: u64 = 1 << 17;
/// Interrupts at overflow. Never set here.
pub const INT: u64 = 1 << 20;
/// Counts at all.
pub const EN: u64 = 1 << 22;
/// AMD: counts only while a guest runs (HG_ONLY, APM 2 13.2.1).
pub const GUEST_ONLY: u64 = 1 << 40;

/// Counters beyond these would have registers of another meaning: IA32_MISC_ENABLE is not far from IA32_PERFEVTSEL9 (SDM 4
/// table 2-2), and no processor has more.
pub const MOST_COUNTERS: u8 = 10;

/// Whether this crate may want `value` in the register: one that counts or decides what is counted, and no interrupt. A port on
/// a processor refuses everything else.
pub const fn may_be_written(register: u32, value: u64) -> bool {
    const MOST: u32 = MOST_COUNTERS as u32;
    const fn inside(register: u32, first: u32, count: u32) -> bool {
        register >= first && register - first < count
    }
    let amd = inside(register, PERF_CTL0, 2 * MOST);
    let select = inside(register, IA32_PERFEVTSEL0, MOST) || (amd && register.is_multiple_of(2));
    if select {
        return value & INT == 0;
    }
    // Any event, and RMID 0 for both.
    match register {
        IA32_QM_EVTSEL => return value >> 8 == 0,
        IA32_PQR_ASSOC => return value as u32 == 0,
        _ => {}
    }
    amd || inside(register, IA32_PMC0, MOST)
        || inside(register, IA32_A_PMC0, MOST)
        || matches!(
            register,
            IA32_PERF_GLOBAL_CTRL
                | IA32_PERF_GLOBAL_OVF_CTRL
                | PERF_CNTR_GLOBAL_CTL
                | PERF_CNTR_GLOBAL_STATUS_CLR
        )
}

/// Whose registers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Intel's, version 2 or later.
    Intel,
    /// AMD's extended counters, with PerfCntrGlobalCtl and its kin or without.
    Amd {
        /// Whether there are global registers (PerfMonV2).
        global: bool,
    },
}

/// The registers that stand for all counters together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Global {
    /// Lets counters run.
    pub control: u32,
    /// Says which have overflowed.
    pub status: u32,
    /// Clears that.
    pub clear: u32,
}

impl Style {
    /// The event select register of a counter.
    pub const fn select(self, counter: u8) -> u32 {
        match self {
            Self::Intel => IA32_PERFEVTSEL0 + counter as u32,
            Self::Amd { .. } => PERF_CTL0 + 2 * counter as u32,
        }
    }

    /// The counter itself.
    pub const fn counter(self, counter: u8) -> u32 {
        match self {
            Self::Intel => IA32_PMC0 + counter as u32,
            Self::Amd { .. } => PERF_CTL0 + 2 * counter as u32 + 1,
        }
    }

    /// The global registers, where there are any.
    pub const fn global(self) -> Option<Global> {
        match self {
            Self::Intel => Some(Global {
                control: IA32_PERF_GLOBAL_CTRL,
                status: IA32_PERF_GLOBAL_STATUS,
                clear: IA32_PERF_GLOBAL_OVF_CTRL,
            }),
            Self::Amd { global: true } => Some(Global {
                control: PERF_CNTR_GLOBAL_CTL,
                status: PERF_CNTR_GLOBAL_STATUS,
                clear: PERF_CNTR_GLOBAL_STATUS_CLR,
            }),
            Self::Amd { global: false } => None,
        }
    }

    /// Whether the processor itself stops the counters outside guests.
    pub const fn tells_guests(self) -> bool {
        matches!(self, Self::Amd { .. })
    }

    /// What an event select register holds for an event of a guest, in all rings and without interrupts.
    pub const fn selection(self, event: &Event) -> u64 {
        let low = (event.select & 0xff) as u64 | (event.umask as u64) << 8;
        let low = low | (event.cmask as u64) << 24 | USR | OS | EN;
        match self {
            Self::Intel => low,
            // Bits 35:32 are bits 11:8 of the event's number.
            Self::Amd { .. } => low | ((event.select >> 8 & 0xf) as u64) << 32 | GUEST_ONLY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registers_of_counters_are_written_and_no_interrupt_is_asked_for() {
        assert!(may_be_written(0x186, EN | USR | OS));
        assert!(!may_be_written(0x186, EN | INT));
        assert!(may_be_written(0xc001_0200, EN) && !may_be_written(0xc001_020a, INT));
        // A counter's value may have any bit.
        assert!(may_be_written(0xc001_0201, u64::MAX) && may_be_written(0xc1, u64::MAX));
        assert!(may_be_written(IA32_QM_EVTSEL, 3) && !may_be_written(IA32_QM_EVTSEL, 1 << 32 | 3));
        assert!(may_be_written(IA32_PQR_ASSOC, 7 << 32) && !may_be_written(IA32_PQR_ASSOC, 1));
        assert!(!may_be_written(IA32_QM_CTR, 0));
        // IA32_APIC_BASE, EFER, IA32_MISC_ENABLE, IA32_DEBUGCTL, VM_HSAVE_PA, status registers.
        for register in [
            0x1b,
            0xc000_0080,
            0x1a0,
            0x1d9,
            0xc001_0117,
            0x38e,
            0xc000_0300,
        ] {
            assert!(!may_be_written(register, 0), "{register:#x}");
        }
    }
}
