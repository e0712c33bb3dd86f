//! SRAT: what belongs to which proximity domain (ACPI 6.5, 5.2.16).

use crate::bytes::{u8_at, u32_at, u64_at};
use crate::quirk::{Quirk, Quirks};
use crate::table::{Entry, Table};
use alloc::vec::Vec;
use units::{Hpa, ProximityDomain};

/// First structure.
const ENTRIES: usize = 48;
/// In every kind of structure: whether it counts.
const ENABLED: u32 = 1;

/// The table's enabled entries, in their order.
#[derive(Debug, Default)]
pub(crate) struct Srat {
    pub(crate) cpus: Vec<CpuAffinity>,
    pub(crate) memory: Vec<MemoryAffinity>,
    /// Domains of generic initiators and ports (accelerators, host bridges).
    pub(crate) devices: Vec<ProximityDomain>,
}

/// A processor's domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuAffinity {
    pub(crate) apic: u32,
    pub(crate) domain: ProximityDomain,
}

/// A range's domain; `start < end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryAffinity {
    pub(crate) start: Hpa,
    pub(crate) end: Hpa,
    pub(crate) domain: ProximityDomain,
}

/// Reads the table.
pub(crate) fn parse(table: &Table<'_>, quirks: &mut Quirks) -> Srat {
    let mut srat = Srat::default();
    for entry in table.entries(ENTRIES, quirks) {
        let needed = match entry.kind {
            0 => 16,
            1 => 40,
            2 => 24,
            5 | 6 => 32,
            // 3 and 4 are ARM's, 7 is RISC-V's.
            _ => continue,
        };
        if entry.has(needed, quirks) {
            // Every field is inside the length just checked, so the value is always there.
            let _ = read(&entry, table.revision, &mut srat, quirks);
        }
    }
    srat
}

fn read(entry: &Entry<'_>, revision: u8, srat: &mut Srat, quirks: &mut Quirks) -> Option<()> {
    let bytes = entry.bytes;
    // Before revision 2 a domain had 8 bits and the others were reserved, with whatever in them.
    let domain_of =
        |number: u32| ProximityDomain(if revision < 2 { number & 0xff } else { number });
    let enabled = |at: usize| u32_at(bytes, at).map(|flags| flags & ENABLED != 0);
    match entry.kind {
        // Processor Local APIC/SAPIC; the SAPIC EID is Itanium's (5.2.16.1).
        0 if enabled(4)? => {
            let low = [
                u8_at(bytes, 2)?,
                u8_at(bytes, 9)?,
                u8_at(bytes, 10)?,
                u8_at(bytes, 11)?,
            ];
            srat.cpus.push(CpuAffinity {
                apic: u8_at(bytes, 3)?.into(),
                domain: domain_of(u32::from_le_bytes(low)),
            });
        }
        // Memory; hot-pluggable and non-volatile ranges count like any other, for only what the
        // memory map calls usable is taken from them (5.2.16.2).
        1 if enabled(28)? => {
            let domain = domain_of(u32_at(bytes, 2)?);
            let (start, length) = (Hpa(u64_at(bytes, 8)?), u64_at(bytes, 16)?);
            if length == 0 {
                quirks.push(Quirk::EmptyRange { domain, start });
                return Some(());
            }
            let end = start.checked_add(length).unwrap_or_else(|| {
                quirks.push(Quirk::WrappingRange {
                    domain,
                    start,
                    bytes: length,
                });
                Hpa(u64::MAX)
            });
            if start < end {
                srat.memory.push(MemoryAffinity { start, end, domain });
            }
        }
        // Processor Local x2APIC (5.2.16.3).
        2 if enabled(12)? => {
            srat.cpus.push(CpuAffinity {
                apic: u32_at(bytes, 8)?,
                domain: domain_of(u32_at(bytes, 4)?),
            });
        }
        // Generic Initiator and Generic Port (5.2.16.6, 5.2.16.7).
        5 | 6 if enabled(24)? => srat.devices.push(domain_of(u32_at(bytes, 4)?)),
        _ => {}
    }
    Some(())
}
