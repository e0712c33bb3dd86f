//! Instruction bytes to an [`Operation`].

use core::fmt;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::{
    Alu, CodeSize, Extend, MmioInstruction, Operation, Part, Reg, Rep, SegmentRegister, Source,
    StringOp, Unary,
};

/// Why an instruction is not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    bytes: [u8; 15],
    length: usize,
    reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    Truncated,
    Invalid,
    Unsupported(Mnemonic),
}

impl DecodeError {
    fn new(bytes: &[u8], reason: Reason) -> Self {
        let mut copy = [0; 15];
        let length = bytes.len().min(copy.len());
        for (to, from) in copy.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self {
            bytes: copy,
            length,
            reason,
        }
    }

    /// Whether the processor itself would have refused the bytes, with #UD.
    #[must_use]
    pub fn is_invalid_opcode(&self) -> bool {
        self.reason == Reason::Invalid
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes")?;
        for b in self.bytes.iter().take(self.length) {
            write!(f, " {b:02x}")?;
        }
        match &self.reason {
            Reason::Truncated => {
                f.write_str(" end before the instruction does; it was not executed")
            }
            Reason::Invalid => f.write_str(" are no instruction in this mode; it was not executed"),
            Reason::Unsupported(m) => {
                write!(
                    f,
                    " are a {m:?}, which is not emulated on device memory; it was not executed"
                )
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// Decodes the instruction at the start of `bytes`.
///
/// # Errors
/// [`DecodeError`] when the bytes are too few, are no instruction, or one that does not access a
/// device in a way that is emulated.
pub fn decode(bytes: &[u8], code: CodeSize) -> Result<MmioInstruction, DecodeError> {
    let bitness = match code {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let error = |reason| DecodeError::new(bytes, reason);
    let mut decoder = Decoder::try_new(bitness, bytes, DecoderOptions::NONE)
        .map_err(|_| error(Reason::Invalid))?;
    let i = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes if bytes.len() < 15 => return Err(error(Reason::Truncated)),
        _ => return Err(error(Reason::Invalid)),
    }
    let operation = operation(&i).ok_or(error(Reason::Unsupported(i.mnemonic())))?;
    let length = u8::try_from(i.len()).map_err(|_| error(Reason::Invalid))?;
    Ok(MmioInstruction {
        length,
        operation,
        code,
    })
}

fn operation(i: &Instruction) -> Option<Operation> {
    if let Some(op) = string_op(i.mnemonic()) {
        return string(i, op);
    }
    match i.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => match (i.op0_kind(), i.op1_kind()) {
            (OpKind::Register, OpKind::Memory) => load(i, Extend::Zero),
            (OpKind::Memory, _) => {
                let from = source(i, 1)?;
                Some(Operation::Store {
                    from,
                    size: memory_size(i, from)?,
                })
            }
            _ => None,
        },
        Mnemonic::Movzx => load(i, Extend::Zero),
        Mnemonic::Movsx | Mnemonic::Movsxd => load(i, Extend::Sign),
        Mnemonic::Xchg => {
            let reg = match (i.op0_kind(), i.op1_kind()) {
                (OpKind::Memory, OpKind::Register) => i.op1_register(),
                (OpKind::Register, OpKind::Memory) => i.op0_register(),
                _ => return None,
            };
            Some(Operation::Exchange {
                reg: register(reg)?,
            })
        }
        m => {
            if let Some(op) = alu(m) {
                return match (i.op0_kind(), i.op1_kind()) {
                    (OpKind::Memory, _) => {
                        let with = source(i, 1)?;
                        Some(Operation::Modify {
                            op,
                            with,
                            size: memory_size(i, with)?,
                        })
                    }
                    (OpKind::Register, OpKind::Memory) => Some(Operation::Combine {
                        op,
                        reg: register(i.op0_register())?,
                    }),
                    _ => None,
                };
            }
            let op = unary(m).filter(|_| i.op0_kind() == OpKind::Memory)?;
            Some(Operation::Single {
                op,
                size: size_of_memory(i)?,
            })
        }
    }
}

fn load(i: &Instruction, extend: Extend) -> Option<Operation> {
    if i.op1_kind() != OpKind::Memory {
        return None;
    }
    Some(Operation::Load {
        to: register(i.op0_register())?,
        size: size_of_memory(i)?,
        extend,
    })
}

const fn string_op(m: Mnemonic) -> Option<StringOp> {
    Some(match m {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => StringOp::Move,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => StringOp::Store,
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => StringOp::Load,
        _ => return None,
    })
}

fn string(i: &Instruction, op: StringOp) -> Option<Operation> {
    // MOVSD is also an SSE instruction, whose operands are of other kinds.
    let address = [i.op0_kind(), i.op1_kind()]
        .into_iter()
        .find_map(|kind| match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Part::Word),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Part::Dword),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Part::Qword),
            _ => None,
        })?;
    let segment = match op {
        StringOp::Store => SegmentRegister::Es,
        StringOp::Move | StringOp::Load => segment(i.memory_segment())?,
    };
    // F2 repeats these instructions as well as F3 does.
    let rep = if i.has_rep_prefix() || i.has_repne_prefix() {
        Rep::Repeat
    } else {
        Rep::Once
    };
    Some(Operation::String {
        op,
        size: size_of_memory(i)?,
        address,
        segment,
        rep,
    })
}

