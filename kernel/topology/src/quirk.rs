//! Everything that firmware's tables can get wrong, as sentences.

use alloc::vec::Vec;
use core::fmt;
use units::{ApicId, Hpa, NodeId, ProximityDomain};

/// A table that this crate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableId {
    /// Multiple APIC Description Table (ACPI 6.5, 5.2.12).
    Madt,
    /// System Resource Affinity Table (5.2.16).
    Srat,
    /// System Locality Information Table (5.2.17).
    Slit,
    /// Heterogeneous Memory Attribute Table (5.2.28).
    Hmat,
    /// Processor Properties Topology Table (5.2.30).
    Pptt,
    /// Fixed ACPI Description Table (5.2.9).
    Fadt,
    /// Serial Port Console Redirection Table (its own specification).
    Spcr,
}

impl TableId {
    /// The four bytes that the table starts with.
    pub const fn signature(self) -> &'static [u8; 4] {
        match self {
            Self::Madt => b"APIC",
            Self::Srat => b"SRAT",
            Self::Slit => b"SLIT",
            Self::Hmat => b"HMAT",
            Self::Pptt => b"PPTT",
            Self::Fadt => b"FACP",
            Self::Spcr => b"SPCR",
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Madt => "MADT",
            Self::Srat => "SRAT",
            Self::Slit => "SLIT",
            Self::Hmat => "HMAT",
            Self::Pptt => "PPTT",
            Self::Fadt => "FADT",
            Self::Spcr => "SPCR",
        })
    }
}

/// How much an operator should care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Legal, but worth knowing.
    Note,
    /// Firmware is wrong; the machine runs on a guess.
    Warning,
}

/// Something odd in firmware's tables. The `Display` form says what, where and what was done
/// instead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are the numbers of the sentence that each variant documents"
)]
pub enum Quirk {
    /// Firmware publishes no such table.
    NoTable { table: TableId },
    /// Too few bytes for a table header.
    NoHeader { table: TableId, bytes: usize },
    /// Another table's signature.
    WrongSignature { table: TableId, found: [u8; 4] },
    /// The length field says more than there is.
    CutShort {
        table: TableId,
        declared: usize,
        available: usize,
    },
    /// The bytes do not add up to zero.
    BadChecksum { table: TableId, sum: u8 },
    /// An entry shorter than its own type and length fields.
    ZeroLengthEntry {
        table: TableId,
        offset: usize,
        length: usize,
    },
    /// An entry that reaches past the table's end.
    TruncatedEntry {
        table: TableId,
        offset: usize,
        length: usize,
        available: usize,
    },
    /// An entry shorter than its kind needs.
    ShortEntry {
        table: TableId,
        offset: usize,
        kind: u16,
        length: usize,
        needed: usize,
    },

    /// Two processors with one APIC ID.
    DuplicateApicId { apic: ApicId, offset: usize },
    /// An enabled processor whose APIC ID is the broadcast address.
    BroadcastApicId { apic: ApicId, offset: usize },
    /// The MADT does not list the processor that boots.
    BootCpuUnlisted { apic: ApicId },
    /// More processors than supported.
    TooManyCpus { found: usize, kept: usize },

    /// A processor that the SRAT gives no node.
    CpuWithoutNode { apic: ApicId, node: NodeId },
    /// The SRAT puts a processor into two domains.
    CpuInTwoDomains {
        apic: ApicId,
        kept: ProximityDomain,
        ignored: ProximityDomain,
    },
    /// The SRAT names a processor that the MADT does not list.
    UnknownCpu {
        apic: ApicId,
        domain: ProximityDomain,
    },
    /// An enabled range of memory without bytes.
    EmptyRange { domain: ProximityDomain, start: Hpa },
    /// A range that reaches past the end of the address space.
    WrappingRange {
        domain: ProximityDomain,
        start: Hpa,
        bytes: u64,
    },
    /// Two ranges of memory share addresses.
    Overlap {
        start: Hpa,
        end: Hpa,
        kept: ProximityDomain,
        ignored: ProximityDomain,
    },
    /// Usable memory that the SRAT gives no node.
    MemoryWithoutNode { start: Hpa, end: Hpa, node: NodeId },
    /// A domain of the SRAT with neither an enabled processor nor usable memory.
    EmptyDomain { domain: ProximityDomain },
    /// More domains than supported.
    TooManyNodes { found: usize, kept: usize },
    /// A node without usable memory.
    MemorylessNode {
        node: NodeId,
        domain: ProximityDomain,
    },
    /// A node without processors.
    CpulessNode {
        node: NodeId,
        domain: ProximityDomain,
    },
    /// Domains that are not numbered 0, 1, 2 and so on.
    SparseDomains {
        nodes: usize,
        highest: ProximityDomain,
    },

    /// The matrix of the SLIT does not fit into the table.
    SlitSize { localities: u64, bytes: usize },
    /// The SLIT has bytes behind its matrix.
    SlitTrailing { bytes: usize },
    /// A domain beyond the SLIT's matrix.
    SlitMissing {
        domain: ProximityDomain,
        localities: u64,
    },
    /// A local distance that is not 10.
    SlitLocal { domain: ProximityDomain, value: u8 },
    /// A remote distance below the local one.
    SlitBelowLocal {
        from: ProximityDomain,
        to: ProximityDomain,
        value: u8,
    },
    /// A distance of 255.
    SlitUnreachable {
        from: ProximityDomain,
        to: ProximityDomain,
    },

    /// A latency or bandwidth structure of the HMAT that makes no sense.
    HmatStructure {
        offset: usize,
        problem: &'static str,
    },
    /// The HMAT gives no latency for a pair of nodes.
    HmatIncomplete {
        from: ProximityDomain,
        to: ProximityDomain,
    },
    /// By the HMAT some remote memory is faster than local memory.
    HmatLocalNotLeast {
        domain: ProximityDomain,
        local_ns: u32,
        least_ns: u32,
    },

    /// The PPTT's parents form a circle or lead nowhere.
    PpttHierarchy { uid: u32 },
    /// The PPTT lacks a processor.
    PpttIncomplete { uid: u32 },

    /// More than are kept.
    Omitted { count: usize },
}

impl Quirk {
    /// Whether firmware is wrong or merely unusual.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::NoTable {
                table: TableId::Madt,
            } => Severity::Warning,
            Self::NoTable { .. }
            | Self::EmptyDomain { .. }
            | Self::MemorylessNode { .. }
            | Self::CpulessNode { .. }
            | Self::SparseDomains { .. }
            | Self::UnknownCpu { .. }
            | Self::SlitUnreachable { .. } => Severity::Note,
            _ => Severity::Warning,
        }
    }
}

/// Most quirks that are kept.
const MAX_QUIRKS: usize = 128;

/// The quirks found so far, bounded.
#[derive(Debug, Default)]
pub(crate) struct Quirks {
    found: Vec<Quirk>,
    omitted: usize,
}

impl Quirks {
    pub(crate) fn push(&mut self, quirk: Quirk) {
        if self.found.len() < MAX_QUIRKS {
            self.found.push(quirk);
        } else {
            self.omitted = self.omitted.saturating_add(1);
        }
    }

    /// The reason why `table` could not be opened.
    pub(crate) fn into_first(self, table: TableId) -> Quirk {
        self.found
            .into_iter()
            .next()
            .unwrap_or(Quirk::NoTable { table })
    }

    pub(crate) fn into_vec(mut self) -> Vec<Quirk> {
        if self.omitted > 0 {
            self.found.push(Quirk::Omitted {
                count: self.omitted,
            });
        }
        self.found
    }
}
