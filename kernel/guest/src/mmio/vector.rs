//! Moves between memory and vector registers, MMX registers as well.

use super::cpu::mask;
use super::execute::{aligned, load, on_device, store};
use super::{
    Bus, CpuState, Fill, MmioInstruction, Operation, Refusal, Reg, VectorEncoding, Vectors, reach,
};
use crate::inject::{Exception, MF, NM};
use crate::walk::AccessKind;

/// Number of RDI.
const RDI: u8 = 7;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
/// SSE and AVX state.
const XCR0_AVX: u64 = 6;

/// Executes a vector load or store.
pub(super) fn execute(
    i: &MmioInstruction,
    cpu: &CpuState,
    vectors: &mut impl Vectors,
    bus: &mut impl Bus,
) -> Result<(), Refusal> {
    if let Operation::MaskedStore { .. } = i.operation {
        return masked_store(i, cpu, vectors, bus);
    }
    let address = i.address.as_ref().ok_or(Refusal::Ordinary)?;
    match i.operation {
        Operation::MmxLoad { size, .. } => {
            mmx_enabled(cpu, vectors)?;
            return mmx(i, cpu, vectors, bus, size, AccessKind::Read);
        }
        Operation::MmxStore { size, .. } => {
            mmx_enabled(cpu, vectors)?;
            return mmx(i, cpu, vectors, bus, size, AccessKind::Write);
        }
        _ => {}
    }
    let mut operand = |size: u8, encoding, alignment, kind| {
        enabled(cpu, encoding)?;
        aligned(cpu, address, alignment)?;
        let offset = address.offset(cpu);
        on_device(reach(cpu, bus, address.segment, offset, size, kind)?)
    };
    match i.operation {
        Operation::VectorLoad {
            to,
            size,
            fill,
            encoding,
            alignment,
        } => {
            let place = operand(size, encoding, alignment, AccessKind::Read)?;
            let (mut value, first) = match fill {
                Fill::Zero => ([0; 32], 0),
                Fill::LowOf(rest) => (vectors.get(rest), 0),
                Fill::HighOf(rest) => (vectors.get(rest), 8),
            };
            if let Some(bytes) = value.get_mut(first..first + usize::from(size)) {
                bus.read(&place, bytes);
            }
            if size < 32 {
                let (_, upper) = value.split_at_mut(16);
                upper.fill(0);
            }
            vectors.set(to, &value, encoding);
        }
        Operation::VectorStore {
            from,
            first,
            size,
            encoding,
            alignment,
        } => {
            let place = operand(size, encoding, alignment, AccessKind::Write)?;
            let value = vectors.get(from);
            let first = usize::from(first);
            if let Some(bytes) = value.get(first..first + usize::from(size)) {
                bus.write(&place, bytes);
            }
        }
        _ => return Err(Refusal::Ordinary),
    }
    Ok(())
}

/// Byte by byte. A processor may look at all 16 even where none is chosen, and stop the guest for that (SDM 2B, MASKMOVDQU:
/// implementation-dependent); here only those count that are chosen.
fn masked_store(
    i: &MmioInstruction,
    cpu: &CpuState,
    vectors: &impl Vectors,
    bus: &mut impl Bus,
) -> Result<(), Refusal> {
    let Operation::MaskedStore {
        from,
        chosen,
        address,
        segment,
        encoding,
    } = i.operation
    else {
        return Err(Refusal::Ordinary);
    };
    enabled(cpu, encoding)?;
    let rdi = cpu.get(Reg {
        index: RDI,
        part: address,
    });
    let (value, chosen) = (vectors.get(from), vectors.get(chosen));
    let mut places = [None; 16];
    for ((n, place), chosen) in (0..).zip(&mut places).zip(chosen) {
        if chosen & 0x80 != 0 {
            let offset = rdi.wrapping_add(n) & mask(address.size());
            *place = Some(reach(cpu, bus, segment, offset, 1, AccessKind::Write)?);
        }
    }
    for (place, byte) in places.into_iter().zip(value) {
        if let Some(place) = place {
            bus.write(&place, &[byte]);
        }
    }
    Ok(())
}

/// A load or store of an MMX register; what MOVD loads has zeros above (SDM 2B, MOVD).
fn mmx(
    i: &MmioInstruction,
    cpu: &CpuState,
    vectors: &mut impl Vectors,
    bus: &mut impl Bus,
    size: u8,
    kind: AccessKind,
) -> Result<(), Refusal> {
    let address = i.address.as_ref().ok_or(Refusal::Ordinary)?;
    let offset = address.offset(cpu);
    let place = on_device(reach(cpu, bus, address.segment, offset, size, kind)?)?;
    match i.operation {
        Operation::MmxLoad { to, .. } => vectors.set_mmx(to, load(bus, &place, size)),
        Operation::MmxStore { from, .. } => store(bus, &place, size, vectors.get_mmx(from)),
        _ => return Err(Refusal::Ordinary),
    }
    Ok(())
}

/// The exceptions that precede an MMX operand's (SDM 3A 24.25.3, table 24-4).
fn mmx_enabled(cpu: &CpuState, vectors: &impl Vectors) -> Result<(), Exception> {
    if cpu.cr0 & CR0_EM != 0 {
        Err(Exception::UD)
    } else if cpu.cr0 & CR0_TS != 0 {
        Err(Exception::new(NM, None))
    } else if vectors.x87_error() {
        Err(Exception::new(MF, None))
    } else {
        Ok(())
    }
}

/// The exceptions that precede an operand's (SDM 2A tables 2-21 to 2-23).
fn enabled(cpu: &CpuState, encoding: VectorEncoding) -> Result<(), Exception> {
    let offered = match encoding {
        VectorEncoding::Legacy => cpu.cr0 & CR0_EM == 0 && cpu.cr4 & CR4_OSFXSR != 0,
        VectorEncoding::Vex => {
            cpu.is_protected() && cpu.cr4 & CR4_OSXSAVE != 0 && cpu.xcr0 & XCR0_AVX == XCR0_AVX
        }
    };
    if !offered {
        Err(Exception::UD)
    } else if cpu.cr0 & CR0_TS != 0 {
        Err(Exception::new(NM, None))
    } else {
        Ok(())
    }
}
