//! Two ways to read a block of memory that is in no cache.
#![expect(unsafe_code, reason = "raw memory, and CLFLUSH")]

use crate::arch::{percpu, tsc};
use crate::{mm, sabotage};
use config::Sabotage;
use core::arch::asm;
use units::{Frame, PageSize};

/// Bytes of a block.
const BLOCK: u64 = PageSize::Size2M.bytes();
/// Between two places that are read in turn: no prefetcher of neighbouring lines brings the next one.
const STRIDE: u64 = 512;
/// Reads of [`waiting`].
pub(super) const HOPS: u64 = BLOCK / STRIDE;
/// Bytes that [`streaming`] reads.
pub(super) const STREAMED: u64 = BLOCK / 2;
/// A cache line.
const LINE: u64 = 64;
/// From one place to the next in a circle through all of them: x -> (A x + C) mod HOPS visits every number once
/// if C is odd and A - 1 divisible by 4 (Knuth, TAOCP 2, 3.2.1.2, theorem A), and no prefetcher guesses it.
const A: u64 = 2357;
const C: u64 = 1481;
const _: () = assert!(HOPS.is_power_of_two() && A % 4 == 1 && C % 2 == 1);

/// Writes into each place where the next one is.
pub(super) fn prepare(block: Frame) {
    let Some(start) = start(block) else { return };
    for place in 0..HOPS {
        let next = (A * place + C) % HOPS * STRIDE;
        // SAFETY: `start` is a whole block that nobody else uses; places lie in it, aligned.
        unsafe { start.byte_add(to_usize(place * STRIDE)).write(next) };
    }
}

/// Ticks of [`HOPS`] reads of which each names the next.
pub(super) fn waiting(block: Frame) -> u64 {
    let Some(start) = start(block) else { return 0 };
    let far = mm::node_of(block) != Some(percpu::current().node);
    let turns = if far && sabotage::on(Sabotage::FarIsSlow) {
        3
    } else {
        1
    };
    flush(start, BLOCK, STRIDE);
    let (mut at, began) = (0_u64, tsc::read());
    for _ in 0..turns * HOPS {
        // SAFETY: as `prepare` wrote it, `at` is a multiple of the stride below the block's size.
        at = unsafe { start.byte_add(to_usize(at)).read_volatile() } % BLOCK;
    }
    // The circle ends where it began: the last read has come, and the compiler cannot leave any out.
    tsc::read().wrapping_sub(began).max(1) + at
}

/// Ticks of reading [`STREAMED`] bytes from the start, a word of each line, as fast as they come.
pub(super) fn streaming(block: Frame) -> u64 {
    let Some(start) = start(block) else { return 0 };
    flush(start, STREAMED, LINE);
    let began = tsc::read();
    for line in 0..STREAMED / LINE {
        // SAFETY: lines of the block, which is readable and aligned.
        unsafe { start.byte_add(to_usize(line * LINE)).read_volatile() };
    }
    tsc::read().wrapping_sub(began).max(1)
}

/// The block, if the direct map has it.
fn start(block: Frame) -> Option<*mut u64> {
    let start = mm::direct(block.address()).cast::<u64>();
    (!start.is_null()).then_some(start)
}

/// Takes a line of every `step` bytes out of all caches of the machine (SDM 2A, CLFLUSH; every processor with 64 bits has it).
fn flush(start: *mut u64, bytes: u64, step: u64) {
    for at in (0..bytes).step_by(to_usize(step)) {
        // SAFETY: an address in a block of ours; CLFLUSH changes no memory.
        unsafe {
            asm!("clflush [{}]", in(reg) start.byte_add(to_usize(at)), options(nostack, preserves_flags))
        };
    }
    // SAFETY: orders memory accesses, nothing else. No read begins before the flushes are done (SDM 2B, MFENCE).
    unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
}

/// Lossless: these are offsets in a block.
const fn to_usize(offset: u64) -> usize {
    offset as usize
}
