//! XSETBV: what it may load, and which exception answers what it may not.

use super::{CpuidPolicy, cr4};
use crate::inject::{Exception, GP, UD};

/// XSETBV as the guest executes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xsetbv {
    /// CR4 of the guest.
    pub cr4: u64,
    /// Its privilege level; 3 in virtual-8086 mode.
    pub cpl: u8,
    /// ECX: the number of the register. Bits 63:32 of RCX do not count.
    pub register: u32,
    /// EDX:EAX.
    pub value: u64,
}

impl CpuidPolicy {
    /// Whether the guest may load `value` into XCR0 (SDM 1 13.3): x87 always, AVX with SSE, the three
    /// parts of AVX-512 together and with AVX.
    #[must_use]
    pub const fn xcr0_is_valid(&self, value: u64) -> bool {
        self.xsave.accepts(value)
    }

    /// The new value of XCR0.
    ///
    /// An operating system that has not set CR4.OSXSAVE, or cannot because it has no XSAVE, has no such
    /// instruction, at whatever privilege level and with whatever operands; only then do these count (SDM 2D, XSETBV;
    /// APM 4, XSETBV). VT-x makes the first check before it exits (SDM 3C 26.1.1), QEMU's AMD-V behind it.
    ///
    /// # Errors
    /// The exception that the processor would raise.
    pub fn xsetbv(&self, x: Xsetbv) -> Result<u64, Exception> {
        const XCR0: u32 = 0;
        if self.allowed_cr4() & x.cr4 & cr4::OSXSAVE == 0 {
            return Err(Exception::new(UD, None));
        }
        if x.cpl != 0 || x.register != XCR0 || !self.xcr0_is_valid(x.value) {
            return Err(Exception::new(GP, Some(0)));
        }
        Ok(x.value)
    }
}
