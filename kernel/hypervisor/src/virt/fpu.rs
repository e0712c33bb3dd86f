#![expect(
    unsafe_code,
    reason = "moves FPU, SSE and AVX state between memory and the processor"
)]
//! The guest's x87, SSE and AVX state.
//!
//! The kernel is compiled without floating point and never touches these registers, so a guest's
//! values stay in the processor while it runs and exits; they are saved only when another virtual
//! CPU takes the processor or this one leaves it (SDM 1 chapter 13, APM 2 11.5).

use crate::sabotage;
use alloc::vec;
use alloc::vec::Vec;
use config::Sabotage;
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use raw_cpuid::CpuId;

/// CR4.OSFXSR, OSXMMEXCPT.
const CR4_SSE: u64 = 1 << 9 | 1 << 10;
/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.PKE, without which PKRU cannot be read. The host maps no page for users, so keys mean nothing to it.
const CR4_PKE: u64 = 1 << 22;
/// XCR0: protection keys' rights.
const XCR0_PKRU: u64 = 1 << 9;
/// CR0.MP, EM, TS.
const CR0_MP: u64 = 1 << 1;
const CR0_EM_TS: u64 = 1 << 2 | 1 << 3;
/// FXSAVE's image.
const LEGACY_BYTES: usize = 512;
/// XSAVE's header behind it.
const HEADER_BYTES: usize = 64;
/// XCR0: x87 and SSE.
pub const XCR0_X87: u64 = 1;

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Line([u8; 64]);

/// What this processor can save.
#[derive(Clone, Copy, Debug)]
pub struct Xfeatures {
    /// XCR0 bits that the processor has; 0 without XSAVE.
    pub host_xcr0: u64,
    bytes: usize,
}

impl Xfeatures {
    /// Asks the processor.
    pub fn read() -> Self {
        let has_xsave = CpuId::new()
            .get_feature_info()
            .is_some_and(|f| f.has_xsave());
        if !has_xsave {
            return Self {
                host_xcr0: 0,
                bytes: LEGACY_BYTES,
            };
        }
        let leaf = __cpuid_count(0xd, 0);
        let host_xcr0 = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
        Self {
            host_xcr0,
            bytes: (leaf.ecx as usize).max(LEGACY_BYTES + HEADER_BYTES),
        }
    }

    fn has_keys(self) -> bool {
        let offered = CpuId::new()
            .get_extended_feature_info()
            .is_some_and(|f| f.has_pku());
        offered && self.host_xcr0 & XCR0_PKRU != 0
    }

    /// Makes the processor accept SSE and XSAVE instructions, on the calling CPU.
    pub fn enable(self) {
        // SAFETY: CR0 and CR4 keep all bits but those that permit x87, SSE, XSAVE and RDPKRU, each where CPUID has it;
        // the kernel has no floating-point code and no user page that could notice.
        unsafe {
            let mut cr0: u64;
            let mut cr4: u64;
            asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack));
            cr0 = cr0 & !CR0_EM_TS | CR0_MP;
            cr4 |= CR4_SSE | if self.host_xcr0 != 0 { CR4_OSXSAVE } else { 0 };
            cr4 |= if self.has_keys() { CR4_PKE } else { 0 };
            asm!("mov cr0, {}", "mov cr4, {}", in(reg) cr0, in(reg) cr4, options(nostack));
        }
    }
}

/// One virtual CPU's saved state.
#[derive(Debug)]
pub struct FpuState {
    features: Xfeatures,
    area: Vec<Line>,
    xcr0: u64,
    loaded: bool,
}

impl FpuState {
    /// State after reset: x87 control word 37Fh, MXCSR 1F80h, all else initial.
    pub fn new() -> Self {
        let features = Xfeatures::read();
        let mut area = vec![Line([0; 64]); features.bytes.div_ceil(64)];
        if let Some(first) = area.first_mut() {
            first.0[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
            first.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        }
        Self {
            features,
            area,
            xcr0: XCR0_X87,
            loaded: false,
        }
    }

    /// Back to the state after reset, in the processor too if it is there.
    pub fn reset(&mut self) {
        let loaded = self.loaded;
        *self = Self::new();
        if loaded {
            self.load();
        }
    }

    /// The guest's XCR0.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Puts the state into the processor, then the guest's XCR0.
    pub fn load(&mut self) {
        self.loaded = true;
        let area = self.area.as_ptr();
        if self.features.host_xcr0 == 0 {
            // SAFETY: the area is 512 bytes at least, 64-byte aligned, and holds an image made by FXSAVE or `new`.
            unsafe { asm!("fxrstor64 [{}]", in(reg) area, options(nostack, readonly)) };
            return;
        }
        self.set_processor_xcr0(self.features.host_xcr0);
        // SAFETY: the area is as long as CPUID says XSAVE needs for all features and 64-byte aligned; its
        // header's reserved bytes are zero and XSTATE_BV names only features of this processor, since only `new`
        // and XSAVE write it. XSAVE and XRSTOR are enabled (`Xfeatures::enable`).
        unsafe {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack, readonly))
        };
        self.set_processor_xcr0(self.xcr0);
    }

    /// Takes the state out of the processor.
    pub fn save(&mut self) {
        self.loaded = false;
        if sabotage::on(Sabotage::StaleFpu) {
            return;
        }
        let area = self.area.as_mut_ptr();
        if self.features.host_xcr0 == 0 {
            // SAFETY: 512 bytes at least, 64-byte aligned, exclusively borrowed.
            unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack)) };
            return;
        }
        self.set_processor_xcr0(self.features.host_xcr0);
        // SAFETY: as in `load`; the area is exclusively borrowed.
        unsafe {
            asm!("xsave64 [{}]", in(reg) area, in("eax") u32::MAX, in("edx") u32::MAX, options(nostack))
        };
    }

    /// Sets the guest's XCR0. The caller has checked the value
    /// against what the guest's CPUID allows and the rules of SDM 1 13.3.
    pub fn set_xcr0(&mut self, xcr0: u64) {
        self.xcr0 = xcr0;
        if self.loaded && self.features.host_xcr0 != 0 {
            self.set_processor_xcr0(xcr0);
        }
    }

    /// The guest's protection keys' rights, which are in the processor while it is loaded.
    pub fn pkru(&self) -> u32 {
        if !self.loaded || !self.features.has_keys() {
            return 0;
        }
        let pkru: u32;
        // SAFETY: `Xfeatures::enable` has set CR4.PKE under the same condition.
        unsafe {
            asm!("rdpkru", in("ecx") 0, out("eax") pkru, out("edx") _, options(nomem, nostack));
        }
        pkru
    }

    fn set_processor_xcr0(&self, xcr0: u64) {
        debug_assert!(xcr0 & !self.features.host_xcr0 == 0);
        // SAFETY: XSAVE is present (callers check) and enabled; the value is a subset of what CPUID offers
        // that contains x87 and was checked for the architecture's dependencies.
        unsafe {
            if _xgetbv(0) != xcr0 {
                asm!("xsetbv", in("ecx") 0, in("eax") xcr0 as u32, in("edx") (xcr0 >> 32) as u32, options(nomem, nostack));
            }
        }
    }
}
