//! The checks that an entry makes before the guest runs, with names for what fails.
//!
//! A processor that rejects an entry says which of three groups failed: controls or host state by an error number, guest
//! state by exit reason 33. Which field it was, it does not say. These are the manual's rules for the fields
//! that Perigee uses, in the manual's order.

mod controls;
mod guest;
mod host;
mod segments;

pub use controls::check_controls;
pub use guest::check_guest;
pub use host::check_host;

use crate::{Capabilities, Controls, Fields, Guest, Host};
use core::fmt;

/// What the rules depend on besides the fields.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// What the processor accepts.
    pub caps: Capabilities,
    /// Width of physical addresses in bits (CPUID 8000_0008h EAX 7:0).
    pub physical_bits: u8,
    /// Width of linear addresses in bits: 48, or 57 with 5-level paging.
    pub linear_bits: u8,
    /// Transactions exist (CPUID 7 EBX bit 11).
    pub has_transactions: bool,
}

/// A field that breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's name.
    pub field: &'static str,
    /// What it holds.
    pub value: u64,
    /// The rule.
    pub rule: &'static str,
    /// Section of the manual.
    pub section: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            value,
            rule,
            section,
        } = self;
        write!(f, "{field} is {value:#x}, but {rule} ({section})")
    }
}

/// Judges everything that is in `vmcs`.
///
/// # Errors
/// The first rule that is broken.
pub fn check(vmcs: &impl Fields, facts: &Facts) -> Result<(), Violation> {
    let controls = Controls::read(vmcs);
    check_controls(&controls, Guest::read(vmcs).cr0, facts)?;
    check_host(&Host::read(vmcs), &controls, facts)?;
    check_guest(&Guest::read(vmcs), &controls, facts)
}

/// One section of the manual, which makes violations.
#[derive(Clone, Copy)]
struct Section(&'static str);

impl Section {
    /// Fails unless `met`.
    fn must(
        self,
        met: bool,
        field: &'static str,
        value: impl Into<u64>,
        rule: &'static str,
    ) -> Result<(), Violation> {
        if met {
            return Ok(());
        }
        Err(Violation {
            field,
            value: value.into(),
            rule,
            section: self.0,
        })
    }
}

impl Facts {
    fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - u32::from(self.linear_bits);
        ((address << unused) as i64 >> unused) as u64 == address
    }
    fn is_physical(&self, address: u64) -> bool {
        address.checked_shr(self.physical_bits.into()).unwrap_or(0) == 0
    }
    fn is_page(&self, address: u64) -> bool {
        address & 0xfff == 0 && self.is_physical(address)
    }
    /// CR0 and CR4 against what must be 1 and may be 1.
    fn is_fixed(value: u64, (must, may): (u64, u64)) -> bool {
        must & !value == 0 && value & !may == 0
    }
}

/// IA32_PAT: eight types, none reserved (SDM 3A 12.12.2).
fn is_pat(value: u64) -> bool {
    value
        .to_le_bytes()
        .into_iter()
        .all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6 | 7))
}

/// EFER: SCE, LME, LMA, NXE.
const EFER_BITS: u64 = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const CR0_PE: u64 = 1 << 0;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
