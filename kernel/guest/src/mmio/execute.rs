//! An [`Operation`] on registers and memory.

use super::{
    Alu, CodeSize, Completion, CpuState, Extend, MmioBus, MmioInstruction, Operation, Part, Reg,
    Rep, SegmentRegister, Source, StringOp, Unary,
};

/// Bits of RFLAGS (SDM 1 3.4.3).
mod flag {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Executes an instruction, or one element of a repeated one.
///
/// The caller moves RIP as [`Completion`] says.
///
/// # Errors
/// What the bus reports; registers and flags are unchanged then.
pub fn execute<C: CpuState, B: MmioBus>(
    instruction: &MmioInstruction,
    cpu: &mut C,
    bus: &mut B,
) -> Result<Completion, B::Error> {
    match instruction.operation {
        Operation::Load { to, size, extend } => {
            let value = bus.read(size)?;
            let value = match extend {
                Extend::Zero => value & mask(size),
                Extend::Sign => sign_extend(value, size),
            };
            set(cpu, to, value);
        }
        Operation::Store { from, size } => bus.write(size, get_source(cpu, from) & mask(size))?,
        Operation::Modify { op, with, size } => {
            let (result, flags) = alu(
                op,
                bus.read(size)?,
                get_source(cpu, with),
                size,
                cpu.rflags(),
            );
            if !matches!(op, Alu::Cmp | Alu::Test) {
                bus.write(size, result)?;
            }
            cpu.set_rflags(flags);
        }
        Operation::Combine { op, reg } => {
            let size = reg.part.size();
            let (result, flags) = alu(op, get(cpu, reg), bus.read(size)?, size, cpu.rflags());
            if !matches!(op, Alu::Cmp | Alu::Test) {
                set(cpu, reg, result);
            }
            cpu.set_rflags(flags);
        }
        Operation::Single { op, size } => {
            let (result, flags) = unary(op, bus.read(size)?, size, cpu.rflags());
            bus.write(size, result)?;
            cpu.set_rflags(flags);
        }
        Operation::Exchange { reg } => {
            let size = reg.part.size();
            let memory = bus.read(size)?;
            bus.write(size, get(cpu, reg))?;
            set(cpu, reg, memory);
        }
        Operation::String {
            op,
            size,
            address,
            segment,
            rep,
        } => {
            return string(instruction.code, cpu, bus, op, size, address, segment, rep);
        }
    }
    Ok(Completion::Advance)
}

#[expect(
    clippy::too_many_arguments,
    reason = "the fields of Operation::String, taken apart once"
)]
fn string<C: CpuState, B: MmioBus>(
    code: CodeSize,
    cpu: &mut C,
    bus: &mut B,
    op: StringOp,
    size: u8,
    address: Part,
    segment: SegmentRegister,
    rep: Rep,
) -> Result<Completion, B::Error> {
    let pointer = |index| Reg {
        index,
        part: address,
    };
    let counter = pointer(RCX);
    if rep == Rep::Repeat && get(cpu, counter) == 0 {
        return Ok(Completion::Advance);
    }
    let accumulator = Reg {
        index: RAX,
        part: match size {
            1 => Part::Low8,
            2 => Part::Word,
            4 => Part::Dword,
            _ => Part::Qword,
        },
    };
    let source = linear(code, cpu, segment, get(cpu, pointer(RSI)));
    let destination = linear(code, cpu, SegmentRegister::Es, get(cpu, pointer(RDI)));
    match op {
        StringOp::Move => {
            let value = bus.read_linear(source, size)?;
            bus.write_linear(destination, size, value & mask(size))?;
        }
        StringOp::Store => bus.write(size, get(cpu, accumulator))?,
        StringOp::Load => {
            let value = bus.read(size)?;
            set(cpu, accumulator, value & mask(size));
        }
    }
    let step = if cpu.rflags() & flag::DF == 0 {
        u64::from(size)
    } else {
        u64::from(size).wrapping_neg()
    };
    for index in [RSI, RDI] {
        let used = match op {
            StringOp::Move => true,
            StringOp::Store => index == RDI,
            StringOp::Load => index == RSI,
        };
        if used {
            let moved = get(cpu, pointer(index)).wrapping_add(step);
            set(cpu, pointer(index), moved);
        }
    }
    if rep == Rep::Once {
        return Ok(Completion::Advance);
    }
    let left = get(cpu, counter).wrapping_sub(1);
    set(cpu, counter, left);
    Ok(if left & mask(address.size()) == 0 {
        Completion::Advance
    } else {
        Completion::Repeat
    })
}

