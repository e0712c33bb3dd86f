//! Linux' 64-bit boot protocol.
use crate::{EntryState, GuestMemory, OutOfRange, VmShape};
use units::Gpa;

/// A checked bzImage.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage<'a> {
    /// The protected-mode kernel.
    pub payload: &'a [u8],
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Kernel.
    pub kernel: Gpa,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinuxError {
    /// Memory.
    Memory(OutOfRange),
}

impl<'a> KernelImage<'a> {
    /// Checks the setup header.
    pub fn parse(_bytes: &'a [u8]) -> Result<Self, LinuxError> {
        Err(LinuxError::Memory(OutOfRange {
            gpa: Gpa(0),
            bytes: 0,
        }))
    }
    /// The version string
    pub fn version(&self) -> &'a str {
        ""
    }
}

/// Plans.
pub fn plan(
    _image: &KernelImage<'_>,
    _initrd_bytes: u64,
    _cmdline: &str,
    _shape: &VmShape,
) -> Result<LoadPlan, LinuxError> {
    Ok(LoadPlan { kernel: Gpa(0) })
}

/// Writes kernel, initrd (empty for none), command line, boot_params, GDT, page tables; the ACPI tables are
/// written by [`crate::acpi::install`].
pub fn load(
    _plan: &LoadPlan,
    _image: &KernelImage<'_>,
    _initrd: &[u8],
    _memory: &impl GuestMemory,
) -> Result<EntryState, LinuxError> {
    Err(LinuxError::Memory(OutOfRange {
        gpa: Gpa(0),
        bytes: 0,
    }))
}
