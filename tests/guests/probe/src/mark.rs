//! What the observer outside is told: NOPs with a magic displacement, which do nothing else.
#![expect(
    unsafe_code,
    reason = "the observer looks for exactly these instructions"
)]

use core::arch::asm;

const MAGIC: u32 = 0x5047_0000;
/// A class of operations ends; another of the same class begins.
const LAP: u32 = MAGIC | 0x100;
/// A window opens.
const OPEN: u32 = MAGIC | 0x200;
/// The window closes.
const CLOSE: u32 = MAGIC | 0x300;
/// A report, please.
const FLUSH: u32 = MAGIC | 0xfffe;

macro_rules! nop {
    ($displacement:expr) => {
        // SAFETY: a NOP.
        unsafe {
            asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00",
                ".long {what}",
                what = const $displacement,
                options(nostack, preserves_flags),
            );
        }
    };
}

/// The last operation of this class ends here, and the next begins. Class 0 begins none.
#[inline(always)]
pub fn lap<const CLASS: u32>() {
    nop!(LAP | CLASS);
}

/// Accesses are counted from here on.
#[inline(always)]
pub fn open() {
    nop!(OPEN);
}

/// They no longer are.
#[inline(always)]
pub fn close() {
    nop!(CLOSE);
}

/// Asks for a report.
pub fn flush() {
    nop!(FLUSH);
}
