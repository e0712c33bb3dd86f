//! PPTT: which processors share a core, a cache, a package (ACPI 6.5, 5.2.30).

use crate::bytes::{u8_at, u32_at};
use crate::quirk::{Quirk, Quirks};
use crate::table::{Entry, Table};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// First structure.
const ENTRIES: usize = 36;
/// More levels than any machine has; a longer way up is a circle.
const MAX_DEPTH: usize = 16;
const PACKAGE: u32 = 1 << 0;
const UID_VALID: u32 = 1 << 1;
const IS_THREAD: u32 = 1 << 2;
/// In a cache's flags: its type is known.
const CACHE_TYPE_VALID: u32 = 1 << 4;
/// In a cache's attributes: it holds instructions only.
const CACHE_TYPE: u8 = 0b11 << 2;
const CACHE_INSTRUCTION: u8 = 0b01 << 2;

#[derive(Debug)]
struct Processor<'a> {
    flags: u32,
    parent: u32,
    resources: &'a [u8],
}

/// The hierarchy; structures are named by their offset in the table.
#[derive(Debug, Default)]
pub(crate) struct Pptt<'a> {
    processors: BTreeMap<u32, Processor<'a>>,
    /// Caches that hold data.
    data_caches: BTreeSet<u32>,
    leaves: BTreeMap<u32, u32>,
}

/// What a processor belongs to; equal keys mean shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) core: u32,
    pub(crate) llc: u32,
    pub(crate) package: u32,
}

/// Reads the table.
pub(crate) fn parse<'a>(table: &Table<'a>, quirks: &mut Quirks) -> Pptt<'a> {
    let mut pptt = Pptt::default();
    for entry in table.entries(ENTRIES, quirks) {
        let needed = match entry.kind {
            0 => 20,
            1 => 24,
            _ => continue,
        };
        if entry.has(needed, quirks) {
            // Every field is inside the length just checked, so the value is always there.
            let _ = read(&entry, &mut pptt);
        }
    }
    pptt
}

fn read<'a>(entry: &Entry<'a>, pptt: &mut Pptt<'a>) -> Option<()> {
    let bytes = entry.bytes;
    let offset = u32::try_from(entry.offset).ok()?;
    let flags = u32_at(bytes, 4)?;
    if entry.kind == 1 {
        let instructions =
            flags & CACHE_TYPE_VALID != 0 && u8_at(bytes, 21)? & CACHE_TYPE == CACHE_INSTRUCTION;
        if !instructions {
            pptt.data_caches.insert(offset);
        }
        return Some(());
    }
    let listed = (u32_at(bytes, 16)? as usize).saturating_mul(4);
    let resources = bytes.get(20..)?;
    let resources = resources.get(..listed).unwrap_or(resources);
    pptt.processors.insert(
        offset,
        Processor {
            flags,
            parent: u32_at(bytes, 8)?,
            resources,
        },
    );
    if flags & UID_VALID != 0 {
        let uid = u32_at(bytes, 12)?;
        // A container may carry a UID too; the leaf of a processor is nobody's parent and, in the
        // order that firmware writes, comes after its ancestors.
        pptt.leaves.insert(uid, offset);
    }
    Some(())
}

impl Pptt<'_> {
    /// Where each processor of `uids` belongs; `None` (reported) if one of them cannot be placed.
    pub(crate) fn places(&self, uids: &[u32], quirks: &mut Quirks) -> Option<Vec<Place>> {
        let mut places = Vec::with_capacity(uids.len());
        for uid in uids {
            let Some(leaf) = self.leaves.get(uid) else {
                quirks.push(Quirk::PpttIncomplete { uid: *uid });
                return None;
            };
            let Some(place) = self.place(*leaf) else {
                quirks.push(Quirk::PpttHierarchy { uid: *uid });
                return None;
            };
            places.push(place);
        }
        Some(places)
    }

    fn place(&self, leaf: u32) -> Option<Place> {
        let mut at = leaf;
        let mut core = None;
        let mut llc = leaf;
        for _ in 0..MAX_DEPTH {
            let processor = self.processors.get(&at)?;
            if core.is_none() && (at != leaf || processor.flags & IS_THREAD == 0) {
                core = Some(at);
            }
            // The last level is the cache highest up.
            let mut resources = processor
                .resources
                .chunks_exact(4)
                .filter_map(|word| u32_at(word, 0));
            if resources.any(|offset| self.data_caches.contains(&offset)) {
                llc = at;
            }
            if processor.flags & PACKAGE != 0 || processor.parent == 0 {
                return Some(Place {
                    core: core.unwrap_or(at),
                    llc,
                    package: at,
                });
            }
            at = processor.parent;
        }
        None
    }
}
