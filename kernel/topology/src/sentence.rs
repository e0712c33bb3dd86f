//! The quirks as sentences: what is wrong, where, and what is done instead.

use crate::quirk::{Quirk, TableId};
use core::fmt;

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable { .. }
            | Self::NoHeader { .. }
            | Self::WrongSignature { .. }
            | Self::CutShort { .. }
            | Self::BadChecksum { .. }
            | Self::ZeroLengthEntry { .. }
            | Self::TruncatedEntry { .. }
            | Self::ShortEntry { .. } => self.frame_sentence(f),
            Self::DuplicateApicId { apic, offset } => {
                write!(
                    f,
                    "MADT, offset {offset}: {apic} is listed twice; the first entry counts."
                )
            }
            Self::BroadcastApicId { apic, offset } => {
                write!(
                    f,
                    "MADT, offset {offset}: an enabled processor has the broadcast address {:#x}; it is ignored.",
                    apic.0
                )
            }
            Self::BootCpuUnlisted { apic } => write!(
                f,
                "MADT does not list the boot processor {apic}; it is added as cpu0."
            ),
            Self::TooManyCpus { found, kept } => {
                write!(
                    f,
                    "MADT lists {found} enabled processors, but {kept} are supported; the rest stays off."
                )
            }
            Self::SlitSize { .. }
            | Self::SlitTrailing { .. }
            | Self::SlitMissing { .. }
            | Self::SlitLocal { .. }
            | Self::SlitBelowLocal { .. }
            | Self::SlitUnreachable { .. }
            | Self::HmatStructure { .. }
            | Self::HmatIncomplete { .. }
            | Self::HmatLocalNotLeast { .. } => self.distance_sentence(f),
            Self::PpttHierarchy { uid } => {
                write!(
                    f,
                    "PPTT: the parents of processor {uid} form a circle or lead nowhere; the table is not used."
                )
            }
            Self::PpttIncomplete { uid } => {
                write!(f, "PPTT lacks processor {uid}; the table is not used.")
            }
            Self::Omitted { count } => {
                write!(f, "{count} more oddities of the firmware are not listed.")
            }
            _ => self.affinity_sentence(f),
        }
    }
}

impl Quirk {
    fn frame_sentence(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instead = |table: TableId| match table {
            TableId::Madt => "only the boot processor is used",
            TableId::Srat => "all processors and memory are node 0",
            TableId::Slit => "all remote distances are 20",
            TableId::Hmat => "latencies are estimated from distances",
            TableId::Pptt => "cores and caches are taken from CPUID alone",
            TableId::Fadt => "power-off and the PM timer are unknown",
            TableId::Spcr => "the console is COM1",
        };
        match self {
            Self::NoTable { table } => write!(f, "Firmware has no {table}; {}.", instead(*table)),
            Self::NoHeader { table, bytes } => {
                write!(
                    f,
                    "{table} has {bytes} bytes, too few for a header; it is ignored: {}.",
                    instead(*table)
                )
            }
            Self::WrongSignature { table, found } => {
                let found = found.escape_ascii();
                write!(
                    f,
                    "{table} starts with \"{found}\"; it is ignored: {}.",
                    instead(*table)
                )
            }
            Self::CutShort {
                table: TableId::Madt,
                declared,
                available,
            } => {
                write!(
                    f,
                    "MADT claims {declared} bytes, but {available} are there; what is there is used."
                )
            }
            Self::CutShort {
                table,
                declared,
                available,
            } => write!(
                f,
                "{table} claims {declared} bytes, but {available} are there; it is ignored: {}.",
                instead(*table)
            ),
            Self::BadChecksum {
                table: TableId::Madt,
                sum,
            } => {
                write!(
                    f,
                    "MADT adds up to {sum:#04x} instead of 0; it is used, for want of another list of processors."
                )
            }
            Self::BadChecksum { table, sum } => {
                write!(
                    f,
                    "{table} adds up to {sum:#04x} instead of 0; it is ignored: {}.",
                    instead(*table)
                )
            }
            Self::ZeroLengthEntry {
                table,
                offset,
                length,
            } => {
                write!(
                    f,
                    "{table}, offset {offset}: an entry claims a length of {length}; the rest of the table is ignored."
                )
            }
            Self::TruncatedEntry {
                table,
                offset,
                length,
                available,
            } => write!(
                f,
                "{table}, offset {offset}: an entry of {length} bytes has only {available} left in the table; it is ignored."
            ),
            Self::ShortEntry {
                table,
                offset,
                kind,
                length,
                needed,
            } => write!(
                f,
                "{table}, offset {offset}: an entry of type {kind} has {length} bytes and needs {needed}; it is ignored."
            ),
            _ => Ok(()),
        }
    }

