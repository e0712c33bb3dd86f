//! MADT: processors and interrupt wiring (ACPI 6.5, 5.2.12).

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use crate::machine::{InterruptOverride, IoApic, LocalNmi, NmiSource, Polarity, Trigger};
use crate::quirk::Quirks;
use crate::table::{Entry, Table};
use alloc::vec::Vec;
use units::Hpa;

/// Where the local APIC is when nobody says (SDM 3A 11.4.1).
const LAPIC_DEFAULT: u64 = 0xfee0_0000;
/// First structure.
const ENTRIES: usize = 44;
const ENABLED: u32 = 1 << 0;
/// Only defined where [`ENABLED`] is clear (ACPI 6.5, table 5.22).
const ONLINE_CAPABLE: u32 = 1 << 1;
const PCAT_COMPAT: u32 = 1 << 0;
/// A processor UID that means all processors, in the two kinds of NMI entry.
const ALL_NARROW: u8 = 0xff;
const ALL_WIDE: u32 = 0xffff_ffff;

/// The table's content.
#[derive(Debug)]
pub(crate) struct Madt {
    pub(crate) lapic_address: Hpa,
    pub(crate) has_8259: bool,
    pub(crate) cpus: Vec<MadtCpu>,
    pub(crate) io_apics: Vec<IoApic>,
    pub(crate) overrides: Vec<InterruptOverride>,
    pub(crate) nmi_sources: Vec<NmiSource>,
    pub(crate) local_nmis: Vec<LocalNmi>,
}

/// A processor entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MadtCpu {
    pub(crate) offset: usize,
    pub(crate) apic: u32,
    pub(crate) uid: u32,
    pub(crate) enabled: bool,
    pub(crate) online_capable: bool,
    /// Whether the APIC ID addresses all processors instead of one.
    pub(crate) broadcast: bool,
}

impl Default for Madt {
    fn default() -> Self {
        Self {
            lapic_address: Hpa(LAPIC_DEFAULT),
            has_8259: true,
            cpus: Vec::new(),
            io_apics: Vec::new(),
            overrides: Vec::new(),
            nmi_sources: Vec::new(),
            local_nmis: Vec::new(),
        }
    }
}

/// Polarity and trigger mode (MPS INTI flags, ACPI 6.5, table 5.26).
fn line(flags: u16) -> (Polarity, Trigger) {
    let polarity = match flags & 3 {
        1 => Polarity::High,
        3 => Polarity::Low,
        _ => Polarity::Bus,
    };
    let trigger = match flags >> 2 & 3 {
        1 => Trigger::Edge,
        3 => Trigger::Level,
        _ => Trigger::Bus,
    };
    (polarity, trigger)
}

fn cpu(entry: &Entry<'_>, apic: u32, uid: u32, flags: u32, broadcast: u32) -> MadtCpu {
    let enabled = flags & ENABLED != 0;
    MadtCpu {
        offset: entry.offset,
        apic,
        uid,
        enabled,
        online_capable: !enabled && flags & ONLINE_CAPABLE != 0,
        broadcast: apic == broadcast,
    }
}

/// Reads the table.
pub(crate) fn parse(table: &Table<'_>, quirks: &mut Quirks) -> Madt {
    let mut madt = Madt::default();
    if let Some(address) = u32_at(table.bytes, 36) {
        madt.lapic_address = Hpa(address.into());
    }
    madt.has_8259 = u32_at(table.bytes, 40).is_none_or(|flags| flags & PCAT_COMPAT != 0);
    for entry in table.entries(ENTRIES, quirks) {
        let needed = match entry.kind {
            0 | 3 => 8,
            1 | 5 | 10 => 12,
            2 => 10,
            4 => 6,
            9 => 16,
            _ => continue,
        };
        if entry.has(needed, quirks) {
            // Every field is inside the length just checked, so the value is always there.
            let _ = read(&entry, &mut madt);
        }
    }
    madt
}

fn read(entry: &Entry<'_>, madt: &mut Madt) -> Option<()> {
    let bytes = entry.bytes;
    match entry.kind {
        0 => {
            let (uid, apic, flags) = (u8_at(bytes, 2)?, u8_at(bytes, 3)?, u32_at(bytes, 4)?);
            madt.cpus
                .push(cpu(entry, apic.into(), uid.into(), flags, u8::MAX.into()));
        }
        9 => {
            let (apic, flags, uid) = (u32_at(bytes, 4)?, u32_at(bytes, 8)?, u32_at(bytes, 12)?);
            madt.cpus.push(cpu(entry, apic, uid, flags, u32::MAX));
        }
        1 => {
            let (id, address, gsi_base) = (u8_at(bytes, 2)?, u32_at(bytes, 4)?, u32_at(bytes, 8)?);
            madt.io_apics.push(IoApic {
                id,
                address: Hpa(address.into()),
                gsi_base,
            });
        }
        2 => {
            let (polarity, trigger) = line(u16_at(bytes, 8)?);
            madt.overrides.push(InterruptOverride {
                irq: u8_at(bytes, 3)?,
                gsi: u32_at(bytes, 4)?,
                polarity,
                trigger,
            });
        }
        3 => {
            let (polarity, trigger) = line(u16_at(bytes, 2)?);
            madt.nmi_sources.push(NmiSource {
                gsi: u32_at(bytes, 4)?,
                polarity,
                trigger,
            });
        }
        4 => {
            let (polarity, trigger) = line(u16_at(bytes, 3)?);
            let uid = Some(u8_at(bytes, 2)?)
                .filter(|uid| *uid != ALL_NARROW)
                .map(u32::from);
            madt.local_nmis.push(LocalNmi {
                uid,
                lint: u8_at(bytes, 5)?,
                polarity,
                trigger,
            });
        }
        10 => {
            let (polarity, trigger) = line(u16_at(bytes, 2)?);
            let uid = Some(u32_at(bytes, 4)?).filter(|uid| *uid != ALL_WIDE);
            madt.local_nmis.push(LocalNmi {
                uid,
                lint: u8_at(bytes, 8)?,
                polarity,
                trigger,
            });
        }
        5 => madt.lapic_address = Hpa(u64_at(bytes, 4)?),
        _ => {}
    }
    Some(())
}
