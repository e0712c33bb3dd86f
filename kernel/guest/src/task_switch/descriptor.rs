//! Segment descriptors (SDM 3A 3.4.5, APM 2 4.7).

use crate::entry::Segment;

/// Bits of [`Segment::attributes`]: present; 32-bit default; expand-down data is type bit 2 of data.
pub(crate) const PRESENT: u16 = 1 << 7;
pub(crate) const BIG: u16 = 1 << 10;
const CODE: u16 = 1 << 3;
const EXPAND_DOWN: u16 = 1 << 2;
/// Present, writable, accessed data of DPL 3: every segment in virtual-8086 mode.
const VIRTUAL_8086: u16 = 0xF3;

const ACCESSED: u64 = 1 << 40;
const BUSY: u64 = 1 << 41;

/// What a descriptor describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AvailableTss,
    BusyTss,
    Ldt,
    Code { readable: bool, conforming: bool },
    Data { writable: bool },
    Other,
}

/// Eight bytes of a descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor(pub u64);

impl Descriptor {
    pub const fn kind(self) -> Kind {
        let kind = self.0 >> 40 & 0x1F;
        match kind {
            0x01 | 0x09 => Kind::AvailableTss,
            0x03 | 0x0B => Kind::BusyTss,
            0x02 => Kind::Ldt,
            0x18..=0x1F => Kind::Code {
                readable: kind & 2 != 0,
                conforming: kind & 4 != 0,
            },
            0x10..=0x17 => Kind::Data {
                writable: kind & 2 != 0,
            },
            _ => Kind::Other,
        }
    }
    /// Whether a far jump leads through it to somewhere else: a call gate, and outside of long mode a task gate or a TSS
    /// (SDM 2A, JMP; SDM 3A table 3-2).
    pub const fn is_gate_or_task(self, long_mode: bool) -> bool {
        let kind = self.0 >> 40 & 0x1F;
        kind == 0xC || !long_mode && matches!(kind, 1 | 3 | 4 | 5 | 9 | 0xB)
    }
    /// Of a TSS: whether it is the 32-bit form.
    pub const fn wide_tss(self) -> bool {
        self.0 >> 43 & 1 != 0
    }
    pub const fn present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }
    pub const fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }
    pub const fn base(self) -> u32 {
        (self.0 >> 16 & 0xFF_FFFF | self.0 >> 32 & 0xFF00_0000) as u32
    }
    /// In bytes.
    pub const fn limit(self) -> u32 {
        let limit = (self.0 & 0xFFFF | self.0 >> 32 & 0xF_0000) as u32;
        if self.0 >> 55 & 1 != 0 {
            limit << 12 | 0xFFF
        } else {
            limit
        }
    }
    pub const fn with_busy(self, busy: bool) -> Self {
        Self(if busy { self.0 | BUSY } else { self.0 & !BUSY })
    }
    pub const fn accessed(self) -> Self {
        Self(self.0 | ACCESSED)
    }
    /// The register that it fills.
    pub const fn segment(self, selector: u16) -> Segment {
        Segment {
            selector,
            base: self.base() as u64,
            limit: self.limit(),
            attributes: (self.0 >> 40 & 0xFF | self.0 >> 44 & 0xF00) as u16,
        }
    }
}

/// A segment register of virtual-8086 mode (SDM 3B 21.2).
pub(crate) const fn real_mode_segment(selector: u16) -> Segment {
    Segment {
        selector,
        base: (selector as u64) << 4,
        limit: 0xFFFF,
        attributes: VIRTUAL_8086,
    }
}

/// Whether `bytes` at `offset` are within a data segment's limit, which expand-down segments have at their lower end.
pub(crate) const fn in_limit(segment: Segment, offset: u32, bytes: u32) -> bool {
    let Some(last) = offset.checked_add(bytes - 1) else {
        return false;
    };
    if segment.attributes & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if segment.attributes & BIG != 0 {
            u32::MAX
        } else {
            0xFFFF
        };
        offset > segment.limit && last <= top
    } else {
        last <= segment.limit
    }
}
