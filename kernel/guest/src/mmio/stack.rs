//! Instructions that move the stack pointer or the instruction pointer, with an operand in a device.
//!
//! ENTER is the one of them that a processor may do more for: Intel's also faults where a store at the new top of the
//! stack would (SDM 2A, ENTER). Here that store comes when it comes.

use super::cpu::{mask, number};
use super::execute::{load, store};
use super::{
    Address, Bus, CodeSize, Completion, CpuState, MmioInstruction, Operation, Part, Place, Refusal,
    Reg, SegmentRegister, StackOperand, is_canonical, reach,
};
use crate::inject::Exception;
use crate::walk::AccessKind;

/// Executes a push, a pop, or a near transfer of control.
pub(super) fn execute(
    i: &MmioInstruction,
    cpu: &mut CpuState,
    bus: &mut impl Bus,
) -> Result<Completion, Refusal> {
    let address = i.address.as_ref();
    match i.operation {
        Operation::Push { from, size } => {
            let (source, place) = source(cpu, bus, address, from, size)?;
            let pushed = below(cpu, bus, size)?;
            some_device([place, Some(pushed.0)])?;
            let value = value(cpu, bus, source, place, size);
            store(bus, &pushed.0, size, value);
            cpu.set(pointer(cpu), pushed.1);
            Ok(Completion::Advance)
        }
        Operation::Pop { to, size } => pop(cpu, bus, address, to, size),
        Operation::Call { to, size } => {
            let (source, place) = source(cpu, bus, address, to, size)?;
            let pushed = below(cpu, bus, size)?;
            some_device([place, Some(pushed.0)])?;
            // A device that is asked for a target that cannot be is asked all the same.
            let target = value(cpu, bus, source, place, size);
            check(cpu, target)?;
            let back = cpu.rip.wrapping_add(u64::from(i.length));
            store(bus, &pushed.0, size, back & mask(size));
            cpu.set(pointer(cpu), pushed.1);
            Ok(Completion::Jump(target))
        }
        Operation::Return { drops, size } => {
            let (place, top) = above(cpu, bus, size)?;
            some_device([Some(place), None])?;
            let target = load(bus, &place, size);
            check(cpu, target)?;
            cpu.set(pointer(cpu), top.wrapping_add(u64::from(drops)));
            Ok(Completion::Jump(target))
        }
        Operation::Jump { size } => {
            let (source, place) = source(cpu, bus, address, StackOperand::Memory, size)?;
            some_device([place, None])?;
            let target = value(cpu, bus, source, place, size);
            check(cpu, target)?;
            Ok(Completion::Jump(target))
        }
        Operation::Enter { frame, size } => {
            let (place, down) = below(cpu, bus, size)?;
            some_device([Some(place), None])?;
            let old = cpu.get(base_pointer(Part::of_size(size)));
            store(bus, &place, size, old);
            let stack = pointer(cpu);
            cpu.set(base_pointer(Part::of_size(size)), down);
            cpu.set(stack, down.wrapping_sub(u64::from(frame)));
            Ok(Completion::Advance)
        }
        Operation::Leave { size } => {
            let stack = pointer(cpu);
            let top = cpu.get(base_pointer(stack.part));
            let place = reach(cpu, bus, SegmentRegister::Ss, top, size, AccessKind::Read)?;
            some_device([Some(place), None])?;
            let old = load(bus, &place, size);
            cpu.set(stack, top.wrapping_add(u64::from(size)));
            cpu.set(base_pointer(Part::of_size(size)), old);
            Ok(Completion::Advance)
        }
        _ => Err(Refusal::Ordinary),
    }
}

const fn base_pointer(part: Part) -> Reg {
    Reg {
        index: number::RBP,
        part,
    }
}

