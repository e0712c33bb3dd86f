//! Operands: registers, immediates, addresses, segments.

use super::super::{Address, Part, Reg, SegmentRegister, Source};
use iced_x86::{Instruction, OpKind, Register};

/// The register or immediate that is operand `n`.
pub(super) fn source(i: &Instruction, n: u32) -> Option<Source> {
    match i.try_op_kind(n).ok()? {
        OpKind::Register => {
            let r = i.try_op_register(n).ok()?;
            register(r)
                .map(Source::Reg)
                .or_else(|| segment(r).map(Source::Selector))
        }
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
pub(super) fn memory_size(i: &Instruction, other: Source) -> Option<u8> {
    match other {
        Source::Reg(r) => Some(r.part.size()),
        _ => size_of_memory(i),
    }
}

pub(super) fn size_of_memory(i: &Instruction) -> Option<u8> {
    use iced_x86::MemorySize as M;
    Some(match i.memory_size() {
        M::UInt8 | M::Int8 => 1,
        M::UInt16 | M::Int16 => 2,
        M::UInt32 | M::Int32 => 4,
        M::UInt64 | M::Int64 => 8,
        _ => return None,
    })
}

/// An instruction's memory operand; `None` if its index is a vector.
#[must_use]
pub fn memory_address(i: &Instruction) -> Option<Address> {
    let (base, index) = (i.memory_base(), i.memory_index());
    let of_displacement = match i.memory_displ_size() {
        2 => Part::Word,
        4 => Part::Dword,
        _ => Part::Qword,
    };
    let number = |r: Register| match r {
        // The displacement is the address itself then.
        Register::None | Register::RIP => Some((None, None)),
        Register::EIP => Some((None, Some(Part::Dword))),
        r => register(r).map(|r| (Some(r.index), Some(r.part))),
    };
    let (base, base_part) = number(base)?;
    let (index, index_part) = number(index)?;
    Some(Address {
        segment: operand_segment(i)?,
        base,
        index,
        scale: u8::try_from(i.memory_index_scale()).ok()?,
        displacement: i.memory_displacement64(),
        size: base_part.or(index_part).unwrap_or(of_displacement),
    })
}

/// The segment of an instruction's memory operand, an override prefix considered.
#[must_use]
pub fn memory_segment(i: &Instruction) -> Option<SegmentRegister> {
    let to_es = [i.op0_kind(), i.op1_kind()].into_iter().any(|kind| {
        matches!(
            kind,
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI
        )
    });
    if to_es {
        Some(SegmentRegister::Es)
    } else {
        operand_segment(i)
    }
}

/// The decoder keeps prefixes that 64-bit code ignores (SDM 1 3.3.7.1): there ES, CS, SS and DS do not
/// replace the default.
pub(super) fn operand_segment(i: &Instruction) -> Option<SegmentRegister> {
    let ignored = matches!(
        i.segment_prefix(),
        Register::ES | Register::CS | Register::SS | Register::DS
    );
    if i.code_size() != iced_x86::CodeSize::Code64 || !ignored {
        return segment(i.memory_segment());
    }
    let on_stack = matches!(
        i.memory_base(),
        Register::RSP | Register::ESP | Register::RBP | Register::EBP
    );
    Some(if on_stack {
        SegmentRegister::Ss
    } else {
        SegmentRegister::Ds
    })
}

/// The decoder numbers each width's registers in the processor's order.
pub(crate) fn register(r: Register) -> Option<Reg> {
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

pub(super) const fn segment(r: Register) -> Option<SegmentRegister> {
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
