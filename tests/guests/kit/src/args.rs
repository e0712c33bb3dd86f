//! The command line, from the Multiboot information structure (Multiboot 1, section 3.3).

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use crate::cpu::peek;

const HAS_MEMORY: u32 = 1;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const LONGEST: usize = 2048;

static TEXT: AtomicUsize = AtomicUsize::new(0);
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static UPPER_KIB: AtomicU32 = AtomicU32::new(0);

pub(crate) fn read(info: u32) {
    let info = u64::from(info);
    let flags: u32 = peek(info);
    if flags & HAS_MEMORY != 0 {
        UPPER_KIB.store(peek(info + 8), SeqCst);
    }
    if flags & HAS_COMMAND_LINE != 0 {
        let text: u32 = peek(info + 16);
        let length = (0..LONGEST).find(|i| peek::<u8>(u64::from(text) + *i as u64) == 0);
        TEXT.store(text as usize, SeqCst);
        LENGTH.store(length.unwrap_or(LONGEST), SeqCst);
    }
}

/// Bytes of memory, counted from address 0, as the loader says.
pub fn memory_bytes() -> u64 {
    u64::from(UPPER_KIB.load(SeqCst)) * 1024 + (1 << 20)
}

fn text() -> &'static str {
    let length = LENGTH.load(SeqCst);
    if length == 0 {
        return "";
    }
    // SAFETY: the loader's text, of this length, which nobody overwrites.
    let bytes = unsafe { core::slice::from_raw_parts(TEXT.load(SeqCst) as *const u8, length) };
    core::str::from_utf8(bytes).unwrap_or("")
}

/// The text behind `KEY=` on the command line.
pub fn word(key: &str) -> Option<&'static str> {
    text()
        .split_whitespace()
        .find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
}

/// The same as a number, decimal or `0x`.
pub fn number(key: &str) -> Option<u64> {
    let text = word(key)?;
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
