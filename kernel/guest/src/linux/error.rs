//! Why a kernel cannot be loaded.

use core::fmt;
use units::Gpa;

use crate::memory::OutOfRange;

/// Why a kernel was not loaded; `Display` is a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinuxError {
    /// The file ends before its setup header or before the kernel that the header announces.
    Truncated {
        /// What the file should have, in bytes.
        needs: u64,
        /// What it has.
        has: u64,
    },
    /// No "HdrS" and 0xAA55 where every Linux since 1995 has them.
    NotBzImage,
    /// An older boot protocol than 2.12.
    TooOld {
        /// Major version in the high byte, minor in the low byte.
        version: u16,
    },
    /// `xloadflags` lacks XLF_KERNEL_64.
    Not64Bit,
    /// `loadflags` lacks LOADED_HIGH: a zImage.
    LowLoad,
    /// A header field contradicts the protocol.
    BadField {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// No room in the VM's memory below 3 GiB.
    KernelDoesNotFit {
        /// Bytes that the kernel needs while it starts.
        needs: u64,
        /// First address at which it may be.
        from: u64,
        /// RAM that is there, from that address on.
        has: u64,
    },
    /// No room for the initrd beside the kernel.
    InitrdDoesNotFit {
        /// Its bytes.
        needs: u64,
        /// The largest free range, in bytes.
        has: u64,
    },
    /// The command line is longer than the kernel reads.
    CommandLineTooLong {
        /// Its bytes.
        has: u64,
        /// The most that the kernel reads.
        limit: u64,
    },
    /// The command line contains a zero byte, which would end it early.
    CommandLineZero {
        /// Where.
        at: u64,
    },
    /// Another initrd than the one that was planned for.
    InitrdChanged {
        /// Bytes planned.
        planned: u64,
        /// Bytes given.
        given: u64,
    },
    /// Guest memory is not where the layout says.
    Memory(OutOfRange),
}

impl From<OutOfRange> for LinuxError {
    fn from(e: OutOfRange) -> Self {
        Self::Memory(e)
    }
}

impl fmt::Display for LinuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { needs, has } => write!(
                f,
                "the kernel image is truncated: {needs} bytes are needed, the file has {has}"
            )?,
            Self::NotBzImage => f.write_str(
                "the file is not a Linux bzImage (no boot signature 0xAA55 at 0x1fe and \"HdrS\" at 0x202)",
            )?,
            Self::TooOld { version } => write!(
                f,
                "the kernel speaks boot protocol {}.{:02}, but 2.12 (Linux 3.8) is the oldest that has a 64-bit entry",
                version >> 8,
                version & 0xFF
            )?,
            Self::Not64Bit => f.write_str("the kernel has no 64-bit entry (XLF_KERNEL_64 is clear): it is a 32-bit kernel")?,
            Self::LowLoad => f.write_str("the kernel is a zImage, which loads below 1 MiB; a bzImage is needed")?,
            Self::BadField { field, value } => write!(f, "the kernel's setup header is damaged: {field} is {value:#x}")?,
            Self::KernelDoesNotFit { needs, from, has } => write!(
                f,
                "the kernel needs {} KiB of contiguous RAM from {from:#x} on, and the VM has {} KiB there; give the VM more memory",
                needs.div_ceil(1024),
                has / 1024
            )?,
            Self::InitrdDoesNotFit { needs, has } => write!(
                f,
                "the initrd of {} KiB does not fit beside the kernel: the largest free range has {} KiB; give the VM more memory",
                needs.div_ceil(1024),
                has / 1024
            )?,
            Self::CommandLineTooLong { has, limit } => {
                write!(f, "the command line has {has} bytes, but this kernel reads {limit}")?;
            }
            Self::CommandLineZero { at } => write!(f, "the command line has a zero byte at {at}, which would end it there")?,
            Self::InitrdChanged { planned, given } => {
                write!(f, "room was planned for an initrd of {planned} bytes, but one of {given} bytes was given")?;
            }
            Self::Memory(OutOfRange { gpa: Gpa(gpa), bytes }) => write!(
                f,
                "the VM's memory has no {bytes} bytes at guest-physical {gpa:#x}, where its layout says RAM"
            )?,
        }
        f.write_str("; the VM was not started")
    }
}

impl core::error::Error for LinuxError {}
