//! What CPUID tells a guest.
//!
//! The host's answers go through an allow-list, bit by bit ([`allow`]): a bit that is not listed is
//! zero, and so is a leaf that is not listed. On top of that come
//! * what the hypervisor emulates whatever the host has: x2APIC, the TSC-deadline timer, an APIC timer
//!   that never stops (ARAT);
//! * what only the machine's shape says: topology and cache sharing ([`topology`]);
//! * what the vCPU's registers say: APIC identifier, OSXSAVE, OSPKE, XSAVE area sizes ([`xsave`]);
//! * the hypervisor's own leaves at 0x4000_0000 ([`hypervisor`]).
//!
//! Nested virtualization, MONITOR, the PMU, thermal and power management, SGX, TSX, MPX, AMX, CET,
//! processor trace and memory encryption are hidden: nothing behind them is emulated.
//!
//! The masks of CR4, EFER, XCR0 and XSS follow from the same bits, so a guest can never switch on
//! what it was not shown.

pub(crate) mod allow;
mod hypervisor;
mod topology;
mod xsave;
mod xsetbv;

use alloc::vec::Vec;

use crate::entry::{EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE};
use crate::shape::VmShape;
use allow::Register;
use topology::Topology;
use xsave::XsaveLayout;

pub use xsetbv::Xsetbv;

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// The host's CPUID instruction, or a recording of one.
pub trait CpuidSource {
    /// Executes CPUID with EAX = `eax` and ECX = `ecx`.
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult;
}

/// Whose instruction set and MSRs a processor follows where the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AuthenticAMD and HygonGenuine.
    Amd,
    /// GenuineIntel, and all others.
    Intel,
}

impl Vendor {
    /// The host's.
    pub fn of(host: &impl CpuidSource) -> Self {
        let leaf0 = host.leaf(0, 0);
        match (leaf0.ebx, leaf0.edx, leaf0.ecx) {
            (0x6874_7541, 0x6974_6E65, 0x444D_4163) | (0x6F67_7948, 0x6E65_476E, 0x656E_6975) => {
                Self::Amd
            }
            _ => Self::Intel,
        }
    }
}

/// Whether the TSCs of all host CPUs agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscSync {
    /// Measured to agree and invariant: the guest may trust the TSC alone.
    Synchronised,
    /// Not known to agree: a vCPU's clock may differ from another's by the measurement's error.
    Unsynchronised,
}

/// What a guest is told about clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscFacts {
    /// Frequency of the guest's TSC in Hz.
    pub hz: u64,
    /// Whether the TSCs agree.
    pub sync: TscSync,
}

/// The state of a vCPU that shows in CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuDynamic {
    /// Its local APIC identifier ([`VmShape::apic_id`]).
    pub apic_id: u32,
    /// IA32_APIC_BASE; a disabled APIC hides its feature bit.
    pub apic_base: u64,
    /// CR4; OSXSAVE and PKE show.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
}

/// CR4 bits by feature (SDM 3A 2.5, APM 2 3.1.3).
mod cr4 {
    /// VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT: every 64-bit processor has these.
    pub const BASE: u64 = 0x7FF;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}

/// EFER.FFXSR: FXSAVE leaves the SSE registers out at CPL 0.
const EFER_FFXSR: u64 = 1 << 14;
/// IA32_APIC_BASE: enabled.
const APIC_ENABLED: u64 = 1 << 11;

/// The highest basic leaf that means anything here.
const LAST_BASIC: u32 = 0x1F;
/// The least that is shown: topology (0xB) and XSAVE (0xD) are answered on every host.
const LEAST_BASIC: u32 = 0xD;
/// The highest extended leaf that means anything here.
const LAST_EXTENDED: u32 = 0x8000_0021;
/// The least that is shown: address widths are answered on every host.
const LEAST_EXTENDED: u32 = 0x8000_0008;

/// What the vCPUs of one VM see.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    vendor: Vendor,
    /// Leaves after the allow-list and the emulated features; sorted by leaf and subleaf.
    leaves: Vec<(u32, u32, CpuidResult)>,
    caches: Vec<CpuidResult>,
    topology: Topology,
    xsave: XsaveLayout,
    tsc: TscFacts,
    max_basic: u32,
    max_extended: u32,
}

