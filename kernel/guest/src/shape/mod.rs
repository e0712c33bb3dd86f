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

mod error;
mod layout;

pub use error::ShapeError;
pub use layout::{E820Entry, E820Kind, MemoryLayout, Region, RegionKind};

use alloc::vec::Vec;
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
