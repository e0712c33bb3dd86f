//! Why a page stayed where it was.

use crate::buddy::Order;
use crate::table::TableError;
use core::fmt;
use units::{Gpa, PageSize};

/// Why a move did not start or could not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveError {
    /// The leaf is not there, has another size, or is frozen by somebody else.
    Table(TableError),
    /// The target block has another size than the leaf.
    TargetSize {
        /// The page.
        at: Gpa,
        /// Its leaf's size.
        size: PageSize,
        /// The target's.
        target: Order,
    },
    /// The replicas of the table disagree about the page.
    Replicas {
        /// The page.
        at: Gpa,
    },
    /// Something else changed the page's leaf while it was being copied.
    Changed {
        /// The page.
        at: Gpa,
    },
    /// No table was given.
    NoTable {
        /// The page.
        at: Gpa,
    },
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(error) => write!(f, "the page was not moved: {error}"),
            Self::TargetSize { at, size, target } => write!(
                f,
                "the page at {at} was not moved: it is a leaf of {size} and the target has {target}"
            ),
            Self::Replicas { at } => {
                write!(
                    f,
                    "the page at {at} was not moved: the replicas of the table map it differently"
                )
            }
            Self::Changed { at } => write!(
                f,
                "the page at {at} was not moved: its mapping changed while it was being copied"
            ),
            Self::NoTable { at } => {
                write!(f, "the page at {at} was not moved: its VM has no table")
            }
        }
    }
}

impl core::error::Error for MoveError {}

impl From<TableError> for MoveError {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}
