//! The four levels of a table and the leaf sizes they can hold.

use super::ENTRIES;
use units::{PAGE_SHIFT, PageSize};

/// log2 of [`ENTRIES`].
const INDEX_BITS: u32 = 9;
const _: () = assert!(
    1 << INDEX_BITS == ENTRIES,
    "9 bits of address select an entry"
);

/// Level of a table: 4 is the root, 1 holds 4 KiB leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Level(u32);

impl Level {
    /// The root: PML4 in both manuals.
    pub const ROOT: Self = Self(4);
    /// Where 4 KiB leaves live.
    pub const LOWEST: Self = Self(1);

    /// The level that holds leaves of `size`.
    #[inline]
    pub const fn of(size: PageSize) -> Self {
        match size {
            PageSize::Size4K => Self(1),
            PageSize::Size2M => Self(2),
            PageSize::Size1G => Self(3),
        }
    }
    /// 1 to 4.
    #[inline]
    pub const fn number(self) -> u32 {
        self.0
    }
    /// Size of a leaf at this level; the root has none.
    #[inline]
    pub const fn leaf_size(self) -> Option<PageSize> {
        match self.0 {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }
    /// Bytes that one entry of this level spans.
    #[inline]
    pub const fn span(self) -> u64 {
        1 << self.shift()
    }
    /// Which entry of a table at this level translates `offset`.
    #[inline]
    pub(crate) const fn index(self, offset: u64) -> usize {
        (offset >> self.shift()) as usize & (ENTRIES - 1)
    }
    /// The level below; `None` below the lowest.
    #[inline]
    pub(crate) const fn below(self) -> Option<Self> {
        if self.0 > 1 {
            Some(Self(self.0 - 1))
        } else {
            None
        }
    }
    /// The level above; `None` above the root.
    #[inline]
    pub(crate) const fn above(self) -> Option<Self> {
        if self.0 < Self::ROOT.0 {
            Some(Self(self.0 + 1))
        } else {
            None
        }
    }
    #[inline]
    const fn shift(self) -> u32 {
        PAGE_SHIFT + INDEX_BITS * (self.0 - 1)
    }
}

const _: () = {
    assert!(Level::ROOT.span() * ENTRIES as u64 == 1 << super::address::INPUT_BITS);
    assert!(Level::of(PageSize::Size4K).span() == PageSize::Size4K.bytes());
    assert!(Level::of(PageSize::Size2M).span() == PageSize::Size2M.bytes());
    assert!(Level::of(PageSize::Size1G).span() == PageSize::Size1G.bytes());
};
