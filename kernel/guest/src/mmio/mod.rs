//! The instruction behind an access to a device's memory: decoded, then executed.
//!
//! A device has no memory for the nested page tables to map, so the processor exits instead, with
//! the guest-physical address but (without decode assists) not the instruction. [`decode`] reads
//! the instruction bytes into a small operation; [`execute`] carries it out on the vCPU's
//! registers, with memory reached through the [`MmioBus`] that the kernel provides:
//!
//! * the operand that caused the exit by [`MmioBus::read`] and [`MmioBus::write`], whose address the
//!   kernel knows from the exit;
//! * both operands of MOVS by linear address, since either may be the device.
//!
//! Registers change only after every access of the instruction has succeeded, so a page fault in the
//! middle leaves the vCPU at the instruction. Repeated string instructions are done one element
//! at a time: [`Completion::Repeat`] leaves the instruction pointer where it is, and the guest, which can take
//! an interrupt there, comes back for the next.
//!
//! The set is that of compilers and of Linux' drivers: moves of all sizes with extension, arithmetic and
//! logic with the memory operand on either side, exchanges, and string moves, stores and loads.

mod decode;
mod execute;

pub use decode::{DecodeError, decode};
pub use execute::execute;

use units::PAGE_BYTES;

/// Default sizes of operands and addresses, from CS and EFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or CS.D = 0.
    Bits16,
    /// CS.D = 1.
    Bits32,
    /// CS.L = 1 with EFER.LMA.
    Bits64,
}

/// A general-purpose register operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// Number of the register, 0 to 15: RAX RCX RDX RBX RSP RBP RSI RDI R8 ...
    pub index: u8,
    /// Which part of it.
    pub part: Part,
}

/// Part of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bits 7:0.
    Low8,
    /// Bits 15:8: AH, CH, DH, BH.
    High8,
    /// Bits 15:0.
    Word,
    /// Bits 31:0; a write clears the upper half.
    Dword,
    /// All 64 bits.
    Qword,
}

impl Part {
    /// Bytes.
    #[must_use]
    pub const fn size(self) -> u8 {
        match self {
            Self::Low8 | Self::High8 => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Reg(Reg),
    /// An immediate, sign-extended to 64 bits.
    Imm(u64),
}

/// How a narrow value fills a wider register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    /// With zeros; also where the sizes agree.
    Zero,
    /// With copies of the sign.
    Sign,
}

/// Arithmetic and logic with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// ADD.
    Add,
    /// OR.
    Or,
    /// ADC.
    Adc,
    /// SBB.
    Sbb,
    /// AND.
    And,
    /// SUB.
    Sub,
    /// XOR.
    Xor,
    /// CMP: SUB that stores nothing.
    Cmp,
    /// TEST: AND that stores nothing.
    Test,
}

/// Arithmetic and logic with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// INC.
    Inc,
    /// DEC.
    Dec,
    /// NOT, which leaves the flags alone.
    Not,
    /// NEG.
    Neg,
}

/// A string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringOp {
    /// MOVS: from the source segment's RSI to ES:RDI.
    Move,
    /// STOS: the accumulator to ES:RDI.
    Store,
    /// LODS: from the source segment's RSI to the accumulator.
    Load,
}

/// Whether a string instruction has a REP prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rep {
    /// Once.
    Once,
    /// RCX times.
    Repeat,
}

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRegister {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// What an instruction does with its memory operand; `size` is the operand's, in bytes: 1, 2, 4 or 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Register from memory.
    Load {
        /// Where to.
        to: Reg,
        /// Bytes of memory.
        size: u8,
        /// If the register is wider.
        extend: Extend,
    },
    /// Memory from register or immediate.
    Store {
        /// Where from.
        from: Source,
        /// Bytes of memory.
        size: u8,
    },
    /// Memory operated on with a register or immediate.
    Modify {
        /// What.
        op: Alu,
        /// The other operand.
        with: Source,
        /// Bytes of memory.
        size: u8,
    },
    /// Register operated on with memory.
    Combine {
        /// What.
        op: Alu,
        /// Destination and first operand.
        reg: Reg,
    },
    /// Memory operated on alone.
    Single {
        /// What.
        op: Unary,
        /// Bytes of memory.
        size: u8,
    },
    /// Register and memory exchanged.
    Exchange {
        /// The register.
        reg: Reg,
    },
    /// A string instruction.
    String {
        /// Which.
        op: StringOp,
        /// Bytes of an element.
        size: u8,
        /// Part of RSI, RDI and RCX that counts.
        address: Part,
        /// Segment of the source.
        segment: SegmentRegister,
        /// Repetition.
        rep: Rep,
    },
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioInstruction {
    /// Bytes of the instruction, 1 to 15.
    pub length: u8,
    /// What it does.
    pub operation: Operation,
    /// Mode that it was decoded for.
    pub code: CodeSize,
}

/// The vCPU's registers.
pub trait CpuState {
    /// All 64 bits of general-purpose register `index`, 0 to 15 in the processor's numbering (RSP is 4).
    fn reg(&self, index: u8) -> u64;
    /// Replaces all 64 bits of a general-purpose register.
    fn set_reg(&mut self, index: u8, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Replaces RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// Base of a segment as the segment register holds it.
    fn segment_base(&self, segment: SegmentRegister) -> u64;
}

/// Memory as the instruction sees it. Sizes are 1, 2, 4 or 8 bytes; values are zero-extended.
pub trait MmioBus {
    /// What stops the instruction: a page fault to be injected, say.
    type Error;
    /// Reads the operand that caused the exit.
    ///
    /// # Errors
    /// Whatever stops the instruction.
    fn read(&mut self, size: u8) -> Result<u64, Self::Error>;
    /// Writes the operand that caused the exit.
    ///
    /// # Errors
    /// Whatever stops the instruction.
    fn write(&mut self, size: u8, value: u64) -> Result<(), Self::Error>;
    /// Reads at a linear address, which may be memory or a device.
    ///
    /// # Errors
    /// Whatever stops the instruction.
    fn read_linear(&mut self, address: u64, size: u8) -> Result<u64, Self::Error>;
    /// Writes at a linear address, which may be memory or a device.
    ///
    /// # Errors
    /// Whatever stops the instruction.
    fn write_linear(&mut self, address: u64, size: u8, value: u64) -> Result<(), Self::Error>;
}

/// How many of the `size` bytes from `address` on lie in its page, and how many in the next one: two
/// pages that are next to each other in linear memory need not be so in guest-physical memory.
#[must_use]
pub const fn split_at_page(address: u64, size: u8) -> (u8, u8) {
    let left = PAGE_BYTES - address % PAGE_BYTES;
    if left < size as u64 {
        (left as u8, size - left as u8)
    } else {
        (size, 0)
    }
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The instruction is done: RIP moves on by its length.
    Advance,
    /// One element of a repeated string instruction is done and more remain: RIP stays.
    Repeat,
}

#[cfg(test)]
mod tests;
