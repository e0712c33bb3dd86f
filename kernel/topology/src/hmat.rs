//! HMAT: measured-like latencies and bandwidths, memory-side caches (ACPI 6.5, 5.2.28).
//!
//! Everything in the table is kept here by proximity domain; [`crate::Machine`] takes the figures
//! of plain memory (hierarchy 0) from it.

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use crate::quirk::{Quirk, Quirks};
use crate::table::{Entry, Table};
use alloc::vec::Vec;
use units::ProximityDomain;

/// First structure.
const ENTRIES: usize = 40;
/// Structures before their lists.
const DOMAIN_BYTES: usize = 40;
const LOCALITY_BYTES: usize = 32;
const CACHE_BYTES: usize = 32;
/// An entry that means unreachable, or unknown (5.2.28.4).
const UNREACHABLE: u16 = 0xffff;

/// The table's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hmat {
    /// Memory domains and the initiator that is attached to each, where there is one.
    pub domains: Vec<MemoryDomain>,
    /// Latency and bandwidth matrices, in the order of the table.
    pub matrices: Vec<Matrix>,
    /// Memory-side caches.
    pub caches: Vec<MemorySideCache>,
}

/// Memory Proximity Domain Attributes (5.2.28.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDomain {
    /// The domain of the memory.
    pub memory: ProximityDomain,
    /// The domain whose processors are directly attached to it.
    pub initiator: Option<ProximityDomain>,
}

/// What the figures of a matrix are about (5.2.28.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// Memory itself.
    Memory,
    /// A memory-side cache of this level, 1 to 3.
    Cache(u8),
}

/// What a matrix gives (5.2.28.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    /// Read or write latency, if they are the same.
    AccessLatency,
    /// Read latency.
    ReadLatency,
    /// Write latency.
    WriteLatency,
    /// Read or write bandwidth, if they are the same.
    AccessBandwidth,
    /// Read bandwidth.
    ReadBandwidth,
    /// Write bandwidth.
    WriteBandwidth,
}

impl DataType {
    const ALL: [Self; 6] = [
        Self::AccessLatency,
        Self::ReadLatency,
        Self::WriteLatency,
        Self::AccessBandwidth,
        Self::ReadBandwidth,
        Self::WriteBandwidth,
    ];

    /// Whether the figures are nanoseconds; otherwise MB/s.
    pub const fn is_latency(self) -> bool {
        matches!(
            self,
            Self::AccessLatency | Self::ReadLatency | Self::WriteLatency
        )
    }
}

/// System Locality Latency and Bandwidth Information (5.2.28.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// What the figures are about.
    pub hierarchy: Hierarchy,
    /// What they are.
    pub data: DataType,
    /// Smallest transfer for which they hold, in bytes; 0 when not said.
    pub min_transfer_bytes: u32,
    /// Domains that access, one a row.
    pub initiators: Vec<ProximityDomain>,
    /// Domains that are accessed, one a column.
    pub targets: Vec<ProximityDomain>,
    /// Nanoseconds or MB/s, row by row; `None` where the table has no figure.
    pub values: Vec<Option<u32>>,
}

impl Matrix {
    /// The figure for a pair of domains.
    pub fn get(&self, initiator: ProximityDomain, target: ProximityDomain) -> Option<u32> {
        let row = self
            .initiators
            .iter()
            .position(|domain| *domain == initiator)?;
        let column = self.targets.iter().position(|domain| *domain == target)?;
        let index = row.checked_mul(self.targets.len())?.checked_add(column)?;
        self.values.get(index).copied().flatten()
    }
}

/// Memory Side Cache Information (5.2.28.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySideCache {
    /// The memory behind it.
    pub memory: ProximityDomain,
    /// Bytes.
    pub size_bytes: u64,
    /// Cache levels in all, 0 to 3.
    pub levels: u8,
    /// This cache's level, 1 to 3; 0 when there is none.
    pub level: u8,
    /// Line size in bytes.
    pub line_bytes: u16,
}

impl Hmat {
    /// Latency of plain memory in ns: access latency, else the larger of read and write latency.
    pub fn latency_ns(&self, initiator: ProximityDomain, target: ProximityDomain) -> Option<u32> {
        let value = |data| self.memory_value(data, initiator, target);
        value(DataType::AccessLatency)
            .or_else(|| value(DataType::ReadLatency).max(value(DataType::WriteLatency)))
    }

    /// Bandwidth of plain memory in MB/s: access bandwidth, else the lower of read and write.
    pub fn bandwidth_mb_s(
        &self,
        initiator: ProximityDomain,
        target: ProximityDomain,
    ) -> Option<u32> {
        let value = |data| self.memory_value(data, initiator, target);
        value(DataType::AccessBandwidth).or_else(|| {
            match (
                value(DataType::ReadBandwidth),
                value(DataType::WriteBandwidth),
            ) {
                (Some(read), Some(write)) => Some(read.min(write)),
                (read, write) => read.or(write),
            }
        })
    }

    fn memory_value(
        &self,
        data: DataType,
        initiator: ProximityDomain,
        target: ProximityDomain,
    ) -> Option<u32> {
        let fits = |matrix: &&Matrix| matrix.hierarchy == Hierarchy::Memory && matrix.data == data;
        self.matrices
            .iter()
            .filter(fits)
            .find_map(|matrix| matrix.get(initiator, target))
    }
}

