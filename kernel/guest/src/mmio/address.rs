//! From an operand's address to its linear address, past the segment's and the canonical check.

use super::cpu::mask;
use super::{Address, Bus, CodeSize, CpuState, Part, Place, Refusal, SegmentRegister};
use crate::entry::Segment;
use crate::inject::{Exception, GP, SS};
use crate::walk::AccessKind;

/// Bits of a segment's attributes (SDM 3A 3.4.5).
mod attribute {
    /// Of data: it can be written; of code: it can be read.
    pub const WRITABLE_OR_READABLE: u16 = 1 << 1;
    /// Of data: offsets above the limit are valid.
    pub const EXPANDS_DOWN: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    pub const PRESENT: u16 = 1 << 7;
    pub const BIG: u16 = 1 << 10;
}

impl Address {
    /// The offset within the segment.
    #[must_use]
    pub fn offset(&self, cpu: &CpuState) -> u64 {
        let register = |index: Option<u8>| {
            index.map_or(0, |index| {
                cpu.get(super::Reg {
                    index,
                    part: Part::Qword,
                })
            })
        };
        register(self.base)
            .wrapping_add(register(self.index).wrapping_mul(u64::from(self.scale)))
            .wrapping_add(self.displacement)
            & mask(self.size.size())
    }
}

/// Reaches `bytes` at an offset of a segment.
///
/// # Errors
/// #GP or #SS as the segment and the canonical form demand, or what the bus says.
pub fn reach(
    cpu: &CpuState,
    bus: &mut impl Bus,
    segment: SegmentRegister,
    offset: u64,
    bytes: u8,
    kind: AccessKind,
) -> Result<Place, Refusal> {
    let linear = linear(cpu, segment, offset, bytes, kind)?;
    bus.reach(linear, bytes, kind)
}

/// The linear address of `bytes` at an offset of a segment.
///
/// # Errors
/// #GP(0) or, of the stack segment, #SS(0).
pub fn linear(
    cpu: &CpuState,
    segment: SegmentRegister,
    offset: u64,
    bytes: u8,
    kind: AccessKind,
) -> Result<u64, Exception> {
    let fault = Exception::new(
        if segment == SegmentRegister::Ss {
            SS
        } else {
            GP
        },
        Some(0),
    );
    let more = u64::from(bytes.saturating_sub(1));
    if cpu.code == CodeSize::Bits64 {
        // Only FS and GS have a base (SDM 1 3.4.2.1).
        let base = match segment {
            SegmentRegister::Fs | SegmentRegister::Gs => cpu.segment(segment).base,
            _ => 0,
        };
        let first = base.wrapping_add(offset);
        let canonical = is_canonical(cpu, first) && is_canonical(cpu, first.wrapping_add(more));
        return if canonical { Ok(first) } else { Err(fault) };
    }
    let s = cpu.segment(segment);
    if cpu.is_protected() && !permits(s, kind) || !is_within(cpu, s, offset, more) {
        return Err(fault);
    }
    Ok(s.base.wrapping_add(offset) & u64::from(u32::MAX))
}

/// Whether an address has copies of its highest translated bit above it.
#[must_use]
pub const fn is_canonical(cpu: &CpuState, address: u64) -> bool {
    const CR4_LA57: u64 = 1 << 12;
    let unused = if cpu.cr4 & CR4_LA57 != 0 { 7 } else { 16 };
    ((address << unused) as i64 >> unused) as u64 == address
}

const fn permits(s: Segment, kind: AccessKind) -> bool {
    let code = s.attributes & attribute::CODE != 0;
    let more = s.attributes & attribute::WRITABLE_OR_READABLE != 0;
    let allowed = match kind {
        AccessKind::Write => !code && more,
        AccessKind::Read | AccessKind::Fetch => !code || more,
    };
    allowed && s.attributes & attribute::PRESENT != 0
}

/// SDM 3A 5.3. A flat segment has no limit: what passes 4 GiB begins at 0 again.
const fn is_within(cpu: &CpuState, s: Segment, offset: u64, more: u64) -> bool {
    let (limit, last) = (s.limit as u64, offset + more);
    let down = s.attributes & attribute::CODE == 0 && s.attributes & attribute::EXPANDS_DOWN != 0;
    if cpu.is_protected() && down {
        let top = if s.attributes & attribute::BIG != 0 {
            u32::MAX as u64
        } else {
            u16::MAX as u64
        };
        return offset > limit && last <= top;
    }
    limit == u32::MAX as u64 || last <= limit
}
