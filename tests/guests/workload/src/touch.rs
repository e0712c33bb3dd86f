//! The loops that touch memory, with their tags.
//!
//! The emulator plugin counts the accesses of instructions that stand behind a tag *in the same
//! translation block*. A block ends at a jump, at the end of a page, and after a few hundred instructions. So
//! each loop here is one basic block of less than 64 bytes, aligned to 64: it begins with the tag, ends
//! with its own jump, and never crosses a page. Nothing but the wanted accesses is in it.
//!
//! Each loop visits one page and accesses each of its cache lines once.
#![expect(
    unsafe_code,
    reason = "the accesses must be exactly these instructions, in one basic block with the tag"
)]

use std::arch::asm;

/// Tags are numbered 1 to this.
pub const TAGS: usize = 8;
/// Upper half of the tag's displacement.
const MAGIC: u32 = 0x5047_0000;
/// The tag that asks the plugin for a report.
const FLUSH: u32 = MAGIC | 0xfffe;
/// The tag from which on the plugin counts every page.
const OPEN: u32 = MAGIC | 0x200;
/// The tag that ends this.
const CLOSE: u32 = MAGIC | 0x300;
/// Bytes from one access to the next.
pub const LINE: usize = 64;
/// Accesses of a visit.
pub const LINES: usize = crate::slice::PAGE / LINE;

/// A visit's kinds, for one tag.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// Sum of the first word of each line of the page.
    pub read: unsafe fn(*mut u64) -> u64,
    /// Adds 1 to the second word of each line of the page.
    pub write: unsafe fn(*mut u64),
    /// Reads one word.
    pub follow: unsafe fn(*mut u64) -> u64,
}

/// # Safety
/// `page` points to a whole page of readable memory that nobody else writes meanwhile.
unsafe fn read<const TAG: u32>(page: *mut u64) -> u64 {
    let mut sum = 0u64;
    // SAFETY: reads 64 words, 64 bytes apart, from the first one of a page that the caller vouches for.
    unsafe {
        asm!(
            ".p2align 6",
            "2:",
            ".byte 0x0f, 0x1f, 0x84, 0x00",
            ".long {tag}",
            "add {sum}, qword ptr [{at}]",
            "add {at}, {line}",
            "dec {left:e}",
            "jnz 2b",
            tag = const MAGIC | TAG,
            line = const LINE,
            sum = inout(reg) sum,
            at = inout(reg) page => _,
            left = inout(reg) LINES as u32 => _,
            options(nostack, readonly),
        );
    }
    sum
}

/// # Safety
/// `page` points to a whole page of writable memory that nobody else accesses meanwhile.
unsafe fn write<const TAG: u32>(page: *mut u64) {
    // SAFETY: reads and writes 64 words, 64 bytes apart, from the second one of a page that the caller vouches for.
    unsafe {
        asm!(
            ".p2align 6",
            "2:",
            ".byte 0x0f, 0x1f, 0x84, 0x00",
            ".long {tag}",
            "add qword ptr [{at} + 8], 1",
            "add {at}, {line}",
            "dec {left:e}",
            "jnz 2b",
            tag = const MAGIC | TAG,
            line = const LINE,
            at = inout(reg) page => _,
            left = inout(reg) LINES as u32 => _,
            options(nostack),
        );
    }
}

/// # Safety
/// `word` points to a readable word that nobody else writes meanwhile.
unsafe fn follow<const TAG: u32>(word: *mut u64) -> u64 {
    let value: u64;
    // SAFETY: reads the one word that the caller vouches for. The jump to the next instruction ends the block.
    unsafe {
        asm!(
            ".p2align 6",
            ".byte 0x0f, 0x1f, 0x84, 0x00",
            ".long {tag}",
            "mov {value}, qword ptr [{at}]",
            "jmp 2f",
            "2:",
            tag = const MAGIC | TAG,
            at = in(reg) word,
            value = out(reg) value,
            options(nostack, readonly, preserves_flags),
        );
    }
    value
}

