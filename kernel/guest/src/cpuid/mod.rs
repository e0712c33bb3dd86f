//! What CPUID tells a guest.
use crate::VmShape;

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

/// The host's CPUID.
pub trait CpuidSource {
    /// Executes CPUID with these inputs.
    fn leaf(&self, eax: u32, ecx: u32) -> CpuidResult;
}

/// Who made the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AuthenticAMD, HygonGenuine.
    Amd,
    /// GenuineIntel and others.
    Intel,
}

/// Whether the TSCs of all host CPUs agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscSync {
    /// Measured to agree: the guest may trust the TSC alone.
    Synchronised,
    /// Not.
    Unsynchronised,
}

/// The clock facts a guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscFacts {
    /// Guest TSC frequency in Hz.
    pub hz: u64,
    /// Whether the TSCs agree.
    pub sync: TscSync,
}

/// The state of a vCPU that shows in CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuDynamic {
    /// Its local APIC identifier ([`VmShape::apic_id`]).
    pub apic_id: u32,
    /// IA32_APIC_BASE, for the enable bit.
    pub apic_base: u64,
    /// CR4: OSXSAVE and PKE show.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
}

/// The policy of one VM.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    vendor: Vendor,
}

impl CpuidPolicy {
    /// From the host's CPUID.
    pub fn new(_host: &impl CpuidSource, _shape: &VmShape, _tsc: TscFacts) -> Self {
        Self {
            vendor: Vendor::Amd,
        }
    }
    /// The answer for a vCPU.
    pub fn lookup(&self, _leaf: u32, _subleaf: u32, _vcpu: &VcpuDynamic) -> CpuidResult {
        CpuidResult::default()
    }
    /// Who made the CPU.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }
    /// CPUID leaf 1 EAX, for RDX after reset.
    pub fn signature(&self) -> u32 {
        0
    }
    /// Width of guest-physical addresses.
    pub fn physical_bits(&self) -> u8 {
        48
    }
    /// CR4 bits that the guest may set.
    pub fn allowed_cr4(&self) -> u64 {
        0
    }
    /// XCR0 bits that the guest may set; 0 when it has no XSAVE.
    pub fn allowed_xcr0(&self) -> u64 {
        0
    }
    /// EFER bits that the guest may set.
    pub fn allowed_efer(&self) -> u64 {
        0
    }
    /// IA32_XSS bits that the guest may set.
    pub fn allowed_xss(&self) -> u64 {
        0
    }
    /// Whether `value` may be loaded into XCR0 (SDM 1 13.3).
    pub fn xcr0_is_valid(&self, _value: u64) -> bool {
        false
    }
    /// Bytes of the XSAVE area (compact or standard, whichever is larger) the kernel must keep for a vCPU.
    pub fn xsave_bytes(&self) -> u32 {
        0
    }
}
