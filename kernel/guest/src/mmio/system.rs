//! Instructions that load a selector from a device: MOV to a segment register, LTR, and the far JMP.
//!
//! They come in two steps, because the second is about tables that few instructions need. [`operand`] reads the
//! selector from the device; [`load_descriptor`] finds its descriptor as the processor does, checks it, marks it, and
//! says what the register becomes.
//!
//! A far JMP with REX.W has eight bytes of offset, as the SDM has it (2A, JMP); AMD's processors take four.

use super::execute::{load, on_device};
use super::{
    Bus, CodeSize, CpuState, MmioInstruction, Operation, Refusal, SegmentRegister,
    SelectorRegister, is_canonical, reach,
};
use crate::entry::{Segment, TableRegister};
use crate::inject::{Exception, GP, NP, SS};
use crate::task_switch::descriptor::{Descriptor, Kind, PRESENT};
use crate::walk::AccessKind;

/// CR4.UMIP.
const CR4_UMIP: u64 = 1 << 11;
/// Attributes: L, D/B.
const LONG: u16 = 1 << 9;
const BIG: u16 = 1 << 10;

/// What is left to be done when the device has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemLoad {
    /// The selector goes into this segment register.
    Segment(SegmentRegister, u16),
    /// The selector goes into TR.
    Task(u16),
    /// Control goes to this offset of the selector's segment.
    Jump {
        /// The selector.
        selector: u16,
        /// The offset.
        offset: u64,
    },
}

/// Where descriptors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// GDTR.
    pub gdtr: TableRegister,
    /// LDTR.
    pub ldtr: Segment,
    /// EFER.LMA: TSS descriptors have 16 bytes.
    pub long_mode: bool,
}

/// What the instruction loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// A segment register.
    Segment(SegmentRegister, Segment),
    /// TR.
    Task(Segment),
    /// CS, and the instruction pointer.
    Jump {
        /// CS.
        code: Segment,
        /// The instruction pointer.
        rip: u64,
    },
}

/// SMSW needs a supervisor where CR4.UMIP asks for one (SDM 2B, SMSW).
pub(super) const fn permits_status_word(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cr4 & CR4_UMIP != 0 && cpu.cpl > 0 && cpu.is_protected() {
        Err(Exception::GP0)
    } else {
        Ok(())
    }
}

/// Reads the operand.
pub(super) fn operand(
    i: &MmioInstruction,
    cpu: &CpuState,
    bus: &mut impl Bus,
) -> Result<SystemLoad, Refusal> {
    let (offset_bytes, to) = match i.operation {
        Operation::FarJump { size } => (size, None),
        Operation::LoadSelector { to } => (0, Some(to)),
        _ => return Err(Refusal::Ordinary),
    };
    match to {
        // SDM 2B, MOV; SDM 2A, LTR.
        Some(SelectorRegister::Segment(SegmentRegister::Cs)) => return Err(Exception::UD.into()),
        Some(SelectorRegister::Task) if !cpu.is_protected() => return Err(Exception::UD.into()),
        Some(SelectorRegister::Task) if cpu.cpl != 0 => return Err(Exception::GP0.into()),
        _ => {}
    }
    let address = i.address.as_ref().ok_or(Refusal::Ordinary)?;
    let (at, bytes) = (address.offset(cpu), offset_bytes + 2);
    let place = on_device(reach(
        cpu,
        bus,
        address.segment,
        at,
        bytes,
        AccessKind::Read,
    )?)?;
    let mut word = [0; 10];
    let used = word.get_mut(..usize::from(bytes)).unwrap_or_default();
    bus.read(&place, used);
    let (offset, selector) = used.split_at(usize::from(offset_bytes));
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    let (offset, selector) = (number(offset), number(selector) as u16);
    Ok(match to {
        None => SystemLoad::Jump { selector, offset },
        Some(SelectorRegister::Segment(to)) => SystemLoad::Segment(to, selector),
        Some(SelectorRegister::Task) => SystemLoad::Task(selector),
    })
}

