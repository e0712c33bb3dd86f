//! Names for addresses, from the symbol table of the kernel's own ELF file.
//!
//! The loader hands that file over as a module. It is parsed anew at each look-up: that takes no
//! memory and no lock, and a report has time.
#![expect(unsafe_code, reason = "the linker's symbol for the image's first byte")]

use core::fmt;

use elf::ElfBytes;
use elf::endian::LittleEndian;
use spin::Once;

static FILE: Once<&'static [u8]> = Once::new();

unsafe extern "C" {
    static __kernel_start: [u8; 0];
}

/// Where the image's first byte runs: what ELF address 0 became.
pub fn image_base() -> u64 {
    (&raw const __kernel_start) as u64
}

/// Makes `file` the source of names; it must stay as it is for ever.
pub fn set_file(file: &'static [u8]) {
    FILE.call_once(|| file);
}

/// An address that prints as `0xffff...: function+0x12`.
#[derive(Clone, Copy, Debug)]
pub struct Symbolised(pub u64);

impl fmt::Display for Symbolised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)?;
        match find(self.0) {
            Some((name, offset)) => {
                write!(f, " {:#}+{offset:#x}", rustc_demangle::demangle(name))
            }
            None => Ok(()),
        }
    }
}

/// Writes the name and offset of the function that holds `address`, if it is known.
pub fn find(address: u64) -> Option<(&'static str, u64)> {
    let in_file = address.checked_sub(image_base())?;
    let file = ElfBytes::<LittleEndian>::minimal_parse(FILE.get()?).ok()?;
    let (symbols, names) = file.symbol_table().ok()??;
    // A return address may be the first byte after a call that never returns: accept the end.
    let best = symbols
        .iter()
        .filter(|s| s.st_symtype() == elf::abi::STT_FUNC || s.st_symtype() == elf::abi::STT_NOTYPE)
        .filter(|s| s.st_shndx != elf::abi::SHN_UNDEF && s.st_value <= in_file)
        .filter(|s| s.st_size == 0 || in_file - s.st_value <= s.st_size)
        .max_by_key(|s| (s.st_value, s.st_size))?;
    let name = names.get(usize::try_from(best.st_name).ok()?).ok()?;
    (!name.is_empty()).then_some((name, in_file - best.st_value))
}
