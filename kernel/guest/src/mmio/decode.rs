//! Instruction bytes to an [`Operation`].

mod error;
mod operand;
mod vectors;

pub use error::DecodeError;
pub use operand::{memory_address, memory_segment};

use error::Reason;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind};
pub(crate) use operand::register;
use operand::{memory_size, operand_segment, size_of_memory, source};

use super::{
    Alu, BitOp, CodeSize, Condition, Convert, MmioInstruction, Operation, Part, Rep, Scan,
    SegmentRegister, SelectorRegister, Shift, Source, StackOperand, StringOp, Unary,
};

/// Decodes the instruction at the start of `bytes`, which came from the instruction pointer `rip`.
///
/// # Errors
/// [`DecodeError`] when the bytes are too few, are no instruction, or one that does not access
/// memory in a way that is emulated.
pub fn decode(bytes: &[u8], code: CodeSize, rip: u64) -> Result<MmioInstruction, DecodeError> {
    let bitness = match code {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    // The processor refuses what is longer (SDM 2A 2.3.11).
    let bytes = bytes.get(..15).unwrap_or(bytes);
    let error = |reason| DecodeError::new(bytes, reason);
    let mut decoder = Decoder::try_with_ip(bitness, bytes, rip, DecoderOptions::NONE)
        .map_err(|_| error(Reason::Invalid))?;
    let i = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes if bytes.len() < 15 => return Err(error(Reason::Truncated)),
        _ => return Err(error(Reason::Invalid)),
    }
    let unsupported = || error(Reason::Unsupported(i.mnemonic()));
    let operation = operation(&i)
        .filter(|operation| code != CodeSize::Bits64 || !is_ambiguous(operation, bytes))
        .ok_or_else(unsupported)?;
    let address = has_memory_operand(&i).then(|| memory_address(&i));
    let length = u8::try_from(i.len()).map_err(|_| error(Reason::Invalid))?;
    Ok(MmioInstruction {
        length,
        operation,
        address: match address {
            Some(None) => return Err(unsupported()),
            Some(address) => address,
            None => None,
        },
        code,
    })
}

fn has_memory_operand(i: &Instruction) -> bool {
    i.op0_kind() == OpKind::Memory
        || i.op1_kind() == OpKind::Memory
        || i.op2_kind() == OpKind::Memory
}

/// Processors disagree about what the operand-size prefix means to a near transfer in 64-bit code.
fn is_ambiguous(operation: &Operation, bytes: &[u8]) -> bool {
    let transfers = matches!(
        operation,
        Operation::Call { .. } | Operation::Return { .. } | Operation::Jump { .. }
    );
    let is_prefix = |byte: &&u8| {
        matches!(
            byte,
            0x26 | 0x2E | 0x36 | 0x3E | 0x40..=0x4F | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3
        )
    };
    transfers && bytes.iter().take_while(is_prefix).any(|byte| *byte == 0x66)
}

fn operation(i: &Instruction) -> Option<Operation> {
    string(i)
        .or_else(|| stack(i))
        .or_else(|| vectors::operation(i))
        .or_else(|| plain(i).filter(|_| has_memory_operand(i)))
}

/// Instructions with general-purpose registers and one memory operand.
fn plain(i: &Instruction) -> Option<Operation> {
    let m = i.mnemonic();
    if let Some(operation) = computation(i, m) {
        return Some(operation);
    }
    let to_memory = i.op0_kind() == OpKind::Memory;
    Some(match m {
        Mnemonic::Mov if to_memory => store(i, Convert::Zero)?,
        Mnemonic::Mov => match operand::segment(i.op0_register()) {
            Some(to) => Operation::LoadSelector {
                to: SelectorRegister::Segment(to),
            },
            None => load(i, Convert::Zero)?,
        },
        Mnemonic::Ltr => Operation::LoadSelector {
            to: SelectorRegister::Task,
        },
        Mnemonic::Smsw => Operation::Store {
            from: Source::StatusWord,
            size: 2,
            convert: Convert::Zero,
        },
        Mnemonic::Movnti | Mnemonic::Movdiri => store(i, Convert::Zero)?,
        Mnemonic::Movbe if to_memory => store(i, Convert::Swap)?,
        Mnemonic::Movbe => load(i, Convert::Swap)?,
        Mnemonic::Movzx => load(i, Convert::Zero)?,
        // Processors disagree about how much of memory MOVSXD reads for a 16-bit register.
        Mnemonic::Movsxd if i.code() == iced_x86::Code::Movsxd_r16_rm16 => return None,
        Mnemonic::Movsx | Mnemonic::Movsxd => load(i, Convert::Sign)?,
        Mnemonic::Xchg => {
            let reg = if to_memory {
                i.op1_register()
            } else {
                i.op0_register()
            };
            Operation::Exchange {
                reg: register(reg)?,
            }
        }
        Mnemonic::Xadd => Operation::ExchangeAdd {
            reg: register(i.op1_register())?,
        },
        Mnemonic::Cmpxchg => Operation::CompareExchange {
            reg: register(i.op1_register())?,
        },
        Mnemonic::Cmpxchg8b => Operation::CompareExchangePair { half: 4 },
        Mnemonic::Cmpxchg16b => Operation::CompareExchangePair { half: 8 },
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => Operation::Touch,
        _ => conditional(i, m)?,
    })
}

