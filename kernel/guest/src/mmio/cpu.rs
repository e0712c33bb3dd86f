//! The registers that an instruction works with.

use super::{CodeSize, Condition, Part, Reg, SegmentRegister, Source, VectorEncoding};
use crate::entry::{CR0_PE, Segment};

/// Bits of RFLAGS (SDM 1 3.4.3).
pub(super) mod flag {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Numbers of general-purpose registers.
pub(super) mod number {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
}

/// The part of a virtual CPU that instructions on memory see: a copy, to be put back when one is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// General-purpose registers in the processor's numbering.
    pub gpr: [u64; 16],
    /// Instruction pointer, at the instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES CS SS DS FS GS. In 64-bit code only the bases of FS and GS are looked at.
    pub segments: [Segment; 6],
    /// How code is encoded.
    pub code: CodeSize,
    /// Current privilege level.
    pub cpl: u8,
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
}

/// The vector registers, which are not worth a copy: few instructions need one.
pub trait Vectors {
    /// The low 256 bits of register `index`, 0 to 15; what the processor does not have reads as zero.
    fn get(&self, index: u8) -> [u8; 32];
    /// Replaces register `index`: its low 128 bits, and by VEX all above as well.
    fn set(&mut self, index: u8, value: &[u8; 32], encoding: VectorEncoding);
    /// Whether an x87 exception waits that is not masked: the next MMX instruction raises it.
    fn x87_error(&self) -> bool;
    /// MMX register `index`, 0 to 7. As any MMX instruction this makes all x87 registers valid (SDM 1 9.5.1).
    fn get_mmx(&mut self, index: u8) -> u64;
    /// Replaces MMX register `index`, 0 to 7, likewise.
    fn set_mmx(&mut self, index: u8, value: u64);
}

impl CpuState {
    /// A register operand.
    #[must_use]
    pub fn get(&self, r: Reg) -> u64 {
        let value = self.gpr.get(usize::from(r.index)).copied().unwrap_or(0);
        match r.part {
            Part::High8 => value >> 8 & 0xFF,
            part => value & mask(part.size()),
        }
    }

    /// Sets a register operand.
    pub fn set(&mut self, r: Reg, value: u64) {
        let Some(register) = self.gpr.get_mut(usize::from(r.index)) else {
            return;
        };
        *register = match r.part {
            Part::Low8 => *register & !0xFF | value & 0xFF,
            Part::High8 => *register & !0xFF00 | (value & 0xFF) << 8,
            Part::Word => *register & !0xFFFF | value & 0xFFFF,
            // A 32-bit result is zero-extended (SDM 1 3.4.1.1).
            Part::Dword => value & 0xFFFF_FFFF,
            Part::Qword => value,
        };
    }

    /// A source operand.
    #[must_use]
    pub fn value(&self, source: Source) -> u64 {
        match source {
            Source::Reg(r) => self.get(r),
            Source::Imm(v) => v,
            Source::Selector(s) => u64::from(self.segment(s).selector),
            Source::Condition(c) => u64::from(self.holds(c)),
            Source::StatusWord => self.cr0 & 0xFFFF,
        }
    }

    /// A segment register.
    #[must_use]
    pub const fn segment(&self, segment: SegmentRegister) -> Segment {
        let [es, cs, ss, ds, fs, gs] = self.segments;
        match segment {
            SegmentRegister::Es => es,
            SegmentRegister::Cs => cs,
            SegmentRegister::Ss => ss,
            SegmentRegister::Ds => ds,
            SegmentRegister::Fs => fs,
            SegmentRegister::Gs => gs,
        }
    }

    /// Whether descriptors decide what a segment permits: neither real nor virtual-8086 mode.
    #[must_use]
    pub const fn is_protected(&self) -> bool {
        self.cr0 & CR0_PE != 0 && self.rflags & flag::VM == 0
    }

    /// Whether a condition holds (SDM 1 appendix B).
    #[must_use]
    pub const fn holds(&self, condition: Condition) -> bool {
        use flag::{CF, OF, PF, SF, ZF};
        let f = self.rflags;
        let less = (f & SF != 0) != (f & OF != 0);
        let plain = match condition.0 >> 1 & 7 {
            0 => f & OF != 0,
            1 => f & CF != 0,
            2 => f & ZF != 0,
            3 => f & (CF | ZF) != 0,
            4 => f & SF != 0,
            5 => f & PF != 0,
            6 => less,
            _ => less || f & ZF != 0,
        };
        plain != (condition.0 & 1 != 0)
    }
}

/// The bits of an operand of `size` bytes.
pub(super) const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}
