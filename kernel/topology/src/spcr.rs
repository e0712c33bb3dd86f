//! SPCR: where firmware wants the serial console (Serial Port Console Redirection Table 1.10).

use crate::bytes::{generic_address_at, u8_at};
use crate::quirk::{Quirk, Quirks, TableId};
use crate::table::Table;

pub use crate::bytes::{AddressSpace, GenericAddress};

/// The console's UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spcr {
    /// Whether it is a 16550 or compatible (interface types 0, 1, and 18 with its register width in the address).
    pub is_16550: bool,
    /// Its registers; `None` where the table switches redirection off.
    pub register: Option<GenericAddress>,
    /// Line speed in bits a second; `None` to keep what firmware has set.
    pub baud: Option<u32>,
}

/// Reads the table.
///
/// # Errors
/// The quirk that makes the table unusable as a whole.
pub fn parse(bytes: &[u8]) -> Result<Spcr, Quirk> {
    let mut quirks = Quirks::default();
    let table = Table::open(TableId::Spcr, bytes, &mut quirks)
        .ok_or_else(|| quirks.into_first(TableId::Spcr))?;
    Ok(Spcr {
        is_16550: matches!(u8_at(table.bytes, 36), Some(0 | 1 | 18)),
        register: generic_address_at(table.bytes, 40),
        baud: match u8_at(table.bytes, 58) {
            Some(3) => Some(9_600),
            Some(4) => Some(19_200),
            Some(6) => Some(57_600),
            Some(7) => Some(115_200),
            _ => None,
        },
    })
}
