//! PCI configuration mechanism #1 (PCI 3.0, 3.2.2.3.2) with one function behind it.
//!
//! The board has no PCI device, but a kernel that finds no way to ask complains, and x86 kernels
//! believe the mechanism only if bus 0 has a host bridge (or a chipset of a vendor they know). So
//! there is one at 00:00.0, and nothing else: every other function reads all ones, which is how a
//! bus says "nobody".
//!
//! The bridge has no registers that can be changed: no base address, no interrupt, and its command
//! register reads zero, as nothing of it can be switched on.

use crate::access::AccessSize;

/// Vendor and device: the host bridge without properties that Red Hat's emulators show. Kernels
/// have no erratum of a real chipset to work around for it.
const IDENTITY: u32 = 0x0008_1B36;
/// Class 06h (bridge), subclass 00h (host), interface 00h, revision 00h (PCI 3.0, appendix D).
const HOST_BRIDGE: u32 = 0x0600_0000;
/// Register number of vendor and device.
const REG_IDENTITY: u8 = 0x00;
/// Register number of class code and revision.
const REG_CLASS: u8 = 0x08;

/// The address register's enable bit.
const ENABLE: u32 = 1 << 31;
/// Bits that a write changes: enable, bus, device, function, register.
const WRITABLE: u32 = 0x80FF_FFFC;
/// Bus, device and function of an address.
const FUNCTION: u32 = 0x00FF_FF00;

/// The two registers of the mechanism.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pci {
    address: u32,
}

impl Pci {
    /// The address register; only accesses of four bytes reach it.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// A write of four bytes to the address register.
    pub fn set_address(&mut self, value: u32) {
        self.address = value & WRITABLE;
    }

    /// A read from the data register, `lane` bytes into it. Bits above `size` are undefined.
    pub fn read(&self, lane: u16, size: AccessSize) -> u32 {
        let register = self.address as u8;
        let inside = lane + u16::from(size.bytes().min(4)) <= 4;
        if !inside || self.address & (ENABLE | FUNCTION) != ENABLE {
            return u32::MAX;
        }
        let value = match register {
            REG_IDENTITY => IDENTITY,
            REG_CLASS => HOST_BRIDGE,
            _ => 0,
        };
        value >> (8 * lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: u32) -> Pci {
        let mut pci = Pci::default();
        pci.set_address(address);
        pci
    }

    #[test]
    fn the_bridge_is_found_the_way_linux_looks_for_one() {
        assert_eq!(at(0x8000_0000).address(), 0x8000_0000);
        assert_eq!(at(0x8000_0008).read(2, AccessSize::Word) as u16, 0x0600);
        assert_eq!(at(0x8000_0000).read(0, AccessSize::Dword), 0x0008_1B36);
        assert_eq!(
            at(0x8000_000C).read(2, AccessSize::Byte) as u8,
            0,
            "one function, header type 0"
        );
    }

    #[test]
    fn nobody_else_answers() {
        for address in [
            0x8000_0100,
            0x8000_0800,
            0x8001_0000,
            0x80FF_FF00,
            0x0000_0000,
        ] {
            assert_eq!(
                at(address).read(0, AccessSize::Dword),
                u32::MAX,
                "{address:#x}"
            );
        }
        assert_eq!(
            at(0x8000_0000).read(3, AccessSize::Word),
            u32::MAX,
            "beyond the register"
        );
    }

    #[test]
    fn reserved_address_bits_do_not_stick() {
        assert_eq!(at(u32::MAX).address(), 0x80FF_FFFC);
    }

    #[test]
    fn the_bridge_has_nothing_to_map_or_to_route() {
        for register in (0x10..0x100).step_by(4) {
            assert_eq!(at(0x8000_0000 | register).read(0, AccessSize::Dword), 0);
        }
    }
}
