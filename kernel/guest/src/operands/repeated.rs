//! Repeated string instructions that have just ended.
//!
//! An interrupt that comes in the midst of REP MOVS or REP STOS may find it at an iteration, and then the instruction is the
//! next one. But processors need not look for interrupts after each (emulators do so every few thousand iterations, and
//! hardware may after a cache line or more; SDM 1 7.3.9.3): what was asked for in a copy of a page is then told when that is over,
//! and the instruction behind it, whatever it does, would be taken for what the guest spends its time with. So a stop right
//! behind such an instruction, with nothing left to repeat, counts for the last elements that it touched.

use units::Gpa;

use super::pages::Pages;
use crate::memory::GuestMemory;
use crate::mmio::{CodeSize, CpuState};
use crate::walk::AccessKind;

/// The direction flag.
const DF: u64 = 1 << 10;

/// What is before the instruction pointer, as far as it is a repeated MOVS or STOS of 64-bit code: whether it reads, and the
/// size of its elements.
fn before<M: GuestMemory>(pages: &Pages<'_, M>, rip: u64) -> Option<(bool, u64)> {
    let mut bytes = [0; 3];
    for (i, byte) in bytes.iter_mut().enumerate() {
        let at = rip.wrapping_sub(3).wrapping_add(i as u64);
        // What cannot be read is no prefix.
        let found = pages.find(at, AccessKind::Fetch);
        let read = |gpa| pages.memory().read(gpa, core::slice::from_mut(byte)).ok();
        found.and_then(read);
    }
    let [first, second, opcode] = bytes;
    let (wide, repeats) = match (first, second) {
        (0xF3, 0x48) => (true, true),
        (_, 0xF3) => (false, true),
        _ => (false, false),
    };
    let moves = match opcode {
        0xA4 | 0xA5 => true,
        0xAA | 0xAB => false,
        _ => return None,
    };
    let size = match (opcode & 1, wide) {
        (0, _) => 1,
        (_, true) => 8,
        (_, false) => 4,
    };
    repeats.then_some((moves, size))
}

/// The last elements of a repeated MOVS or STOS that has ended where the guest is, if there is one.
pub(super) fn just_ended<M: GuestMemory>(
    pages: &Pages<'_, M>,
    cpu: &CpuState,
) -> Option<impl Iterator<Item = Gpa>> {
    // RCX, RSI and RDI.
    let [_, left, _, _, _, _, from, to, ..] = cpu.gpr;
    if cpu.code != CodeSize::Bits64 || left != 0 {
        return None;
    }
    let (reads, size) = before(pages, cpu.rip)?;
    let last = |next: u64| match cpu.rflags & DF {
        0 => next.wrapping_sub(size),
        _ => next.wrapping_add(size),
    };
    let read = reads.then(|| pages.find(last(from), AccessKind::Read));
    let written = pages.find(last(to), AccessKind::Write);
    Some(read.flatten().into_iter().chain(written))
}
