//! Frames before nodes are known.
//!
//! The largest stretch of conventional memory, which neither firmware nor the loader has ever used
//! (UEFI type 7), is given out from its start on. What was given stays given: page tables and
//! the first heap live as long as the kernel. [`taken`] says what [`super::frames`] must leave out.

use handoff::{MemoryKind, MemoryRegion};
use memory::inventory::FrameRange;
use spin::Mutex;
use units::{Frame, PAGE_BYTES};

/// UEFI type of memory that was free when the loader ended boot services.
const CONVENTIONAL: u32 = 7;
/// Below this the memory is kept for starting processors.
const LOW_MEMORY_END: u64 = 1 << 20;

struct Early {
    start: u64,
    next: u64,
    end: u64,
}

static EARLY: Mutex<Early> = Mutex::new(Early {
    start: 0,
    next: 0,
    end: 0,
});

/// Picks the stretch.
pub(super) fn init(regions: &[MemoryRegion]) {
    let best = regions
        .iter()
        .filter(|r| {
            r.kind() == MemoryKind::Usable
                && r.uefi_type == CONVENTIONAL
                && r.base >= LOW_MEMORY_END
        })
        .max_by_key(|r| r.bytes);
    if let Some(region) = best {
        *EARLY.lock() = Early {
            start: region.base,
            next: region.base,
            end: region.end(),
        };
    }
}

/// `frames` frames from a multiple of `align` frames on, or `None` when the stretch is used up or
/// [`close`]d.
pub(super) fn take(frames: u64, align: u64) -> Option<Frame> {
    let mut early = EARLY.lock();
    let at = early
        .next
        .checked_next_multiple_of(align.checked_mul(PAGE_BYTES)?)?;
    let next = at.checked_add(frames.checked_mul(PAGE_BYTES)?)?;
    if next > early.end {
        return None;
    }
    early.next = next;
    Some(Frame(at / PAGE_BYTES))
}

/// Bytes that [`take`] can still give.
pub(super) fn left() -> u64 {
    let early = EARLY.lock();
    early.end - early.next
}

/// Gives nothing more; returns what was given, gaps of alignment included.
pub(super) fn close() -> FrameRange {
    let mut early = EARLY.lock();
    early.end = early.next;
    FrameRange {
        start: Frame(early.start / PAGE_BYTES),
        end: Frame(early.next / PAGE_BYTES),
    }
}
