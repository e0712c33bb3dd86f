//! Instructions behind an access to a device's memory: decode, then execute.

/// Default sizes, from CS and EFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, or CS.D = 0.
    Bits16,
    /// CS.D = 1.
    Bits32,
    /// CS.L = 1 and EFER.LMA.
    Bits64,
}

/// A general-purpose register operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// 0 to 15.
    pub index: u8,
    /// Part.
    pub part: Part,
}

/// Part of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bits 7:0.
    Low8,
    /// Bits 15:8.
    High8,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

/// Source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Register.
    Reg(Reg),
    /// Immediate, sign-extended.
    Imm(u64),
}

/// Segment registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRegister {
    /// ES
    Es,
    /// CS
    Cs,
    /// SS
    Ss,
    /// DS
    Ds,
    /// FS
    Fs,
    /// GS
    Gs,
}

/// A decoded instruction; opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioInstruction {
    /// Bytes.
    pub length: u8,
}

/// Why an instruction is not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// bytes
    pub bytes: [u8; 15],
}

/// The vCPU's registers.
pub trait CpuState {
    /// All 64 bits of general-purpose register `index` (0 to 15, the processor's numbering, RSP = 4).
    fn reg(&self, index: u8) -> u64;
    /// Replaces all 64 bits.
    fn set_reg(&mut self, index: u8, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Replaces RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// Base of a segment (in 64-bit code 0 but for FS and GS; the callee takes care of that).
    fn segment_base(&self, segment: SegmentRegister) -> u64;
}

/// Memory as the instruction sees it.
pub trait MmioBus {
    /// What stops the instruction: a page fault to be injected, say.
    type Error;
    /// Reads `size` (1, 2, 4, 8) bytes from the operand that caused the exit (the kernel knows its guest-physical address).
    fn read(&mut self, size: u8) -> Result<u64, Self::Error>;
    /// Writes the operand that caused the exit.
    fn write(&mut self, size: u8, value: u64) -> Result<(), Self::Error>;
    /// Reads at a linear address (MOVS): translate, then RAM or device.
    fn read_linear(&mut self, address: u64, size: u8) -> Result<u64, Self::Error>;
    /// Writes at a linear address (MOVS).
    fn write_linear(&mut self, address: u64, size: u8, value: u64) -> Result<(), Self::Error>;
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Done: RIP += length.
    Advance,
    /// A REP iteration is done, more remain: RIP stays.
    Repeat,
}

/// Decodes.
pub fn decode(_bytes: &[u8], _code: CodeSize) -> Result<MmioInstruction, DecodeError> {
    Err(DecodeError { bytes: [0; 15] })
}

/// Executes.
pub fn execute<C: CpuState, B: MmioBus>(
    _instruction: &MmioInstruction,
    _cpu: &mut C,
    _bus: &mut B,
) -> Result<Completion, B::Error> {
    Ok(Completion::Advance)
}
