//! Little-endian fields at an offset, or `None` past the end.

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at).map(u16::from_le_bytes)
}
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at).map(u32::from_le_bytes)
}
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

/// A register's place as ACPI writes it: Generic Address Structure (ACPI 6.5, 5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenericAddress {
    /// Where the address is.
    pub space: AddressSpace,
    /// Register width in bits.
    pub bit_width: u8,
    /// The address; never 0.
    pub address: u64,
}

/// Where an address is (ACPI 6.5, table 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSpace {
    /// Physical memory.
    Memory,
    /// I/O ports.
    Io,
    /// PCI configuration space of bus 0: device, function and offset are inside the address.
    PciConfig,
    /// Any other, by its number.
    Other(u8),
}

/// The structure at an offset; `None` past the end or when its address is 0, which means absent.
pub(crate) fn generic_address_at(bytes: &[u8], at: usize) -> Option<GenericAddress> {
    let structure: [u8; 12] = field(bytes, at)?;
    let address = u64_at(&structure, 4).filter(|address| *address != 0)?;
    let space = match u8_at(&structure, 0)? {
        0 => AddressSpace::Memory,
        1 => AddressSpace::Io,
        2 => AddressSpace::PciConfig,
        other => AddressSpace::Other(other),
    };
    Some(GenericAddress {
        space,
        bit_width: u8_at(&structure, 1)?,
        address,
    })
}
