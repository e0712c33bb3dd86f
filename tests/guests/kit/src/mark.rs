//! What an observer outside is told: NOPs with a magic displacement, which do nothing else (`tests/lab/src/tag.rs`).

use core::arch::asm;

const MAGIC: u32 = 0x5047_0000;
/// A class of operations ends; another begins.
const LAP: u32 = MAGIC | 0x100;
/// A report, please.
const FLUSH: u32 = MAGIC | 0xfffe;

/// An operation ends here, and one of this class begins; class 0 is none.
#[inline(always)]
pub fn lap<const CLASS: u32>() {
    // SAFETY: a NOP.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00", ".long {what}",
            what = const LAP | CLASS, options(nostack, preserves_flags),
        );
    }
}

/// Asks for a report.
pub fn flush() {
    // SAFETY: a NOP.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00", ".long {what}",
            what = const FLUSH, options(nostack, preserves_flags),
        );
    }
}
