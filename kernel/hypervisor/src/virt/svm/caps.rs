//! What this processor's SVM offers (APM 3, CPUID Fn8000_000A).

use crate::arch::msr;
use crate::virt::Unsupported;
use core::fmt;
use raw_cpuid::CpuId;

/// VM_CR (APM 2 15.30.1).
const MSR_VM_CR: u32 = 0xc001_0114;
/// VM_CR: SVM is disabled by firmware.
const VM_CR_SVMDIS: u64 = 1 << 4;

/// SVM features that change how Perigee drives the processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caps {
    svm: bool,
    nested_paging: bool,
    disabled: bool,
    /// Address-space identifiers, 0 included.
    pub asids: u32,
    /// The processor gives the next instruction's address at an exit.
    pub next_rip: bool,
    /// The processor gives instruction bytes and decoded CR moves at an exit.
    pub decode_assists: bool,
    /// One ASID can be flushed alone.
    pub flush_by_asid: bool,
    /// PAUSE exits can be filtered by count.
    pub pause_filter: bool,
    /// PAUSE exits can be filtered by distance in time.
    pub pause_threshold: bool,
}

impl Caps {
    /// Reads them on the calling CPU.
    pub fn read() -> Self {
        let cpuid = CpuId::new();
        let svm = cpuid
            .get_extended_processor_and_feature_identifiers()
            .is_some_and(|f| f.has_svm());
        let Some(info) = cpuid.get_svm_info() else {
            return Self {
                svm,
                ..Self::default()
            };
        };
        Self {
            svm,
            nested_paging: info.has_nested_paging(),
            disabled: svm && msr::read_checked(MSR_VM_CR).is_some_and(|v| v & VM_CR_SVMDIS != 0),
            asids: info.supported_asids(),
            next_rip: info.has_nrip(),
            decode_assists: info.has_decode_assists(),
            flush_by_asid: info.has_flush_by_asid(),
            pause_filter: info.has_pause_filter(),
            pause_threshold: info.has_pause_filter_threshold(),
        }
    }

    /// Whether guests can be hosted, with a sentence for each reason why not.
    pub fn check(&self) -> Result<(), Unsupported> {
        if !self.svm {
            return Err(Unsupported(
                "the processor has no AMD-V (CPUID 8000_0001h ECX bit 2 is clear)",
            ));
        }
        if self.disabled {
            return Err(Unsupported(
                "AMD-V is disabled by firmware (VM_CR.SVMDIS is set): enable SVM in the firmware's setup",
            ));
        }
        if !self.nested_paging {
            return Err(Unsupported(
                "the processor's AMD-V has no nested paging (CPUID 8000_000Ah EDX bit 0 is clear)",
            ));
        }
        if self.asids < 2 {
            return Err(Unsupported(
                "the processor's AMD-V offers no address-space identifier for guests",
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ASIDs", self.asids)?;
        for (name, present) in [
            ("next RIP", self.next_rip),
            ("decode assists", self.decode_assists),
            ("flush by ASID", self.flush_by_asid),
            ("PAUSE filter", self.pause_filter),
            ("PAUSE threshold", self.pause_threshold),
        ] {
            write!(f, ", {} {name}", if present { "with" } else { "without" })?;
        }
        Ok(())
    }
}