/// In 64-bit code only FS and GS have a base (SDM 1 3.4.2.1); elsewhere addresses have 32 bits.
fn linear(code: CodeSize, cpu: &impl CpuState, segment: SegmentRegister, offset: u64) -> u64 {
    match (code, segment) {
        (CodeSize::Bits64, SegmentRegister::Fs | SegmentRegister::Gs) => {
            cpu.segment_base(segment).wrapping_add(offset)
        }
        (CodeSize::Bits64, _) => offset,
        _ => cpu.segment_base(segment).wrapping_add(offset) & 0xFFFF_FFFF,
    }
}

const fn mask(size: u8) -> u64 {
    match size {
        1 => 0xFF,
        2 => 0xFFFF,
        4 => 0xFFFF_FFFF,
        _ => u64::MAX,
    }
}

const fn sign_extend(value: u64, size: u8) -> u64 {
    match size {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}

fn get_source(cpu: &impl CpuState, source: Source) -> u64 {
    match source {
        Source::Reg(r) => get(cpu, r),
        Source::Imm(v) => v,
    }
}

fn get(cpu: &impl CpuState, r: Reg) -> u64 {
    let value = cpu.reg(r.index);
    match r.part {
        Part::High8 => value >> 8 & 0xFF,
        part => value & mask(part.size()),
    }
}

fn set(cpu: &mut impl CpuState, r: Reg, value: u64) {
    let old = cpu.reg(r.index);
    let new = match r.part {
        Part::Low8 => old & !0xFF | value & 0xFF,
        Part::High8 => old & !0xFF00 | (value & 0xFF) << 8,
        Part::Word => old & !0xFFFF | value & 0xFFFF,
        // A 32-bit result is zero-extended (SDM 1 3.4.1.1).
        Part::Dword => value & 0xFFFF_FFFF,
        Part::Qword => value,
    };
    cpu.set_reg(r.index, new);
}

/// Result and new flags of `a op b`, both of `size` bytes (SDM 2, the instructions' "Flags Affected").
fn alu(op: Alu, a: u64, b: u64, size: u8, flags: u64) -> (u64, u64) {
    let (m, sign) = (mask(size), 1u64 << (u32::from(size) * 8 - 1));
    let (a, b) = (a & m, b & m);
    let carry_in = match op {
        Alu::Adc | Alu::Sbb => flags & flag::CF,
        _ => 0,
    };
    let (result, carry, overflow, adjust) = match op {
        Alu::And | Alu::Test => (a & b, false, false, false),
        Alu::Or => (a | b, false, false, false),
        Alu::Xor => (a ^ b, false, false, false),
        Alu::Add | Alu::Adc => {
            let wide = u128::from(a) + u128::from(b) + u128::from(carry_in);
            let r = wide as u64 & m;
            (
                r,
                wide > u128::from(m),
                !(a ^ b) & (a ^ r) & sign != 0,
                (a ^ b ^ r) & 0x10 != 0,
            )
        }
        Alu::Sub | Alu::Sbb | Alu::Cmp => {
            let r = a.wrapping_sub(b).wrapping_sub(carry_in) & m;
            let borrow = u128::from(a) < u128::from(b) + u128::from(carry_in);
            (
                r,
                borrow,
                (a ^ b) & (a ^ r) & sign != 0,
                (a ^ b ^ r) & 0x10 != 0,
            )
        }
    };
    (
        result,
        with_flags(flags, result, sign, carry, overflow, adjust),
    )
}

/// Result and new flags of an operation on one operand.
fn unary(op: Unary, a: u64, size: u8, flags: u64) -> (u64, u64) {
    match op {
        Unary::Not => (!a & mask(size), flags),
        Unary::Neg => alu(Alu::Sub, 0, a, size, flags),
        // INC and DEC leave the carry alone.
        Unary::Inc | Unary::Dec => {
            let plain = if op == Unary::Inc { Alu::Add } else { Alu::Sub };
            let (result, new) = alu(plain, a, 1, size, flags);
            (result, new & !flag::CF | flags & flag::CF)
        }
    }
}

fn with_flags(
    flags: u64,
    result: u64,
    sign: u64,
    carry: bool,
    overflow: bool,
    adjust: bool,
) -> u64 {
    let when = |set: bool, bit: u64| if set { bit } else { 0 };
    flags & !flag::ARITHMETIC
        | when(carry, flag::CF)
        | when((result as u8).count_ones().is_multiple_of(2), flag::PF)
        | when(adjust, flag::AF)
        | when(result == 0, flag::ZF)
        | when(result & sign != 0, flag::SF)
        | when(overflow, flag::OF)
}