/// Reads the table.
pub(crate) fn parse(table: &Table<'_>, quirks: &mut Quirks) -> Hmat {
    let mut hmat = Hmat::default();
    for entry in table.wide_entries(ENTRIES, quirks) {
        let needed = match entry.kind {
            0 => DOMAIN_BYTES,
            1 => LOCALITY_BYTES,
            2 => CACHE_BYTES,
            _ => continue,
        };
        if !entry.has(needed, quirks) {
            continue;
        }
        match entry.kind {
            0 => hmat.domains.extend(memory_domain(entry.bytes)),
            1 => match matrix(&entry, table.revision) {
                Ok(matrix) => hmat.matrices.push(matrix),
                Err(problem) => quirks.push(Quirk::HmatStructure {
                    offset: entry.offset,
                    problem,
                }),
            },
            _ => hmat.caches.extend(cache(entry.bytes)),
        }
    }
    hmat
}

fn memory_domain(bytes: &[u8]) -> Option<MemoryDomain> {
    let attached = u16_at(bytes, 8)? & 1 != 0;
    Some(MemoryDomain {
        memory: ProximityDomain(u32_at(bytes, 16)?),
        initiator: if attached {
            u32_at(bytes, 12).map(ProximityDomain)
        } else {
            None
        },
    })
}

fn cache(bytes: &[u8]) -> Option<MemorySideCache> {
    let attributes = u32_at(bytes, 24)?;
    Some(MemorySideCache {
        memory: ProximityDomain(u32_at(bytes, 8)?),
        size_bytes: u64_at(bytes, 16)?,
        levels: (attributes & 0xf) as u8,
        level: (attributes >> 4 & 0xf) as u8,
        line_bytes: (attributes >> 16) as u16,
    })
}

fn matrix(entry: &Entry<'_>, revision: u8) -> Result<Matrix, &'static str> {
    const SHORT: &str = "the lists of a latency or bandwidth matrix do not fit into it";
    let bytes = entry.bytes;
    let flags = u8_at(bytes, 8).ok_or(SHORT)?;
    let hierarchy = match flags & 0xf {
        0 => Hierarchy::Memory,
        level @ 1..=3 => Hierarchy::Cache(level),
        _ => return Err("a matrix is about an unknown memory hierarchy"),
    };
    let data = u8_at(bytes, 9)
        .and_then(|data| DataType::ALL.get(usize::from(data)).copied())
        .ok_or("a matrix has an unknown data type")?;
    // Bit 4 says that the transfer size counts; the size is written as 2 to the power of the field.
    let min_transfer_bytes = match u8_at(bytes, 10) {
        Some(power) if flags & 0x10 != 0 => 1u32.checked_shl(power.into()).unwrap_or(0),
        _ => 0,
    };
    let rows = u32_at(bytes, 12).ok_or(SHORT)? as usize;
    let columns = u32_at(bytes, 16).ok_or(SHORT)? as usize;
    let unit = u64_at(bytes, 24).ok_or(SHORT)?;
    if unit == 0 {
        return Err("a matrix has a base unit of 0");
    }
    let row_list = LOCALITY_BYTES;
    let column_list = rows
        .checked_mul(4)
        .and_then(|bytes| bytes.checked_add(row_list))
        .ok_or(SHORT)?;
    let entries = columns
        .checked_mul(4)
        .and_then(|bytes| bytes.checked_add(column_list))
        .ok_or(SHORT)?;
    let count = rows.checked_mul(columns).ok_or(SHORT)?;
    let end = count
        .checked_mul(2)
        .and_then(|bytes| bytes.checked_add(entries))
        .ok_or(SHORT)?;
    let list = |from: usize, to: usize| -> Option<Vec<ProximityDomain>> {
        let words = bytes.get(from..to)?.chunks_exact(4);
        Some(
            words
                .filter_map(|word| u32_at(word, 0))
                .map(ProximityDomain)
                .collect(),
        )
    };
    let initiators = list(row_list, column_list).ok_or(SHORT)?;
    let targets = list(column_list, entries).ok_or(SHORT)?;
    let figures = bytes.get(entries..end).ok_or(SHORT)?.chunks_exact(2);
    let values = figures
        .map(|word| u16_at(word, 0).and_then(|figure| scaled(figure, unit, data, revision)))
        .collect();
    Ok(Matrix {
        hierarchy,
        data,
        min_transfer_bytes,
        initiators,
        targets,
        values,
    })
}

/// A figure in ns or MB/s. Since revision 2 the base unit of a latency is picoseconds and that
/// of a bandwidth MB/s; in revision 1 both count in tenths (as Linux reads them, drivers/acpi/numa/hmat.c).
fn scaled(figure: u16, unit: u64, data: DataType, revision: u8) -> Option<u32> {
    if figure == 0 || figure == UNREACHABLE {
        return None;
    }
    let product = u64::from(figure).checked_mul(unit)?;
    let value = match (revision, data.is_latency()) {
        (0 | 1, _) => product.div_ceil(10),
        (_, true) => product.div_ceil(1000),
        (_, false) => product,
    };
    u32::try_from(value).ok().filter(|value| *value != 0)
}
