//! Firmware's ACPI tables, found, copied and corrected.
//!
//! Crate `acpi` finds them (RSDP, then XSDT or RSDT) and checks header and sum. Override tables of the
//! boot medium replace what has the same signature, and are added where nothing has it.
#![expect(
    unsafe_code,
    reason = "reads firmware's tables where firmware left them"
)]

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiError, AcpiHandler, AcpiTable, AcpiTables, PhysicalMapping};
use handoff::{Module, ModuleKind};
use units::Hpa;

use crate::arch::paging;
use crate::mm;

/// Copies of the ACPI tables that the kernel uses.
#[derive(Debug, Default)]
pub struct Tables(Vec<Table>);

/// One table.
#[derive(Debug)]
struct Table {
    bytes: Vec<u8>,
    overridden: bool,
}

impl Tables {
    /// The bytes of the table with this signature.
    pub fn get(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        self.0
            .iter()
            .map(|t| t.bytes.as_slice())
            .find(|b| b.starts_with(signature))
    }

    /// Finds and copies firmware's tables, then applies the overrides among `modules`.
    pub fn collect(rsdp: u64, modules: &[Module]) -> Self {
        let mut tables = Self::default();
        if rsdp == 0 {
            log::warn!("firmware publishes no ACPI tables; only override tables are used");
        } else {
            tables.copy_from_firmware(rsdp);
        }
        for module in modules
            .iter()
            .filter(|m| m.kind() == Some(ModuleKind::AcpiOverride))
        {
            tables.override_with(module);
        }
        tables
    }

    fn copy_from_firmware(&mut self, rsdp: u64) {
        // SAFETY: the loader took the address from UEFI's configuration table; a wrong one reads as
        // zeros or fails the checksum.
        let acpi = match unsafe { AcpiTables::from_rsdp(DirectMap, rsdp as usize) } {
            Ok(acpi) => acpi,
            Err(e) => {
                log::error!(
                    "firmware's ACPI root at {rsdp:#x} cannot be used ({e:?}); only override tables are"
                );
                return;
            }
        };
        self.copy(acpi.find_table::<Madt>());
        self.copy(acpi.find_table::<Srat>());
        self.copy(acpi.find_table::<Slit>());
        self.copy(acpi.find_table::<Hmat>());
        self.copy(acpi.find_table::<Pptt>());
        self.copy(acpi.find_table::<Fadt>());
        self.copy(acpi.find_table::<Spcr>());
        self.copy(acpi.find_table::<Mcfg>());
        self.copy(acpi.find_table::<Hpet>());
    }

    fn copy<T: AcpiTable>(&mut self, found: Result<PhysicalMapping<DirectMap, T>, AcpiError>) {
        // Absent is normal; a damaged one was logged by the crate.
        if let Ok(found) = found {
            self.push(bytes_of(&found).to_vec(), false);
        }
    }

    /// Adds a table, in place of one with the same signature.
    fn push(&mut self, bytes: Vec<u8>, overridden: bool) {
        let same = |t: &&mut Table| t.bytes.get(..4) == bytes.get(..4);
        match self.0.iter_mut().find(same) {
            Some(old) => *old = Table { bytes, overridden },
            None => self.0.push(Table { bytes, overridden }),
        }
    }

    fn override_with(&mut self, module: &Module) {
        let bytes = module_bytes(module);
        let Some(signature) = bytes
            .get(..4)
            .filter(|_| bytes.len() >= size_of::<SdtHeader>())
        else {
            log::error!(
                "{}: {} bytes are too few for an ACPI table; it is ignored",
                module.name(),
                bytes.len()
            );
            return;
        };
        let known = self.0.iter().any(|t| t.bytes.starts_with(signature));
        log::info!(
            "ACPI: {} {} {}",
            module.name(),
            if known { "replaces firmware's" } else { "adds" },
            signature.escape_ascii()
        );
        self.push(bytes.to_vec(), true);
    }

