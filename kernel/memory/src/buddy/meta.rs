//! What is known about one frame, in 8 bytes.

use core::fmt;
use units::PageSize;

/// log2 of a block's size in 4 KiB frames: 0 (4 KiB) to 18 (1 GiB).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Order(u8);

impl Order {
    /// The largest block, 1 GiB: the largest leaf of a page table.
    pub const MAX: Self = Self(18);
    /// How many orders there are.
    pub const COUNT: usize = 19;

    /// The order of blocks of `2^log2` frames; `None` above [`Order::MAX`].
    pub const fn new(log2: u32) -> Option<Self> {
        if log2 <= Self::MAX.0 as u32 {
            Some(Self(log2 as u8))
        } else {
            None
        }
    }
    /// The smallest order whose blocks hold `bytes`; `None` if they exceed 1 GiB.
    pub const fn for_bytes(bytes: u64) -> Option<Self> {
        let frames = bytes.div_ceil(units::PAGE_BYTES);
        match frames.checked_next_power_of_two() {
            Some(frames) => Self::new(frames.trailing_zeros()),
            None => None,
        }
    }
    /// Frames in a block.
    pub const fn frames(self) -> u64 {
        1 << self.0
    }
    /// Bytes in a block.
    pub const fn bytes(self) -> u64 {
        self.frames() * units::PAGE_BYTES
    }
    /// The page size with blocks of this order, where there is one.
    pub const fn page_size(self) -> Option<PageSize> {
        match self.0 {
            0 => Some(PageSize::Size4K),
            9 => Some(PageSize::Size2M),
            18 => Some(PageSize::Size1G),
            _ => None,
        }
    }
    /// As an index into a table with one entry for each order.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
    /// The next larger order.
    pub(super) const fn larger(self) -> Option<Self> {
        Self::new(self.0 as u32 + 1)
    }
    /// The next smaller order.
    pub(super) const fn smaller(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(log2) => Some(Self(log2)),
            None => None,
        }
    }
}

impl From<PageSize> for Order {
    fn from(size: PageSize) -> Self {
        Self(size.order() as u8)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes() {
            b if b >> 30 != 0 => write!(f, "{} GiB", b >> 30),
            b if b >> 20 != 0 => write!(f, "{} MiB", b >> 20),
            b => write!(f, "{} KiB", b >> 10),
        }
    }
}

/// Where a frame is. Orders belong to the first frame of a block; the others are
/// [`FrameState::Inner`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameState {
    /// Not the allocator's (yet): a hole, firmware's, or still in use by boot.
    Absent,
    /// Inside a block, not its first frame.
    Inner,
    /// First frame of a free block.
    Free(Order),
    /// First frame of a block that somebody owns.
    Allocated(Order),
    /// First frame of a block that a [`super::Claim`] holds.
    Claimed(Order),
}

/// Index of a frame within its zone, or of a zone within its node: 29 bits.
pub(super) type Link = u32;
const LINK_BITS: u32 = 29;
/// No frame.
pub(super) const NIL: Link = (1 << LINK_BITS) - 1;
/// Frames that one zone can describe: 2 TiB less the last GiB, so that no index is [`NIL`].
pub(super) const MAX_ZONE_FRAMES: usize = (1 << LINK_BITS) - (1 << 18);

const STATE_BITS: u32 = 6;
const FIRST_FREE: u64 = 2;
const FIRST_ALLOCATED: u64 = FIRST_FREE + Order::COUNT as u64;
const FIRST_CLAIMED: u64 = FIRST_ALLOCATED + Order::COUNT as u64;
const STATES: u64 = FIRST_CLAIMED + Order::COUNT as u64;
const _: () = assert!(STATES <= 1 << STATE_BITS, "a state must fit its bits");
const _: () = assert!(
    STATE_BITS + 2 * LINK_BITS == 64,
    "state and two links fill the word"
);

/// The allocator's record of one 4 KiB frame: its state in bits 5:0, then two links of 29 bits.
///
/// Every bit pattern is a valid value and zero means [`FrameState::Absent`], so that a kernel may
/// hand over any memory it likes; [`super::Zone::new`] overwrites it in any case.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct FrameMeta(u64);

impl FrameMeta {
    pub(super) const ABSENT: Self = Self(0);
    pub(super) const INNER: Self = Self(1);

    pub(super) const fn linked(state: FrameState, next: Link, prev: Link) -> Self {
        let code = match state {
            FrameState::Absent => 0,
            FrameState::Inner => 1,
            FrameState::Free(order) => FIRST_FREE + order.0 as u64,
            FrameState::Allocated(order) => FIRST_ALLOCATED + order.0 as u64,
            FrameState::Claimed(order) => FIRST_CLAIMED + order.0 as u64,
        };
        let next = (next & NIL) as u64;
        let prev = (prev & NIL) as u64;
        Self(code | next << STATE_BITS | prev << (STATE_BITS + LINK_BITS))
    }

    /// Where the frame is.
    pub const fn state(self) -> FrameState {
        match self.0 & ((1 << STATE_BITS) - 1) {
            1 => FrameState::Inner,
            code @ FIRST_FREE..FIRST_ALLOCATED => {
                FrameState::Free(Order((code - FIRST_FREE) as u8))
            }
            code @ FIRST_ALLOCATED..FIRST_CLAIMED => {
                FrameState::Allocated(Order((code - FIRST_ALLOCATED) as u8))
            }
            code @ FIRST_CLAIMED..STATES => {
                FrameState::Claimed(Order((code - FIRST_CLAIMED) as u8))
            }
            _ => FrameState::Absent,
        }
    }

    pub(super) const fn next(self) -> Link {
        (self.0 >> STATE_BITS) as Link & NIL
    }

    pub(super) const fn prev(self) -> Link {
        (self.0 >> (STATE_BITS + LINK_BITS)) as Link & NIL
    }
}

impl fmt::Debug for FrameMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_link_survives_the_packing() {
        for log2 in 0..=18 {
            let order = Order::new(log2).expect("18 is the largest order");
            for state in [
                FrameState::Free(order),
                FrameState::Allocated(order),
                FrameState::Claimed(order),
            ] {
                for (next, prev) in [(0, NIL), (NIL, 0), (0x1234_5678 & NIL, 0x0abc_def0)] {
                    let meta = FrameMeta::linked(state, next, prev);
                    assert_eq!(
                        (meta.state(), meta.next(), meta.prev()),
                        (state, next, prev)
                    );
                }
            }
        }
        assert_eq!(FrameMeta::default().state(), FrameState::Absent);
        assert_eq!(FrameMeta::INNER.state(), FrameState::Inner);
        assert_eq!(FrameMeta(63).state(), FrameState::Absent);
    }

    #[test]
    fn orders_know_their_sizes() {
        assert_eq!(Order::new(19), None);
        assert_eq!(Order::for_bytes(0), Order::new(0));
        assert_eq!(Order::for_bytes(4097), Order::new(1));
        assert_eq!(Order::for_bytes(1 << 30), Some(Order::MAX));
        assert_eq!(Order::for_bytes((1 << 30) + 1), None);
        assert_eq!(Order::for_bytes(u64::MAX), None);
        assert_eq!(
            Order::from(PageSize::Size2M).page_size(),
            Some(PageSize::Size2M)
        );
    }
}
