//! What a virtual machine is: processors, memory and virtual nodes, in one place.
//!
//! The loader, the ACPI tables, CPUID and the kernel's nested page tables all need the same facts
//! and must not disagree, so they read them from a [`VmShape`], which was checked when it was made.
//!
//! Guest-physical memory:
//!
//! | range                  | what                                                             |
//! |------------------------|------------------------------------------------------------------|
//! | 0 to 640 KiB           | RAM                                                              |
//! | 640 to 768 KiB         | nothing (a PC has VGA here)                                      |
//! | 768 KiB to 1 MiB       | memory with the ACPI tables, reserved in E820                    |
//! | 1 MiB to at most 3 GiB | RAM                                                              |
//! | 3 to 4 GiB             | devices                                                          |
//! | from 4 GiB             | the rest of the RAM                                              |

use alloc::vec::Vec;
use core::fmt;
use units::Gpa;

/// Most vCPUs of a machine: their ACPI tables fit into [`FIRMWARE_BASE`]'s area.
pub const MAX_VCPUS: u16 = 1024;
/// Most virtual nodes of a machine.
pub const MAX_NODES: usize = 64;
/// Least memory of a machine, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 4 << 20;
/// Most memory of a machine, in bytes: 46 bits stay below what any CPU with nested paging maps.
pub const MAX_MEMORY_BYTES: u64 = 1 << 45;
/// Memory sizes are multiples of this, so that 2 MiB leaves fit.
pub const MEMORY_GRANULE: u64 = 2 << 20;

/// First byte after the RAM below 1 MiB.
pub const LOW_RAM_END: Gpa = Gpa(0xA_0000);
/// Memory for firmware tables.
pub const FIRMWARE_BASE: Gpa = Gpa(0xC_0000);
/// First byte after it, and the first of the RAM above.
pub const HIGH_RAM_BASE: Gpa = Gpa(0x10_0000);
/// RAM below 4 GiB ends here at the latest; devices follow.
pub const DEVICE_HOLE_BASE: Gpa = Gpa(0xC000_0000);
/// First byte after the device hole.
pub const FOUR_GIB: Gpa = Gpa(0x1_0000_0000);

/// A virtual machine's outline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmShape {
    /// Number of vCPUs, from 1 to [`MAX_VCPUS`].
    pub vcpus: u16,
    /// How they are grouped.
    pub topology: CpuTopology,
    /// Guest-physical memory.
    pub memory: MemoryLayout,
    /// Virtual nodes; one when the machine is flat.
    pub nodes: Vec<VirtualNode>,
    /// Distances between nodes in ACPI's SLIT units (10 = local), one row a node.
    pub distances: Vec<Vec<u8>>,
}

/// Processors to packages, cores and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    /// Threads of a core.
    pub threads_per_core: u16,
    /// Cores of a package, which also shares the last-level cache.
    pub cores_per_package: u16,
}

impl CpuTopology {
    /// Bits of the APIC identifier that number the threads of a core.
    #[must_use]
    pub const fn thread_bits(self) -> u32 {
        ceil_log2(self.threads_per_core as u32)
    }
}

const fn ceil_log2(n: u32) -> u32 {
    if n <= 1 {
        0
    } else {
        32 - (n - 1).leading_zeros()
    }
}

/// One virtual node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualNode {
    /// Bytes of RAM, a multiple of [`MEMORY_GRANULE`]; 0 for a node of processors only.
    pub memory_bytes: u64,
    /// Its vCPUs, ascending; empty for a node of memory only.
    pub vcpus: Vec<u16>,
}

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
    fn new(nodes: &[VirtualNode]) -> Self {
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

/// Why there is no such machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapeError {
    /// Zero vCPUs, or more than [`MAX_VCPUS`].
    Vcpus(u32),
    /// No node, or more than [`MAX_NODES`].
    Nodes(usize),
    /// A node's memory is not a multiple of [`MEMORY_GRANULE`].
    Granule {
        /// The node.
        node: usize,
        /// What it was to get.
        bytes: u64,
    },
    /// All memory together is less than [`MIN_MEMORY_BYTES`] or more than [`MAX_MEMORY_BYTES`], or the
    /// first node that has any has less than the least.
    Memory(u64),
    /// A vCPU is in no node, in two, or does not exist.
    VcpuNode(u16),
    /// The distances are not one row of one value a node.
    DistanceCount,
    /// A local distance is not 10, or a remote one is below 11.
    Distance {
        /// Row.
        from: usize,
        /// Column.
        to: usize,
        /// The value.
        value: u8,
    },
    /// Threads, cores of a package: zero, or too many for an APIC identifier.
    Topology(CpuTopology),
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus(n) => write!(f, "a VM has 1 to {MAX_VCPUS} vCPUs, not {n}; it was not built"),
            Self::Nodes(n) => write!(f, "a VM has 1 to {MAX_NODES} virtual nodes, not {n}; it was not built"),
            Self::Granule { node, bytes } => write!(
                f,
                "virtual node {node} is to have {bytes} bytes of memory, which is not a multiple of {} MiB; the VM was not built",
                MEMORY_GRANULE >> 20
            ),
            Self::Memory(n) => write!(
                f,
                "a VM has {} MiB to {} TiB of memory, the least of it in its first node with memory, not {n} bytes; it was not built",
                MIN_MEMORY_BYTES >> 20,
                MAX_MEMORY_BYTES >> 40
            ),
            Self::VcpuNode(v) => write!(f, "vCPU {v} must exist and be in exactly one virtual node; the VM was not built"),
            Self::DistanceCount => f.write_str("the virtual nodes' distances must have one row for each node with one value for each node; the VM was not built"),
            Self::Distance { from, to, value } => write!(
                f,
                "the distance from virtual node {from} to {to} is {value}, but it must be 10 to itself and at least 11 to others; the VM was not built"
            ),
            Self::Topology(t) => write!(
                f,
                "{} threads a core and {} cores a package is not a possible topology; the VM was not built",
                t.threads_per_core, t.cores_per_package
            ),
        }
    }
}