/// Loads the descriptor. `bus` reaches memory as a supervisor does, whoever asks.
///
/// # Errors
/// What the instruction raises; nothing is changed then. [`Refusal::Ordinary`] for a far jump through a gate or to a
/// task, which is not done here.
pub fn load_descriptor(
    cpu: &CpuState,
    tables: &Tables,
    what: SystemLoad,
    bus: &mut impl Bus,
) -> Result<Loaded, Refusal> {
    let real = |place: Segment, selector: u16| Segment {
        selector,
        base: u64::from(selector) << 4,
        ..place
    };
    match what {
        SystemLoad::Segment(to, selector) if !cpu.is_protected() => {
            Ok(Loaded::Segment(to, real(cpu.segment(to), selector)))
        }
        SystemLoad::Segment(to, selector) => {
            segment(cpu, tables, to, selector, bus).map(|s| Loaded::Segment(to, s))
        }
        SystemLoad::Task(selector) => task(cpu, tables, selector, bus).map(Loaded::Task),
        SystemLoad::Jump { selector, offset } => {
            let code = if cpu.is_protected() {
                code(cpu, tables, selector, offset, bus)?
            } else {
                let code = real(cpu.segment(SegmentRegister::Cs), selector);
                within(cpu, tables, &code, offset)?;
                code
            };
            Ok(Loaded::Jump { code, rip: offset })
        }
    }
}

/// A jump's target must lie in its segment.
fn within(cpu: &CpuState, tables: &Tables, code: &Segment, offset: u64) -> Result<(), Refusal> {
    let reachable = if tables.long_mode && code.attributes & LONG != 0 {
        is_canonical(cpu, offset)
    } else {
        offset <= u64::from(code.limit)
    };
    match reachable {
        true => Ok(()),
        false => Err(Exception::GP0.into()),
    }
}

fn fault(vector: u8, selector: u16) -> Refusal {
    Exception::new(vector, Some(u32::from(selector & !3))).into()
}

/// MOV to SS, DS, ES, FS or GS (SDM 2B, MOV).
fn segment(
    cpu: &CpuState,
    tables: &Tables,
    to: SegmentRegister,
    selector: u16,
    bus: &mut impl Bus,
) -> Result<Segment, Refusal> {
    let (rpl, stack) = ((selector & 3) as u8, to == SegmentRegister::Ss);
    if selector & !3 == 0 {
        // 64-bit code above the user's level may do without a stack segment. Its DPL is the level all the same.
        if stack && (cpu.code != CodeSize::Bits64 || cpu.cpl == 3 || rpl != cpu.cpl) {
            return Err(Exception::GP0.into());
        }
        return Ok(Segment {
            selector,
            attributes: if stack { u16::from(cpu.cpl) << 5 } else { 0 },
            ..Segment::NULL
        });
    }
    let (at, descriptor) = find(tables, selector, bus)?;
    let (dpl, cpl) = (descriptor.dpl(), cpu.cpl);
    let allowed = match descriptor.kind() {
        Kind::Data { writable } if stack => writable && rpl == cpl && dpl == cpl,
        _ if stack => false,
        Kind::Code {
            readable,
            conforming: true,
        } => readable,
        Kind::Code { readable, .. } => readable && dpl >= rpl.max(cpl),
        Kind::Data { .. } => dpl >= rpl.max(cpl),
        _ => false,
    };
    if !allowed {
        return Err(fault(GP, selector));
    }
    if !descriptor.present() {
        return Err(fault(if stack { SS } else { NP }, selector));
    }
    mark(bus, at, descriptor, descriptor.accessed())?;
    Ok(descriptor.accessed().segment(selector))
}

