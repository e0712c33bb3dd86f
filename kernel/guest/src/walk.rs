//! A software walk of the guest's own page tables.
//!
//! When the hypervisor must touch what a guest instruction touches (the instruction's bytes, the
//! other operand of a string move) it has a linear address, and has to find the guest-physical one
//! exactly as the processor would: with the same faults, the same error codes, and the same
//! accessed and dirty bits (SDM 3A chapter 4, APM 2 chapter 5). All five modes are here: none,
//! 32-bit, PAE, 4-level and 5-level.
//!
//! Accessed and dirty bits are set by compare-exchange, and a lost race starts the walk again: the
//! guest's other processors may be changing the same tables. A walk that faults sets no bits.
//!
//! One simplification: in PAE mode the four page-directory-pointer entries are read from memory,
//! as AMD does under nested paging; Intel's registers that hold them are not modelled.

use units::Gpa;

use crate::entry::{CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE};
use crate::memory::{GuestMemory, Width};

const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_PKE: u64 = 1 << 22;
const RFLAGS_AC: u64 = 1 << 18;

/// Bits of a page-table entry.
mod entry_bit {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Bits of a page fault's error code (SDM 3A 4.7).
pub mod error_code {
    /// The translation exists; rights or a reserved bit are the reason.
    pub const PRESENT: u32 = 1 << 0;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// At CPL 3.
    pub const USER: u32 = 1 << 2;
    /// An entry has a reserved bit set.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch, where no-execute or SMEP is on.
    pub const FETCH: u32 = 1 << 4;
    /// Protection keys forbid it.
    pub const PROTECTION_KEY: u32 = 1 << 5;
}

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

/// Why an address does not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// #PF with this error code and CR2 = `address`.
    PageFault {
        /// Linear address.
        address: u64,
        /// Bits of [`error_code`].
        error_code: u32,
    },
    /// #GP(0), or #SS(0) for a stack access: the address is not canonical.
    NonCanonical {
        /// Linear address.
        address: u64,
    },
    /// A table lies where the guest has no memory. Hardware would read whatever answers there.
    TableOutsideMemory {
        /// Where.
        gpa: Gpa,
    },
    /// The tables changed under the walk, again and again.
    Unstable {
        /// Linear address.
        address: u64,
    },
}

impl core::fmt::Display for WalkError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::PageFault {
                address,
                error_code,
            } => {
                write!(
                    f,
                    "the guest's page tables do not allow the access to {address:#x}; it gets a page fault, error code {error_code:#x}"
                )
            }
            Self::NonCanonical { address } => write!(
                f,
                "{address:#x} is not a canonical address; the guest gets a general-protection fault"
            ),
            Self::TableOutsideMemory { gpa } => write!(
                f,
                "the guest's page tables lead to {gpa}, where it has no memory; the walk was given up"
            ),
            Self::Unstable { address } => write!(
                f,
                "the guest's page tables for {address:#x} keep changing; the walk was given up"
            ),
        }
    }
}

impl core::error::Error for WalkError {}

/// How many lost races a walk takes. Each means that another processor made progress on the entry.
const MAX_RACES: u32 = 64;

/// One paging mode as a shape of tables.
#[derive(Clone, Copy)]
struct Mode {
    levels: u32,
    /// Bits of the address that index one table.
    index_bits: u32,
    width: Width,
    /// Linear address bits, for the canonical check; 32 where there is none.
    linear_bits: u32,
    /// 4-level or 5-level: NX, reserved bits and the top level's rights as in long mode.
    long: bool,
}

impl Mode {
    const fn of(p: &PagingState) -> Option<Self> {
        if p.cr0 & CR0_PG == 0 {
            return None;
        }
        let wide = Width::Bits64;
        Some(if p.efer & EFER_LMA != 0 {
            let five = p.cr4 & CR4_LA57 != 0;
            let levels = if five { 5 } else { 4 };
            Self {
                levels,
                index_bits: 9,
                width: wide,
                linear_bits: if five { 57 } else { 48 },
                long: true,
            }
        } else if p.cr4 & CR4_PAE != 0 {
            Self {
                levels: 3,
                index_bits: 9,
                width: wide,
                linear_bits: 32,
                long: false,
            }
        } else {
            Self {
                levels: 2,
                index_bits: 10,
                width: Width::Bits32,
                linear_bits: 32,
                long: false,
            }
        })
    }

    const fn entry_bytes(self) -> u64 {
        match self.width {
            Width::Bits32 => 4,
            Width::Bits64 => 8,
        }
    }