fn pop(
    cpu: &mut CpuState,
    bus: &mut impl Bus,
    address: Option<&Address>,
    to: StackOperand,
    size: u8,
) -> Result<Completion, Refusal> {
    let (place, top) = above(cpu, bus, size)?;
    let stack = pointer(cpu);
    match to {
        StackOperand::Reg(to) => {
            some_device([Some(place), None])?;
            let value = load(bus, &place, size);
            cpu.set(stack, top);
            cpu.set(to, value);
        }
        StackOperand::Memory => {
            let address = address.ok_or(Refusal::Ordinary)?;
            // An address relative to the stack pointer is one relative to the new one (SDM 2B, POP).
            let mut after = cpu.clone();
            after.set(stack, top);
            let offset = address.offset(&after);
            let target = reach(cpu, bus, address.segment, offset, size, AccessKind::Write)?;
            some_device([Some(place), Some(target)])?;
            let value = load(bus, &place, size);
            store(bus, &target, size, value);
            cpu.set(stack, top);
        }
        StackOperand::Imm(_) => return Err(Refusal::Ordinary),
    }
    Ok(Completion::Advance)
}

/// The stack pointer in the width of the stack: 64 bits in 64-bit code, else as SS says.
fn pointer(cpu: &CpuState) -> Reg {
    const BIG: u16 = 1 << 10;
    let part = if cpu.code == CodeSize::Bits64 {
        Part::Qword
    } else if cpu.segment(SegmentRegister::Ss).attributes & BIG != 0 {
        Part::Dword
    } else {
        Part::Word
    };
    Reg {
        index: number::RSP,
        part,
    }
}

/// Where the next value is pushed, and the stack pointer then.
fn below(cpu: &CpuState, bus: &mut impl Bus, size: u8) -> Result<(Place, u64), Refusal> {
    let pointer = pointer(cpu);
    let down = cpu.get(pointer).wrapping_sub(u64::from(size)) & mask(pointer.part.size());
    let place = reach(cpu, bus, SegmentRegister::Ss, down, size, AccessKind::Write)?;
    Ok((place, down))
}

/// Where the value on top is, and the stack pointer without it.
fn above(cpu: &CpuState, bus: &mut impl Bus, size: u8) -> Result<(Place, u64), Refusal> {
    let top = cpu.get(pointer(cpu));
    let place = reach(cpu, bus, SegmentRegister::Ss, top, size, AccessKind::Read)?;
    Ok((place, top.wrapping_add(u64::from(size))))
}

/// The operand, and where it is if it is memory.
fn source(
    cpu: &CpuState,
    bus: &mut impl Bus,
    address: Option<&Address>,
    operand: StackOperand,
    size: u8,
) -> Result<(StackOperand, Option<Place>), Refusal> {
    if operand != StackOperand::Memory {
        return Ok((operand, None));
    }
    let address = address.ok_or(Refusal::Ordinary)?;
    let offset = address.offset(cpu);
    let place = reach(cpu, bus, address.segment, offset, size, AccessKind::Read)?;
    Ok((operand, Some(place)))
}

fn value(
    cpu: &CpuState,
    bus: &mut impl Bus,
    operand: StackOperand,
    place: Option<Place>,
    size: u8,
) -> u64 {
    let value = match (operand, place) {
        (StackOperand::Reg(reg), _) => cpu.get(reg),
        (StackOperand::Imm(value), _) => value,
        (StackOperand::Memory, Some(place)) => load(bus, &place, size),
        (StackOperand::Memory, None) => 0,
    };
    value & mask(size)
}

/// None of the operands in a device: the processor's affair.
fn some_device(places: [Option<Place>; 2]) -> Result<(), Refusal> {
    if places.iter().flatten().any(|place| place.device) {
        Ok(())
    } else {
        Err(Refusal::Ordinary)
    }
}

/// #GP(0) if control cannot go to `target`.
fn check(cpu: &CpuState, target: u64) -> Result<(), Exception> {
    let reachable = if cpu.code == CodeSize::Bits64 {
        is_canonical(cpu, target)
    } else {
        target <= u64::from(cpu.segment(SegmentRegister::Cs).limit)
    };
    if reachable {
        Ok(())
    } else {
        Err(Exception::GP0)
    }
}
