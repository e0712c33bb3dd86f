//! The guest's ACPI tables.
use crate::{GuestMemory, OutOfRange, VmShape};
use alloc::vec::Vec;
use units::Gpa;

/// The tables as one block of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Where the block goes; the RSDP is at its start.
    pub gpa: Gpa,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Builds the tables for a machine.
pub fn build(_shape: &VmShape) -> Tables {
    Tables {
        gpa: RSDP,
        bytes: Vec::new(),
    }
}

/// Where the RSDP is, for boot_params and by scanning.
pub const RSDP: Gpa = Gpa(0xE_0000);

/// Builds the tables and writes them into guest memory.
pub fn install(shape: &VmShape, memory: &impl GuestMemory) -> Result<(), OutOfRange> {
    let tables = build(shape);
    memory.write(tables.gpa, &tables.bytes)
}