    /// The lowest address bit that `level` (1 for the last) translates.
    const fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * self.index_bits
    }

    /// A PAE page-directory-pointer entry, which has no rights and no accessed bit.
    const fn is_pdpte(self, level: u32) -> bool {
        !self.long && self.levels == 3 && level == 3
    }

    const fn may_be_large(self, level: u32, p: &PagingState) -> bool {
        match (self.width, self.long) {
            (Width::Bits32, _) => level == 2 && p.cr4 & CR4_PSE != 0,
            (Width::Bits64, false) => level == 2,
            (Width::Bits64, true) => level == 2 || level == 3,
        }
    }

    /// Bits that must be zero in an entry (SDM 3A tables 4-2, 4-4 to 4-20).
    const fn reserved(self, level: u32, large: bool, p: &PagingState) -> u64 {
        let above = if p.physical_bits >= 52 {
            0
        } else {
            0x000F_FFFF_FFFF_FFFF & !((1u64 << p.physical_bits) - 1)
        };
        let nx = if p.efer & EFER_NXE == 0 {
            entry_bit::NO_EXECUTE
        } else {
            0
        };
        match self.width {
            // PSE-36 with 40 bits: bit 21 of a 4 MiB entry; smaller physical widths reserve more.
            Width::Bits32 => {
                if !large {
                    return 0;
                }
                let extra = if p.physical_bits > 40 {
                    40
                } else {
                    p.physical_bits
                };
                let first = 13 + extra.saturating_sub(32) as u32;
                ((1u64 << 22) - 1) & !((1u64 << first) - 1)
            }
            Width::Bits64 if self.is_pdpte(level) => above | 0xFFF0_0000_0000_0000 | 0x1E6,
            Width::Bits64 => {
                // PAE keeps bits 62:52 zero; long mode ignores them.
                let high = if self.long {
                    nx
                } else {
                    nx | 0x7FF0_0000_0000_0000
                };
                // Bit 7 has no meaning above the levels with large pages.
                let ps = if level >= 4 { entry_bit::LARGE } else { 0 };
                // Between the PAT bit (12) and the frame of a large page.
                let frame = if large {
                    ((1u64 << self.shift(level)) - 1) & !0x1FFF
                } else {
                    0
                };
                above | high | ps | frame
            }
        }
    }
}

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
        if let Some(done) = attempt(memory, paging, mode, address, access)? {
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
    for step in path.iter().rev().filter(|s| s.entry & s.set != s.set) {
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

/// SDM 3A 4.6: whether the access is allowed; else the error-code bits beyond the ordinary ones.
fn check_rights(
    paging: &PagingState,
    access: Access,
    rights: u64,
    no_execute: bool,
    leaf: u64,
) -> Result<(), u32> {
    let user_page = rights & entry_bit::USER != 0;
    let writable = rights & entry_bit::WRITABLE != 0;
    let user = access.privilege == Privilege::User;
    if user && !user_page {
        return Err(0);
    }
    if access.kind == AccessKind::Fetch {
        let smep = !user && user_page && paging.cr4 & CR4_SMEP != 0;
        return if no_execute || smep { Err(0) } else { Ok(()) };
    }
    // SMAP: explicit supervisor accesses to user pages need AC.
    if !user && user_page && paging.cr4 & CR4_SMAP != 0 && paging.rflags & RFLAGS_AC == 0 {
        return Err(0);
    }
    let write = access.kind == AccessKind::Write;
    let protected = user || paging.cr0 & CR0_WP != 0;
    if write && !writable && protected {
        return Err(0);
    }
    if user_page && paging.cr4 & CR4_PKE != 0 && paging.efer & EFER_LMA != 0 {
        let key = leaf >> 59 & 0xF;
        let key_rights = paging.pkru >> (2 * key);
        if key_rights & 1 != 0 || key_rights & 2 != 0 && write && protected {
            return Err(error_code::PROTECTION_KEY);
        }
    }
    Ok(())
}

fn fault_code(paging: &PagingState, access: Access, bits: u32) -> u32 {
    let mut code = bits;
    if access.privilege == Privilege::User {
        code |= error_code::USER;
    }
    match access.kind {
        AccessKind::Read => {}
        AccessKind::Write => code |= error_code::WRITE,
        // SDM 3A 4.7: the flag exists if no-execute (with PAE) or SMEP is on.
        AccessKind::Fetch => {
            let nx = paging.cr4 & CR4_PAE != 0 && paging.efer & EFER_NXE != 0;
            if nx || paging.cr4 & CR4_SMEP != 0 {
                code |= error_code::FETCH;
            }
        }
    }
    code
}

/// Instruction bytes at the instruction pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    bytes: [u8; 15],
    length: usize,
}

impl Fetched {
    /// The bytes: 15, or fewer if the next page cannot be read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

/// Fetches up to 15 instruction bytes from `linear_rip` (CS.base + RIP) on, across a page boundary if
/// the next page is there.
///
/// # Errors
/// [`WalkError`] for the first byte; an unreadable second page merely shortens the result.
pub fn fetch(
    memory: &impl GuestMemory,
    paging: &PagingState,
    linear_rip: u64,
    privilege: Privilege,
) -> Result<Fetched, WalkError> {
    let access = Access {
        kind: AccessKind::Fetch,
        privilege,
    };
    let mut fetched = Fetched {
        bytes: [0; 15],
        length: 0,
    };
    while fetched.length < fetched.bytes.len() {
        let address = linear_rip.wrapping_add(fetched.length as u64);
        let t = match translate(memory, paging, address, access) {
            Ok(t) => t,
            Err(e) if fetched.length == 0 => return Err(e),
            Err(_) => break,
        };
        let room = (fetched.bytes.len() - fetched.length)
            .min(usize::try_from(t.page_left).unwrap_or(usize::MAX));
        let Some(place) = fetched.bytes.get_mut(fetched.length..fetched.length + room) else {
            break;
        };
        if memory.read(t.gpa, place).is_err() {
            if fetched.length == 0 {
                return Err(WalkError::TableOutsideMemory { gpa: t.gpa });
            }
            break;
        }
        fetched.length += room;
    }
    Ok(fetched)
}

#[cfg(test)]
mod tests;
