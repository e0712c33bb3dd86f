//! Memory as an instruction sees it: linear addresses in, RAM and devices behind.

use super::Refusal;
use crate::inject::{AC, Exception};
use crate::memory::GuestMemory;
use crate::walk::{self, Access, AccessKind, PagingState, Privilege};
use units::{Gpa, PAGE_BYTES};

/// Where an operand is: in one piece, or, across the end of a page, in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Guest-physical addresses and lengths in bytes; the second is empty but for two pages.
    pub pieces: [(Gpa, u8); 2],
    /// Whether some of it is not memory.
    pub device: bool,
}

/// What an instruction reaches memory through.
///
/// Every operand is [reached](Bus::reach) before the first one is touched, so whatever can fault has
/// faulted before anything has changed.
pub trait Bus {
    /// Finds out where `bytes` at a linear address are, as the processor would.
    ///
    /// # Errors
    /// The exception that the access raises instead, or why there is none.
    fn reach(&mut self, linear: u64, bytes: u8, kind: AccessKind) -> Result<Place, Refusal>;
    /// Reads an operand.
    fn read(&mut self, place: &Place, bytes: &mut [u8]);
    /// Writes an operand.
    fn write(&mut self, place: &Place, bytes: &[u8]);
}

/// What answers where no memory is. Accesses have 1, 2, 4 or 8 bytes.
pub trait Devices {
    /// A load; what nobody claims reads as all ones.
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]);
    /// A store; what nobody claims ignores it.
    fn write(&mut self, gpa: Gpa, bytes: &[u8]);
}

/// An access that the processor has already translated: the one that stopped the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where it went.
    pub gpa: Gpa,
    /// Its linear address, where the processor tells.
    pub linear: Option<u64>,
    /// A store, so that loads are permitted as well.
    pub write: bool,
}

/// A virtual CPU's way to memory: its page tables, then RAM or devices.
#[derive(Debug)]
pub struct GuestBus<'a, M, D> {
    memory: &'a M,
    devices: D,
    paging: PagingState,
    privilege: Privilege,
    /// Linear addresses have 64 bits, not 32.
    wide: bool,
    /// CPL 3 with CR0.AM and RFLAGS.AC: operands that are not aligned fault.
    aligned_only: bool,
    known: Option<Known>,
    /// Linear and guest-physical page of the last loads and stores.
    recent: [Option<(u64, u64)>; 2],
}

impl<'a, M: GuestMemory, D: Devices> GuestBus<'a, M, D> {
    /// A way to memory for one instruction.
    pub fn new(
        memory: &'a M,
        devices: D,
        paging: PagingState,
        cpu: &super::CpuState,
        known: Option<Known>,
    ) -> Self {
        const CR0_AM: u64 = 1 << 18;
        Self {
            memory,
            devices,
            paging,
            privilege: Privilege::of_cpl(cpu.cpl),
            wide: cpu.code == super::CodeSize::Bits64,
            aligned_only: cpu.cpl == 3
                && cpu.cr0 & CR0_AM != 0
                && cpu.rflags & super::cpu::flag::AC != 0,
            known,
            recent: [None; 2],
        }
    }

    fn translate(&mut self, linear: u64, kind: AccessKind) -> Result<Gpa, Refusal> {
        let page = linear & !(PAGE_BYTES - 1);
        let recent = usize::from(kind == AccessKind::Write);
        let known = self.known.filter(|known| {
            let same = known
                .linear
                .map_or(known.gpa.0 % PAGE_BYTES == linear % PAGE_BYTES, |l| {
                    l == linear
                });
            same && (known.write || kind == AccessKind::Read)
        });
        let remembered = self.recent.get(recent).copied().flatten();
        let frame = match (remembered, known) {
            (Some((seen, frame)), _) if seen == page => frame,
            (_, Some(known)) => known.gpa.0 & !(PAGE_BYTES - 1),
            _ => {
                let access = Access {
                    kind,
                    privilege: self.privilege,
                };
                let to = walk::translate(self.memory, &self.paging, linear, access)?;
                to.gpa.0 & !(PAGE_BYTES - 1)
            }
        };
        if let Some(slot) = self.recent.get_mut(recent) {
            *slot = Some((page, frame));
        }
        Ok(Gpa(frame | (linear % PAGE_BYTES)))
    }
}

