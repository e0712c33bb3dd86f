//! What can be wrong with a frame, said in a sentence.

use super::{FrameState, Order};
use core::fmt;
use units::{Frame, NodeId};

/// Neither the wanted node nor any node of the fallback order has a free block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames {
    /// The node that was asked first.
    pub node: NodeId,
    /// Size of the block that was wanted.
    pub order: Order,
    /// How many such blocks were wanted together.
    pub count: u64,
    /// Frames that are free on that node, in blocks too small or too few.
    pub free: u64,
}

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node,
            order,
            count,
            free,
        } = self;
        write!(
            f,
            "{node} and its fallbacks cannot give {count} block(s) of {order}: \
             {node} has {free} free frames of 4 KiB, in blocks too small or too few; nothing was taken"
        )
    }
}

impl core::error::Error for OutOfFrames {}

/// A frame or a range that does not fit what the allocator knows. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// No zone contains the frame.
    Foreign {
        /// The frame.
        frame: Frame,
    },
    /// The frame is free already, or free as part of a larger block.
    DoubleFree {
        /// The frame.
        frame: Frame,
    },
    /// The frame is allocated, but its block starts elsewhere or has another size.
    WrongBlock {
        /// The frame.
        frame: Frame,
        /// The size that was given.
        given: Order,
        /// What the allocator knows about the frame.
        state: FrameState,
    },
    /// A range to release contains frames that were released before.
    NotAbsent {
        /// The first such frame.
        frame: Frame,
    },
    /// A zone overlaps one that exists.
    Overlap {
        /// First frame of the new zone.
        base: Frame,
        /// Frames in the new zone.
        frames: u64,
    },
    /// A zone is empty, larger than its metadata can index (2 TiB less 1 GiB), or past the end of the
    /// 52-bit physical address space.
    BadZone {
        /// First frame of the zone.
        base: Frame,
        /// Frames in the zone.
        frames: u64,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { frame } => {
                write!(
                    f,
                    "frame {frame} belongs to no zone of this machine; it was left alone"
                )
            }
            Self::DoubleFree { frame } => {
                write!(
                    f,
                    "frame {frame} is free already; the second free was ignored"
                )
            }
            Self::WrongBlock {
                frame,
                given,
                state,
            } => write!(
                f,
                "frame {frame} was named as a block of {given}, but is {state:?}; it was left alone"
            ),
            Self::NotAbsent { frame } => write!(
                f,
                "frame {frame} was released to the allocator before; the whole range was left alone"
            ),
            Self::Overlap { base, frames } => write!(
                f,
                "the zone of {frames} frames from {base} overlaps another one; it was not added"
            ),
            Self::BadZone { base, frames } => write!(
                f,
                "a zone of {frames} frames from {base} is empty, too large for one zone or past \
                 52 bits of address; it was not added"
            ),
        }
    }
}

impl core::error::Error for FrameError {}
