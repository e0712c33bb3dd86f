//! The five words of controls, and which of their bits a processor lets software choose.

use bitflags::bitflags;

bitflags! {
    /// Pin-based VM-execution controls (SDM 3C 25.6.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Pin: u32 {
        /// External interrupts end the guest.
        const EXTERNAL_INTERRUPT = 1 << 0;
        /// NMIs end the guest.
        const NMI = 1 << 3;
        /// The guest has an NMI blocking of its own.
        const VIRTUAL_NMI = 1 << 5;
        /// The preemption timer counts.
        const PREEMPTION_TIMER = 1 << 6;
        /// Posted interrupts.
        const POSTED_INTERRUPTS = 1 << 7;
    }
}

bitflags! {
    /// Primary processor-based VM-execution controls (SDM 3C 25.6.2, table 25-6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Primary: u32 {
        /// Exit as soon as the guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// RDTSC gives the TSC plus an offset.
        const TSC_OFFSET = 1 << 3;
        /// HLT exits.
        const HLT = 1 << 7;
        /// INVLPG exits.
        const INVLPG = 1 << 9;
        /// MWAIT exits.
        const MWAIT = 1 << 10;
        /// RDPMC exits.
        const RDPMC = 1 << 11;
        /// RDTSC exits.
        const RDTSC = 1 << 12;
        /// Loads of CR3 exit.
        const CR3_LOAD = 1 << 15;
        /// Stores of CR3 exit.
        const CR3_STORE = 1 << 16;
        /// Loads of CR8 exit.
        const CR8_LOAD = 1 << 19;
        /// Stores of CR8 exit.
        const CR8_STORE = 1 << 20;
        /// CR8 is the virtual-APIC page's TPR.
        const TPR_SHADOW = 1 << 21;
        /// Exit as soon as the guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// Accesses to debug registers exit.
        const MOV_DR = 1 << 23;
        /// All port accesses exit.
        const UNCONDITIONAL_IO = 1 << 24;
        /// Port accesses exit as two bitmaps say.
        const IO_BITMAPS = 1 << 25;
        /// Exit after each instruction.
        const MONITOR_TRAP = 1 << 27;
        /// RDMSR and WRMSR exit as a bitmap says.
        const MSR_BITMAP = 1 << 28;
        /// MONITOR exits.
        const MONITOR = 1 << 29;
        /// PAUSE exits.
        const PAUSE = 1 << 30;
        /// The secondary controls are in use.
        const SECONDARY = 1 << 31;
    }
}

bitflags! {
    /// Secondary processor-based VM-execution controls (SDM 3C 25.6.2, table 25-7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Secondary: u32 {
        /// Accesses to a page that stands for the APIC are virtualised.
        const APIC_ACCESS = 1 << 0;
        /// Extended page tables.
        const EPT = 1 << 1;
        /// LGDT, LIDT and their kin exit.
        const DESCRIPTOR_TABLES = 1 << 2;
        /// RDTSCP and RDPID exist.
        const RDTSCP = 1 << 3;
        /// x2APIC registers are virtualised.
        const X2APIC = 1 << 4;
        /// Translations are tagged.
        const VPID = 1 << 5;
        /// WBINVD exits.
        const WBINVD = 1 << 6;
        /// The guest may run without paging and without protection.
        const UNRESTRICTED = 1 << 7;
        /// APIC registers are virtualised.
        const APIC_REGISTERS = 1 << 8;
        /// Interrupts are delivered to the guest by the processor.
        const INTERRUPT_DELIVERY = 1 << 9;
        /// PAUSE in a tight loop exits.
        const PAUSE_LOOP = 1 << 10;
        /// RDRAND exits.
        const RDRAND = 1 << 11;
        /// INVPCID exists.
        const INVPCID = 1 << 12;
        /// VMFUNC exists.
        const VMFUNC = 1 << 13;
        /// VMREAD and VMWRITE of the guest reach a shadow VMCS.
        const SHADOWING = 1 << 14;
        /// ENCLS exits.
        const ENCLS = 1 << 15;
        /// RDSEED exits.
        const RDSEED = 1 << 16;
        /// Page-modification logging.
        const PML = 1 << 17;
        /// EPT violations may become #VE.
        const VE = 1 << 18;
        /// XSAVES and XRSTORS exist.
        const XSAVES = 1 << 20;
        /// Execute permission depends on the mode.
        const MODE_BASED_EXECUTE = 1 << 22;
        /// The TSC is scaled.
        const TSC_SCALING = 1 << 25;
        /// TPAUSE, UMONITOR and UMWAIT exist.
        const USER_WAIT = 1 << 26;
    }
}

bitflags! {
    /// Primary VM-exit controls (SDM 3C 25.7.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExitControls: u32 {
        /// DR7 and IA32_DEBUGCTL are saved.
        const SAVE_DEBUG = 1 << 2;
        /// The host runs in 64-bit mode.
        const HOST_64 = 1 << 9;
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_PERF_GLOBAL = 1 << 12;
        /// An external interrupt is acknowledged by the exit.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// IA32_PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// IA32_EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 21;
        /// The preemption timer is saved.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
    }
}

bitflags! {
    /// VM-entry controls (SDM 3C 25.8.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryControls: u32 {
        /// DR7 and IA32_DEBUGCTL are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in IA-32e mode.
        const IA32E_GUEST = 1 << 9;
        /// The guest is in system-management mode.
        const TO_SMM = 1 << 10;
        /// Ends the dual-monitor treatment.
        const END_DUAL_MONITOR = 1 << 11;
        /// IA32_PERF_GLOBAL_CTRL is loaded.
        const LOAD_PERF_GLOBAL = 1 << 13;
        /// IA32_PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// IA32_EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }
}

/// Which bits of a word of controls may be 0 and which may be 1 (SDM 3D A.2 to A.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Bits that must be 1.
    pub must: u32,
    /// Bits that may be 1.
    pub may: u32,
}

impl Allowed {
    /// From the MSR: the low half has 1 where a bit must be 1, the high half where it may be.
    #[must_use]
    pub const fn from_msr(msr: u64) -> Self {
        Self {
            must: msr as u32,
            may: (msr >> 32) as u32,
        }
    }
    /// Whether all of `bits` may be 1.
    #[must_use]
    pub const fn offers(self, bits: u32) -> bool {
        self.may & bits == bits
    }
    /// Whether the processor takes this word.
    #[must_use]
    pub const fn accepts(self, word: u32) -> bool {
        self.must & !word == 0 && word & !self.may == 0
    }
    /// `wanted`, without what cannot be 1 and with what must be.
    #[must_use]
    pub const fn fit(self, wanted: u32) -> u32 {
        wanted & self.may | self.must
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fitted_word_is_accepted() {
        let allowed = Allowed::from_msr(0x0000_00ff_0000_0016);
        assert!(!allowed.accepts(0));
        assert!(!allowed.accepts(0x116));
        assert_eq!(allowed.fit(0xf01), 0x17);
        assert!(allowed.accepts(allowed.fit(u32::MAX)) && allowed.accepts(allowed.fit(0)));
        assert!(allowed.offers(0x81) && !allowed.offers(0x180));
    }
}