/// LTR (SDM 2A, LTR).
fn task(
    cpu: &CpuState,
    tables: &Tables,
    selector: u16,
    bus: &mut impl Bus,
) -> Result<Segment, Refusal> {
    if selector & !3 == 0 {
        return Err(Exception::GP0.into());
    }
    let length = if tables.long_mode { 16 } else { 8 };
    let last = u32::from(selector & !7) + length - 1;
    if selector & 4 != 0 || last > u32::from(tables.gdtr.limit) {
        return Err(fault(GP, selector));
    }
    let (at, descriptor) = find(tables, selector, bus)?;
    let usable = descriptor.wide_tss() || !tables.long_mode;
    if descriptor.kind() != Kind::AvailableTss || !usable {
        return Err(fault(GP, selector));
    }
    if !descriptor.present() {
        return Err(fault(NP, selector));
    }
    let busy = descriptor.with_busy(true);
    let mut loaded = busy.segment(selector);
    if tables.long_mode {
        let upper = read(bus, at.wrapping_add(8))?;
        loaded.base |= upper << 32;
        if upper >> 40 & 0x1F != 0 || !is_canonical(cpu, loaded.base) {
            return Err(fault(GP, selector));
        }
    }
    mark(bus, at, descriptor, busy)?;
    Ok(loaded)
}

/// JMP to another code segment of the same level (SDM 2A, JMP).
fn code(
    cpu: &CpuState,
    tables: &Tables,
    selector: u16,
    offset: u64,
    bus: &mut impl Bus,
) -> Result<Segment, Refusal> {
    if selector & !3 == 0 {
        return Err(Exception::GP0.into());
    }
    let (at, descriptor) = find(tables, selector, bus)?;
    let (rpl, dpl, cpl) = ((selector & 3) as u8, descriptor.dpl(), cpu.cpl);
    let allowed = match descriptor.kind() {
        Kind::Code {
            conforming: true, ..
        } => dpl <= cpl,
        Kind::Code { .. } => rpl <= cpl && dpl == cpl,
        _ if descriptor.is_gate_or_task(tables.long_mode) => return Err(Refusal::Ordinary),
        _ => false,
    };
    let loaded = descriptor
        .accessed()
        .segment(selector & !3 | u16::from(cpl));
    let both = tables.long_mode && loaded.attributes & (LONG | BIG) == LONG | BIG;
    if !allowed || both {
        return Err(fault(GP, selector));
    }
    if !descriptor.present() {
        return Err(fault(NP, selector));
    }
    // Last, and before anything is marked: what faults has loaded no segment.
    within(cpu, tables, &loaded, offset)?;
    mark(bus, at, descriptor, descriptor.accessed())?;
    Ok(loaded)
}

/// A descriptor with its linear address.
fn find(tables: &Tables, selector: u16, bus: &mut impl Bus) -> Result<(u64, Descriptor), Refusal> {
    let (base, limit) = if selector & 4 == 0 {
        (tables.gdtr.base, u32::from(tables.gdtr.limit))
    } else if tables.ldtr.attributes & PRESENT != 0 {
        (tables.ldtr.base, tables.ldtr.limit)
    } else {
        return Err(fault(GP, selector));
    };
    if u32::from(selector | 7) > limit {
        return Err(fault(GP, selector));
    }
    let at = base.wrapping_add(u64::from(selector & !7));
    Ok((at, Descriptor(read(bus, at)?)))
}

fn read(bus: &mut impl Bus, at: u64) -> Result<u64, Refusal> {
    let place = bus.reach(at, 8, AccessKind::Read)?;
    Ok(load(bus, &place, 8))
}

/// Marks a descriptor as accessed or busy, if it is not yet.
fn mark(bus: &mut impl Bus, at: u64, old: Descriptor, new: Descriptor) -> Result<(), Refusal> {
    if old != new {
        let place = bus.reach(at, 8, AccessKind::Write)?;
        super::execute::store(bus, &place, 8, new.0);
    }
    Ok(())
}
