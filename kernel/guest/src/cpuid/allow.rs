//! The allow-list: for each leaf, the bits of the host's answer that a guest may see.
//!
//! SDM 2A CPUID and APM 3 appendix E give the bits; the names are those of the manuals. What is
//! not here is zero.
//!
//! Speculation control (IBRS, IBPB, STIBP, SSBD, PSFD) is listed because the hypervisor switches IA32_SPEC_CTRL with the
//! vCPU and carries IBPB out ([`crate::speculation`]). IA32_ARCH_CAPABILITIES is not shown: a guest without it takes the measures
//! that the other bits allow.

use super::{CpuidResult, Vendor};

/// A register of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: Register,
    pub bit: u32,
}

impl Feature {
    const fn new(leaf: u32, register: Register, bit: u32) -> Self {
        Self {
            leaf,
            subleaf: 0,
            register,
            bit,
        }
    }
    const fn sub(leaf: u32, subleaf: u32, register: Register, bit: u32) -> Self {
        Self {
            leaf,
            subleaf,
            register,
            bit,
        }
    }
    pub(crate) const fn mask(self) -> u32 {
        1 << self.bit
    }
}

/// Whether a feature is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Present,
    Absent,
}

use Register::{Eax, Ebx, Ecx, Edx};

pub(crate) const PCID: Feature = Feature::new(1, Ecx, 17);
pub(crate) const X2APIC: Feature = Feature::new(1, Ecx, 21);
pub(crate) const TSC_DEADLINE: Feature = Feature::new(1, Ecx, 24);
pub(crate) const XSAVE: Feature = Feature::new(1, Ecx, 26);
pub(crate) const OSXSAVE: Feature = Feature::new(1, Ecx, 27);
pub(crate) const AVX: Feature = Feature::new(1, Ecx, 28);
pub(crate) const HYPERVISOR: Feature = Feature::new(1, Ecx, 31);
pub(crate) const APIC: Feature = Feature::new(1, Edx, 9);
pub(crate) const MTRR: Feature = Feature::new(1, Edx, 12);
pub(crate) const MCA: Feature = Feature::new(1, Edx, 14);
pub(crate) const PAT: Feature = Feature::new(1, Edx, 16);
pub(crate) const HTT: Feature = Feature::new(1, Edx, 28);
pub(crate) const FSGSBASE: Feature = Feature::new(7, Ebx, 0);
pub(crate) const TSC_ADJUST: Feature = Feature::new(7, Ebx, 1);
pub(crate) const SMEP: Feature = Feature::new(7, Ebx, 7);
pub(crate) const AVX512F: Feature = Feature::new(7, Ebx, 16);
pub(crate) const SMAP: Feature = Feature::new(7, Ebx, 20);
pub(crate) const UMIP: Feature = Feature::new(7, Ecx, 2);
pub(crate) const PKU: Feature = Feature::new(7, Ecx, 3);
pub(crate) const OSPKE: Feature = Feature::new(7, Ecx, 4);
pub(crate) const LA57: Feature = Feature::new(7, Ecx, 16);
pub(crate) const RDPID: Feature = Feature::new(7, Ecx, 22);
pub(crate) const INTEL_IBRS_IBPB: Feature = Feature::new(7, Edx, 26);
pub(crate) const INTEL_STIBP: Feature = Feature::new(7, Edx, 27);
pub(crate) const INTEL_SSBD: Feature = Feature::new(7, Edx, 31);
pub(crate) const CMP_LEGACY: Feature = Feature::new(0x8000_0001, Ecx, 1);
pub(crate) const TOPOEXT: Feature = Feature::new(0x8000_0001, Ecx, 22);
pub(crate) const SYSCALL: Feature = Feature::new(0x8000_0001, Edx, 11);
pub(crate) const NX: Feature = Feature::new(0x8000_0001, Edx, 20);
pub(crate) const FFXSR: Feature = Feature::new(0x8000_0001, Edx, 25);
pub(crate) const RDTSCP: Feature = Feature::new(0x8000_0001, Edx, 27);
pub(crate) const LM: Feature = Feature::new(0x8000_0001, Edx, 29);
pub(crate) const INVARIANT_TSC: Feature = Feature::new(0x8000_0007, Edx, 8);
pub(crate) const AMD_IBPB: Feature = Feature::new(0x8000_0008, Ebx, 12);
pub(crate) const AMD_IBRS: Feature = Feature::new(0x8000_0008, Ebx, 14);
pub(crate) const AMD_STIBP: Feature = Feature::new(0x8000_0008, Ebx, 15);
pub(crate) const AMD_SSBD: Feature = Feature::new(0x8000_0008, Ebx, 24);
pub(crate) const AMD_PSFD: Feature = Feature::new(0x8000_0008, Ebx, 28);

