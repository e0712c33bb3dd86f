//! Why a machine cannot be.

use core::fmt;

use super::{
    CpuTopology, MAX_MEMORY_BYTES, MAX_NODES, MAX_VCPUS, MEMORY_GRANULE, MIN_MEMORY_BYTES,
};

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
