//! What the bits of an entry mean: the seam between the walker and three manuals.

use super::{Level, TableAddress};
use core::fmt;
use units::{Frame, PAGE_SHIFT, PageSize};

bitflags::bitflags! {
    /// What a leaf permits. A present leaf is always readable: no format here can express
    /// write-only, and execute-only exists in one of the three.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Rights: u8 {
        /// Loads.
        const READ = 1;
        /// Stores.
        const WRITE = 2;
        /// Instruction fetches.
        const EXECUTE = 4;
        /// Privilege level 3 of the host. Nested formats ignore it (and set what their hardware wants).
        const USER = 8;
    }
}

/// How accesses are cached (SDM 3A 12.3, APM 2 7.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryType {
    /// Ordinary memory.
    WriteBack,
    /// Cached for reads, stores go through.
    WriteThrough,
    /// Stores collect in buffers: frame buffers.
    WriteCombining,
    /// Reads are cached, stores go to memory.
    WriteProtected,
    /// Devices.
    Uncacheable,
}

/// Everything about a leaf apart from its frame, its size and what processors write into it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// What it permits.
    pub rights: Rights,
    /// How accesses are cached.
    pub memory_type: MemoryType,
}

impl Attributes {
    /// Ordinary guest memory: all rights, write-back.
    pub const GUEST_MEMORY: Self = Self {
        rights: Rights::READ.union(Rights::WRITE).union(Rights::EXECUTE),
        memory_type: MemoryType::WriteBack,
    };
    /// Registers of a device: readable and writable, uncacheable.
    pub const DEVICE: Self = Self {
        rights: Rights::READ.union(Rights::WRITE),
        memory_type: MemoryType::Uncacheable,
    };

    /// Write-back memory with these rights.
    pub const fn memory(rights: Rights) -> Self {
        Self {
            rights,
            memory_type: MemoryType::WriteBack,
        }
    }
}

/// Bits 51:12: where every format keeps the frame.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bit 7 says "leaf" at the levels of 1 GiB and 2 MiB in every format.
pub(crate) const LARGE: u64 = 1 << 7;

/// One kind of table: how entries are encoded, and which bits the processor writes.
///
/// Formats are types without values. Geometry (4 levels, 9 bits each, frame in bits 51:12, leaf bit 7) is
/// common to all; an implementation's masks are checked against it at compile time.
pub trait TableFormat: Sized + fmt::Debug + 'static {
    /// What the table translates from.
    type Address: TableAddress;
    /// For messages.
    const NAME: &'static str;
    /// An entry is present if any of these bits is 1; all are 0 in a frozen one.
    const PRESENT: u64;
    /// Set by the processor when it uses the entry, at every level.
    const ACCESSED: u64;
    /// Set by the processor in a leaf at the first store.
    const DIRTY: u64;
    /// A bit the processor ignores in present and absent entries: marks a frozen one.
    const FROZEN: u64;

    /// A present entry that refers to the table in `frame` and restricts nothing. A = 0.
    fn table(frame: Frame) -> u64;
    /// A present leaf with A = D = 0. `frame` is aligned to `size` and below 2^40.
    fn leaf(frame: Frame, size: PageSize, attributes: Attributes) -> u64;
    /// What a leaf (present or frozen) was encoded from.
    fn attributes(entry: u64, size: PageSize) -> Attributes;

    /// Fails to compile if the masks collide with the geometry or with each other.
    const CHECKED: () = {
        assert!(Self::ACCESSED.count_ones() == 1 && Self::DIRTY.count_ones() == 1);
        assert!(Self::FROZEN.count_ones() == 1);
        let claimed = [
            Self::PRESENT,
            Self::ACCESSED,
            Self::DIRTY,
            Self::FROZEN,
            ADDRESS,
            LARGE,
        ];
        let mut union = 0;
        let mut i = 0;
        while i < claimed.len() {
            assert!(union & claimed[i] == 0, "two meanings for one bit");
            union |= claimed[i];
            i += 1;
        }
    };

    /// Whether the processor would use the entry.
    fn is_present(entry: u64) -> bool {
        entry & Self::PRESENT != 0
    }
    /// Whether the entry is absent and marked.
    fn is_frozen(entry: u64) -> bool {
        !Self::is_present(entry) && entry & Self::FROZEN != 0
    }
    /// The entry made absent and marked, all else kept.
    fn frozen(entry: u64) -> u64 {
        entry & !Self::PRESENT | Self::FROZEN
    }
    /// Whether a non-empty entry at `level` is a leaf and not a table.
    fn is_leaf(entry: u64, level: Level) -> bool {
        level == Level::LOWEST || entry & LARGE != 0
    }
    /// The table that a non-leaf entry refers to.
    fn table_frame(entry: u64) -> Frame {
        Frame((entry & ADDRESS) >> PAGE_SHIFT)
    }
    /// First frame of a leaf; the low address bits of a large leaf have other meanings.
    fn leaf_frame(entry: u64, size: PageSize) -> Frame {
        Frame((entry & ADDRESS & !(size.bytes() - 1)) >> PAGE_SHIFT)
    }
}
