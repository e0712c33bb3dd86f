//! Why a Multiboot kernel cannot be loaded.

use alloc::string::String;
use core::fmt;
use units::Gpa;

use crate::memory::OutOfRange;

/// Why a kernel was not loaded; `Display` is a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MultibootError {
    /// No header with a right checksum where one must be.
    NoHeader,
    /// The header asks for something that every loader must provide or refuse, and this one cannot.
    Feature {
        /// The flags that are not provided.
        flags: u32,
    },
    /// The header's address fields contradict each other or the file.
    Addresses(&'static str),
    /// Neither address fields nor an ELF file.
    NotElf(&'static str),
    /// An ELF file for another machine.
    WrongMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// A segment that reaches past the end of the file.
    Truncated {
        /// Bytes that the file would need.
        needs: u64,
        /// Bytes that it has.
        has: u64,
    },
    /// There is nothing to load.
    Empty,
    /// A segment or module that is not wholly in the VM's RAM.
    NotInMemory {
        /// What.
        what: &'static str,
        /// First byte.
        gpa: Gpa,
        /// Bytes.
        bytes: u64,
    },
    /// The entry point is not in any segment.
    EntryOutside {
        /// Where it is.
        entry: u64,
    },
    /// No room behind the kernel.
    ModulesDoNotFit {
        /// Bytes of all modules.
        needs: u64,
        /// Bytes that are there.
        has: u64,
    },
    /// Other modules than those that were planned for.
    ModulesChanged,
    /// The loader's own area is full.
    InformationDoesNotFit {
        /// Bytes needed.
        needs: u64,
        /// Bytes there are.
        has: u64,
    },
    /// A string contains a zero byte, which would end it early.
    ZeroByte {
        /// Which string.
        what: &'static str,
    },
    /// The list of modules has an entry without a file.
    EmptyModule {
        /// The list.
        list: String,
    },
    /// Guest memory is not where the layout says.
    Memory(OutOfRange),
}

impl From<OutOfRange> for MultibootError {
    fn from(e: OutOfRange) -> Self {
        Self::Memory(e)
    }
}

impl fmt::Display for MultibootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str(
                "the file has no Multiboot header (magic 0x1badb002 with a right checksum, on a 4-byte boundary in its first 8192 bytes)",
            ),
            Self::Feature { flags } => write!(
                f,
                "its Multiboot header requires features {flags:#x}, which are not provided (only page-aligned modules 0x1 and memory information 0x2 are)"
            ),
            Self::Addresses(what) => write!(f, "the address fields of its Multiboot header are damaged: {what}"),
            Self::NotElf(what) => write!(f, "its Multiboot header has no address fields, and it is no usable ELF file: {what}"),
            Self::WrongMachine { machine } => write!(
                f,
                "it is an ELF file for machine {machine}, but a Multiboot kernel is for i386 (3) or x86-64 (62)"
            ),
            Self::Truncated { needs, has } => write!(f, "the kernel image is truncated: {needs} bytes are needed, the file has {has}"),
            Self::Empty => f.write_str("it has nothing to load"),
            Self::NotInMemory { what, gpa, bytes } => write!(
                f,
                "its {what} of {bytes} bytes belongs at {gpa}, which is not wholly in the VM's RAM"
            ),
            Self::EntryOutside { entry } => write!(f, "its entry point {entry:#x} is in none of its segments"),
            Self::ModulesDoNotFit { needs, has } => write!(f, "its modules need {needs} bytes behind the kernel, where {has} are free"),
            Self::ModulesChanged => f.write_str("other modules were given than those that room was found for"),
            Self::InformationDoesNotFit { needs, has } => write!(
                f,
                "command line and module names need {needs} bytes of boot information, {has} are there"
            ),
            Self::ZeroByte { what } => write!(f, "the {what} contains a zero byte"),
            Self::EmptyModule { list } => write!(f, "the list of modules {list:?} has an entry without a file"),
            Self::Memory(e) => write!(f, "{e}"),
        }?;
        f.write_str("; the VM was not started")
    }
}

impl core::error::Error for MultibootError {}
