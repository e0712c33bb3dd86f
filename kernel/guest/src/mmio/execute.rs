//! An [`Operation`] on registers and memory.

use super::alu::{self, sign_extend};
use super::cpu::{flag, mask, number};
use super::{
    Address, BitOp, Bus, Completion, Convert, CpuState, MmioInstruction, Operation, Part, Place,
    Refusal, Reg, SegmentRegister, Source, Vectors, reach, stack, string, system, vector,
};
use crate::inject::{DE, Exception};
use crate::walk::AccessKind;

/// Executes an instruction, or as many elements of a repeated one as one exit may cost.
///
/// The caller moves RIP as [`Completion`] says.
///
/// # Errors
/// Why it was not executed. `cpu` is unchanged then, but for elements of a repeated string instruction that
/// were completed before.
pub fn execute(
    instruction: &MmioInstruction,
    cpu: &mut CpuState,
    vectors: &mut impl Vectors,
    bus: &mut impl Bus,
) -> Result<Completion, Refusal> {
    let mut memory = Operand {
        address: instruction.address,
        bus,
    };
    match instruction.operation {
        Operation::String { .. } => return string::execute(instruction, cpu, memory.bus),
        Operation::Push { .. }
        | Operation::Pop { .. }
        | Operation::Call { .. }
        | Operation::Return { .. }
        | Operation::Enter { .. }
        | Operation::Leave { .. }
        | Operation::Jump { .. } => return stack::execute(instruction, cpu, memory.bus),
        Operation::LoadSelector { .. } | Operation::FarJump { .. } => {
            return system::operand(instruction, cpu, memory.bus).map(Completion::System);
        }
        Operation::VectorLoad { .. }
        | Operation::VectorStore { .. }
        | Operation::MaskedStore { .. }
        | Operation::MmxLoad { .. }
        | Operation::MmxStore { .. } => {
            vector::execute(instruction, cpu, vectors, memory.bus)?;
        }
        Operation::Load { to, size, convert } => {
            let place = memory.readable(cpu, size)?;
            let value = converted(convert, memory.load(&place, size), size);
            cpu.set(to, value);
        }
        Operation::LoadIf { condition, to } => {
            let size = to.part.size();
            let place = memory.readable(cpu, size)?;
            let value = memory.load(&place, size);
            let kept = cpu.get(to);
            // Without the condition the upper half is cleared all the same.
            cpu.set(to, if cpu.holds(condition) { value } else { kept });
        }
        Operation::Store {
            from,
            size,
            convert,
        } => {
            if from == Source::StatusWord {
                system::permits_status_word(cpu)?;
            }
            let place = memory.writable(cpu, size)?;
            let value = converted(convert, cpu.value(from), size);
            memory.store(&place, size, value);
        }
        Operation::Touch => {
            memory.readable(cpu, 1)?;
        }
        Operation::CompareExchangePair { half } => pair(cpu, &mut memory, half)?,
        Operation::Bit { op, index, size } => bit(cpu, &mut memory, op, index, size)?,
        other => arithmetic(other, cpu, &mut memory)?,
    }
    Ok(Completion::Advance)
}

/// The instruction's memory operand.
struct Operand<'b, B> {
    address: Option<Address>,
    bus: &'b mut B,
}

impl<B: Bus> Operand<'_, B> {
    fn readable(&mut self, cpu: &CpuState, bytes: u8) -> Result<Place, Refusal> {
        self.reach(cpu, bytes, AccessKind::Read)
    }

    /// For loads too: whoever may write may read (SDM 3A 4.6).
    fn writable(&mut self, cpu: &CpuState, bytes: u8) -> Result<Place, Refusal> {
        self.reach(cpu, bytes, AccessKind::Write)
    }

    fn reach(&mut self, cpu: &CpuState, bytes: u8, kind: AccessKind) -> Result<Place, Refusal> {
        let address = self.address.ok_or(Refusal::Ordinary)?;
        let offset = address.offset(cpu);
        let place = reach(cpu, self.bus, address.segment, offset, bytes, kind)?;
        on_device(place)
    }

    fn load(&mut self, place: &Place, size: u8) -> u64 {
        load(self.bus, place, size)
    }

    fn store(&mut self, place: &Place, size: u8, value: u64) {
        store(self.bus, place, size, value);
    }
}

/// An operand that is in no device is the processor's affair.
pub(super) const fn on_device(place: Place) -> Result<Place, Refusal> {
    if place.device {
        Ok(place)
    } else {
        Err(Refusal::Ordinary)
    }
}

/// Reads a value of up to 8 bytes.
pub(super) fn load(bus: &mut impl Bus, place: &Place, size: u8) -> u64 {
    let mut bytes = [0; 8];
    if let Some(bytes) = bytes.get_mut(..usize::from(size)) {
        bus.read(place, bytes);
    }
    u64::from_le_bytes(bytes)
}

