//! What a processor has, from what CPUID says.

use alloc::vec::Vec;
use core::fmt;

use crate::events::{self, Event, missing_bit};
use crate::port::Fault;
use crate::registers::{MOST_COUNTERS, Style};

/// The four registers of one answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// The answers that matter here, as the processor gave them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidValues {
    /// Vendor.
    pub leaf_0: CpuidLeaf,
    /// Family, model, PDCM (SDM 2A CPUID).
    pub leaf_1: CpuidLeaf,
    /// Whether resources are monitored (SDM 2A CPUID; APM 3 E.3.6).
    pub leaf_7: CpuidLeaf,
    /// Architectural performance monitoring (SDM 3B 20.2.1).
    pub leaf_a: CpuidLeaf,
    /// Which resources are monitored (SDM 3B 18.18.4; APM 2 19.2).
    pub leaf_f: CpuidLeaf,
    /// How the L3 cache is (SDM 3B 18.18.5; APM 2 19.2).
    pub leaf_f_1: CpuidLeaf,
    /// PerfCtrExtCore (APM 3 E.4.2).
    pub leaf_8000_0001: CpuidLeaf,
    /// PerfMonV2 and its counters (APM 3 E.4.24).
    pub leaf_8000_0022: CpuidLeaf,
}

/// Who makes processors that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    Intel,
    Amd,
    /// Its processors are AMD's first Zen.
    Hygon,
}

impl CpuidValues {
    /// Asks CPUID (EAX, ECX), and only for leaves that it says to have: beyond them Intel answers with those of
    /// another leaf.
    pub fn ask(mut cpuid: impl FnMut(u32, u32) -> CpuidLeaf) -> Self {
        let leaf_0 = cpuid(0, 0);
        let extended = cpuid(0x8000_0000, 0).eax;
        let mut known = |leaf: u32, subleaf: u32| {
            let last = if leaf >> 31 == 0 {
                leaf_0.eax
            } else {
                extended
            };
            // An answer below the range is no maximum.
            if (leaf & 0x8000_0000..=last).contains(&leaf) {
                cpuid(leaf, subleaf)
            } else {
                CpuidLeaf::default()
            }
        };
        Self {
            leaf_0,
            leaf_1: known(1, 0),
            leaf_7: known(7, 0),
            leaf_a: known(0xa, 0),
            leaf_f: known(0xf, 0),
            leaf_f_1: known(0xf, 1),
            leaf_8000_0001: known(0x8000_0001, 0),
            leaf_8000_0022: known(0x8000_0022, 0),
        }
    }

    /// Who made it, if that is somebody known here.
    pub(crate) const fn vendor(&self) -> Option<Vendor> {
        match (self.leaf_0.ebx, self.leaf_0.edx, self.leaf_0.ecx) {
            // GenuineIntel
            (0x756e_6547, 0x4965_6e69, 0x6c65_746e) => Some(Vendor::Intel),
            // AuthenticAMD
            (0x6874_7541, 0x6974_6e65, 0x444d_4163) => Some(Vendor::Amd),
            // HygonGenuine
            (0x6f67_7948, 0x6e65_476e, 0x656e_6975) => Some(Vendor::Hygon),
            _ => None,
        }
    }

    /// Family and model with their extensions (SDM 2A CPUID, APM 3 E.3.2).
    fn family_model(&self) -> (u32, u32) {
        let eax = self.leaf_1.eax;
        let (base, model) = (eax >> 8 & 0xf, eax >> 4 & 0xf);
        let family = if base == 0xf {
            base + (eax >> 20 & 0xff)
        } else {
            base
        };
        let extended = matches!(base, 6 | 0xf);
        (
            family,
            if extended {
                model | (eax >> 12 & 0xf0)
            } else {
                model
            },
        )
    }
}

/// The counters of a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Whose registers they are.
    pub style: Style,
    /// The family whose events they count.
    pub family: &'static str,
    /// How many there are.
    pub counters: u8,
    /// Bits of each.
    pub width: u8,
    /// Whether IA32_PERF_CAPABILITIES exists.
    pub has_capabilities: bool,
    /// What they can count.
    pub events: Vec<Event>,
}

