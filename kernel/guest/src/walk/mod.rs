//! A software walk of the guest's own page tables.
//!
//! When the hypervisor must touch what a guest instruction touches (the instruction's bytes, the
//! other operand of a string move) it has a linear address, and has to find the guest-physical one
//! exactly as the processor would: with the same faults, the same error codes, and the same
//! accessed and dirty bits (SDM 3A chapter 4, APM 2 chapter 5). All five modes are here: none,
//! 32-bit, PAE, 4-level and 5-level.
//!
//! Accessed and dirty bits are set by compare-exchange, and a lost race starts the walk again: the
//! guest's other processors may be changing the same tables. A walk that faults sets no
//! bits, unless one of its own made it begin again (tables may contain each other).
//!
//! One simplification: in PAE mode the four page-directory-pointer entries are read from memory,
//! as AMD does under nested paging; Intel's registers that hold them are not modelled.

mod fault;
mod fetch;
mod mode;

pub use fault::{WalkError, error_code};
pub use fetch::{Fetched, fetch};

use units::Gpa;

use crate::memory::{GuestMemory, Width};
use fault::{check_rights, fault_code};
use mode::{Mode, entry_bit};

const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_PKE: u64 = 1 << 22;
const RFLAGS_AC: u64 = 1 << 18;

/// The registers that decide how linear addresses translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingState {
    /// CR0: PG and WP count.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4: PSE, PAE, LA57, SMEP, SMAP, PKE count.
    pub cr4: u64,
    /// EFER: LMA and NXE count.
    pub efer: u64,
    /// RFLAGS: AC counts, for SMAP.
    pub rflags: u64,
    /// Protection keys' rights for user pages; 0 where there are none.
    pub pkru: u32,
    /// Width of guest-physical addresses in bits ([`crate::cpuid::CpuidPolicy::physical_bits`]).
    pub physical_bits: u8,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Fetches an instruction.
    Fetch,
}

/// On whose behalf an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL below 3.
    Supervisor,
}

impl Privilege {
    /// Of code that runs at this privilege level.
    #[must_use]
    pub const fn of_cpl(cpl: u8) -> Self {
        if cpl == 3 {
            Self::User
        } else {
            Self::Supervisor
        }
    }
}

/// An access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it does.
    pub kind: AccessKind,
    /// On whose behalf.
    pub privilege: Privilege,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: Gpa,
    /// Bytes from there to the end of the page.
    pub page_left: u64,
}

/// Whether a walk leaves traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marks {
    /// Accessed and dirty bits are set.
    Set,
    /// Nothing is written.
    Leave,
}

/// How many lost races a walk takes. Each means that another processor made progress on the entry.
const MAX_RACES: u32 = 64;

/// Translates `address` for `access`, setting accessed and dirty bits.
///
/// # Errors
/// [`WalkError`] says what the guest gets instead.
pub fn translate(
    memory: &impl GuestMemory,
    paging: &PagingState,
    address: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    walk(memory, paging, address, access, Marks::Set)
}

/// Translates `address` as [`translate`] does but writes nothing: for a look at what a guest might do, not for its own
/// access.
///
/// # Errors
/// [`WalkError`] says what the guest would get.
pub fn peek(
    memory: &impl GuestMemory,
    paging: &PagingState,
    address: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    walk(memory, paging, address, access, Marks::Leave)
}

fn walk(
    memory: &impl GuestMemory,
    paging: &PagingState,
    address: u64,
    access: Access,
    marks: Marks,
) -> Result<Translation, WalkError> {
    let Some(mode) = Mode::of(paging) else {
        // Without paging addresses have 32 bits and every access is allowed.
        let gpa = address & 0xFFFF_FFFF;
        return Ok(Translation {
            gpa: Gpa(gpa),
            page_left: 4096 - (gpa & 0xFFF),
        });
    };
    let address = if mode.long {
        let shift = 64 - mode.linear_bits;
        if ((address << shift) as i64 >> shift) as u64 != address {
            return Err(WalkError::NonCanonical { address });
        }
        address
    } else {
        address & 0xFFFF_FFFF
    };
    for _ in 0..MAX_RACES {
        if let Some(done) = attempt(memory, paging, mode, address, access, marks)? {
            return Ok(done);
        }
    }
    Err(WalkError::Unstable { address })
}

