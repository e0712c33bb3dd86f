//! The five paging modes as shapes of tables, and which bits an entry must not have.

use crate::entry::{CR0_PG, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE};
use crate::memory::Width;

use super::{CR4_LA57, PagingState};

/// Bits of a page-table entry.
pub(super) mod entry_bit {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// One paging mode as a shape of tables.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    pub levels: u32,
    /// Bits of the address that index one table.
    pub index_bits: u32,
    pub width: Width,
    /// Linear address bits, for the canonical check; 32 where there is none.
    pub linear_bits: u32,
    /// 4-level or 5-level: NX, reserved bits and the top level's rights as in long mode.
    pub long: bool,
}

impl Mode {
    pub const fn of(p: &PagingState) -> Option<Self> {
        if p.cr0 & CR0_PG == 0 {
            return None;
        }
        let wide = Width::Bits64;
        Some(if p.efer & EFER_LMA != 0 {
            let five = p.cr4 & CR4_LA57 != 0;
            let levels = if five { 5 } else { 4 };
            Self {
                levels,
                index_bits: 9,
                width: wide,
                linear_bits: if five { 57 } else { 48 },
                long: true,
            }
        } else if p.cr4 & CR4_PAE != 0 {
            Self {
                levels: 3,
                index_bits: 9,
                width: wide,
                linear_bits: 32,
                long: false,
            }
        } else {
            Self {
                levels: 2,
                index_bits: 10,
                width: Width::Bits32,
                linear_bits: 32,
                long: false,
            }
        })
    }

    pub const fn entry_bytes(self) -> u64 {
        match self.width {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        }
    }

    /// The lowest address bit that `level` (1 for the last) translates.
    pub const fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * self.index_bits
    }

    /// A PAE page-directory-pointer entry, which has no rights and no accessed bit.
    pub const fn is_pdpte(self, level: u32) -> bool {
        !self.long && self.levels == 3 && level == 3
    }

    pub const fn may_be_large(self, level: u32, p: &PagingState) -> bool {
        match (self.width, self.long) {
            (Width::Bits32, _) => level == 2 && p.cr4 & CR4_PSE != 0,
            (Width::Bits64, false) => level == 2,
            (Width::Bits64, true) => level == 2 || level == 3,
        }
    }

    /// Bits that must be zero in an entry (SDM 3A tables 4-2, 4-4 to 4-20).
    pub const fn reserved(self, level: u32, large: bool, p: &PagingState) -> u64 {
        let above = if p.physical_bits >= 52 {
            0
        } else {
            0x000F_FFFF_FFFF_FFFF & !((1u64 << p.physical_bits) - 1)
        };
        let nx = if p.efer & EFER_NXE == 0 {
            entry_bit::NO_EXECUTE
        } else {
            0
        };
        match self.width {
            // PSE-36 with 40 bits: bit 21 of a 4 MiB entry; smaller physical widths reserve more.
            Width::Bits32 => {
                if !large {
                    return 0;
                }
                let extra = if p.physical_bits > 40 {
                    40
                } else {
                    p.physical_bits
                };
                let first = 13 + extra.saturating_sub(32) as u32;
                ((1u64 << 22) - 1) & !((1u64 << first) - 1)
            }
            Width::Bits64 if self.is_pdpte(level) => above | 0xFFF0_0000_0000_0000 | 0x1E6,
            Width::Bits64 => {
                // PAE keeps bits 62:52 zero; long mode ignores them.
                let high = if self.long {
                    nx
                } else {
                    nx | 0x7FF0_0000_0000_0000
                };
                // Bit 7 has no meaning above the levels with large pages.
                let ps = if level >= 4 { entry_bit::LARGE } else { 0 };
                // Between the PAT bit (12) and the frame of a large page.
                let frame = if large {
                    ((1u64 << self.shift(level)) - 1) & !0x1FFF
                } else {
                    0
                };
                above | high | ps | frame
            }
        }
    }
}