/// XCR0 bits and the features that are of no use without them.
pub(super) const NEEDS_STATE: &[(u64, &[Feature])] = &[
    // No x87 and SSE state: no XSAVE at all.
    (0b11, &[XSAVE]),
    (
        0b111,
        &[
            AVX,
            Feature::new(1, Ecx, 12),           // FMA
            Feature::new(1, Ecx, 29),           // F16C
            Feature::new(7, Ebx, 5),            // AVX2
            Feature::new(7, Ecx, 9),            // VAES
            Feature::new(7, Ecx, 10),           // VPCLMULQDQ
            Feature::sub(7, 1, Eax, 4),         // AVX_VNNI
            Feature::sub(7, 1, Eax, 23),        // AVX_IFMA
            Feature::new(0x8000_0001, Ecx, 11), // XOP
            Feature::new(0x8000_0001, Ecx, 16), // FMA4
        ],
    ),
    (
        0b1110_0111,
        &[
            AVX512F,
            Feature::new(7, Ebx, 17),   // AVX512_DQ
            Feature::new(7, Ebx, 21),   // AVX512_IFMA
            Feature::new(7, Ebx, 28),   // AVX512_CD
            Feature::new(7, Ebx, 30),   // AVX512_BW
            Feature::new(7, Ebx, 31),   // AVX512_VL
            Feature::new(7, Ecx, 1),    // AVX512_VBMI
            Feature::new(7, Ecx, 6),    // AVX512_VBMI2
            Feature::new(7, Ecx, 11),   // AVX512_VNNI
            Feature::new(7, Ecx, 12),   // AVX512_BITALG
            Feature::new(7, Ecx, 14),   // AVX512_VPOPCNTDQ
            Feature::new(7, Edx, 8),    // AVX512_VP2INTERSECT
            Feature::new(7, Edx, 23),   // AVX512_FP16
            Feature::sub(7, 1, Eax, 5), // AVX512_BF16
        ],
    ),
    (1 << 9, &[PKU]),
];

/// One line of the list.
pub(super) struct Row {
    pub leaf: u32,
    pub subleaf: u32,
    /// Whose processors have the leaf; `None` for both.
    pub vendor: Option<Vendor>,
    masks: CpuidResult,
}

impl Row {
    pub(super) const fn mask(&self, host: CpuidResult) -> CpuidResult {
        CpuidResult {
            eax: host.eax & self.masks.eax,
            ebx: host.ebx & self.masks.ebx,
            ecx: host.ecx & self.masks.ecx,
            edx: host.edx & self.masks.edx,
        }
    }
}

