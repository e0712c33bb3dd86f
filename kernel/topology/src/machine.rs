//! The machine as Perigee understands it. Plain data: everything was checked on the way in.

use crate::hmat::Hmat;
use alloc::vec::Vec;
use core::fmt;
use units::{ApicId, CpuId, Hpa, NodeId, ProximityDomain};

/// The distance of nodes that cannot reach each other, and of nodes that do not exist (ACPI 6.5, 5.2.17).
pub const UNREACHABLE: u32 = 255;

/// Host-physical addresses from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    /// First byte.
    pub start: Hpa,
    /// Byte behind the last.
    pub end: Hpa,
}

impl PhysRange {
    /// Bytes in it; 0 if it is upside down.
    pub const fn bytes(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
    /// Whether `address` is in it.
    pub const fn contains(self, address: Hpa) -> bool {
        self.start.0 <= address.0 && address.0 < self.end.0
    }
}

/// Memory and the node that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// Where it is.
    pub range: PhysRange,
    /// Whose it is.
    pub node: NodeId,
}

/// A NUMA node: a proximity domain that has processors or usable memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its number in firmware's tables.
    pub domain: ProximityDomain,
    /// Its processors, ascending; empty for a memory-only node.
    pub cpus: Vec<CpuId>,
    /// Its usable memory, ascending; empty for a memory-less node.
    pub memory: Vec<PhysRange>,
    /// The node whose processors are attached to this node's memory, when the HMAT says so.
    pub initiator: Option<NodeId>,
}

impl Node {
    /// Whether it has processors.
    pub fn has_cpus(&self) -> bool {
        !self.cpus.is_empty()
    }
    /// Whether it has usable memory.
    pub fn has_memory(&self) -> bool {
        !self.memory.is_empty()
    }
    /// Its usable memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory
            .iter()
            .fold(0, |sum, range| sum.saturating_add(range.bytes()))
    }
}

/// A processor that firmware has enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number; 0 is the one that boots, the others follow in the order of the MADT.
    pub id: CpuId,
    /// Where IPIs to it go.
    pub apic: ApicId,
    /// Its number in ACPI's namespace.
    pub uid: u32,
    /// Its node.
    pub node: NodeId,
    /// Number of its core; equal for SMT siblings, dense over the machine.
    pub core: u32,
    /// Number of its last-level cache, dense over the machine.
    pub llc: u32,
    /// Number of its package, dense over the machine.
    pub package: u32,
    /// Which thread of its core it is, from 0.
    pub thread: u32,
}

/// A processor that is off now and may come online later (MADT flag "online capable").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfflineCpu {
    /// Where IPIs to it would go.
    pub apic: ApicId,
    /// Its number in ACPI's namespace.
    pub uid: u32,
    /// Its domain, if the SRAT names one.
    pub domain: Option<ProximityDomain>,
}

/// An I/O APIC (ACPI 6.5, 5.2.12.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC ID.
    pub id: u8,
    /// Where its registers are.
    pub address: Hpa,
    /// Global system interrupt of its first input.
    pub gsi_base: u32,
}

/// Which level of a line means "asserted".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// As the bus has it: high for ISA.
    Bus,
    /// High.
    High,
    /// Low.
    Low,
}

/// How a line triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As the bus has it: by edge for ISA.
    Bus,
    /// By edge.
    Edge,
    /// By level.
    Level,
}

/// An ISA interrupt that is not at the input of its own number (ACPI 6.5, 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptOverride {
    /// ISA interrupt.
    pub irq: u8,
    /// The global system interrupt that it is.
    pub gsi: u32,
    /// Its polarity.
    pub polarity: Polarity,
    /// Its trigger mode.
    pub trigger: Trigger,
}

/// An input of an I/O APIC that is to raise NMIs (ACPI 6.5, 5.2.12.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmiSource {
    /// The input.
    pub gsi: u32,
    /// Its polarity.
    pub polarity: Polarity,
    /// Its trigger mode.
    pub trigger: Trigger,
}

/// A pin of a local APIC that is wired to NMI (ACPI 6.5, 5.2.12.7 and 5.2.12.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNmi {
    /// The processor by its ACPI number, or `None` for all.
    pub uid: Option<u32>,
    /// LINT pin, 0 or 1.
    pub lint: u8,
    /// Its polarity.
    pub polarity: Polarity,
    /// Its trigger mode.
    pub trigger: Trigger,
}

/// Where latencies come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencySource {
    /// The processors themselves, at boot ([`crate::measured`]).
    Measured,
    /// Firmware's HMAT.
    Hmat,
    /// Distances of the SLIT, 10 ns a unit.
    Slit,
    /// Nothing but the number of nodes: 100 ns local, 200 ns remote.
    Default,
}