impl core::error::Error for ShapeError {}

impl VmShape {
    /// A flat machine: one node, one package, one thread a core.
    ///
    /// # Errors
    /// [`ShapeError`] says what is impossible.
    pub fn simple(vcpus: u16, memory_bytes: u64) -> Result<Self, ShapeError> {
        let node = VirtualNode {
            memory_bytes,
            vcpus: (0..vcpus).collect(),
        };
        Self::new(alloc::vec![node], alloc::vec![alloc::vec![10]], 1)
    }

    /// A machine with virtual nodes; each node with processors is one package.
    ///
    /// `distances` is what the guest's SLIT will say. The vCPUs of the nodes together must be
    /// 0, 1, 2, ... without a gap.
    ///
    /// # Errors
    /// [`ShapeError`] says what is impossible.
    pub fn new(
        nodes: Vec<VirtualNode>,
        distances: Vec<Vec<u8>>,
        threads_per_core: u16,
    ) -> Result<Self, ShapeError> {
        if nodes.is_empty() || nodes.len() > MAX_NODES {
            return Err(ShapeError::Nodes(nodes.len()));
        }
        let count: usize = nodes.iter().map(|n| n.vcpus.len()).sum();
        let vcpus = u16::try_from(count)
            .ok()
            .filter(|n| (1..=MAX_VCPUS).contains(n));
        let vcpus = vcpus.ok_or(ShapeError::Vcpus(u32::try_from(count).unwrap_or(u32::MAX)))?;
        for v in 0..vcpus {
            if nodes
                .iter()
                .flat_map(|n| &n.vcpus)
                .filter(|x| **x == v)
                .count()
                != 1
            {
                return Err(ShapeError::VcpuNode(v));
            }
        }
        let mut total = 0u64;
        for (node, n) in nodes.iter().enumerate() {
            if !n.memory_bytes.is_multiple_of(MEMORY_GRANULE) {
                return Err(ShapeError::Granule {
                    node,
                    bytes: n.memory_bytes,
                });
            }
            total = total
                .checked_add(n.memory_bytes)
                .ok_or(ShapeError::Memory(u64::MAX))?;
        }
        let first = nodes
            .iter()
            .map(|n| n.memory_bytes)
            .find(|b| *b > 0)
            .unwrap_or(0);
        if first < MIN_MEMORY_BYTES || total > MAX_MEMORY_BYTES {
            return Err(ShapeError::Memory(total));
        }
        check_distances(&distances, nodes.len())?;

        let threads = u32::from(threads_per_core);
        let largest = nodes.iter().map(|n| n.vcpus.len()).max().unwrap_or(1) as u32;
        let topology = CpuTopology {
            threads_per_core,
            // A flat machine is one package; threads that do not fill their last core leave it half empty.
            cores_per_package: if threads == 0 {
                0
            } else {
                largest.div_ceil(threads) as u16
            },
        };
        if threads_per_core == 0 || threads > largest {
            return Err(ShapeError::Topology(topology));
        }
        let memory = MemoryLayout::new(&nodes);
        Ok(Self {
            vcpus,
            topology,
            memory,
            nodes,
            distances,
        })
    }

    /// The virtual node of a vCPU; node 0 for one that does not exist.
    #[must_use]
    pub fn node_of(&self, vcpu: u16) -> u16 {
        (0u16..)
            .zip(&self.nodes)
            .find(|(_, n)| n.vcpus.contains(&vcpu))
            .map_or(0, |(i, _)| i)
    }

    /// Bits of the APIC identifier that number the threads of a package.
    ///
    /// Several packages are at least 8 identifiers apart: on the first Zen models Linux takes 8
    /// neighbouring identifiers for processors that share a cache, whatever CPUID says.
    #[must_use]
    pub fn package_bits(&self) -> u32 {
        let needed =
            self.topology.thread_bits() + ceil_log2(u32::from(self.topology.cores_per_package));
        let packages = self.nodes.iter().filter(|n| !n.vcpus.is_empty()).count();
        if packages > 1 { needed.max(3) } else { needed }
    }

    /// The local APIC identifier of a vCPU: package, core and thread in fields of their own
    /// (SDM 3A 9.9.1), where packages are the nodes that have processors.
    #[must_use]
    pub fn apic_id(&self, vcpu: u16) -> u32 {
        let packages = self.nodes.iter().filter(|n| !n.vcpus.is_empty());
        for (package, n) in (0u32..).zip(packages) {
            if let Some(i) = n.vcpus.iter().position(|v| *v == vcpu) {
                let threads = u32::from(self.topology.threads_per_core);
                let (core, thread) = (i as u32 / threads, i as u32 % threads);
                return package << self.package_bits()
                    | core << self.topology.thread_bits()
                    | thread;
            }
        }
        u32::from(vcpu)
    }
}

fn check_distances(distances: &[Vec<u8>], nodes: usize) -> Result<(), ShapeError> {
    if distances.len() != nodes || distances.iter().any(|row| row.len() != nodes) {
        return Err(ShapeError::DistanceCount);
    }
    for (from, row) in distances.iter().enumerate() {
        for (to, value) in row.iter().copied().enumerate() {
            if (from == to) != (value == 10) || value < 10 {
                return Err(ShapeError::Distance { from, to, value });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
