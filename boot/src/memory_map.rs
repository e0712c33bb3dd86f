//! Firmware's memory map becomes the kernel's.
//!
//! Every UEFI memory type has a defined use ([`classify`]); what firmware or the hardware may still
//! need is never handed out. Firmware maps are unsorted and, on some machines, overlap: [`Map`]
//! keeps a sorted list without overlaps, in which the more careful kind wins. It allocates nothing,
//! because the last map is read after boot services are gone.

use core::fmt;
use handoff::{MemoryKind, MemoryRegion};

/// Bytes in a UEFI page (UEFI 2.10, 7.2.1).
pub const PAGE: u64 = 4096;

/// EFI_MEMORY_WB: the memory can be cached write-back.
const ATTRIBUTE_WB: u64 = 1 << 3;
/// EFI_MEMORY_NV: persistent.
const ATTRIBUTE_NV: u64 = 1 << 15;
/// EFI_MEMORY_SP: set aside for a purpose of its own, such as high-bandwidth or CXL memory.
const ATTRIBUTE_SP: u64 = 1 << 18;
/// EFI_MEMORY_RUNTIME: runtime services need it, whatever its type.
const ATTRIBUTE_RUNTIME: u64 = 1 << 63;

/// UEFI type of memory that an application allocates (EfiLoaderData).
pub const LOADER_DATA: u32 = 2;

/// What memory of this UEFI type and these attribute bits may be used for (UEFI 2.10, 7.2.1,
/// table 7.10 "Memory Type Usage after ExitBootServices()", and 7.2.3 for the attributes).
pub const fn classify(uefi_type: u32, attributes: u64) -> MemoryKind {
    let kind = match uefi_type {
        // EfiReservedMemoryType.
        0 => MemoryKind::Reserved,
        // EfiLoaderCode, EfiLoaderData: this loader and what it allocated.
        1 | 2 => MemoryKind::Handoff,
        // EfiBootServicesCode, EfiBootServicesData: free after ExitBootServices.
        3 | 4 => MemoryKind::Usable,
        // EfiRuntimeServicesCode, EfiRuntimeServicesData.
        5 | 6 => MemoryKind::Runtime,
        // EfiConventionalMemory.
        7 => MemoryKind::Usable,
        // EfiUnusableMemory: errors were found in it.
        8 => MemoryKind::Reserved,
        // EfiACPIReclaimMemory.
        9 => MemoryKind::AcpiReclaim,
        // EfiACPIMemoryNVS: firmware uses it while the machine runs.
        10 => MemoryKind::AcpiNvs,
        // EfiMemoryMappedIO, EfiMemoryMappedIOPortSpace.
        11 | 12 => MemoryKind::Mmio,
        // EfiPalCode: Itanium's, but still a statement that somebody needs it.
        13 => MemoryKind::Reserved,
        // EfiPersistentMemory: its contents belong to whoever wrote them.
        14 => MemoryKind::Reserved,
        // EfiUnacceptedMemoryType: touching it faults until the guest accepts it.
        15 => MemoryKind::Reserved,
        // Types of manufacturers and of other loaders, and types of the future.
        _ => MemoryKind::Reserved,
    };
    if attributes & ATTRIBUTE_RUNTIME != 0 {
        return match kind {
            MemoryKind::Mmio | MemoryKind::Reserved | MemoryKind::AcpiNvs => kind,
            _ => MemoryKind::Runtime,
        };
    }
    match kind {
        MemoryKind::Usable if attributes & (ATTRIBUTE_SP | ATTRIBUTE_NV) != 0 => {
            MemoryKind::Reserved
        }
        MemoryKind::Usable if attributes & ATTRIBUTE_WB == 0 => MemoryKind::Reserved,
        other => other,
    }
}

/// Of two statements about one page the one with the higher rank is believed.
const fn rank(kind: MemoryKind) -> u8 {
    match kind {
        MemoryKind::Usable => 0,
        MemoryKind::Handoff => 1,
        MemoryKind::Module => 2,
        MemoryKind::Kernel => 3,
        MemoryKind::AcpiReclaim => 4,
        MemoryKind::AcpiNvs => 5,
        MemoryKind::Runtime => 6,
        MemoryKind::Mmio => 7,
        MemoryKind::Reserved => 8,
    }
}

/// The map has more regions than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFull {
    /// Regions that there is room for.
    pub room: usize,
}

impl fmt::Display for MapFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "firmware's memory map fell into more than {} regions while it was read",
            self.room
        )
    }
}

/// A region that holds nothing, to fill the list with before it is used.
pub const EMPTY: MemoryRegion = MemoryRegion {
    base: 0,
    bytes: 0,
    kind: 9,
    uefi_type: 0,
    attributes: 0,
};

/// A sorted list of regions without overlaps, in memory that the caller provides.
#[derive(Debug)]
pub struct Map<'a> {
    list: &'a mut [MemoryRegion],
    len: usize,
}

impl<'a> Map<'a> {
    /// An empty map with room for `list.len()` regions.
    pub fn new(list: &'a mut [MemoryRegion]) -> Self {
        Self { list, len: 0 }
    }

