//! The way to the registers.

use core::fmt;

/// Where model-specific registers are read and written: a processor, a simulated one, or one that is injected.
///
/// Any access may fail. Hypervisors below may offer counters in CPUID and refuse their registers.
pub trait MsrPort {
    /// The register's value.
    ///
    /// # Errors
    /// Reading it faults.
    fn read(&mut self, register: u32) -> Result<u64, Fault>;

    /// Gives the register a value.
    ///
    /// # Errors
    /// It does not exist or refuses the value.
    fn write(&mut self, register: u32, value: u64) -> Result<(), Fault>;
}

/// A register that could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number.
    pub register: u32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "register {:#x} refuses the access", self.register)
    }
}

impl core::error::Error for Fault {}