/// Writes a value of up to 8 bytes.
pub(super) fn store(bus: &mut impl Bus, place: &Place, size: u8, value: u64) {
    if let Some(bytes) = value.to_le_bytes().get(..usize::from(size)) {
        bus.write(place, bytes);
    }
}

const fn converted(convert: Convert, value: u64, size: u8) -> u64 {
    let value = value & mask(size);
    match convert {
        Convert::Zero => value,
        Convert::Sign => sign_extend(value, size),
        Convert::Swap => value.swap_bytes() >> (64 - 8 * size as u32),
    }
}

/// What reads memory, computes, and writes a result to memory or a register.
fn arithmetic(
    operation: Operation,
    cpu: &mut CpuState,
    memory: &mut Operand<'_, impl Bus>,
) -> Result<(), Refusal> {
    match operation {
        Operation::Modify { op, with, size } => {
            let place = if op.stores() {
                memory.writable(cpu, size)?
            } else {
                memory.readable(cpu, size)?
            };
            let old = memory.load(&place, size);
            let (result, flags) = alu::alu(op, old, cpu.value(with), size, cpu.rflags);
            if op.stores() {
                memory.store(&place, size, result);
            }
            cpu.rflags = flags;
        }
        Operation::Combine { op, reg } => {
            let size = reg.part.size();
            let place = memory.readable(cpu, size)?;
            let with = memory.load(&place, size);
            let (result, flags) = alu::alu(op, cpu.get(reg), with, size, cpu.rflags);
            if op.stores() {
                cpu.set(reg, result);
            }
            cpu.rflags = flags;
        }
        Operation::Single { op, size } => {
            modify(cpu, memory, size, |old, flags| {
                alu::unary(op, old, size, flags)
            })?;
        }
        Operation::Shift { op, count, size } => {
            let count = cpu.value(count);
            modify(cpu, memory, size, |old, flags| {
                alu::shift(op, old, count, size, flags)
            })?;
        }
        Operation::DoubleShift { op, with, count } => {
            let (size, count, with) = (with.part.size(), cpu.value(count), cpu.get(with));
            modify(cpu, memory, size, |old, flags| {
                alu::double_shift(op, old, with, count, size, flags)
            })?;
        }
        Operation::Exchange { reg } => {
            let new = cpu.get(reg);
            let old = modify(cpu, memory, reg.part.size(), |_, flags| (new, flags))?;
            cpu.set(reg, old);
        }
        Operation::ExchangeAdd { reg } => {
            let (size, with) = (reg.part.size(), cpu.get(reg));
            let old = modify(cpu, memory, size, |old, flags| {
                alu::alu(super::Alu::Add, old, with, size, flags)
            })?;
            cpu.set(reg, old);
        }
        Operation::CompareExchange { reg } => {
            let size = reg.part.size();
            let accumulator = Reg {
                index: number::RAX,
                part: Part::of_size(size),
            };
            let (expected, new) = (cpu.get(accumulator), cpu.get(reg));
            // Memory is written in any case, if need be with what it held.
            let old = modify(cpu, memory, size, |old, flags| {
                let (_, flags) = alu::alu(super::Alu::Cmp, expected, old, size, flags);
                (if old == expected { new } else { old }, flags)
            })?;
            if old != expected {
                cpu.set(accumulator, old);
            }
        }
        Operation::Scan { op, to } => {
            let size = to.part.size();
            let place = memory.readable(cpu, size)?;
            let (result, flags) = alu::scan(op, memory.load(&place, size), size, cpu.rflags);
            if let Some(result) = result {
                cpu.set(to, result);
            }
            cpu.rflags = flags;
        }
        Operation::Multiply { to, with } => {
            let size = to.part.size();
            let place = memory.readable(cpu, size)?;
            let factor = memory.load(&place, size);
            let (low, _, flags) = alu::multiply(factor, cpu.value(with), size, true, cpu.rflags);
            cpu.set(to, low);
            cpu.rflags = flags;
        }
        Operation::MultiplyWide { signed, size } => {
            let place = memory.readable(cpu, size)?;
            let factor = memory.load(&place, size);
            let (accumulator, upper) = wide_accumulator(size);
            let (low, high, flags) =
                alu::multiply(factor, cpu.get(accumulator), size, signed, cpu.rflags);
            cpu.set(accumulator, low);
            cpu.set(upper, high);
            cpu.rflags = flags;
        }
        Operation::DivideWide { signed, size } => {
            let place = memory.readable(cpu, size)?;
            let divisor = memory.load(&place, size);
            let (accumulator, upper) = wide_accumulator(size);
            let dividend = [cpu.get(accumulator), cpu.get(upper)];
            let (quotient, remainder) =
                alu::divide(dividend, divisor, size, signed).ok_or(Exception::new(DE, None))?;
            cpu.set(accumulator, quotient);
            cpu.set(upper, remainder);
        }
        _ => return Err(Refusal::Ordinary),
    }
    Ok(())
}