impl<M: GuestMemory, D: Devices> Bus for GuestBus<'_, M, D> {
    fn reach(&mut self, linear: u64, bytes: u8, kind: AccessKind) -> Result<Place, Refusal> {
        let (first, second) = split_at_page(linear, bytes);
        let at = self.translate(linear, kind)?;
        let mut pieces = [(at, first), (at, 0)];
        if second != 0 {
            let next = linear.wrapping_add(u64::from(first));
            // Below 64-bit code linear addresses end at 4 GiB and begin again.
            let next = if self.wide {
                next
            } else {
                next & u64::from(u32::MAX)
            };
            pieces = [(at, first), (self.translate(next, kind)?, second)];
        }
        if self.aligned_only && bytes <= 8 && !linear.is_multiple_of(u64::from(bytes.max(1))) {
            return Err(Exception::new(AC, Some(0)).into());
        }
        let device = pieces
            .iter()
            .any(|(gpa, length)| *length != 0 && !self.memory.holds(*gpa));
        Ok(Place { pieces, device })
    }

    fn read(&mut self, place: &Place, bytes: &mut [u8]) {
        let mut rest = bytes;
        for (gpa, length) in place.pieces {
            let Some((piece, after)) = rest.split_at_mut_checked(usize::from(length)) else {
                return;
            };
            if !piece.is_empty() && self.memory.read(gpa, piece).is_err() {
                let mut at = gpa.0;
                let mut left = piece;
                while let Some((chunk, more)) =
                    left.split_at_mut_checked(transfer(at, left.len(), usize::from(length)))
                {
                    if chunk.is_empty() {
                        break;
                    }
                    self.devices.read(Gpa(at), chunk);
                    at = at.wrapping_add(chunk.len() as u64);
                    left = more;
                }
            }
            rest = after;
        }
    }

    fn write(&mut self, place: &Place, bytes: &[u8]) {
        let mut rest = bytes;
        for (gpa, length) in place.pieces {
            let Some((piece, after)) = rest.split_at_checked(usize::from(length)) else {
                return;
            };
            if !piece.is_empty() && self.memory.write(gpa, piece).is_err() {
                let mut at = gpa.0;
                let mut left = piece;
                while let Some((chunk, more)) =
                    left.split_at_checked(transfer(at, left.len(), usize::from(length)))
                {
                    if chunk.is_empty() {
                        break;
                    }
                    self.devices.write(Gpa(at), chunk);
                    at = at.wrapping_add(chunk.len() as u64);
                    left = more;
                }
            }
            rest = after;
        }
    }
}

/// Bytes of the next transfer of an access of `whole` bytes to a device: up to eight go as they are, as
/// one; more than that, or what a page end has left over, goes in aligned powers of two.
const fn transfer(at: u64, left: usize, whole: usize) -> usize {
    if left == whole && matches!(whole, 1 | 2 | 4 | 8) {
        return whole;
    }
    let mut bytes = 8;
    while bytes > 1 && (bytes > left || !at.is_multiple_of(bytes as u64)) {
        bytes /= 2;
    }
    if left == 0 { 0 } else { bytes }
}

/// How many of the `size` bytes from `address` on lie in its page, and how many in the next one: two
/// pages that are next to each other in linear memory need not be so in guest-physical memory.
#[must_use]
pub const fn split_at_page(address: u64, size: u8) -> (u8, u8) {
    let left = PAGE_BYTES - address % PAGE_BYTES;
    if left < size as u64 {
        (left as u8, size - left as u8)
    } else {
        (size, 0)
    }
}
