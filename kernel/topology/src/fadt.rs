//! FADT: power-off, reset and the PM timer (ACPI 6.5, 5.2.9).

use crate::bytes::{generic_address_at, u8_at, u16_at, u32_at, u64_at};
use crate::quirk::{Quirk, Quirks, TableId};
use crate::table::Table;
use units::Hpa;

pub use crate::bytes::{AddressSpace, GenericAddress};

const TMR_VAL_EXT: u32 = 1 << 8;
const RESET_REG_SUP: u32 = 1 << 10;
const HW_REDUCED_ACPI: u32 = 1 << 20;

/// What Perigee needs of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fadt {
    /// The table with most of the namespace; 0 where there is none.
    pub dsdt: Hpa,
    /// Interrupt that ACPI events raise.
    pub sci_irq: u16,
    /// Port that switches ACPI mode on, and what to write; `None` where it is always on.
    pub acpi_enable: Option<(u16, u8)>,
    /// 3.579545 MHz up-counter.
    pub pm_timer: Option<PmTimer>,
    /// PM1a control: sleep type in bits 10 to 12, sleep enable in bit 13 (4.8.3.2.1).
    pub pm1a_control: Option<GenericAddress>,
    /// PM1b control, to be written as well where there is one.
    pub pm1b_control: Option<GenericAddress>,
    /// Sleep control of hardware-reduced machines: type in bits 2 to 4, enable in bit 5 (4.8.3.7).
    pub sleep_control: Option<GenericAddress>,
    /// What resets the machine, and the value to write (4.8.3.6).
    pub reset: Option<(GenericAddress, u8)>,
    /// Whether the PM1 registers and the PM timer do not exist.
    pub hardware_reduced: bool,
}

/// The PM timer (4.8.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// Its register of 32 bits.
    pub register: GenericAddress,
    /// Bits that count: 24 or 32.
    pub bits: u8,
}

/// Reads the table.
///
/// # Errors
/// The quirk that makes the table unusable as a whole.
pub fn parse(bytes: &[u8]) -> Result<Fadt, Quirk> {
    let mut quirks = Quirks::default();
    let table = Table::open(TableId::Fadt, bytes, &mut quirks)
        .ok_or_else(|| quirks.into_first(TableId::Fadt))?;
    let bytes = table.bytes;
    let flags = u32_at(bytes, 112).unwrap_or(0);
    let hardware_reduced = flags & HW_REDUCED_ACPI != 0;
    // The extended block counts where it is there and not 0 (5.2.9, "X_PM1a_CNT_BLK").
    let block = |port_at: usize, extended_at: usize, bit_width: u8| {
        if hardware_reduced {
            return None;
        }
        let port = u32_at(bytes, port_at).filter(|port| *port != 0);
        let port = port.map(|port| GenericAddress {
            space: AddressSpace::Io,
            bit_width,
            address: port.into(),
        });
        generic_address_at(bytes, extended_at).or(port)
    };
    let timer_bits = if flags & TMR_VAL_EXT != 0 { 32 } else { 24 };
    let reset_value = u8_at(bytes, 128).filter(|_| flags & RESET_REG_SUP != 0);
    let smi_port = u32_at(bytes, 48)
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0);
    let enable = u8_at(bytes, 52).filter(|value| *value != 0 && !hardware_reduced);
    Ok(Fadt {
        dsdt: Hpa(u64_at(bytes, 140)
            .filter(|address| *address != 0)
            .or(u32_at(bytes, 40).map(u64::from))
            .unwrap_or(0)),
        sci_irq: u16_at(bytes, 46).unwrap_or(0),
        acpi_enable: smi_port.zip(enable),
        pm_timer: block(76, 208, 32).map(|register| PmTimer {
            register,
            bits: timer_bits,
        }),
        pm1a_control: block(64, 172, 16),
        pm1b_control: block(68, 184, 16),
        sleep_control: generic_address_at(bytes, 244),
        reset: generic_address_at(bytes, 116).zip(reset_value),
        hardware_reduced,
    })
}