impl CpuidPolicy {
    /// The policy for a machine of this shape on this host.
    pub fn new(host: &impl CpuidSource, shape: &VmShape, tsc: TscFacts) -> Self {
        let leaf0 = host.leaf(0, 0);
        let vendor = Vendor::of(host);
        let host_extended = host.leaf(0x8000_0000, 0).eax;
        let host_extended = if host_extended >> 16 == 0x8000 {
            host_extended
        } else {
            0x8000_0000
        };
        let in_host = |leaf: u32| match leaf >> 16 {
            0 => leaf <= leaf0.eax,
            _ => leaf <= host_extended,
        };

        let mut leaves: Vec<(u32, u32, CpuidResult)> = allow::TABLE
            .iter()
            .filter(|row| in_host(row.leaf) && row.vendor.is_none_or(|v| v == vendor))
            .map(|row| {
                (
                    row.leaf,
                    row.subleaf,
                    row.mask(host.leaf(row.leaf, row.subleaf)),
                )
            })
            .collect();
        leaves.sort_unstable_by_key(|(leaf, subleaf, _)| (*leaf, *subleaf));

        let mut policy = Self {
            vendor,
            leaves,
            caches: topology::host_caches(host, vendor, leaf0.eax, host_extended),
            topology: Topology::of(shape),
            xsave: XsaveLayout::NONE,
            tsc,
            max_basic: leaf0.eax.clamp(LEAST_BASIC, LAST_BASIC),
            max_extended: host_extended.clamp(LEAST_EXTENDED, LAST_EXTENDED),
        };
        if policy.has(allow::XSAVE) && in_host(0xD) {
            policy.xsave = XsaveLayout::of(
                host,
                policy.has(allow::AVX),
                policy.has(allow::AVX512F),
                policy.has(allow::PKU),
            );
        }
        policy.drop_what_needs_missing_state();
        policy.add_emulated();
        policy
    }

    /// Features whose registers no XCR0 bit covers cannot be used, so they are not shown.
    fn drop_what_needs_missing_state(&mut self) {
        let xcr0 = self.xsave.xcr0();
        for (needs, features) in allow::NEEDS_STATE {
            if xcr0 & needs != *needs {
                for f in *features {
                    self.set(*f, allow::Presence::Absent);
                }
            }
        }
    }

    /// What is there whatever the host has, and what is there only when clocks permit.
    fn add_emulated(&mut self) {
        use allow::Presence::{Absent, Present};
        self.set(allow::X2APIC, Present);
        self.set(allow::TSC_DEADLINE, Present);
        self.set(allow::HYPERVISOR, Present);
        let many = if self.topology.threads_per_package() > 1 {
            Present
        } else {
            Absent
        };
        self.set(allow::HTT, many);
        if self.vendor == Vendor::Amd {
            self.set(allow::CMP_LEGACY, many);
        }
        if self.tsc.sync == TscSync::Unsynchronised {
            self.set(allow::INVARIANT_TSC, Absent);
        }
    }

