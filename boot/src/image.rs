//! From a kernel ELF file to an image that can be entered.
//!
//! The kernel is a static position-independent executable: loadable segments and a table of
//! R_X86_64_RELATIVE relocations, no interpreter and no symbols to resolve (System V ABI, AMD64
//! supplement, 4.4.1; ELF, "Program Header" and "Dynamic Section"). [`plan`] checks everything that
//! the file claims before a byte of it is used; [`Plan::build`] then fills the image.

use core::fmt;

use alloc::vec::Vec;
use elf::{
    ElfBytes,
    abi::{
        DT_JMPREL, DT_NEEDED, DT_NULL, DT_REL, DT_RELA, DT_RELAENT, DT_RELASZ, EM_X86_64, ET_DYN,
        PF_R, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS, R_X86_64_NONE, R_X86_64_RELATIVE,
    },
    endian::LittleEndian,
    file::Class,
    parse::ParseError,
    relocation::RelaIterator,
};

/// Address of a table of packed relative relocations (ELF, "Dynamic Section"); the crate has no
/// name for it.
const DT_RELR: i64 = 36;
const PAGE: u64 = 4096;
/// More than any kernel needs and less than the address space above `KERNEL_BASE`.
const IMAGE_LIMIT: u64 = 512 << 20;

/// What a segment's pages may be used for. There is none that is writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read only.
    Read,
    /// Read and write.
    Write,
    /// Read and execute.
    Execute,
}

/// A loadable segment; addresses are relative to the image's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address of its first byte.
    pub address: u64,
    /// Bytes in memory; what the file does not hold is zero.
    pub bytes: u64,
    /// Where its contents start in the file.
    pub file_offset: u64,
    /// Bytes of it in the file.
    pub file_bytes: u64,
    /// Rights of its pages.
    pub rights: Rights,
}

impl Segment {
    /// First byte of its first page and first byte after its last page.
    pub const fn pages(&self) -> (u64, u64) {
        let end = self.address.saturating_add(self.bytes);
        (
            self.address / PAGE * PAGE,
            end.div_ceil(PAGE).saturating_mul(PAGE),
        )
    }
}

/// A checked description of how to load one kernel file.
#[derive(Debug)]
pub struct Plan<'f> {
    file: &'f [u8],
    segments: Vec<Segment>,
    entry: u64,
    relocations: &'f [u8],
}

/// What is wrong with a kernel file.
#[derive(Debug)]
pub enum ImageError {
    /// Not an ELF file, or a damaged one.
    Elf(ParseError),
    /// A sound file of another sort; says which sort is needed.
    Sort(&'static str),
    /// A segment with this address is not as it must be; says how.
    Segment(u64, &'static str),
    /// A relocation of this type, which a static PIE does not have.
    RelocationType(u32),
    /// A relocation at this address points out of the image.
    RelocationPlace(u64),
    /// The memory offered for the image has the wrong size.
    Room {
        /// Bytes needed.
        needed: u64,
        /// Bytes offered.
        offered: usize,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => write!(f, "it is damaged or no ELF file ({error})"),
            Self::Sort(needed) => write!(f, "it is not {needed}"),
            Self::Segment(address, problem) => write!(f, "its segment at {address:#x} {problem}"),
            Self::RelocationType(number) => {
                write!(
                    f,
                    "it needs a relocation of type {number}, and only R_X86_64_RELATIVE (8) is possible"
                )
            }
            Self::RelocationPlace(address) => {
                write!(f, "a relocation at {address:#x} points out of it")
            }
            Self::Room { needed, offered } => {
                write!(f, "it needs {needed} bytes of memory and got {offered}")
            }
        }
    }
}

impl core::error::Error for ImageError {}

impl From<ParseError> for ImageError {
    fn from(error: ParseError) -> Self {
        Self::Elf(error)
    }
}

/// Checks a kernel file and says how to load it.
///
/// # Errors
/// The first claim of the file that cannot be true or cannot be honoured.
pub fn plan(file: &[u8]) -> Result<Plan<'_>, ImageError> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    let header = elf.ehdr;
    if header.class != Class::ELF64 || header.e_machine != EM_X86_64 {
        return Err(ImageError::Sort("a 64-bit x86 ELF file"));
    }
    if header.e_type != ET_DYN {
        return Err(ImageError::Sort(
            "position-independent (ET_DYN): link it with -pie",
        ));
    }
    let table = elf
        .segments()
        .ok_or(ImageError::Sort("a file with program headers"))?;
    let mut segments: Vec<Segment> = Vec::new();
    for header in table.iter() {
        match header.p_type {
            PT_INTERP => {
                return Err(ImageError::Sort(
                    "statically linked: it asks for an interpreter",
                ));
            }
            PT_TLS => return Err(ImageError::Sort("free of thread-local storage")),
            PT_LOAD if header.p_memsz > 0 => {
                let end_of_last = segments.last().map_or(0, |s| s.pages().1);
                segments.push(segment(&header, file, end_of_last)?);
            }
            _ => {}
        }
    }
    let entry = header.e_entry;
    let inside = |s: &Segment| {
        s.rights == Rights::Execute && (s.address..s.address + s.bytes).contains(&entry)
    };
    if !segments.iter().any(inside) {
        return Err(ImageError::Segment(
            entry,
            "is the entry point and not executable",
        ));
    }
    let relocations = match table.iter().find(|h| h.p_type == PT_DYNAMIC) {
        Some(dynamic) => relocation_table(&elf, file, &segments, dynamic.p_filesz)?,
        None => &[],
    };
    Ok(Plan {
        file,
        segments,
        entry,
        relocations,
    })
}