fn load(i: &Instruction, convert: Convert) -> Option<Operation> {
    Some(Operation::Load {
        to: register(i.op0_register())?,
        size: size_of_memory(i)?,
        convert,
    })
}

fn store(i: &Instruction, convert: Convert) -> Option<Operation> {
    let from = source(i, 1)?;
    let size = match from {
        Source::Selector(_) => 2,
        other => memory_size(i, other)?,
    };
    Some(Operation::Store {
        from,
        size,
        convert,
    })
}

/// CMOVcc and SETcc.
fn conditional(i: &Instruction, m: Mnemonic) -> Option<Operation> {
    use Mnemonic as M;
    let set = [
        M::Seto,
        M::Setno,
        M::Setb,
        M::Setae,
        M::Sete,
        M::Setne,
        M::Setbe,
        M::Seta,
        M::Sets,
        M::Setns,
        M::Setp,
        M::Setnp,
        M::Setl,
        M::Setge,
        M::Setle,
        M::Setg,
    ];
    let moves = [
        M::Cmovo,
        M::Cmovno,
        M::Cmovb,
        M::Cmovae,
        M::Cmove,
        M::Cmovne,
        M::Cmovbe,
        M::Cmova,
        M::Cmovs,
        M::Cmovns,
        M::Cmovp,
        M::Cmovnp,
        M::Cmovl,
        M::Cmovge,
        M::Cmovle,
        M::Cmovg,
    ];
    let number = |list: [M; 16]| {
        let found = list.iter().position(|one| *one == m)?;
        u8::try_from(found).ok().map(Condition)
    };
    if let Some(condition) = number(set) {
        return Some(Operation::Store {
            from: Source::Condition(condition),
            size: 1,
            convert: Convert::Zero,
        });
    }
    Some(Operation::LoadIf {
        condition: number(moves)?,
        to: register(i.op0_register())?,
    })
}

/// Arithmetic, logic, shifts, bits.
fn computation(i: &Instruction, m: Mnemonic) -> Option<Operation> {
    if let Some(op) = alu(m) {
        return if i.op0_kind() == OpKind::Memory {
            let with = source(i, 1)?;
            let size = memory_size(i, with)?;
            Some(Operation::Modify { op, with, size })
        } else {
            let reg = register(i.op0_register())?;
            Some(Operation::Combine { op, reg })
        };
    }
    if let Some(op) = unary(m) {
        let size = size_of_memory(i)?;
        return Some(Operation::Single { op, size });
    }
    if let Some(op) = shift(m) {
        let (count, size) = (source(i, 1)?, size_of_memory(i)?);
        return Some(Operation::Shift { op, count, size });
    }
    if let Some(op) = bit(m) {
        let index = source(i, 1)?;
        let size = memory_size(i, index)?;
        return Some(Operation::Bit { op, index, size });
    }
    Some(match m {
        Mnemonic::Shld | Mnemonic::Shrd => Operation::DoubleShift {
            op: if m == Mnemonic::Shld {
                Shift::Left
            } else {
                Shift::Right
            },
            with: register(i.op1_register())?,
            count: source(i, 2)?,
        },
        Mnemonic::Bsf => scan(i, Scan::Forward)?,
        Mnemonic::Bsr => scan(i, Scan::Reverse)?,
        Mnemonic::Popcnt => scan(i, Scan::Count)?,
        Mnemonic::Imul if i.op0_kind() == OpKind::Register => {
            let to = register(i.op0_register())?;
            let with = if i.op_count() == 3 {
                source(i, 2)?
            } else {
                Source::Reg(to)
            };
            Operation::Multiply { to, with }
        }
        Mnemonic::Imul | Mnemonic::Mul => Operation::MultiplyWide {
            signed: m == Mnemonic::Imul,
            size: size_of_memory(i)?,
        },
        Mnemonic::Idiv | Mnemonic::Div => Operation::DivideWide {
            signed: m == Mnemonic::Idiv,
            size: size_of_memory(i)?,
        },
        _ => return None,
    })
}

fn scan(i: &Instruction, op: Scan) -> Option<Operation> {
    let to = register(i.op0_register())?;
    Some(Operation::Scan { op, to })
}

