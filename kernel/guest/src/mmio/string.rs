//! String instructions: some elements at a time.

use super::alu::alu;
use super::cpu::{flag, mask, number};
use super::execute::{load, store};
use super::{
    Alu, Bus, Completion, CpuState, MmioInstruction, Operation, Part, Place, Refusal, Reg, Rep,
    SegmentRegister, StringOp, reach,
};
use crate::walk::AccessKind;

/// Elements of a repeated string instruction that one exit completes; it continues by another exit.
pub const ELEMENTS: u32 = 64;

/// Executes a string instruction.
pub(super) fn execute(
    i: &MmioInstruction,
    cpu: &mut CpuState,
    bus: &mut impl Bus,
) -> Result<Completion, Refusal> {
    let Operation::String {
        op,
        size,
        address,
        segment,
        rep,
    } = i.operation
    else {
        return Err(Refusal::Ordinary);
    };
    let string = StringOfElements {
        op,
        size,
        address,
        segment,
    };
    if rep == Rep::Once {
        string.element(cpu, bus)?;
        return Ok(Completion::Advance);
    }
    let counter = string.pointer(number::RCX);
    // A single step ends each element.
    let most = if cpu.rflags & flag::TF == 0 {
        ELEMENTS
    } else {
        1
    };
    for done in 0..most {
        let left = cpu.get(counter);
        if left == 0 {
            return Ok(Completion::Advance);
        }
        match string.element(cpu, bus) {
            // From here on the processor can do it.
            Err(Refusal::Ordinary) if done > 0 => return Ok(Completion::Repeat),
            other => other?,
        }
        cpu.set(counter, left.wrapping_sub(1));
        if op.compares() && (cpu.rflags & flag::ZF != 0) != (rep == Rep::Repeat) {
            return Ok(Completion::Advance);
        }
    }
    Ok(if cpu.get(counter) == 0 {
        Completion::Advance
    } else {
        Completion::Repeat
    })
}

impl StringOp {
    const fn compares(self) -> bool {
        matches!(self, Self::Compare | Self::Scan)
    }
    const fn has_source(self) -> bool {
        matches!(self, Self::Move | Self::Load | Self::Compare)
    }
    const fn has_destination(self) -> bool {
        !matches!(self, Self::Load)
    }
}

struct StringOfElements {
    op: StringOp,
    size: u8,
    address: Part,
    segment: SegmentRegister,
}

impl StringOfElements {
    fn pointer(&self, index: u8) -> Reg {
        Reg {
            index,
            part: self.address,
        }
    }

    /// One element: both operands are reached, then moved or compared, then the pointers move.
    fn element(&self, cpu: &mut CpuState, bus: &mut impl Bus) -> Result<(), Refusal> {
        let size = self.size;
        let source = self
            .op
            .has_source()
            .then(|| self.reach(cpu, bus, self.segment, number::RSI, AccessKind::Read))
            .transpose()?;
        let kind = if self.op.compares() {
            AccessKind::Read
        } else {
            AccessKind::Write
        };
        let destination = self
            .op
            .has_destination()
            .then(|| self.reach(cpu, bus, SegmentRegister::Es, number::RDI, kind))
            .transpose()?;
        if ![&source, &destination]
            .into_iter()
            .flatten()
            .any(|place| place.device)
        {
            return Err(Refusal::Ordinary);
        }
        let accumulator = Reg {
            index: number::RAX,
            part: Part::of_size(size),
        };
        let held = cpu.get(accumulator);
        let first = source.map_or(held, |place| load(bus, &place, size));
        match (self.op, destination) {
            (StringOp::Load, _) => cpu.set(accumulator, first),
            (StringOp::Move | StringOp::Store, Some(place)) => store(bus, &place, size, first),
            (StringOp::Compare | StringOp::Scan, Some(place)) => {
                let second = load(bus, &place, size);
                let (_, flags) = alu(Alu::Cmp, first, second, size, cpu.rflags);
                cpu.rflags = flags;
            }
            (_, None) => {}
        }
        let step = if cpu.rflags & flag::DF == 0 {
            u64::from(size)
        } else {
            u64::from(size).wrapping_neg()
        };
        for (index, used) in [
            (number::RSI, self.op.has_source()),
            (number::RDI, self.op.has_destination()),
        ] {
            let pointer = self.pointer(index);
            if used {
                let moved = cpu.get(pointer).wrapping_add(step) & mask(self.address.size());
                cpu.set(pointer, moved);
            }
        }
        Ok(())
    }

    fn reach(
        &self,
        cpu: &CpuState,
        bus: &mut impl Bus,
        segment: SegmentRegister,
        index: u8,
        kind: AccessKind,
    ) -> Result<Place, Refusal> {
        let offset = cpu.get(self.pointer(index));
        reach(cpu, bus, segment, offset, self.size, kind)
    }
}
