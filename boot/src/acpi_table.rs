//! Whether an ACPI override table is whole (ACPI 6.5, 5.2.6 "System Description Table Header").
//!
//! An override exists to repair what firmware got wrong, so a damaged one must not reach the
//! kernel: it is named with the fix and left out, and firmware's own table stays in force.

use core::fmt;

/// Bytes of the header that every system description table starts with.
pub const HEADER_BYTES: usize = 36;

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Shorter than a header.
    TooShort(usize),
    /// The signature is not four capital letters, digits or underscores.
    Signature([u8; 4]),
    /// The length field and the size of the file disagree.
    Length {
        /// What the header says, bytes.
        stated: u32,
        /// Bytes in the file.
        found: usize,
    },
    /// All bytes together do not sum up to 0; holds the checksum byte that would.
    Checksum(u8),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(bytes) => {
                write!(
                    f,
                    "{bytes} bytes are less than an ACPI table header ({HEADER_BYTES}): compile it again with iasl"
                )
            }
            Self::Signature(s) => write!(
                f,
                "its signature is {:02x} {:02x} {:02x} {:02x}, no ACPI table: put a table compiled by iasl here, not its source",
                s[0], s[1], s[2], s[3]
            ),
            Self::Length { stated, found } => {
                write!(
                    f,
                    "its header says {stated} bytes and the file has {found}: copy it again"
                )
            }
            Self::Checksum(right) => {
                write!(
                    f,
                    "its checksum is wrong: compile it again with iasl, or set byte 9 to {right:#04x}"
                )
            }
        }
    }
}

/// The signature of a whole table.
///
/// # Errors
/// The first check that fails.
pub fn check(table: &[u8]) -> Result<[u8; 4], TableError> {
    let header: &[u8; HEADER_BYTES] = table
        .first_chunk()
        .ok_or(TableError::TooShort(table.len()))?;
    let [s0, s1, s2, s3, l0, l1, l2, l3, ..] = *header;
    let signature = [s0, s1, s2, s3];
    if !signature
        .iter()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
    {
        return Err(TableError::Signature(signature));
    }
    let stated = u32::from_le_bytes([l0, l1, l2, l3]);
    if usize::try_from(stated) != Ok(table.len()) {
        return Err(TableError::Length {
            stated,
            found: table.len(),
        });
    }
    let sum = table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
    if sum != 0 {
        let checksum_byte = header[9];
        return Err(TableError::Checksum(checksum_byte.wrapping_sub(sum)));
    }
    Ok(signature)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{vec, vec::Vec};

    fn slit() -> Vec<u8> {
        let mut table = vec![0; 44];
        table[..4].copy_from_slice(b"SLIT");
        table[4] = 44;
        table[43] = 10;
        let sum = table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
        table[9] = 0u8.wrapping_sub(sum);
        table
    }

    #[test]
    fn a_whole_table_passes_and_the_named_fix_works() {
        assert_eq!(check(&slit()), Ok(*b"SLIT"));
        let mut bad = slit();
        bad[40] = 77;
        let Err(TableError::Checksum(right)) = check(&bad) else {
            panic!("checksum")
        };
        bad[9] = right;
        assert_eq!(check(&bad), Ok(*b"SLIT"));
    }

    #[test]
    fn damage_is_named() {
        assert_eq!(check(&slit()[..20]), Err(TableError::TooShort(20)));
        assert_eq!(
            check(&slit()[..40]),
            Err(TableError::Length {
                stated: 44,
                found: 40
            })
        );
        assert_eq!(check(&[b'\n'; 50]), Err(TableError::Signature([b'\n'; 4])));
    }
}
