//! The Multiboot header (3.1.1): three words that must be there, five that may.

use super::error::MultibootError;

/// The header lies wholly in the first bytes of the file (3.1).
const SEARCH_BYTES: usize = 8192;
const MAGIC: u32 = 0x1BAD_B002;
/// The lower half of the flags is for requirements, which a loader that does not know them must refuse.
const REQUIREMENTS: u32 = 0xFFFF;
/// Modules on page boundaries; memory information.
const PROVIDED: u32 = 0b11;
/// The address fields hold.
const HAS_ADDRESSES: u32 = 1 << 16;

/// The header's address fields (3.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressFields {
    /// Where the header will lie in memory.
    pub header: u32,
    /// Where the text begins.
    pub load: u32,
    /// Where the data ends; 0 for the end of the file.
    pub load_end: u32,
    /// Where memory to be cleared ends; 0 for none.
    pub bss_end: u32,
    /// The first instruction.
    pub entry: u32,
}

/// A header that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Its offset in the file.
    pub offset: usize,
    /// Its address fields, if they hold.
    pub addresses: Option<AddressFields>,
}

/// Whether a file looks like a Multiboot kernel, loadable or not.
#[must_use]
pub fn has_header(file: &[u8]) -> bool {
    offset(file).is_some()
}

/// The first place with the magic number and a right checksum.
fn offset(file: &[u8]) -> Option<usize> {
    let searched = file.get(..SEARCH_BYTES).unwrap_or(file);
    (0..searched.len()).step_by(4).find(|at| {
        let word = |n: usize| u32_at(searched, at + 4 * n);
        word(0) == Some(MAGIC)
            && matches!((word(1), word(2)), (Some(flags), Some(sum))
                if MAGIC.wrapping_add(flags).wrapping_add(sum) == 0)
    })
}

/// Finds the header and checks what it requires.
pub(super) fn find(file: &[u8]) -> Result<Header, MultibootError> {
    let offset = offset(file).ok_or(MultibootError::NoHeader)?;
    let word = |n: usize| u32_at(file, offset + 4 * n);
    let flags = word(1).unwrap_or(0);
    let unknown = flags & REQUIREMENTS & !PROVIDED;
    if unknown != 0 {
        return Err(MultibootError::Feature { flags: unknown });
    }
    let addresses = if flags & HAS_ADDRESSES == 0 {
        None
    } else {
        let field = |n: usize| {
            word(n).ok_or(MultibootError::Truncated {
                needs: (offset + 32) as u64,
                has: file.len() as u64,
            })
        };
        Some(AddressFields {
            header: field(3)?,
            load: field(4)?,
            load_end: field(5)?,
            bss_end: field(6)?,
            entry: field(7)?,
        })
    };
    Ok(Header { offset, addresses })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at.checked_add(4)?)?
        .try_into()
        .ok()
        .map(u32::from_le_bytes)
}
