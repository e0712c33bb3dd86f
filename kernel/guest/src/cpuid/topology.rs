//! Leaves that describe how processors are grouped and which caches they share.
//!
//! All of them are computed from the machine's shape; of the host only cache sizes remain. So they
//! agree with each other, with the APIC identifiers in the MADT and with the nodes in the SRAT,
//! whatever CPU a vCPU happens to run on.

use alloc::vec::Vec;

use super::{CpuidResult, CpuidSource, Vendor};
use crate::shape::VmShape;

/// Level types of leaf 0xB (SDM 2A CPUID, APM 3 E.3.9).
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// Deterministic cache leaves are listed until one of type 0; no processor has this many.
const MAX_CACHES: u32 = 8;

/// The numbers that the leaves are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Topology {
    threads_per_core: u32,
    threads_per_package: u32,
    thread_bits: u32,
    package_bits: u32,
}

impl Topology {
    pub(super) fn of(shape: &VmShape) -> Self {
        let t = shape.topology;
        let threads_per_core = u32::from(t.threads_per_core);
        Self {
            threads_per_core,
            threads_per_package: threads_per_core.saturating_mul(u32::from(t.cores_per_package)),
            thread_bits: t.thread_bits(),
            package_bits: shape.package_bits(),
        }
    }

    pub(super) const fn threads_per_package(self) -> u32 {
        self.threads_per_package
    }

    /// Leaf 1 EBX 23:16: identifiers reserved for a package, which has 8 bits.
    pub(super) fn logical_processors(self) -> u32 {
        (1u32 << self.package_bits.min(8)).min(255)
    }

    /// Leaves 0xB and 0x1F.
    pub(super) fn levels(self, subleaf: u32, apic_id: u32) -> CpuidResult {
        let (eax, ebx, level) = match subleaf {
            0 => (self.thread_bits, self.threads_per_core, LEVEL_SMT),
            1 => (self.package_bits, self.threads_per_package, LEVEL_CORE),
            _ => (0, 0, 0),
        };
        CpuidResult {
            eax,
            ebx,
            ecx: level << 8 | subleaf & 0xFF,
            edx: apic_id,
        }
    }

    /// Leaf 0x8000_0008 ECX: ApicIdSize and NC (APM 3 E.4.7).
    pub(super) fn amd_size_identifiers(self) -> u32 {
        self.package_bits << 12 | (self.threads_per_package - 1).min(0xFF)
    }

    /// Leaf 0x8000_001E: each package is one node (APM 3 E.4.17).
    pub(super) fn amd_identifiers(self, apic_id: u32) -> CpuidResult {
        let in_package = apic_id & ((1 << self.package_bits) - 1);
        CpuidResult {
            eax: apic_id,
            ebx: (self.threads_per_core - 1) << 8 | (in_package >> self.thread_bits) & 0xFF,
            ecx: (apic_id >> self.package_bits) & 0xFF,
            edx: 0,
        }
    }

    /// One cache of leaf 4 or 0x8000_001D with its sharing replaced: levels 1 and 2 belong to a core, level
    /// 3 to a package.
    pub(super) fn cache(self, host: CpuidResult, vendor: Vendor) -> CpuidResult {
        if host.eax & 0x1F == 0 {
            return CpuidResult::default();
        }
        let bits = if host.eax >> 5 & 7 >= 3 {
            self.package_bits
        } else {
            self.thread_bits
        };
        let sharing = ((1u32 << bits) - 1).min(0xFFF);
        let cores = match vendor {
            Vendor::Intel => ((1u32 << (self.package_bits - self.thread_bits)) - 1).min(0x3F),
            // Reserved there.
            Vendor::Amd => 0,
        };
        CpuidResult {
            eax: host.eax & 0x3FFF | sharing << 14 | cores << 26,
            ..host
        }
    }
}

/// The host's caches, from the vendor's own leaf.
pub(super) fn host_caches(
    host: &impl CpuidSource,
    vendor: Vendor,
    max_basic: u32,
    max_extended: u32,
) -> Vec<CpuidResult> {
    let leaf = match vendor {
        Vendor::Intel if max_basic >= 4 => 4,
        Vendor::Amd if max_extended >= 0x8000_001D => 0x8000_001D,
        _ => return Vec::new(),
    };
    (0..MAX_CACHES)
        .map(|i| host.leaf(leaf, i))
        .take_while(|c| c.eax & 0x1F != 0)
        .collect()
}