const fn alu(m: Mnemonic) -> Option<Alu> {
    Some(match m {
        Mnemonic::Add => Alu::Add,
        Mnemonic::Or => Alu::Or,
        Mnemonic::Adc => Alu::Adc,
        Mnemonic::Sbb => Alu::Sbb,
        Mnemonic::And => Alu::And,
        Mnemonic::Sub => Alu::Sub,
        Mnemonic::Xor => Alu::Xor,
        Mnemonic::Cmp => Alu::Cmp,
        Mnemonic::Test => Alu::Test,
        _ => return None,
    })
}

const fn unary(m: Mnemonic) -> Option<Unary> {
    Some(match m {
        Mnemonic::Inc => Unary::Inc,
        Mnemonic::Dec => Unary::Dec,
        Mnemonic::Not => Unary::Not,
        Mnemonic::Neg => Unary::Neg,
        _ => return None,
    })
}

/// The register or immediate that is operand `n`.
fn source(i: &Instruction, n: u32) -> Option<Source> {
    match i.try_op_kind(n).ok()? {
        OpKind::Register => i
            .try_op_register(n)
            .ok()
            .and_then(register)
            .map(Source::Reg),
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => i.try_immediate(n).ok().map(Source::Imm),
        _ => None,
    }
}

/// Bytes of memory: a register operand's, else those of the instruction's own notion.
fn memory_size(i: &Instruction, other: Source) -> Option<u8> {
    match other {
        Source::Reg(r) => Some(r.part.size()),
        Source::Imm(_) => size_of_memory(i),
    }
}

fn size_of_memory(i: &Instruction) -> Option<u8> {
    use iced_x86::MemorySize as M;
    Some(match i.memory_size() {
        M::UInt8 | M::Int8 => 1,
        M::UInt16 | M::Int16 => 2,
        M::UInt32 | M::Int32 => 4,
        M::UInt64 | M::Int64 => 8,
        _ => return None,
    })
}

/// The decoder numbers each width's registers in the processor's order.
fn register(r: Register) -> Option<Reg> {
    let within = |first: Register, last: Register| {
        let (n, first, last) = (r as usize, first as usize, last as usize);
        (first..=last).contains(&n).then(|| (n - first) as u8)
    };
    let low = |index, part| Some(Reg { index, part });
    if let Some(n) = within(Register::AL, Register::BL) {
        low(n, Part::Low8)
    } else if let Some(n) = within(Register::AH, Register::BH) {
        low(n, Part::High8)
    } else if let Some(n) = within(Register::SPL, Register::R15L) {
        low(n + 4, Part::Low8)
    } else if let Some(n) = within(Register::AX, Register::R15W) {
        low(n, Part::Word)
    } else if let Some(n) = within(Register::EAX, Register::R15D) {
        low(n, Part::Dword)
    } else if let Some(n) = within(Register::RAX, Register::R15) {
        low(n, Part::Qword)
    } else {
        None
    }
}

const fn segment(r: Register) -> Option<SegmentRegister> {
    Some(match r {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::DS => SegmentRegister::Ds,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => return None,
    })
}
