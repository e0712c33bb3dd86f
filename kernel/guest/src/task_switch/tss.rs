//! Task-state segments of 16 and 32 bits (SDM 3A 8.2.1, 8.6).

use super::descriptor::Descriptor;
use super::{LinearMemory, Stop, TaskState};
use crate::entry::Segment;

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Bits16,
    Bits32,
}

/// Offsets in the 32-bit form: CR3; EIP, from which the outgoing task is saved; first selector; LDT; T.
const CR3: usize = 0x1C;
const EIP: usize = 0x20;
const TRAP: usize = 0x64;
/// Offset of IP in the 16-bit form.
const IP: usize = 0x0E;
/// Type bit that tells the forms apart, in [`Segment::attributes`].
const WIDE: u16 = 1 << 3;

impl Width {
    pub const fn of(descriptor: Descriptor) -> Self {
        if descriptor.wide_tss() {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }
    pub const fn of_register(tr: Segment) -> Self {
        if tr.attributes & WIDE != 0 {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }
    /// The least limit.
    pub const fn last_byte(self) -> u32 {
        match self {
            Self::Bits16 => 0x2B,
            Self::Bits32 => 0x67,
        }
    }
    pub const fn word_bytes(self) -> u32 {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
        }
    }
}

/// What a TSS says about its task.
pub(super) struct Image {
    pub eip: u32,
    pub eflags: u32,
    pub gpr: [u32; 8],
    /// ES, CS, SS, DS, FS, GS; null for the last two of a 16-bit task.
    pub selectors: [u16; 6],
    pub ldt: u16,
    pub cr3: Option<u32>,
    /// The T bit.
    pub trap: bool,
}

impl Image {
    pub fn read<M: LinearMemory>(
        width: Width,
        base: u32,
        memory: &mut M,
    ) -> Result<Self, Stop<M::Error>> {
        let mut bytes = [0_u8; 0x68];
        let needed = width.last_byte() as usize + 1;
        if let Some(bytes) = bytes.get_mut(..needed) {
            memory.read(base, bytes).map_err(Stop::Memory)?;
        }
        let half = |at: usize| match bytes.get(at..at + 2) {
            Some(&[low, high]) => u16::from_le_bytes([low, high]),
            _ => 0,
        };
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        Ok(match width {
            Width::Bits32 => Self {
                eip: word(EIP),
                eflags: word(EIP + 4),
                gpr: core::array::from_fn(|i| word(EIP + 8 + 4 * i)),
                selectors: core::array::from_fn(|i| half(EIP + 40 + 4 * i)),
                ldt: half(EIP + 64),
                cr3: Some(word(CR3)),
                trap: half(TRAP) & 1 != 0,
            },
            Width::Bits16 => Self {
                eip: half(IP).into(),
                eflags: half(IP + 2).into(),
                gpr: core::array::from_fn(|i| half(IP + 4 + 2 * i).into()),
                selectors: core::array::from_fn(|i| if i < 4 { half(IP + 20 + 2 * i) } else { 0 }),
                ldt: half(IP + 28),
                cr3: None,
                trap: false,
            },
        })
    }
}

/// Saves the outgoing task: the fields from (E)IP to the last selector, and no others.
pub(super) fn save<M: LinearMemory>(
    width: Width,
    state: &TaskState,
    eflags: u32,
    memory: &mut M,
) -> Result<(), Stop<M::Error>> {
    let words = [state.eip, eflags]
        .into_iter()
        .chain(state.gpr)
        .chain(state.segments.map(|s| u32::from(s.selector)));
    let mut bytes = [0_u8; 64];
    let (start, count, size) = match width {
        Width::Bits32 => (EIP, 16, 4),
        // FS and GS have no place there.
        Width::Bits16 => (IP, 14, 2),
    };
    for (to, from) in bytes.chunks_mut(size).zip(words.take(count)) {
        for (to, from) in to.iter_mut().zip(from.to_le_bytes()) {
            *to = from;
        }
    }
    let saved = bytes.get(..count * size).unwrap_or(&bytes);
    memory
        .write((state.tr.base as u32).wrapping_add(start as u32), saved)
        .map_err(Stop::Memory)
}