/// Pushes, pops and near transfers, whose stack or operand may be in a device.
fn stack(i: &Instruction) -> Option<Operation> {
    use iced_x86::Code as C;
    let operand = || match i.op0_kind() {
        OpKind::Memory => Some(StackOperand::Memory),
        OpKind::Register => register(i.op0_register()).map(StackOperand::Reg),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            Some(StackOperand::Imm(i.near_branch_target()))
        }
        _ => i.try_immediate(0).ok().map(StackOperand::Imm),
    };
    let size = match i.code() {
        C::Push_r16
        | C::Push_rm16
        | C::Push_imm16
        | C::Pushw_imm8
        | C::Pop_r16
        | C::Pop_rm16
        | C::Call_rel16
        | C::Call_rm16
        | C::Jmp_rm16
        | C::Jmp_m1616
        | C::Enterw_imm16_imm8
        | C::Leavew
        | C::Retnw
        | C::Retnw_imm16 => 2,
        C::Push_r32
        | C::Push_rm32
        | C::Pushd_imm32
        | C::Pushd_imm8
        | C::Pop_r32
        | C::Pop_rm32
        | C::Call_rel32_32
        | C::Call_rm32
        | C::Jmp_rm32
        | C::Jmp_m1632
        | C::Enterd_imm16_imm8
        | C::Leaved
        | C::Retnd
        | C::Retnd_imm16 => 4,
        C::Push_r64
        | C::Push_rm64
        | C::Pushq_imm32
        | C::Pushq_imm8
        | C::Pop_r64
        | C::Pop_rm64
        | C::Call_rel32_64
        | C::Call_rm64
        | C::Jmp_rm64
        | C::Jmp_m1664
        | C::Enterq_imm16_imm8
        | C::Leaveq
        | C::Retnq
        | C::Retnq_imm16 => 8,
        _ => return None,
    };
    let m = i.mnemonic();
    Some(match m {
        Mnemonic::Push => Operation::Push {
            from: operand()?,
            size,
        },
        Mnemonic::Pop => Operation::Pop {
            to: operand()?,
            size,
        },
        Mnemonic::Call => Operation::Call {
            to: operand()?,
            size,
        },
        Mnemonic::Jmp
            if matches!(i.code(), C::Jmp_m1616 | C::Jmp_m1632 | C::Jmp_m1664)
                && i.op0_kind() == OpKind::Memory =>
        {
            Operation::FarJump { size }
        }
        Mnemonic::Jmp if i.op0_kind() == OpKind::Memory => Operation::Jump { size },
        // Compilers nest no frames.
        Mnemonic::Enter if i.immediate8_2nd().is_multiple_of(32) => Operation::Enter {
            frame: i.immediate16(),
            size,
        },
        Mnemonic::Leave => Operation::Leave { size },
        Mnemonic::Ret => Operation::Return {
            drops: if i.op_count() == 1 {
                i.immediate16()
            } else {
                0
            },
            size,
        },
        _ => return None,
    })
}

fn string(i: &Instruction) -> Option<Operation> {
    let op = match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => StringOp::Move,
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => StringOp::Store,
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => StringOp::Load,
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => StringOp::Compare,
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => StringOp::Scan,
        _ => return None,
    };
    // MOVSD and CMPSD are also SSE instructions, whose operands are of other kinds.
    let address = [i.op0_kind(), i.op1_kind()]
        .into_iter()
        .find_map(|kind| match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Part::Word),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Part::Dword),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Part::Qword),
            _ => None,
        })?;
    let segment = match op {
        StringOp::Store | StringOp::Scan => SegmentRegister::Es,
        _ => operand_segment(i)?,
    };
    // F2 repeats the instructions that do not compare as well as F3 does.
    let rep = match (i.has_rep_prefix(), i.has_repne_prefix(), op) {
        (_, true, StringOp::Compare | StringOp::Scan) => Rep::RepeatUnequal,
        (false, false, _) => Rep::Once,
        _ => Rep::Repeat,
    };
    Some(Operation::String {
        op,
        size: size_of_memory(i)?,
        address,
        segment,
        rep,
    })
}

pub(crate) const fn alu(m: Mnemonic) -> Option<Alu> {
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

pub(crate) const fn unary(m: Mnemonic) -> Option<Unary> {
    Some(match m {
        Mnemonic::Inc => Unary::Inc,
        Mnemonic::Dec => Unary::Dec,
        Mnemonic::Not => Unary::Not,
        Mnemonic::Neg => Unary::Neg,
        _ => return None,
    })
}

pub(crate) const fn shift(m: Mnemonic) -> Option<Shift> {
    Some(match m {
        Mnemonic::Rol => Shift::RotateLeft,
        Mnemonic::Ror => Shift::RotateRight,
        Mnemonic::Rcl => Shift::RotateLeftThroughCarry,
        Mnemonic::Rcr => Shift::RotateRightThroughCarry,
        Mnemonic::Shl | Mnemonic::Sal => Shift::Left,
        Mnemonic::Shr => Shift::Right,
        Mnemonic::Sar => Shift::RightSigned,
        _ => return None,
    })
}

const fn bit(m: Mnemonic) -> Option<BitOp> {
    Some(match m {
        Mnemonic::Bt => BitOp::Test,
        Mnemonic::Bts => BitOp::Set,
        Mnemonic::Btr => BitOp::Reset,
        Mnemonic::Btc => BitOp::Complement,
        _ => return None,
    })
}
