//! Whole frames, zeroed and copied past the caches.
//!
//! Frames that change hands are cold for whoever handles them here, so the stores are
//! non-temporal (SDM 1 10.4.6.2): they neither fetch the lines first nor push a guest's data out
//! of the caches. Eight of them fill a line, which lets the processor write it whole.
#![expect(
    unsafe_code,
    reason = "raw memory, moved by the instructions made for it"
)]

use core::arch::asm;

use units::PAGE_BYTES;

/// Bytes a round.
const LINE_BYTES: u64 = 64;
const LINES_PER_FRAME: u64 = PAGE_BYTES / LINE_BYTES;

/// Zeroes `frames` frames.
///
/// # Safety
/// `start` is page-aligned and valid for writes of so many frames; nobody else uses them.
pub unsafe fn zero(start: *mut u8, frames: u64) {
    // SAFETY: the caller's; each round writes one line and there are as many rounds as lines.
    unsafe {
        asm!(
            "test {rounds}, {rounds}",
            "jz 3f",
            "2:",
            "movnti [{to}], {zero}",
            "movnti [{to} + 8], {zero}",
            "movnti [{to} + 16], {zero}",
            "movnti [{to} + 24], {zero}",
            "movnti [{to} + 32], {zero}",
            "movnti [{to} + 40], {zero}",
            "movnti [{to} + 48], {zero}",
            "movnti [{to} + 56], {zero}",
            "add {to}, 64",
            "dec {rounds}",
            "jnz 2b",
            "3:",
            "sfence",
            to = inout(reg) start => _,
            rounds = inout(reg) frames * LINES_PER_FRAME => _,
            zero = in(reg) 0_u64,
            options(nostack),
        );
    }
}

/// Copies `frames` frames.
///
/// # Safety
/// Both are page-aligned and valid for so many frames, `to` for writes; they do not overlap, and nobody
/// else uses the target. The source may be written meanwhile by whoever goes through no Rust reference: each of its
/// aligned words is read once, by an instruction that the compiler knows nothing of.
pub unsafe fn copy(to: *mut u8, from: *const u8, frames: u64) {
    // SAFETY: the caller's; each round moves one line and there are as many rounds as lines.
    unsafe {
        asm!(
            "test {rounds}, {rounds}",
            "jz 3f",
            "2:",
            "mov {a}, [{from}]",
            "mov {b}, [{from} + 8]",
            "movnti [{to}], {a}",
            "movnti [{to} + 8], {b}",
            "mov {a}, [{from} + 16]",
            "mov {b}, [{from} + 24]",
            "movnti [{to} + 16], {a}",
            "movnti [{to} + 24], {b}",
            "mov {a}, [{from} + 32]",
            "mov {b}, [{from} + 40]",
            "movnti [{to} + 32], {a}",
            "movnti [{to} + 40], {b}",
            "mov {a}, [{from} + 48]",
            "mov {b}, [{from} + 56]",
            "movnti [{to} + 48], {a}",
            "movnti [{to} + 56], {b}",
            "add {from}, 64",
            "add {to}, 64",
            "dec {rounds}",
            "jnz 2b",
            "3:",
            "sfence",
            to = inout(reg) to => _,
            from = inout(reg) from => _,
            rounds = inout(reg) frames * LINES_PER_FRAME => _,
            a = out(reg) _,
            b = out(reg) _,
            options(nostack),
        );
    }
}