    fn affinity_sentence(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CpuWithoutNode { apic, node } => {
                write!(f, "SRAT gives {apic} no domain; it joins {node}.")
            }
            Self::CpuInTwoDomains {
                apic,
                kept,
                ignored,
            } => {
                write!(
                    f,
                    "SRAT puts {apic} into {kept} and {ignored}; the first counts."
                )
            }
            Self::UnknownCpu { apic, domain } => {
                write!(
                    f,
                    "SRAT puts {apic} into {domain}, but MADT does not list it; the entry is ignored."
                )
            }
            Self::EmptyRange { domain, start } => {
                write!(
                    f,
                    "SRAT has a range of {domain} at {start} with no bytes; it is ignored."
                )
            }
            Self::WrappingRange {
                domain,
                start,
                bytes,
            } => {
                write!(
                    f,
                    "SRAT has a range of {domain} at {start} whose {bytes:#x} bytes pass the end of the address space; it is cut there."
                )
            }
            Self::Overlap {
                start,
                end,
                kept,
                ignored,
            } => {
                write!(
                    f,
                    "SRAT gives {start} to {end} to {kept} and again to {ignored}; the first counts."
                )
            }
            Self::MemoryWithoutNode { start, end, node } => {
                write!(
                    f,
                    "SRAT gives the memory {start} to {end} no domain; it joins {node}."
                )
            }
            Self::EmptyDomain { domain } => {
                write!(
                    f,
                    "SRAT names {domain}, which has neither a running processor nor usable memory; it is no node."
                )
            }
            Self::TooManyNodes { found, kept } => write!(
                f,
                "SRAT has {found} domains in use, but {kept} nodes are supported; what belongs to the others joins a neighbour."
            ),
            Self::MemorylessNode { node, domain } => {
                write!(
                    f,
                    "{node} ({domain}) has no memory; its processors are served by the nearest node that has."
                )
            }
            Self::CpulessNode { node, domain } => write!(
                f,
                "{node} ({domain}) has memory, but no processor; all its accesses are remote."
            ),
            Self::SparseDomains { nodes, highest } => {
                write!(
                    f,
                    "SRAT numbers {nodes} domains up to {highest}; nodes are numbered from 0 in their order."
                )
            }
            _ => Ok(()),
        }
    }

    fn distance_sentence(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlitSize { localities, bytes } => write!(
                f,
                "SLIT claims {localities} localities, whose matrix does not fit into its {bytes} bytes; it is ignored: all remote distances are 20."
            ),
            Self::SlitTrailing { bytes } => write!(
                f,
                "SLIT has {bytes} bytes behind its matrix; they are ignored."
            ),
            Self::SlitMissing { domain, localities } => {
                write!(
                    f,
                    "SLIT has {localities} localities and no row for {domain}; its remote distances are 20."
                )
            }
            Self::SlitLocal { domain, value } => {
                write!(
                    f,
                    "SLIT says {value} for the distance of {domain} to itself; 10 is used."
                )
            }
            Self::SlitBelowLocal { from, to, value } => {
                write!(
                    f,
                    "SLIT says {value} from {from} to {to}, less than the local 10; 20 is used."
                )
            }
            Self::SlitUnreachable { from, to } => {
                write!(
                    f,
                    "SLIT calls {to} unreachable from {from} (255); it is kept as the farthest."
                )
            }
            Self::HmatStructure { offset, problem } => write!(
                f,
                "HMAT, offset {offset}: {problem}; the structure is ignored."
            ),
            Self::HmatIncomplete { from, to } => {
                write!(
                    f,
                    "HMAT has no latency from {from} to {to}; all latencies are estimated from distances."
                )
            }
            Self::HmatLocalNotLeast {
                domain,
                local_ns,
                least_ns,
            } => write!(
                f,
                "HMAT says {local_ns} ns for local memory of {domain} and {least_ns} ns for remote; all latencies are estimated from distances."
            ),
            _ => Ok(()),
        }
    }
}