/// The registers of a value twice as wide as an operand, low half first: AX, DX:AX, EDX:EAX, RDX:RAX.
const fn wide_accumulator(size: u8) -> (Reg, Reg) {
    let part = Part::of_size(size);
    let low = Reg {
        index: number::RAX,
        part,
    };
    let high = match size {
        1 => Reg {
            index: number::RAX,
            part: Part::High8,
        },
        _ => Reg {
            index: number::RDX,
            part,
        },
    };
    (low, high)
}

/// Replaces memory by what `change` makes of it and of the flags; the old value is returned.
fn modify(
    cpu: &mut CpuState,
    memory: &mut Operand<'_, impl Bus>,
    size: u8,
    change: impl FnOnce(u64, u64) -> (u64, u64),
) -> Result<u64, Refusal> {
    let place = memory.writable(cpu, size)?;
    let old = memory.load(&place, size);
    let (new, flags) = change(old, cpu.rflags);
    memory.store(&place, size, new);
    cpu.rflags = flags;
    Ok(old)
}

/// BT and its kin. A bit number in a register leads to the word that holds the bit (SDM 2A, BT).
fn bit(
    cpu: &mut CpuState,
    memory: &mut Operand<'_, impl Bus>,
    op: BitOp,
    index: Source,
    size: u8,
) -> Result<(), Refusal> {
    let number = match index {
        Source::Reg(reg) => {
            let number = sign_extend(cpu.get(reg), size);
            let words = (number as i64).div_euclid(8 * i64::from(size));
            if let Some(address) = &mut memory.address {
                address.displacement = address
                    .displacement
                    .wrapping_add((words * i64::from(size)) as u64);
            }
            number
        }
        other => cpu.value(other),
    };
    if op == BitOp::Test {
        let place = memory.readable(cpu, size)?;
        let (_, flags) = alu::bit(op, memory.load(&place, size), number, size, cpu.rflags);
        cpu.rflags = flags;
    } else {
        modify(cpu, memory, size, |old, flags| {
            alu::bit(op, old, number, size, flags)
        })?;
    }
    Ok(())
}

/// CMPXCHG8B and CMPXCHG16B.
fn pair(cpu: &mut CpuState, memory: &mut Operand<'_, impl Bus>, half: u8) -> Result<(), Refusal> {
    let reg = |index| Reg {
        index,
        part: Part::of_size(half),
    };
    let bytes = 2 * half;
    if half == 8 {
        memory.aligned(cpu, 16)?;
    }
    let place = memory.writable(cpu, bytes)?;
    let mut buffer = [0; 16];
    let Some(old) = buffer.get_mut(..usize::from(bytes)) else {
        return Err(Refusal::Ordinary);
    };
    memory.bus.read(&place, old);
    let (low, high) = old.split_at(usize::from(half));
    let (low, high) = (word(low), word(high));
    let equal = low == cpu.get(reg(number::RAX)) && high == cpu.get(reg(number::RDX));
    if equal {
        let new = [cpu.get(reg(number::RBX)), cpu.get(reg(number::RCX))];
        for (to, value) in old.chunks_mut(usize::from(half)).zip(new) {
            for (to, byte) in to.iter_mut().zip(value.to_le_bytes()) {
                *to = byte;
            }
        }
        cpu.rflags |= flag::ZF;
    } else {
        cpu.set(reg(number::RAX), low);
        cpu.set(reg(number::RDX), high);
        cpu.rflags &= !flag::ZF;
    }
    memory.bus.write(&place, old);
    Ok(())
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

impl<B: Bus> Operand<'_, B> {
    /// #GP(0) unless the operand is aligned.
    fn aligned(&self, cpu: &CpuState, alignment: u8) -> Result<(), Refusal> {
        let address = self.address.ok_or(Refusal::Ordinary)?;
        aligned(cpu, &address, alignment)
    }
}

/// #GP(0) unless the operand is aligned.
pub(super) fn aligned(cpu: &CpuState, address: &Address, alignment: u8) -> Result<(), Refusal> {
    let base = match (cpu.code, address.segment) {
        (super::CodeSize::Bits64, SegmentRegister::Fs | SegmentRegister::Gs) => {
            cpu.segment(address.segment).base
        }
        (super::CodeSize::Bits64, _) => 0,
        _ => cpu.segment(address.segment).base,
    };
    let linear = base.wrapping_add(address.offset(cpu));
    if linear.is_multiple_of(u64::from(alignment.max(1))) {
        Ok(())
    } else {
        Err(Exception::GP0.into())
    }
}