    /// Adds one of firmware's descriptors.
    ///
    /// # Errors
    /// The map is full.
    pub fn add_firmware(
        &mut self,
        base: u64,
        pages: u64,
        uefi_type: u32,
        attributes: u64,
    ) -> Result<(), MapFull> {
        let bytes = pages.saturating_mul(PAGE);
        self.add(
            base,
            bytes,
            classify(uefi_type, attributes),
            uefi_type,
            attributes,
        )
    }

    /// Adds what the loader put into memory it had allocated: the kernel, a module.
    ///
    /// # Errors
    /// The map is full.
    pub fn add_own(&mut self, base: u64, bytes: u64, kind: MemoryKind) -> Result<(), MapFull> {
        self.add(base, bytes, kind, LOADER_DATA, ATTRIBUTE_WB)
    }

    fn add(
        &mut self,
        base: u64,
        bytes: u64,
        kind: MemoryKind,
        uefi_type: u32,
        attributes: u64,
    ) -> Result<(), MapFull> {
        let (mut start, end) = whole_pages(base, bytes, kind);
        let piece = |from: u64, to: u64| MemoryRegion {
            base: from,
            bytes: to.saturating_sub(from),
            kind: kind as u32,
            uefi_type,
            attributes,
        };
        let mut at = 0;
        while start < end {
            let Some(old) = self.regions().get(at).copied() else {
                break;
            };
            if old.end() <= start {
                at += 1;
            } else if old.base >= end {
                break;
            } else if rank(old.kind()) >= rank(kind) {
                if start < old.base {
                    self.insert(at, piece(start, old.base))?;
                    at += 1;
                }
                at += 1;
                start = old.end();
            } else {
                self.remove(at);
                if old.base < start {
                    self.insert(
                        at,
                        MemoryRegion {
                            bytes: start.saturating_sub(old.base),
                            ..old
                        },
                    )?;
                    at += 1;
                }
                if end < old.end() {
                    let rest = MemoryRegion {
                        base: end,
                        bytes: old.end().saturating_sub(end),
                        ..old
                    };
                    self.insert(at, rest)?;
                }
            }
        }
        if start < end {
            self.insert(at, piece(start, end))?;
        }
        Ok(())
    }

    /// Joins neighbours that agree in everything and returns the finished list.
    pub fn finish(mut self) -> &'a [MemoryRegion] {
        let mut at = 0;
        while let (Some(a), Some(b)) = (
            self.regions().get(at).copied(),
            self.regions().get(at + 1).copied(),
        ) {
            let alike = (a.kind, a.uefi_type, a.attributes) == (b.kind, b.uefi_type, b.attributes);
            if alike && a.end() == b.base {
                self.remove(at + 1);
                if let Some(joined) = self.list.get_mut(at) {
                    joined.bytes = a.bytes.saturating_add(b.bytes);
                }
            } else {
                at += 1;
            }
        }
        let list: &'a [MemoryRegion] = self.list;
        list.get(..self.len).unwrap_or(list)
    }

    /// The regions so far, ascending.
    pub fn regions(&self) -> &[MemoryRegion] {
        self.list.get(..self.len).unwrap_or(&[])
    }

    fn insert(&mut self, at: usize, region: MemoryRegion) -> Result<(), MapFull> {
        let room = self.list.len();
        let tail = self.list.get_mut(at..=self.len).ok_or(MapFull { room })?;
        tail.rotate_right(1);
        if let Some(first) = tail.first_mut() {
            *first = region;
        }
        self.len += 1;
        Ok(())
    }

    fn remove(&mut self, at: usize) {
        if let Some(tail) = self.list.get_mut(at..self.len) {
            tail.rotate_left(1);
            self.len -= 1;
        }
    }
}

/// Usable memory loses the pages that it covers in part, everything else gains them.
fn whole_pages(base: u64, bytes: u64, kind: MemoryKind) -> (u64, u64) {
    let last_page = u64::MAX - (PAGE - 1);
    let end = base.saturating_add(bytes);
    if kind == MemoryKind::Usable {
        (
            base.checked_next_multiple_of(PAGE).unwrap_or(last_page),
            end / PAGE * PAGE,
        )
    } else {
        (
            base / PAGE * PAGE,
            end.checked_next_multiple_of(PAGE).unwrap_or(last_page),
        )
    }
}

/// Where the direct map must end to cover all memory that is not reserved and all of the first
/// 4 GiB: a multiple of 1 GiB.
pub fn direct_map_end(regions: &[MemoryRegion]) -> u64 {
    const GIB: u64 = 1 << 30;
    regions
        .iter()
        .filter(|r| !matches!(r.kind(), MemoryKind::Reserved | MemoryKind::Mmio))
        .map(|r| {
            r.end()
                .checked_next_multiple_of(GIB)
                .unwrap_or(u64::MAX / GIB * GIB)
        })
        .fold(4 * GIB, u64::max)
}

#[cfg(test)]
#[path = "memory_map_tests.rs"]
mod tests;