    /// Signatures and sizes, for the log.
    pub fn describe(&self) -> impl fmt::Display {
        struct Description<'a>(&'a [Table]);
        impl fmt::Display for Description<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for table in self.0 {
                    let signature = table.bytes.get(..4).unwrap_or(b"????");
                    let mark = if table.overridden { " (override)" } else { "" };
                    write!(
                        f,
                        " {} {}{mark}",
                        signature.escape_ascii(),
                        table.bytes.len()
                    )?;
                }
                Ok(())
            }
        }
        Description(&self.0)
    }
}

/// The file behind a module.
pub fn module_bytes(module: &Module) -> &'static [u8] {
    let length = usize::try_from(module.bytes).unwrap_or(0);
    // SAFETY: the loader put the file there, in memory of kind `Module`, which the direct map shows
    // and which the allocator does not get before all modules are consumed.
    unsafe { core::slice::from_raw_parts(mm::direct(Hpa(module.base)), length) }
}

/// Firmware's tables through the direct map.
#[derive(Clone, Copy, Debug)]
struct DirectMap;

/// What a table reads as that cannot be mapped: it fails every check.
static ZEROS: [u64; 512] = [0; 512];
/// Longer tables are taken for damaged.
const MAX_TABLE_BYTES: usize = 16 << 20;

impl AcpiHandler for DirectMap {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        let mapped = (size <= MAX_TABLE_BYTES)
            .then(|| paging::map_firmware(Hpa(at as u64), size as u64).ok())
            .flatten()
            .and_then(|p| NonNull::new(p.cast_mut().cast::<T>()));
        let (place, size) = match mapped {
            Some(place) => (place, size),
            None => {
                log::error!("ACPI: {size} bytes at {at:#x} cannot be read as a table");
                (NonNull::from(&ZEROS).cast::<T>(), size_of_val(&ZEROS))
            }
        };
        // SAFETY: mapped for ever, or a static; both hold `size` bytes, and `T` is one of the crate's
        // small header types or ours.
        unsafe { PhysicalMapping::new(at, place, size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

fn bytes_of<T: AcpiTable>(mapping: &PhysicalMapping<DirectMap, T>) -> &[u8] {
    // SAFETY: `find_table` mapped the whole table (`region_length` bytes) and checked its sum.
    unsafe {
        core::slice::from_raw_parts(
            mapping.virtual_start().as_ptr().cast(),
            mapping.region_length(),
        )
    }
}

/// The crate names most signatures, but not all.
const fn signature(name: [u8; 4]) -> Signature {
    const { assert!(size_of::<Signature>() == 4) };
    // SAFETY: `Signature` is a transparent wrapper of four bytes.
    unsafe { core::mem::transmute(name) }
}

macro_rules! tables {
    ($($name:ident $signature:literal;)*) => {$(
        #[repr(transparent)]
        struct $name(SdtHeader);
        // SAFETY: nothing but the header that every table begins with.
        unsafe impl AcpiTable for $name {
            const SIGNATURE: Signature = signature(*$signature);
            fn header(&self) -> &SdtHeader {
                &self.0
            }
        }
    )*};
}
tables! {
    Madt b"APIC"; Srat b"SRAT"; Slit b"SLIT"; Hmat b"HMAT"; Pptt b"PPTT"; Fadt b"FACP";
    Spcr b"SPCR"; Mcfg b"MCFG"; Hpet b"HPET";
}

/// The DSDT in firmware's memory; it is not in the XSDT.
pub(super) fn firmware_dsdt(at: Hpa) -> Option<&'static [u8]> {
    let header = paging::map_firmware(at, size_of::<SdtHeader>() as u64).ok()?;
    // SAFETY: mapped above; a packed header has alignment 1.
    let length = unsafe { header.cast::<SdtHeader>().read_unaligned() }.length;
    if length as usize > MAX_TABLE_BYTES {
        return None;
    }
    let place = paging::map_firmware(at, u64::from(length)).ok()?;
    // SAFETY: mapped for ever; this is read before ACPI memory is given to anyone.
    Some(unsafe { core::slice::from_raw_parts(place, length as usize) })
}
