//! What a table translates from.

use core::fmt;
use units::{Gpa, PageSize};

/// Bits that 4 levels of 9 bits and a 12-bit offset translate.
pub(crate) const INPUT_BITS: u32 = 48;

/// A virtual address of the host, canonical for 4-level paging (SDM 3A 4.5, APM 2 5.3.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Va(pub u64);

impl fmt::Display for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
impl fmt::Debug for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Va({:#x})", self.0)
    }
}

/// An address that a radix table of 4 levels translates: 48 bits of offset into the tree.
pub trait TableAddress: Copy + Ord + fmt::Debug + fmt::Display {
    /// Offset into the tree, below 2^48; `None` for an address that no 4-level table translates.
    fn to_offset(self) -> Option<u64>;
    /// The address at an offset below 2^48.
    fn from_offset(offset: u64) -> Self;
    /// The address as a plain number, for messages and flush instructions.
    fn bits(self) -> u64;
    /// Offset of the address with these bits, if a 4-level table translates it.
    fn offset_of_bits(bits: u64) -> Option<u64>;
    /// Whether the address is a multiple of `size`.
    fn is_aligned(self, size: PageSize) -> bool {
        self.bits() & (size.bytes() - 1) == 0
    }
}

impl TableAddress for Gpa {
    fn to_offset(self) -> Option<u64> {
        (self.0 >> INPUT_BITS == 0).then_some(self.0)
    }
    fn from_offset(offset: u64) -> Self {
        Self(offset)
    }
    fn offset_of_bits(bits: u64) -> Option<u64> {
        Self(bits).to_offset()
    }
    fn bits(self) -> u64 {
        self.0
    }
}

impl TableAddress for Va {
    fn to_offset(self) -> Option<u64> {
        let offset = self.0 & ((1 << INPUT_BITS) - 1);
        (Self::from_offset(offset) == self).then_some(offset)
    }
    fn from_offset(offset: u64) -> Self {
        let unused = u64::BITS - INPUT_BITS;
        Self(((offset << unused) as i64 >> unused) as u64)
    }
    fn offset_of_bits(bits: u64) -> Option<u64> {
        Self(bits).to_offset()
    }
    fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_addresses_survive_and_others_are_refused() {
        for va in [0, 0x7fff_ffff_f000, 0xffff_8000_0000_0000, u64::MAX] {
            let offset = Va(va).to_offset().expect("canonical");
            assert_eq!(Va::from_offset(offset), Va(va));
        }
        assert_eq!(Va(0x8000_0000_0000).to_offset(), None);
        assert_eq!(Gpa(1 << 48).to_offset(), None);
        assert_eq!(Gpa((1 << 48) - 1).to_offset(), Some((1 << 48) - 1));
    }
}
