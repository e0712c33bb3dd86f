//! Names of nodes, processors and machines.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident($int:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// As an index into a table with one entry for each.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

name!(
    /// A NUMA node, numbered densely from 0 in ascending order of proximity domain.
    NodeId(u16), "node"
);
name!(
    /// A processor, numbered densely from 0; 0 is the one that firmware started.
    CpuId(u32), "cpu"
);
name!(
    /// Local APIC identifier, 8 bits in xAPIC mode and 32 in x2APIC mode (SDM 3A 11.4.6).
    ApicId(u32), "apic"
);
name!(
    /// Proximity domain as ACPI writes it: 32 bits, possibly sparse (ACPI 6.5, 5.2.16).
    ProximityDomain(u32), "pxm"
);
name!(
    /// A virtual machine, numbered in the order of the configuration.
    VmId(u16), "vm"
);

/// A virtual CPU: its machine and its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct VcpuId {
    /// The machine.
    pub vm: VmId,
    /// Number inside the machine, from 0.
    pub index: u16,
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.vm, self.index)
    }
}

impl fmt::Debug for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
