//! Why a table was left as it was.

use crate::buddy::OutOfFrames;
use core::fmt;
use units::{Frame, PageSize};

/// An operation on a table that was refused. The table and the table frames are as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// The address or the frame is no multiple of the page size.
    Misaligned {
        /// The address.
        at: u64,
        /// The frame it should map to, where one was given.
        frame: Frame,
        /// The page size.
        size: PageSize,
    },
    /// The address or the end of the range is beyond 48 bits (or not canonical), or the frame is
    /// beyond 52 bits of address, or the range is empty.
    OutOfRange {
        /// The address.
        at: u64,
        /// Length in 4 KiB pages.
        pages: u64,
    },
    /// A leaf must be readable.
    NotReadable {
        /// The address.
        at: u64,
    },
    /// Something in the range is mapped.
    AlreadyMapped {
        /// Where.
        at: u64,
    },
    /// Nothing is mapped there.
    NotMapped {
        /// Where.
        at: u64,
    },
    /// Something is mapped there, by a leaf or leaves of another size.
    WrongSize {
        /// Where.
        at: u64,
        /// The size that the caller named.
        wanted: PageSize,
    },
    /// The entry is frozen: on its way to another frame or leaf size. Wait and look again.
    Frozen {
        /// Where.
        at: u64,
    },
    /// What should be thawed or installed is not frozen: it was torn down meanwhile.
    NotFrozen {
        /// Where.
        at: u64,
    },
    /// Somebody else judges by the leaf's D. Wait and look again.
    Watched {
        /// Where.
        at: u64,
    },
    /// The 512 leaves do not form one larger leaf: one is missing or frozen, has other attributes, or the
    /// frames are not contiguous and aligned.
    NotUniform {
        /// Where.
        at: u64,
    },
    /// There is no memory for tables.
    OutOfTables(OutOfFrames),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { at, frame, size } => {
                write!(
                    f,
                    "address {at:#x} or frame {frame} is no multiple of {size}; nothing was changed"
                )
            }
            Self::OutOfRange { at, pages } => write!(
                f,
                "{pages} pages from {at:#x} are none, or leave the 48 bits that a table translates \
                 or the 52 bits it translates to; nothing was changed"
            ),
            Self::NotReadable { at } => {
                write!(
                    f,
                    "a mapping at {at:#x} without the right to read cannot be expressed; not mapped"
                )
            }
            Self::AlreadyMapped { at } => {
                write!(f, "{at:#x} is mapped already; nothing was changed")
            }
            Self::NotMapped { at } => {
                write!(f, "nothing is mapped at {at:#x}; nothing was changed")
            }
            Self::WrongSize { at, wanted } => {
                write!(
                    f,
                    "{at:#x} is mapped, but not by a leaf of {wanted}; nothing was changed"
                )
            }
            Self::Frozen { at } => {
                write!(
                    f,
                    "{at:#x} is being moved or resized; wait for that and try again"
                )
            }
            Self::NotFrozen { at } => {
                write!(
                    f,
                    "{at:#x} is no longer frozen: its mapping was torn down; nothing was installed"
                )
            }
            Self::Watched { at } => {
                write!(
                    f,
                    "{at:#x} is being copied by another move; wait for that and try again"
                )
            }
            Self::NotUniform { at } => write!(
                f,
                "the leaves at {at:#x} are no single aligned block with the same rights; not collapsed"
            ),
            Self::OutOfTables(error) => write!(f, "no memory for page tables: {error}"),
        }
    }
}

impl core::error::Error for TableError {}

impl From<OutOfFrames> for TableError {
    fn from(error: OutOfFrames) -> Self {
        Self::OutOfTables(error)
    }
}
