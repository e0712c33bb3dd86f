//! SLIT: relative distances between proximity domains (ACPI 6.5, 5.2.17).

use crate::bytes::u64_at;
use crate::quirk::{Quirk, Quirks};
use crate::table::Table;
use units::ProximityDomain;

/// First entry of the matrix.
const MATRIX: usize = 44;

/// A matrix that fits into its table; rows and columns are numbered by proximity domain.
#[derive(Debug)]
pub(crate) struct Slit<'a> {
    pub(crate) localities: u64,
    matrix: &'a [u8],
}

/// Reads the table; `None` (reported) when its matrix does not fit.
pub(crate) fn parse<'a>(table: &Table<'a>, quirks: &mut Quirks) -> Option<Slit<'a>> {
    let localities = u64_at(table.bytes, 36).unwrap_or(0);
    let entries = localities
        .checked_mul(localities)
        .and_then(|entries| usize::try_from(entries).ok());
    let behind = table.bytes.get(MATRIX..);
    let (Some(matrix), Some(behind)) = (behind.and_then(|bytes| bytes.get(..entries?)), behind)
    else {
        quirks.push(Quirk::SlitSize {
            localities,
            bytes: table.bytes.len(),
        });
        return None;
    };
    if behind.len() > matrix.len() {
        quirks.push(Quirk::SlitTrailing {
            bytes: behind.len() - matrix.len(),
        });
    }
    Some(Slit { localities, matrix })
}

impl Slit<'_> {
    /// What the matrix says, or `None` outside of it.
    pub(crate) fn get(&self, from: ProximityDomain, to: ProximityDomain) -> Option<u8> {
        let (from, to) = (u64::from(from.0), u64::from(to.0));
        if from >= self.localities || to >= self.localities {
            return None;
        }
        let index = from.checked_mul(self.localities)?.checked_add(to)?;
        self.matrix.get(usize::try_from(index).ok()?).copied()
    }
}