const fn row(leaf: u32, subleaf: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> Row {
    Row {
        leaf,
        subleaf,
        vendor: None,
        masks: CpuidResult { eax, ebx, ecx, edx },
    }
}

const fn only(vendor: Vendor, mut row: Row) -> Row {
    row.vendor = Some(vendor);
    row
}

/// A mask with these bits.
const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

const ALL: u32 = u32::MAX;

pub(super) const TABLE: &[Row] = &[
    // Vendor; EAX is replaced.
    row(0, 0, 0, ALL, ALL, ALL),
    row(
        1,
        0,
        ALL,
        0xFFFF, // brand index, CLFLUSH line size; the rest is the vCPU's
        // SSE3 PCLMULQDQ SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND
        bits(&[0, 1, 9, 12, 13, 17, 19, 20, 22, 23, 25, 26, 28, 29, 30]),
        // FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS
        bits(&[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27,
        ]),
    ),
    // Cache and TLB descriptors.
    only(Vendor::Intel, row(2, 0, ALL, ALL, ALL, ALL)),
    row(
        7,
        0,
        ALL, // highest subleaf; those that are not listed are zero
        // FSGSBASE TSC_ADJUST BMI1 AVX2 FDP_EXCPTN_ONLY SMEP BMI2 ERMS INVPCID ZERO_FCS_FDS AVX512F AVX512DQ RDSEED
        // ADX SMAP AVX512_IFMA CLFLUSHOPT CLWB AVX512CD SHA AVX512BW AVX512VL
        bits(&[
            0, 1, 3, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31,
        ]),
        // PREFETCHWT1 AVX512_VBMI UMIP PKU AVX512_VBMI2 GFNI VAES VPCLMULQDQ AVX512_VNNI AVX512_BITALG
        // AVX512_VPOPCNTDQ LA57 RDPID CLDEMOTE MOVDIRI MOVDIR64B
        bits(&[0, 1, 2, 3, 6, 8, 9, 10, 11, 12, 14, 16, 22, 25, 27, 28]),
        // FSRM AVX512_VP2INTERSECT MD_CLEAR SERIALIZE AVX512_FP16 IBRS_IBPB STIBP SSBD
        bits(&[4, 8, 10, 14, 23, 26, 27, 31]),
    ),
    // AVX_VNNI AVX512_BF16 FZLRM FSRS FSRC AVX_IFMA
    row(7, 1, bits(&[4, 5, 10, 11, 12, 23]), 0, 0, 0),
    row(
        0x8000_0001,
        0,
        ALL,
        0,
        // LAHF CMP_LEGACY CR8_LEGACY ABM SSE4A MISALIGNSSE 3DNOWPREFETCH XOP FMA4 TBM TOPOEXT
        bits(&[0, 1, 4, 5, 6, 7, 8, 11, 16, 21, 22]),
        // The bits of leaf 1 that AMD repeats, SYSCALL NX MMXEXT MMX FXSR FFXSR PDPE1GB RDTSCP LM 3DNOWEXT 3DNOW
        bits(&[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 22, 23, 24, 25, 26, 27,
            29, 30, 31,
        ]),
    ),
    // Brand string.
    row(0x8000_0002, 0, ALL, ALL, ALL, ALL),
    row(0x8000_0003, 0, ALL, ALL, ALL, ALL),
    row(0x8000_0004, 0, ALL, ALL, ALL, ALL),
    // Caches and TLBs.
    only(Vendor::Amd, row(0x8000_0005, 0, ALL, ALL, ALL, ALL)),
    row(0x8000_0006, 0, ALL, ALL, ALL, ALL),
    // Invariant TSC.
    row(0x8000_0007, 0, 0, 0, 0, 1 << 8),
    row(
        0x8000_0008,
        0,
        0xFFFF, // physical and linear address bits
        // CLZERO RSTR_FP_ERR_PTRS WBNOINVD IBPB IBRS STIBP SSBD SSB_NO PSFD BTC_NO
        bits(&[0, 2, 9, 12, 14, 15, 24, 26, 28, 29]),
        0,
        0,
    ),
    // 1 GiB TLBs.
    only(Vendor::Amd, row(0x8000_0019, 0, ALL, ALL, 0, 0)),
    // FP128 MOVU FP256
    only(Vendor::Amd, row(0x8000_001A, 0, 0b111, 0, 0, 0)),
    // NO_NESTED_DATA_BP LFENCE_RDTSC NULL_SEL_CLR_BASE NO_SMM_CTL_MSR
    only(
        Vendor::Amd,
        row(0x8000_0021, 0, bits(&[0, 2, 6, 9]), 0, 0, 0),
    ),
];
