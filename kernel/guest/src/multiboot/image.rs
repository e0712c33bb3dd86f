//! A Multiboot kernel as segments, whether they come from an ELF file or from the header.

use alloc::vec::Vec;
use core::fmt;
use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;
use units::Gpa;

use super::error::MultibootError;
use super::header::{self, AddressFields, Header};

/// Everything is below 4 GiB: the kernel is entered without paging.
const LIMIT: u64 = 1 << 32;
const ELF_MAGIC: &[u8] = b"\x7FELF";

/// A part of the kernel: bytes of the file, then zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// First byte in memory.
    pub gpa: Gpa,
    /// What the file holds of it.
    pub bytes: &'a [u8],
    /// Bytes in memory, at least as many as in the file.
    pub memory_bytes: u64,
}

impl Segment<'_> {
    /// First byte after it; cannot overflow, as segments are below 4 GiB.
    #[must_use]
    pub const fn end(&self) -> Gpa {
        Gpa(self.gpa.0.saturating_add(self.memory_bytes))
    }
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("gpa", &self.gpa)
            .field("file_bytes", &self.bytes.len())
            .field("memory_bytes", &self.memory_bytes)
            .finish()
    }
}

/// A kernel whose header and segments were checked against the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultibootImage<'a> {
    /// What to load, in the file's order; never empty.
    pub segments: Vec<Segment<'a>>,
    /// The first instruction.
    pub entry: Gpa,
}

impl<'a> MultibootImage<'a> {
    /// Checks a file.
    ///
    /// # Errors
    /// [`MultibootError`] says what is wrong with it.
    pub fn parse(file: &'a [u8]) -> Result<Self, MultibootError> {
        let header = header::find(file)?;
        // Where both are given, the header's fields count (3.1.2, bit 16).
        match header.addresses {
            Some(addresses) => Self::flat(file, &header, &addresses),
            None => Self::elf(file),
        }
    }

    /// By the address fields (3.1.3).
    fn flat(
        file: &'a [u8],
        header: &Header,
        addresses: &AddressFields,
    ) -> Result<Self, MultibootError> {
        let has = file.len() as u64;
        let before_header = addresses
            .header
            .checked_sub(addresses.load)
            .ok_or(MultibootError::Addresses("the header lies before the text"))?;
        let start = header
            .offset
            .checked_sub(before_header as usize)
            .ok_or(MultibootError::Addresses("the text begins before the file"))?;
        let available = file.get(start..).unwrap_or(&[]);
        let bytes = match addresses.load_end {
            0 => available,
            end => {
                let wanted = end
                    .checked_sub(addresses.load)
                    .ok_or(MultibootError::Addresses(
                        "the data ends before the text begins",
                    ))?;
                available
                    .get(..wanted as usize)
                    .ok_or(MultibootError::Truncated {
                        needs: start as u64 + u64::from(wanted),
                        has,
                    })?
            }
        };
        let load = u64::from(addresses.load);
        let data_end = load + bytes.len() as u64;
        let end = match addresses.bss_end {
            0 => data_end,
            end if u64::from(end) >= data_end => u64::from(end),
            _ => {
                return Err(MultibootError::Addresses(
                    "the cleared memory ends before the data",
                ));
            }
        };
        let segment = Segment {
            gpa: Gpa(load),
            bytes,
            memory_bytes: end - load,
        };
        Self::checked(Vec::from([segment]), u64::from(addresses.entry))
    }

    /// By the program headers, at physical addresses. A 64-bit file is as good as a 32-bit one, as long as all of
    /// it lies below 4 GiB.
    fn elf(file: &'a [u8]) -> Result<Self, MultibootError> {
        if !file.starts_with(ELF_MAGIC) {
            return Err(MultibootError::NotElf("it does not begin with \\x7fELF"));
        }
        let damaged = MultibootError::NotElf("its headers are damaged");
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| damaged.clone())?;
        let machine = elf.ehdr.e_machine;
        if machine != EM_386 && machine != EM_X86_64 {
            return Err(MultibootError::WrongMachine { machine });
        }
        let mut entry = elf.ehdr.e_entry;
        let mut segments = Vec::new();
        for header in elf.segments().ok_or(damaged)?.iter() {
            if header.p_type != PT_LOAD || header.p_memsz == 0 {
                continue;
            }
            let needs = header.p_offset.saturating_add(header.p_filesz);
            let truncated = MultibootError::Truncated {
                needs,
                has: file.len() as u64,
            };
            let bytes = usize::try_from(header.p_offset)
                .ok()
                .zip(usize::try_from(needs).ok())
                .and_then(|(from, to)| file.get(from..to))
                .ok_or(truncated)?;
            if header.p_filesz > header.p_memsz {
                return Err(MultibootError::NotElf(
                    "a segment has more bytes in the file than in memory",
                ));
            }
            // The entry is a virtual address; the machine starts with physical ones.
            let virtual_end = header.p_vaddr.saturating_add(header.p_memsz);
            if (header.p_vaddr..virtual_end).contains(&elf.ehdr.e_entry) {
                entry = header
                    .p_paddr
                    .saturating_add(elf.ehdr.e_entry - header.p_vaddr);
            }
            segments.push(Segment {
                gpa: Gpa(header.p_paddr),
                bytes,
                memory_bytes: header.p_memsz,
            });
        }
        Self::checked(segments, entry)
    }

    fn checked(segments: Vec<Segment<'a>>, entry: u64) -> Result<Self, MultibootError> {
        if segments.iter().all(|s| s.memory_bytes == 0) {
            return Err(MultibootError::Empty);
        }
        for segment in &segments {
            if segment.gpa.0 >= LIMIT || segment.memory_bytes > LIMIT - segment.gpa.0 {
                return Err(MultibootError::NotInMemory {
                    what: "segment",
                    gpa: segment.gpa,
                    bytes: segment.memory_bytes,
                });
            }
        }
        let inside = |s: &Segment<'_>| (s.gpa.0..s.end().0).contains(&entry);
        if !segments.iter().any(inside) {
            return Err(MultibootError::EntryOutside { entry });
        }
        Ok(Self {
            segments,
            entry: Gpa(entry),
        })
    }

    /// First byte after the last segment.
    #[must_use]
    pub fn end(&self) -> Gpa {
        self.segments
            .iter()
            .map(Segment::end)
            .max()
            .unwrap_or(Gpa(0))
    }
}