fn segment(
    h: &elf::segment::ProgramHeader,
    file: &[u8],
    end_of_last: u64,
) -> Result<Segment, ImageError> {
    let wrong = |problem| ImageError::Segment(h.p_vaddr, problem);
    let rights = match (
        h.p_flags & PF_R != 0,
        h.p_flags & PF_W != 0,
        h.p_flags & PF_X != 0,
    ) {
        (true, false, false) => Rights::Read,
        (true, true, false) => Rights::Write,
        (_, false, true) => Rights::Execute,
        (_, true, true) => {
            return Err(wrong("is writable and executable: separate code from data"));
        }
        (false, _, false) => return Err(wrong("is not readable")),
    };
    let end = h
        .p_vaddr
        .checked_add(h.p_memsz)
        .filter(|end| *end <= IMAGE_LIMIT);
    if end.is_none() {
        return Err(wrong("reaches beyond 512 MiB"));
    }
    if h.p_filesz > h.p_memsz {
        return Err(wrong("is larger in the file than in memory"));
    }
    if slice(file, h.p_offset, h.p_filesz).is_none() {
        return Err(wrong(
            "lies outside the file: the file was cut short, copy it again",
        ));
    }
    let new = Segment {
        address: h.p_vaddr,
        bytes: h.p_memsz,
        file_offset: h.p_offset,
        file_bytes: h.p_filesz,
        rights,
    };
    if new.pages().0 < end_of_last {
        return Err(wrong(
            "shares a page with the one before it, or is out of order",
        ));
    }
    Ok(new)
}

/// Finds the relocation table through the dynamic section and checks every entry.
fn relocation_table<'f>(
    elf: &ElfBytes<'f, LittleEndian>,
    file: &'f [u8],
    segments: &[Segment],
    dynamic_bytes: u64,
) -> Result<&'f [u8], ImageError> {
    let (mut address, mut bytes) = (None, 0);
    if let Some(dynamic) = elf.dynamic()?.filter(|_| dynamic_bytes > 0) {
        for entry in dynamic.iter().take_while(|e| e.d_tag != DT_NULL) {
            match entry.d_tag {
                DT_RELA => address = Some(entry.d_ptr()),
                DT_RELASZ => bytes = entry.d_val(),
                DT_RELAENT if entry.d_val() != RELA_BYTES => {
                    return Err(ImageError::Sort("a file with 24-byte relocations"));
                }
                DT_REL | DT_RELR | DT_JMPREL => {
                    return Err(ImageError::Sort("a file with plain RELA relocations only"));
                }
                DT_NEEDED => return Err(ImageError::Sort("statically linked: it needs a library")),
                _ => {}
            }
        }
    }
    let Some(address) = address.filter(|_| bytes > 0) else {
        return Ok(&[]);
    };
    let table = segments
        .iter()
        .find_map(|s| {
            let inside = address.checked_sub(s.address)?;
            (inside.checked_add(bytes)? <= s.file_bytes).then_some(())?;
            slice(file, s.file_offset.checked_add(inside)?, bytes)
        })
        .ok_or(ImageError::RelocationPlace(address))?;
    for relocation in relocations(table) {
        match relocation.r_type {
            R_X86_64_NONE => {}
            R_X86_64_RELATIVE => {
                let place = relocation.r_offset;
                let fits = |s: &Segment| {
                    s.address <= place
                        && place
                            .checked_add(8)
                            .is_some_and(|end| end <= s.address + s.bytes)
                };
                if !segments.iter().any(fits) {
                    return Err(ImageError::RelocationPlace(place));
                }
            }
            other => return Err(ImageError::RelocationType(other)),
        }
    }
    Ok(table)
}

/// Bytes in an Elf64_Rela.
const RELA_BYTES: u64 = 24;

fn relocations(table: &[u8]) -> RelaIterator<'_, LittleEndian> {
    RelaIterator::new(LittleEndian, Class::ELF64, table)
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}

fn slice_mut(bytes: &mut [u8], offset: u64, len: u64) -> Option<&mut [u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get_mut(start..end)
}

impl Plan<'_> {
    /// Bytes of memory that the image takes, a multiple of 4096.
    pub fn image_bytes(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.pages().1)
    }

    /// The loadable segments, ascending, no two on one page.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The entry point, relative to the image's first byte.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// How many relocations [`Plan::build`] applies.
    pub fn relocation_count(&self) -> usize {
        relocations(self.relocations).count()
    }

    /// Fills `image` with what the kernel finds at the virtual address `base`. Returns the number of
    /// relocations applied.
    ///
    /// # Errors
    /// `image` does not have [`Plan::image_bytes`] bytes.
    pub fn build(&self, base: u64, image: &mut [u8]) -> Result<usize, ImageError> {
        if u64::try_from(image.len()) != Ok(self.image_bytes()) {
            return Err(ImageError::Room {
                needed: self.image_bytes(),
                offered: image.len(),
            });
        }
        image.fill(0);
        for s in &self.segments {
            let from = slice(self.file, s.file_offset, s.file_bytes);
            let to = slice_mut(image, s.address, s.file_bytes);
            let (Some(from), Some(to)) = (from, to) else {
                return Err(ImageError::Segment(s.address, "lies outside the file"));
            };
            to.copy_from_slice(from);
        }
        let mut applied = 0;
        for relocation in relocations(self.relocations).filter(|r| r.r_type == R_X86_64_RELATIVE) {
            let value = base.wrapping_add_signed(relocation.r_addend);
            let place = slice_mut(image, relocation.r_offset, 8)
                .ok_or(ImageError::RelocationPlace(relocation.r_offset))?;
            place.copy_from_slice(&value.to_le_bytes());
            applied += 1;
        }
        Ok(applied)
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
