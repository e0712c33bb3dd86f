//! The common frame of all ACPI tables (ACPI 6.5, 5.2.6) and the entries inside it.

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::quirk::{Quirk, Quirks, TableId};
use alloc::vec::Vec;

/// Bytes of the header: signature, length, revision, checksum, identities.
const HEADER: usize = 36;

/// A table whose frame was checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    pub(crate) id: TableId,
    pub(crate) revision: u8,
    /// The whole table, header included, so that offsets are the specification's.
    pub(crate) bytes: &'a [u8],
}

/// One structure inside a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) table: TableId,
    /// Offset in the table.
    pub(crate) offset: usize,
    pub(crate) kind: u16,
    /// The whole structure, its type and length included.
    pub(crate) bytes: &'a [u8],
}

impl Entry<'_> {
    /// Whether the entry has the bytes that its kind needs; reports it if not.
    pub(crate) fn has(&self, needed: usize, quirks: &mut Quirks) -> bool {
        let enough = self.bytes.len() >= needed;
        if !enough {
            quirks.push(Quirk::ShortEntry {
                table: self.table,
                offset: self.offset,
                kind: self.kind,
                length: self.bytes.len(),
                needed,
            });
        }
        enough
    }
}

/// How an entry's type and length are written.
#[derive(Clone, Copy, Debug)]
enum EntryHeader {
    /// One byte each (MADT, SRAT, PPTT).
    Narrow,
    /// Type in 16 bits, 16 reserved, length in 32 (HMAT).
    Wide,
}

impl<'a> Table<'a> {
    /// Checks signature, length and checksum. `None` (reported) when nothing of the table can be
    /// used; a wrong checksum alone is such a case for every table but the MADT.
    pub(crate) fn open(id: TableId, bytes: &'a [u8], quirks: &mut Quirks) -> Option<Self> {
        let (Some(signature), Some(declared), Some(revision)) =
            (bytes.first_chunk::<4>(), u32_at(bytes, 4), u8_at(bytes, 8))
        else {
            quirks.push(Quirk::NoHeader {
                table: id,
                bytes: bytes.len(),
            });
            return None;
        };
        if signature != id.signature() {
            quirks.push(Quirk::WrongSignature {
                table: id,
                found: *signature,
            });
            return None;
        }
        let declared = declared as usize;
        if declared < HEADER || bytes.len() < HEADER {
            quirks.push(Quirk::NoHeader {
                table: id,
                bytes: declared.min(bytes.len()),
            });
            return None;
        }
        let whole = bytes.get(..declared);
        if whole.is_none() {
            quirks.push(Quirk::CutShort {
                table: id,
                declared,
                available: bytes.len(),
            });
        }
        let bytes = whole.unwrap_or(bytes);
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        // A table that is cut short cannot sum to zero; one sentence about it is enough.
        if sum != 0 && whole.is_some() {
            quirks.push(Quirk::BadChecksum { table: id, sum });
        }
        let usable = id == TableId::Madt || (sum == 0 && whole.is_some());
        usable.then_some(Self {
            id,
            revision,
            bytes,
        })
    }

    /// The structures from offset `start` on, with lengths of one byte.
    pub(crate) fn entries(&self, start: usize, quirks: &mut Quirks) -> Vec<Entry<'a>> {
        self.walk(start, EntryHeader::Narrow, quirks)
    }

    /// The structures from offset `start` on, with lengths of four bytes.
    pub(crate) fn wide_entries(&self, start: usize, quirks: &mut Quirks) -> Vec<Entry<'a>> {
        self.walk(start, EntryHeader::Wide, quirks)
    }

    fn walk(&self, start: usize, header: EntryHeader, quirks: &mut Quirks) -> Vec<Entry<'a>> {
        let table = self.id;
        let mut entries = Vec::new();
        let mut offset = start;
        while let Some(rest) = self.bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            let (kind, length, least) = match header {
                EntryHeader::Narrow => (
                    u8_at(rest, 0).map(u16::from),
                    u8_at(rest, 1).map(usize::from),
                    2,
                ),
                EntryHeader::Wide => (
                    u16_at(rest, 0),
                    u32_at(rest, 4).map(|length| length as usize),
                    8,
                ),
            };
            let (Some(kind), Some(length)) = (kind, length) else {
                quirks.push(Quirk::TruncatedEntry {
                    table,
                    offset,
                    length: least,
                    available: rest.len(),
                });
                break;
            };
            if length < least {
                quirks.push(Quirk::ZeroLengthEntry {
                    table,
                    offset,
                    length,
                });
                break;
            }
            let Some(bytes) = rest.get(..length) else {
                quirks.push(Quirk::TruncatedEntry {
                    table,
                    offset,
                    length,
                    available: rest.len(),
                });
                break;
            };
            entries.push(Entry {
                table,
                offset,
                kind,
                bytes,
            });
            offset += length;
        }
        entries
    }
}