impl fmt::Display for LatencySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured at boot",
            Self::Hmat => "HMAT",
            Self::Slit => "SLIT x 10 ns",
            Self::Default => "no table: 100 ns local, 200 ns remote",
        })
    }
}

/// The whole machine; see the crate's documentation for what always holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Nodes, by number.
    pub nodes: Vec<Node>,
    /// Enabled processors, by number.
    pub cpus: Vec<Cpu>,
    /// Processors that may come online later.
    pub offline: Vec<OfflineCpu>,
    /// All usable memory, ascending.
    pub memory: Vec<MemoryRange>,
    /// I/O APICs in the order of the MADT.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are wired elsewhere.
    pub overrides: Vec<InterruptOverride>,
    /// I/O APIC inputs that raise NMIs.
    pub nmi_sources: Vec<NmiSource>,
    /// Local APIC pins that raise NMIs.
    pub local_nmis: Vec<LocalNmi>,
    /// Where every local APIC's registers are in xAPIC mode.
    pub lapic_address: Hpa,
    /// Whether there is a pair of 8259A to be masked.
    pub has_8259: bool,
    /// The HMAT as it was read, by proximity domain.
    pub hmat: Option<Hmat>,
    /// Where [`Machine::latency_ns`] comes from.
    pub latency_source: LatencySource,
    pub(crate) claims: Vec<MemoryRange>,
    pub(crate) distances: Vec<u32>,
    pub(crate) latencies_ns: Vec<u32>,
    pub(crate) bandwidths_mb_s: Vec<Option<u32>>,
}

impl Machine {
    /// A node by its number.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())
    }

    /// A processor by its number.
    pub fn cpu(&self, id: CpuId) -> Option<&Cpu> {
        self.cpus.get(id.index())
    }

    /// A processor by its APIC ID.
    pub fn cpu_by_apic(&self, apic: ApicId) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.apic == apic)
    }

    fn pair<T: Copy>(&self, matrix: &[T], from: NodeId, to: NodeId) -> Option<T> {
        let width = self.nodes.len();
        if to.index() >= width {
            return None;
        }
        matrix
            .get(from.index().checked_mul(width)?.checked_add(to.index())?)
            .copied()
    }

    /// Relative distance as in SLIT: 10 to itself, [`UNREACHABLE`] at most.
    pub fn distance(&self, from: NodeId, to: NodeId) -> u32 {
        self.pair(&self.distances, from, to).unwrap_or(UNREACHABLE)
    }

    /// Latency of an access from a processor of `from` to memory of `to`, in ns, unloaded.
    pub fn latency_ns(&self, from: NodeId, to: NodeId) -> u32 {
        self.pair(&self.latencies_ns, from, to)
            .unwrap_or(UNREACHABLE * 10)
    }

    /// Bandwidth from processors of `from` to memory of `to` in MB/s; `None` where no table says.
    pub fn bandwidth_mb_s(&self, from: NodeId, to: NodeId) -> Option<u32> {
        self.pair(&self.bandwidths_mb_s, from, to).flatten()
    }

    /// All nodes in the order of their distance from `node`, itself first; equally far ones in the order
    /// of latency, then of their numbers.
    pub fn nearest(&self, node: NodeId) -> Vec<NodeId> {
        let mut order: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        order.sort_by_key(|to| {
            (
                *to != node,
                self.distance(node, *to),
                self.latency_ns(node, *to),
                *to,
            )
        });
        order
    }

    /// The node of an address: of usable memory always, of other addresses if the SRAT claims them.
    pub fn node_of(&self, address: Hpa) -> Option<NodeId> {
        find(&self.memory, address).or_else(|| find(&self.claims, address))
    }

    /// Usable memory of all nodes in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.nodes
            .iter()
            .fold(0, |sum, node| sum.saturating_add(node.memory_bytes()))
    }

    /// Distances as a matrix, row = from.
    pub fn distance_rows(&self) -> Vec<Vec<u32>> {
        self.distances
            .chunks(self.nodes.len().max(1))
            .map(<[u32]>::to_vec)
            .collect()
    }

    /// Latencies in ns as a matrix, row = accessing node.
    pub fn latency_rows(&self) -> Vec<Vec<u32>> {
        self.latencies_ns
            .chunks(self.nodes.len().max(1))
            .map(<[u32]>::to_vec)
            .collect()
    }
}

/// The node of `address` in disjoint ascending ranges.
fn find(ranges: &[MemoryRange], address: Hpa) -> Option<NodeId> {
    let behind = ranges.partition_point(|range| range.range.start <= address);
    let range = ranges.get(behind.checked_sub(1)?)?;
    range.range.contains(address).then_some(range.node)
}
