//! The words in which the kernel talks to devices: width of an access, and time.

use units::Nanos;

/// Width of a port or memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessSize {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes: memory only; a port access of this width does not exist and is taken as 4 bytes.
    Qword,
}

impl AccessSize {
    /// In bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// From a number of bytes; `None` unless it is 1, 2, 4 or 8.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// All ones in this width: what a bus reads where nobody answers.
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes() as u32)
    }
}

/// The present, as a virtual processor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Guest time.
    pub nanos: Nanos,
    /// The virtual processor's time-stamp counter, offset included.
    pub tsc: u64,
}
