//! A software walk of the guest's own page tables.
use crate::memory::GuestMemory;
use units::Gpa;

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
    /// Width of guest-physical addresses in bits, as CPUID leaf 0x8000_0008 tells the guest.
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

/// On whose behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL below 3.
    Supervisor,
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
    /// #PF with this error code, CR2 = `address`.
    PageFault {
        /// Linear address.
        address: u64,
        /// Error code.
        error_code: u32,
    },
    /// #GP(0) (or #SS(0)): the address is not canonical.
    NonCanonical {
        /// Linear address.
        address: u64,
    },
    /// A table lies outside of memory.
    TableOutsideMemory {
        /// Where.
        gpa: Gpa,
    },
}

/// Instruction bytes at RIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The bytes.
    pub bytes: [u8; 15],
    /// How many count.
    pub length: usize,
}

/// Translates.
pub fn translate(
    _memory: &impl GuestMemory,
    _paging: &PagingState,
    address: u64,
    _access: Access,
) -> Result<Translation, WalkError> {
    Err(WalkError::NonCanonical { address })
}

/// Fetches up to 15 bytes.
pub fn fetch(
    _memory: &impl GuestMemory,
    _paging: &PagingState,
    linear_rip: u64,
    _privilege: Privilege,
) -> Result<Fetched, WalkError> {
    Err(WalkError::NonCanonical {
        address: linear_rip,
    })
}
