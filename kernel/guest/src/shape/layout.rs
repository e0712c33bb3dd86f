//! Guest-physical memory as regions, and as the E820 map that a kernel is told.

use alloc::vec::Vec;
use units::Gpa;

use super::{DEVICE_HOLE_BASE, FIRMWARE_BASE, FOUR_GIB, HIGH_RAM_BASE, LOW_RAM_END, VirtualNode};

/// What backs a region of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Ordinary memory.
    Ram,
    /// Memory for firmware tables: ordinary frames, reserved in E820.
    Firmware,
}

/// A range of guest-physical memory; the kernel maps exactly these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte, a multiple of 4 KiB.
    pub gpa: Gpa,
    /// Bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Virtual node that holds it.
    pub node: u16,
    /// What it is.
    pub kind: RegionKind,
}

impl Region {
    /// Whether `gpa` lies inside.
    #[must_use]
    pub const fn contains(&self, gpa: Gpa) -> bool {
        gpa.0 >= self.gpa.0 && gpa.0 - self.gpa.0 < self.bytes
    }
    /// First byte after it. Cannot overflow: [`MemoryLayout`] keeps regions below 2^47.
    #[must_use]
    pub const fn end(&self) -> Gpa {
        Gpa(self.gpa.0.saturating_add(self.bytes))
    }
}

/// Guest-physical memory: ascending regions that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    regions: Vec<Region>,
}

/// Type of an E820 entry (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One line of the E820 map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First byte.
    pub gpa: Gpa,
    /// Bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: E820Kind,
}

impl MemoryLayout {
    /// The regions, ascending; neighbours may belong to different nodes.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of RAM and firmware memory, which is what the VM costs in frames.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.bytes).sum()
    }

    /// The region that holds `gpa`.
    #[must_use]
    pub fn region_of(&self, gpa: Gpa) -> Option<&Region> {
        self.regions.iter().find(|r| r.contains(gpa))
    }

    /// Whether all of `gpa..gpa + bytes` is usable RAM.
    #[must_use]
    pub fn is_ram(&self, gpa: Gpa, bytes: u64) -> bool {
        self.ram_end_from(gpa)
            .is_some_and(|end| end.0 - gpa.0 >= bytes)
    }

    /// Where the contiguous RAM that holds `gpa` ends.
    #[must_use]
    pub fn ram_end_from(&self, gpa: Gpa) -> Option<Gpa> {
        let mut end = gpa;
        for r in self.regions.iter().filter(|r| r.kind == RegionKind::Ram) {
            if r.contains(end) {
                end = r.end();
            }
        }
        (end != gpa).then_some(end)
    }

    /// The map that the guest's kernel is told: RAM merged across nodes, firmware reserved.
    #[must_use]
    pub fn e820(&self) -> Vec<E820Entry> {
        let mut map: Vec<E820Entry> = Vec::new();
        for r in &self.regions {
            let kind = match r.kind {
                RegionKind::Ram => E820Kind::Ram,
                RegionKind::Firmware => E820Kind::Reserved,
            };
            match map.last_mut() {
                Some(last) if last.kind == kind && last.gpa.0 + last.bytes == r.gpa.0 => {
                    last.bytes += r.bytes
                }
                _ => map.push(E820Entry {
                    gpa: r.gpa,
                    bytes: r.bytes,
                    kind,
                }),
            }
        }
        map
    }

    /// Lays the nodes' memory out in order.
    pub(super) fn new(nodes: &[VirtualNode]) -> Self {
        let mut regions = Vec::new();
        // The frames of a machine's first MiB that a PC hides behind VGA are simply not there, as
        // on a PC: a 64 MiB machine has 64 MiB less 128 KiB.
        let mut at = Gpa(0);
        for (node, n) in (0u16..).zip(nodes) {
            let mut left = n.memory_bytes;
            while left > 0 {
                if at == DEVICE_HOLE_BASE {
                    at = FOUR_GIB;
                }
                let (end, kind) = match at.0 {
                    0..0xA_0000 => (LOW_RAM_END, RegionKind::Ram),
                    0xA_0000..0xC_0000 => {
                        left -= left.min(FIRMWARE_BASE.0 - at.0);
                        at = FIRMWARE_BASE;
                        continue;
                    }
                    0xC_0000..0x10_0000 => (HIGH_RAM_BASE, RegionKind::Firmware),
                    0x10_0000..0xC000_0000 => (DEVICE_HOLE_BASE, RegionKind::Ram),
                    _ => (Gpa(u64::MAX), RegionKind::Ram),
                };
                let bytes = left.min(end.0 - at.0);
                regions.push(Region {
                    gpa: at,
                    bytes,
                    node,
                    kind,
                });
                at = Gpa(at.0 + bytes);
                left -= bytes;
            }
        }
        Self { regions }
    }
}
