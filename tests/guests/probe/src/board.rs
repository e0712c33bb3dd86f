//! The board that this guest runs on. An ordinary guest reads ACPI; here it is enough to know what it says.

/// The first serial port.
pub const COM1: u16 = 0x3f8;
/// POST code: a write that does nothing.
pub const POST: u16 = 0x80;
/// ACPI PM1a control.
pub const PM1A_CNT: u16 = 0x604;
/// `SLP_TYP` of S5 and `SLP_EN`, for [`PM1A_CNT`].
pub const SOFT_OFF: u16 = 5 << 10 | 1 << 13;
/// ACPI power-management timer.
pub const PM_TMR: u16 = 0x608;
/// Index register of the I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Below the I/O APIC, in the hole for devices: no device and no memory is there.
pub const NOTHING: u64 = 0xfd00_0000;
/// Bus clock of the local APIC's timer; CPUID leaf 0x4000_0010 says it in EBX.
pub const APIC_BUS_HZ: u64 = 1_000_000_000;