/// A NOP that means something to the plugin, and nothing without one.
fn mark<const WHAT: u32>() {
    // SAFETY: a NOP.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00",
            ".long {what}",
            what = const WHAT,
            options(nostack, nomem, preserves_flags),
        );
    }
}

/// Asks the plugin for a report.
pub fn flush() {
    mark::<FLUSH>();
}

/// From here on the plugin counts every page.
pub fn open_window() {
    mark::<OPEN>();
}

/// It no longer does.
pub fn close_window() {
    mark::<CLOSE>();
}

const fn with_tag<const TAG: u32>() -> Touch {
    Touch {
        read: read::<TAG>,
        write: write::<TAG>,
        follow: follow::<TAG>,
    }
}

const TOUCHES: [Touch; TAGS] = [
    with_tag::<1>(),
    with_tag::<2>(),
    with_tag::<3>(),
    with_tag::<4>(),
    with_tag::<5>(),
    with_tag::<6>(),
    with_tag::<7>(),
    with_tag::<8>(),
];

impl Touch {
    /// The loops with this tag, 1 to [`TAGS`].
    pub fn tagged(tag: usize) -> Option<Self> {
        TOUCHES.get(tag.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_touches_each_line_once() {
        for tag in 1..=TAGS {
            let touch = Touch::tagged(tag).expect("in range");
            let mut page: Vec<u64> = (0..512).collect();
            let at = page.as_mut_ptr();
            // SAFETY: a page's worth of memory that is ours alone.
            let (sum, seventh) = unsafe { ((touch.read)(at), (touch.follow)(at.add(7))) };
            assert_eq!((sum, seventh), ((0..512).step_by(8).sum::<u64>(), 7));
            // SAFETY: as above.
            unsafe { (touch.write)(at) };
            for (word, value) in page.iter().enumerate() {
                assert_eq!(
                    *value,
                    word as u64 + u64::from(word % 8 == 1),
                    "word {word}"
                );
            }
        }
        assert!(Touch::tagged(0).is_none() && Touch::tagged(9).is_none());
    }

    /// Bytes of `code` from the first tag on, up to 64.
    fn block(code: *const u8) -> Vec<u8> {
        // SAFETY: functions of this program are readable, and each is followed by others of these.
        let bytes = unsafe { std::slice::from_raw_parts(code, 160) };
        let tag = bytes
            .windows(4)
            .zip(bytes.windows(8))
            .position(|(nop, whole)| {
                nop == [0x0f, 0x1f, 0x84, 0x00] && whole[6..8] == [0x47, 0x50]
            });
        let start = tag.expect("the function has its tag");
        assert_eq!(
            (code.addr() + start) % 64,
            0,
            "aligned, so that no page ends inside"
        );
        bytes[start..start + 64].to_vec()
    }

    #[test]
    fn tag_and_accesses_are_one_block_of_less_than_a_line() {
        let touch = Touch::tagged(5).expect("in range");
        for code in [touch.read as *const u8, touch.write as *const u8] {
            let bytes = block(code);
            assert_eq!(bytes[4..8], [5, 0, 0x47, 0x50]);
            // The jump back ends the block: 75 is JNZ with an 8-bit displacement to the block's first byte.
            let jump = bytes.windows(2).position(|pair| {
                pair[0] == 0x75 && pair[1] as i8 as isize == -(pair_end(&bytes, pair) as isize)
            });
            assert!(jump.is_some_and(|at| at < 62), "{bytes:x?}");
        }
        assert_eq!(block(touch.follow as *const u8)[4..8], [5, 0, 0x47, 0x50]);
    }

    /// Offset in `bytes` of what follows `pair`, a part of it.
    fn pair_end(bytes: &[u8], pair: &[u8]) -> usize {
        pair.as_ptr().addr() - bytes.as_ptr().addr() + 2
    }
}