    /// What CPUID returns to a vCPU in this state.
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32, vcpu: &VcpuDynamic) -> CpuidResult {
        let known = match leaf >> 16 {
            0 => leaf <= self.max_basic,
            0x4000 => return hypervisor::leaf(leaf, self.tsc),
            0x8000 => leaf <= self.max_extended,
            _ => false,
        };
        if !known {
            return CpuidResult::default();
        }
        let mut r = self.fixed(leaf, subleaf);
        match leaf {
            0 => r.eax = self.max_basic,
            1 => {
                r.ebx =
                    r.ebx & 0xFFFF | self.topology.logical_processors() << 16 | vcpu.apic_id << 24;
                if vcpu.cr4 & cr4::OSXSAVE != 0 {
                    r.ecx |= allow::OSXSAVE.mask();
                }
                if vcpu.apic_base & APIC_ENABLED == 0 {
                    r.edx &= !allow::APIC.mask();
                }
            }
            4 if self.vendor == Vendor::Intel => r = self.cache(subleaf),
            6 => r.eax = hypervisor::ARAT,
            7 if subleaf == 0 && vcpu.cr4 & cr4::PKE != 0 => r.ecx |= allow::OSPKE.mask(),
            0xB | 0x1F => r = self.topology.levels(subleaf, vcpu.apic_id),
            0xD => r = self.xsave.leaf(subleaf, vcpu.xcr0, vcpu.xss),
            0x8000_0000 => r.eax = self.max_extended,
            0x8000_0008 if self.vendor == Vendor::Amd => {
                r.ecx = self.topology.amd_size_identifiers()
            }
            0x8000_001D if self.has(allow::TOPOEXT) => r = self.cache(subleaf),
            0x8000_001E if self.has(allow::TOPOEXT) => {
                r = self.topology.amd_identifiers(vcpu.apic_id)
            }
            _ => {}
        }
        r
    }

    fn cache(&self, subleaf: u32) -> CpuidResult {
        let host = usize::try_from(subleaf)
            .ok()
            .and_then(|i| self.caches.get(i))
            .copied()
            .unwrap_or_default();
        self.topology.cache(host, self.vendor)
    }

    /// The part of a leaf that is the same for every vCPU. Only leaf 7 has subleaves here; the others
    /// ignore ECX, as hardware does.
    fn fixed(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        let subleaf = if leaf == 7 { subleaf } else { 0 };
        self.leaves
            .iter()
            .find(|(l, s, _)| (*l, *s) == (leaf, subleaf))
            .map_or_else(CpuidResult::default, |(.., r)| *r)
    }

    pub(crate) fn has(&self, f: allow::Feature) -> bool {
        let r = self.fixed(f.leaf, f.subleaf);
        let value = match f.register {
            Register::Eax => r.eax,
            Register::Ebx => r.ebx,
            Register::Ecx => r.ecx,
            Register::Edx => r.edx,
        };
        value & f.mask() != 0
    }

    fn set(&mut self, f: allow::Feature, presence: allow::Presence) {
        let Some((.., r)) = self
            .leaves
            .iter_mut()
            .find(|(l, s, _)| (*l, *s) == (f.leaf, f.subleaf))
        else {
            return;
        };
        let value = match f.register {
            Register::Eax => &mut r.eax,
            Register::Ebx => &mut r.ebx,
            Register::Ecx => &mut r.ecx,
            Register::Edx => &mut r.edx,
        };
        match presence {
            allow::Presence::Present => *value |= f.mask(),
            allow::Presence::Absent => *value &= !f.mask(),
        }
    }

    /// Whose processor it is.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// CPUID leaf 1 EAX: family, model, stepping; what RDX holds after reset.
    #[must_use]
    pub fn signature(&self) -> u32 {
        self.fixed(1, 0).eax
    }

    /// Width of guest-physical addresses in bits.
    #[must_use]
    pub fn physical_bits(&self) -> u8 {
        match self.fixed(0x8000_0008, 0).eax as u8 {
            // SDM 3A 4.1.4: 36 where the leaf is missing.
            0 => 36,
            bits => bits.clamp(32, 52),
        }
    }

    /// CR4 bits that the guest may set.
    #[must_use]
    pub fn allowed_cr4(&self) -> u64 {
        [
            (allow::UMIP, cr4::UMIP),
            (allow::LA57, cr4::LA57),
            (allow::FSGSBASE, cr4::FSGSBASE),
            (allow::PCID, cr4::PCIDE),
            (allow::XSAVE, cr4::OSXSAVE),
            (allow::SMEP, cr4::SMEP),
            (allow::SMAP, cr4::SMAP),
            (allow::PKU, cr4::PKE),
        ]
        .into_iter()
        .filter(|(f, _)| self.has(*f))
        .fold(cr4::BASE, |all, (_, bit)| all | bit)
    }

    /// XCR0 bits that the guest may set; 0 when it has no XSAVE.
    #[must_use]
    pub const fn allowed_xcr0(&self) -> u64 {
        self.xsave.xcr0()
    }

    /// EFER bits that the guest may set; LMA is the processor's to set.
    #[must_use]
    pub fn allowed_efer(&self) -> u64 {
        [
            (allow::SYSCALL, EFER_SCE),
            (allow::NX, EFER_NXE),
            (allow::LM, EFER_LME | EFER_LMA),
            (allow::FFXSR, EFER_FFXSR),
        ]
        .into_iter()
        .filter(|(f, _)| self.has(*f))
        .fold(0, |all, (_, bit)| all | bit)
    }

    /// IA32_XSS bits that the guest may set: none, since no supervisor state is offered.
    #[must_use]
    pub const fn allowed_xss(&self) -> u64 {
        xsave::ALLOWED_XSS
    }

    /// Whether the guest has XSAVES, and IA32_XSS with it.
    pub(crate) const fn has_xsaves(&self) -> bool {
        self.xsave.has_xsaves()
    }

    /// Bytes that hold all extended state the guest can have, in either format; 512 + 64 at least.
    #[must_use]
    pub fn xsave_bytes(&self) -> u32 {
        self.xsave.bytes()
    }
}

#[cfg(test)]
mod tests;
