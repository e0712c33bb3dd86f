//! Where everything sits on the virtual board: ports, guest-physical addresses, pins and
//! frequencies.
//!
//! The devices decode these numbers and the guest's ACPI tables announce them, so both read them
//! here and cannot disagree. The addresses are those of a PC since ISA, or of QEMU's machines
//! where a PC leaves them open, because that is what guest kernels have been tested with.
//!
//! What the tables must say about the board:
//! * FADT: no SMI command port (0) and `SCI_EN` always set, so that no hand-over to ACPI mode is
//!   needed; PM1a event and control blocks, PM timer ([`PM_TMR_IS_32_BIT`] sets `TMR_VAL_EXT`);
//!   no GPE block; a reset register at [`RESET_PORT`] with value [`RESET_VALUE`]; a fixed power
//!   button (`PWR_BUTTON` clear); no fixed sleep button (`SLP_BUTTON` set); the RTC century
//!   byte at [`CMOS_CENTURY`]; boot architecture flags with "legacy devices" set, and "8042" and
//!   "VGA present" clear. There is no HPET.
//! * MADT: `PCAT_COMPAT`; the I/O APIC; the overrides of [`ISA_OVERRIDES`]; LINT1 as NMI on every
//!   processor.
//! * DSDT: `\_S5` with [`S5_SLP_TYP`] in both fields; the UART at [`COM1`].

use units::Gpa;

/// Physical base of every local APIC after reset (SDM 3A 11.4.1).
pub const LAPIC_BASE: Gpa = Gpa(0xFEE0_0000);
/// Bytes of a local APIC's register page.
pub const LAPIC_BYTES: u64 = 0x1000;

/// Physical base of the I/O APIC (82093AA, section 3.0).
pub const IOAPIC_BASE: Gpa = Gpa(0xFEC0_0000);
/// Bytes that the I/O APIC claims.
pub const IOAPIC_BYTES: u64 = 0x1000;
/// The identifier that the I/O APIC shows after reset, for the MADT.
pub const IOAPIC_ID: u8 = 0;
/// Redirection entries of the I/O APIC; its pins are GSI 0 to 23.
pub const IOAPIC_PINS: u8 = 24;

/// Base of the PM1a event block: status, then enable, 16 bits each (ACPI 6.5, 4.8.3.1).
pub const PM1A_EVT: u16 = 0x600;
/// Bytes of the PM1a event block.
pub const PM1A_EVT_BYTES: u8 = 4;
/// The PM1a control register, 16 bits (ACPI 6.5, 4.8.3.2).
pub const PM1A_CNT: u16 = 0x604;
/// Bytes of the PM1a control block.
pub const PM1A_CNT_BYTES: u8 = 2;
/// The power-management timer, one 32-bit register (ACPI 6.5, 4.8.3.3).
pub const PM_TMR: u16 = 0x608;
/// Bytes of the power-management timer block.
pub const PM_TMR_BYTES: u8 = 4;
/// Whether the timer counts 32 bits: the FADT flag `TMR_VAL_EXT`.
pub const PM_TMR_IS_32_BIT: bool = true;
/// The value of `SLP_TYP` that means S5, soft off; the DSDT's `\_S5` package repeats it.
pub const S5_SLP_TYP: u8 = 5;

/// Reset control register of PC chipsets (ICH and later: "RST_CNT").
pub const RESET_PORT: u16 = 0xCF9;
/// What to write to [`RESET_PORT`] for a full reset: system reset and reset CPU.
pub const RESET_VALUE: u8 = 0x06;

/// Master 8259A: command port; data is the next one.
pub const PIC_MASTER: u16 = 0x20;
/// Slave 8259A: command port; data is the next one.
pub const PIC_SLAVE: u16 = 0xA0;
/// Edge/level control registers of the two 8259A.
pub const ELCR: u16 = 0x4D0;
/// 8254 counters 0 to 2; the control word is the port after them.
pub const PIT: u16 = 0x40;
/// System control port B: gate and output of counter 2.
pub const PORT_B: u16 = 0x61;
/// Keyboard controller data; the board has none.
pub const I8042_DATA: u16 = 0x60;
/// Keyboard controller command and status; only the reset pulse works.
pub const I8042_COMMAND: u16 = 0x64;
/// Real-time clock index; data is the next one.
pub const RTC: u16 = 0x70;
/// POST code and I/O delay.
pub const POST: u16 = 0x80;
/// System control port A: A20 gate and fast reset.
pub const PORT_A: u16 = 0x92;
/// PCI configuration address.
pub const PCI_ADDRESS: u16 = 0xCF8;
/// PCI configuration data, four ports.
pub const PCI_DATA: u16 = 0xCFC;
/// First serial port, eight ports.
pub const COM1: u16 = 0x3F8;

/// ISA interrupt of counter 0 of the 8254.
pub const PIT_IRQ: u8 = 0;
/// ISA interrupt through which the slave 8259A reaches the master.
pub const CASCADE_IRQ: u8 = 2;
/// ISA interrupt of [`COM1`].
pub const COM1_IRQ: u8 = 4;
/// ISA interrupt of the real-time clock.
pub const RTC_IRQ: u8 = 8;
/// ACPI's system control interrupt: level triggered, active high.
pub const SCI_IRQ: u8 = 9;

/// One interrupt source override of the MADT (ACPI 6.5, 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaOverride {
    /// The ISA interrupt.
    pub irq: u8,
    /// The I/O APIC pin that it drives.
    pub pin: u8,
    /// MPS INTI flags: bits 1:0 polarity, bits 3:2 trigger mode (ACPI 6.5, table 5.26).
    pub flags: u16,
}

/// Every ISA interrupt that does not drive the pin of its own number, or is not edge triggered.
pub const ISA_OVERRIDES: [IsaOverride; 2] = [
    // As the bus specifies.
    IsaOverride {
        irq: PIT_IRQ,
        pin: 2,
        flags: 0,
    },
    // Active high, level triggered.
    IsaOverride {
        irq: SCI_IRQ,
        pin: SCI_IRQ,
        flags: 0b1101,
    },
];

/// The I/O APIC pin that an ISA interrupt drives; `None` for the cascade and past 15.
pub const fn isa_pin(irq: u8) -> Option<u8> {
    if irq == PIT_IRQ {
        Some(2)
    } else if irq == CASCADE_IRQ || irq > 15 {
        None
    } else {
        Some(irq)
    }
}

/// Input clock of the 8254, in Hz: 14.31818 MHz / 12.
pub const PIT_HZ: u64 = 1_193_182;
/// Frequency of the power-management timer, in Hz (ACPI 6.5, 4.8.3.3).
pub const PM_TMR_HZ: u64 = 3_579_545;
/// Time base of the real-time clock, in Hz.
pub const RTC_HZ: u64 = 32_768;
/// Input clock of the UART, in Hz: 115,200 baud times 16.
pub const UART_HZ: u64 = 1_843_200;
/// Bus clock of the local APIC's timer before division, in Hz; what KVM's guests see as well.
pub const LAPIC_BUS_HZ: u64 = 1_000_000_000;

/// CMOS byte that holds the century in BCD; the FADT names it.
pub const CMOS_CENTURY: u8 = 0x32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_agree_with_the_wiring() {
        for o in ISA_OVERRIDES {
            assert_eq!(isa_pin(o.irq), Some(o.pin));
        }
        assert_eq!(isa_pin(CASCADE_IRQ), None);
        assert_eq!(isa_pin(COM1_IRQ), Some(4));
        assert_eq!(isa_pin(16), None);
    }
}