/// An entry on the path, for setting its bits later.
#[derive(Clone, Copy, Default)]
struct Step {
    gpa: Gpa,
    entry: u64,
    /// Bits to be set if they are not.
    set: u64,
}

/// One walk from the root; `None` when an entry changed before its bits were set.
fn attempt(
    memory: &impl GuestMemory,
    paging: &PagingState,
    mode: Mode,
    address: u64,
    access: Access,
    marks: Marks,
) -> Result<Option<Translation>, WalkError> {
    let fault = |bits: u32| WalkError::PageFault {
        address,
        error_code: fault_code(paging, access, bits),
    };
    let mut path = [Step::default(); 5];
    let mut table = match (mode.width, mode.long) {
        (Width::Bits32, _) => paging.cr3 & 0xFFFF_F000,
        (Width::Bits64, false) => paging.cr3 & 0xFFFF_FFE0,
        (Width::Bits64, true) => paging.cr3 & physical_frame(paging),
    };
    // Rights are the AND over all levels, no-execute the OR.
    let mut rights = entry_bit::WRITABLE | entry_bit::USER;
    let mut no_execute = false;
    let mut level = mode.levels;
    let (leaf, mask) = loop {
        let shift = mode.shift(level);
        // PAE's first table has 4 entries: the 32-bit address leaves two bits there.
        let index = address >> shift & ((1 << mode.index_bits) - 1);

        let gpa = Gpa(table + index * mode.entry_bytes());
        let entry = read_entry(memory, gpa, mode.width)?;
        if entry & entry_bit::PRESENT == 0 {
            return Err(fault(0));
        }
        let large = level > 1 && mode.may_be_large(level, paging) && entry & entry_bit::LARGE != 0;
        if entry & mode.reserved(level, large, paging) != 0 {
            return Err(fault(error_code::PRESENT | error_code::RESERVED));
        }
        let is_leaf = large || level == 1;
        if !mode.is_pdpte(level) {
            rights &= entry;
            no_execute |= mode.width == Width::Bits64 && entry & entry_bit::NO_EXECUTE != 0;
            let dirty = is_leaf && access.kind == AccessKind::Write;
            let set = entry_bit::ACCESSED | if dirty { entry_bit::DIRTY } else { 0 };
            if let Some(step) = path.get_mut(level as usize - 1) {
                *step = Step { gpa, entry, set };
            }
        }
        if is_leaf {
            break (entry, (1u64 << shift) - 1);
        }
        table = match mode.width {
            Width::Bits32 => entry & 0xFFFF_F000,
            Width::Bits64 => entry & physical_frame(paging),
        };
        level -= 1;
    };
    check_rights(paging, access, rights, no_execute, leaf)
        .map_err(|bits| fault(error_code::PRESENT | bits))?;

    // Top down, as the processor sets them on its way.
    let unset = |s: &&Step| marks == Marks::Set && s.entry & s.set != s.set;
    for step in path.iter().rev().filter(unset) {
        let held = memory
            .compare_exchange(step.gpa, mode.width, step.entry, step.entry | step.set)
            .map_err(|_| WalkError::TableOutsideMemory { gpa: step.gpa })?;
        if held != step.entry {
            return Ok(None);
        }
    }
    let frame = match mode.width {
        Width::Bits32 if level == 2 => (leaf & 0xFFC0_0000) | (leaf >> 13 & 0xFF) << 32,
        Width::Bits32 => leaf & 0xFFFF_F000,
        Width::Bits64 => leaf & physical_frame(paging) & !mask,
    };
    Ok(Some(Translation {
        gpa: Gpa(frame | address & mask),
        page_left: mask + 1 - (address & mask),
    }))
}

/// Bits 51:12, as far as physical addresses reach.
const fn physical_frame(paging: &PagingState) -> u64 {
    let bits = if paging.physical_bits > 52 {
        52
    } else {
        paging.physical_bits
    };
    ((1u64 << bits) - 1) & !0xFFF
}

fn read_entry(memory: &impl GuestMemory, gpa: Gpa, width: Width) -> Result<u64, WalkError> {
    match width {
        Width::Bits32 => memory.read_u32(gpa).map(u64::from),
        Width::Bits64 => memory.read_u64(gpa),
    }
    .map_err(|_| WalkError::TableOutsideMemory { gpa })
}

#[cfg(test)]
mod tests;
