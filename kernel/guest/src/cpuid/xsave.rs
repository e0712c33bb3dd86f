//! Leaf 0xD: the extended state that XSAVE manages (SDM 1 13.2, APM 3 E.3.8).

use super::{CpuidResult, CpuidSource};

/// XCR0: x87 and SSE, which every XSAVE has.
const LEGACY: u64 = 0b11;
/// XCR0: the upper halves of the AVX registers.
const AVX: u64 = 1 << 2;
/// XCR0: opmask, upper halves of ZMM0 to 15, ZMM16 to 31.
const AVX512: u64 = 0b111 << 5;
/// XCR0: protection-key rights.
const PKRU: u64 = 1 << 9;
/// No supervisor state is offered.
pub(super) const ALLOWED_XSS: u64 = 0;
/// XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES; not XFD.
const EXTENSIONS: u32 = 0b1111;
const XSAVEC: u32 = 1 << 1;
const XSAVES: u32 = 1 << 3;
/// Legacy area and header.
const BASE_BYTES: u32 = 512 + 64;
/// Components that are known here end below this one.
const COMPONENTS: usize = 10;
/// A component larger than this is none; the largest known, ZMM16 to 31, has 1024 bytes.
const MAX_COMPONENT_BYTES: u32 = 4096;

/// One component beyond the legacy area.
#[derive(Clone, Copy, Debug, Default)]
struct Component {
    bytes: u32,
    /// In the standard format.
    offset: u32,
    /// ECX: bit 1 means 64-byte alignment in the compact format.
    ecx: u32,
}

/// Where the components lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct XsaveLayout {
    xcr0: u64,
    extensions: u32,
    components: [Component; COMPONENTS],
}

impl XsaveLayout {
    /// No XSAVE.
    pub(super) const NONE: Self = Self {
        xcr0: 0,
        extensions: 0,
        components: [Component {
            bytes: 0,
            offset: 0,
            ecx: 0,
        }; COMPONENTS],
    };

    /// What the host has of the components whose features are shown.
    pub(super) fn of(host: &impl CpuidSource, avx: bool, avx512: bool, pku: bool) -> Self {
        let leaf = host.leaf(0xD, 0);
        let supported = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
        let mut layout = Self {
            xcr0: 0,
            extensions: host.leaf(0xD, 1).eax & EXTENSIONS,
            ..Self::NONE
        };
        if supported & LEGACY != LEGACY {
            return Self::NONE;
        }
        layout.xcr0 = LEGACY;
        for (wanted, group) in [(avx, AVX), (avx && avx512, AVX | AVX512), (pku, PKRU)] {
            if wanted && supported & group == group && layout.learn(host, group) {
                layout.xcr0 |= group;
            }
        }
        layout
    }

    /// Notes where the components of `group` lie; false if the host's answer makes no sense.
    fn learn(&mut self, host: &impl CpuidSource, group: u64) -> bool {
        for (i, component) in (0u32..).zip(&mut self.components) {
            if group >> i & 1 == 0 {
                continue;
            }
            let r = host.leaf(0xD, i);
            if r.eax == 0
                || r.eax > MAX_COMPONENT_BYTES
                || r.ebx < BASE_BYTES
                || r.ebx > 16 * MAX_COMPONENT_BYTES
            {
                return false;
            }
            *component = Component {
                bytes: r.eax,
                offset: r.ebx,
                ecx: r.ecx & 0b10,
            };
        }
        true
    }

    pub(super) const fn xcr0(&self) -> u64 {
        self.xcr0
    }

    pub(super) const fn has_xsaves(&self) -> bool {
        self.xcr0 != 0 && self.extensions & XSAVES != 0
    }

    pub(super) const fn accepts(&self, value: u64) -> bool {
        let avx512 = value & AVX512;
        value & 1 != 0
            && value & !self.xcr0 == 0
            && (value & AVX == 0 || value & LEGACY == LEGACY)
            && (avx512 == 0 || avx512 == AVX512 && value & AVX != 0)
    }

    pub(super) fn leaf(&self, subleaf: u32, xcr0: u64, xss: u64) -> CpuidResult {
        if self.xcr0 == 0 {
            return CpuidResult::default();
        }
        match subleaf {
            0 => CpuidResult {
                eax: self.xcr0 as u32,
                ebx: self.standard_bytes(xcr0),
                ecx: self.standard_bytes(self.xcr0),
                edx: (self.xcr0 >> 32) as u32,
            },
            1 => CpuidResult {
                eax: self.extensions,
                ebx: if self.extensions & (XSAVEC | XSAVES) != 0 {
                    self.compact_bytes(xcr0 | xss)
                } else {
                    0
                },
                ecx: ALLOWED_XSS as u32,
                edx: (ALLOWED_XSS >> 32) as u32,
            },
            _ => match usize::try_from(subleaf)
                .ok()
                .and_then(|i| self.components.get(i))
            {
                Some(c) if self.xcr0 >> subleaf & 1 == 1 => CpuidResult {
                    eax: c.bytes,
                    ebx: c.offset,
                    ecx: c.ecx,
                    edx: 0,
                },
                _ => CpuidResult::default(),
            },
        }
    }

    /// The most that either format needs.
    pub(super) fn bytes(&self) -> u32 {
        self.standard_bytes(self.xcr0)
            .max(self.compact_bytes(self.xcr0))
    }

    fn enabled(&self, states: u64) -> impl Iterator<Item = &Component> {
        let states = states & self.xcr0;
        (0u32..)
            .zip(&self.components)
            .skip(2)
            .filter(move |(i, _)| states >> i & 1 == 1)
            .map(|(_, c)| c)
    }

    fn standard_bytes(&self, states: u64) -> u32 {
        self.enabled(states)
            .map(|c| c.offset + c.bytes)
            .fold(BASE_BYTES, u32::max)
    }

    fn compact_bytes(&self, states: u64) -> u32 {
        self.enabled(states).fold(BASE_BYTES, |at, c| {
            let at = if c.ecx & 0b10 != 0 {
                at.next_multiple_of(64)
            } else {
                at
            };
            at + c.bytes
        })
    }
}