/// Why nothing is counted, as a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// CPUID knows no architectural performance monitoring.
    NotOffered,
    /// Version 1 has no register that stops all counters at once.
    FirstVersion,
    /// An AMD processor without PerfCtrExtCore.
    NotExtended,
    /// Neither Intel's nor AMD's.
    UnknownVendor,
    /// AMD's, of a family without a table.
    UnknownFamily {
        /// The family.
        family: u32,
    },
    /// It says to have counters of no width, or none at all.
    NoCounters,
    /// CPUID says that none of the events exists.
    NoEvents,
    /// No counter may be used.
    NoQuota,
    /// A register that must exist faults.
    Refused(Fault),
    /// A counter does not keep what is written to it: nobody is behind it.
    Forgets {
        /// Its register.
        register: u32,
    },
    /// Firmware, or whoever else, uses every counter.
    Taken,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered => f.write_str("CPUID offers no architectural performance monitoring (leaf 0xA)"),
            Self::FirstVersion => f.write_str(
                "CPUID offers version 1 of performance monitoring (leaf 0xA), which cannot stop all counters at once",
            ),
            Self::NotExtended => {
                f.write_str("CPUID offers no extended core counters (leaf 0x80000001 ECX bit 23)")
            }
            Self::UnknownVendor => f.write_str("the processor is neither Intel's nor AMD's"),
            Self::UnknownFamily { family } => {
                write!(f, "no events are known of AMD's family {family:#x}")
            }
            Self::NoCounters => f.write_str("CPUID offers performance monitoring, but no counter"),
            Self::NoEvents => f.write_str("CPUID says that each known event is missing"),
            Self::NoQuota => f.write_str("none may be used"),
            Self::Refused(fault) => write!(f, "CPUID offers them, but {fault}"),
            Self::Forgets { register } => {
                write!(f, "CPUID offers them, but register {register:#x} does not keep what is written")
            }
            Self::Taken => f.write_str("firmware uses all of them"),
        }
    }
}

impl From<Fault> for Absent {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault)
    }
}

/// CPUID leaf 1 ECX: IA32_PERF_CAPABILITIES exists.
const PDCM: u32 = 1 << 15;
/// CPUID leaf 0x8000_0001 ECX: the extended counters exist.
const PERF_CTR_EXT_CORE: u32 = 1 << 23;
/// CPUID leaf 0x8000_0022 EAX: the global registers exist.
const PERF_MON_V2: u32 = 1;
/// AMD's extended counters where no leaf counts them, and their bits (APM 2 13.2.1).
const AMD_COUNTERS: u8 = 6;
const AMD_WIDTH: u8 = 48;

/// What the processor has.
///
/// # Errors
/// Why it has nothing that can be used.
pub fn detect(cpuid: &CpuidValues) -> Result<Unit, Absent> {
    let (family, model) = cpuid.family_model();
    match cpuid.vendor() {
        Some(Vendor::Intel) => intel(cpuid, family, model),
        Some(Vendor::Amd | Vendor::Hygon) => amd(cpuid, family, model),
        None => Err(Absent::UnknownVendor),
    }
}

fn intel(cpuid: &CpuidValues, family: u32, model: u32) -> Result<Unit, Absent> {
    let leaf = cpuid.leaf_a;
    match leaf.eax as u8 {
        0 => return Err(Absent::NotOffered),
        1 => return Err(Absent::FirstVersion),
        _ => {}
    }
    let (counters, width) = ((leaf.eax >> 8) as u8, (leaf.eax >> 16) as u8);
    // Bits of EBX that the processor has an opinion about.
    let length = leaf.eax >> 24;
    let missing = |event: &Event| {
        missing_bit(event).is_some_and(|bit| bit >= length || leaf.ebx >> bit & 1 == 1)
    };
    let catalog = events::intel(family, model);
    let events = catalog.events.iter().filter(|e| !missing(e)).copied();
    let unit = Unit {
        style: Style::Intel,
        family: catalog.family,
        counters: counters.min(MOST_COUNTERS),
        width,
        has_capabilities: cpuid.leaf_1.ecx & PDCM != 0,
        events: events.collect(),
    };
    unit.checked()
}

fn amd(cpuid: &CpuidValues, family: u32, model: u32) -> Result<Unit, Absent> {
    let catalog = events::amd(family, model).ok_or(Absent::UnknownFamily { family })?;
    if cpuid.leaf_8000_0001.ecx & PERF_CTR_EXT_CORE == 0 {
        return Err(Absent::NotExtended);
    }
    let global = cpuid.leaf_8000_0022.eax & PERF_MON_V2 != 0;
    let counted = (cpuid.leaf_8000_0022.ebx & 0xf) as u8;
    let unit = Unit {
        style: Style::Amd { global },
        family: catalog.family,
        counters: if global {
            counted.min(MOST_COUNTERS)
        } else {
            AMD_COUNTERS
        },
        width: AMD_WIDTH,
        has_capabilities: false,
        events: catalog.events.to_vec(),
    };
    unit.checked()
}

impl Unit {
    fn checked(self) -> Result<Self, Absent> {
        // 32 bits can be written to any counter; one of 64 could not be told from a difference.
        if self.counters == 0 || !(32..64).contains(&self.width) {
            return Err(Absent::NoCounters);
        }
        if self.events.is_empty() {
            return Err(Absent::NoEvents);
        }
        Ok(self)
    }

    /// The largest value of a counter.
    pub const fn mask(&self) -> u64 {
        (1 << self.width) - 1
    }

    /// What a counter counted from `start` to `end`. One wrap shows as a smaller value; one that overtakes the start
    /// again shows only in the overflow bit.
    pub const fn difference(&self, start: u64, end: u64, overflowed: bool) -> u64 {
        let (start, end) = (start & self.mask(), end & self.mask());
        let turn = 1 << self.width;
        match end >= start {
            true if overflowed => end - start + turn,
            true => end - start,
            false => end + turn - start,
        }
    }
}

#[cfg(test)]
mod tests;
