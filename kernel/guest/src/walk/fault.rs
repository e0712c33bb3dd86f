//! Which accesses are allowed, and what the processor says about those that are not.

use units::Gpa;

use super::mode::entry_bit;
use super::{Access, AccessKind, CR4_PKE, CR4_SMAP, CR4_SMEP, PagingState, Privilege, RFLAGS_AC};
use crate::entry::{CR0_WP, CR4_PAE, EFER_LMA, EFER_NXE};

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

/// SDM 3A 4.6: whether the access is allowed; else the error-code bits beyond the ordinary ones.
pub(super) fn check_rights(
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

/// The error code of a page fault for this access, with the bits that the reason adds.
pub(super) fn fault_code(paging: &PagingState, access: Access, bits: u32) -> u32 {
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
