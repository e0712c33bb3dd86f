//! The fixed hardware: FADT and FACS.

use devices::layout;
use units::Gpa;

use super::table::{IoRegister, Table};

/// Preferred power-management profile: enterprise server (ACPI 6.5, 5.2.9.1).
const ENTERPRISE_SERVER: u8 = 4;
/// C2 and C3 latencies above 100 and 1000 us: neither state exists.
const NO_C2: u16 = 0xFFF;
const NO_C3: u16 = 0xFFF;

/// IA-PC boot architecture flags (ACPI 6.5, 5.2.9.3).
mod boot_arch {
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    pub const VGA_NOT_PRESENT: u16 = 1 << 2;
}

/// Fixed feature flags (ACPI 6.5, table 5.10).
mod feature {
    pub const WBINVD: u32 = 1 << 0;
    pub const PROC_C1: u32 = 1 << 2;
    /// No fixed sleep button.
    pub const SLP_BUTTON: u32 = 1 << 5;
    /// The RTC's alarm does not wake through fixed registers.
    pub const FIX_RTC: u32 = 1 << 6;
    pub const TMR_VAL_EXT: u32 = 1 << 8;
    pub const RESET_REG_SUP: u32 = 1 << 10;
}

/// FADT (ACPI 6.5, 5.2.9).
pub(super) fn fadt(facs: Gpa, dsdt: Gpa) -> Table {
    let evt = IoRegister {
        port: layout::PM1A_EVT,
        bits: layout::PM1A_EVT_BYTES * 8,
        access: 2,
    };
    let cnt = IoRegister {
        port: layout::PM1A_CNT,
        bits: layout::PM1A_CNT_BYTES * 8,
        access: 2,
    };
    let tmr = IoRegister {
        port: layout::PM_TMR,
        bits: layout::PM_TMR_BYTES * 8,
        access: 3,
    };
    let reset = IoRegister {
        port: layout::RESET_PORT,
        bits: 8,
        access: 1,
    };
    let timer_width = if layout::PM_TMR_IS_32_BIT {
        feature::TMR_VAL_EXT
    } else {
        0
    };

    let mut t = Table::new(*b"FACP", 6);
    // The tables lie below 1 MiB, so 32 bits hold their addresses.
    t.u32(facs.0 as u32);
    t.u32(dsdt.0 as u32);
    t.u8(0); // reserved
    t.u8(ENTERPRISE_SERVER);
    t.u16(u16::from(layout::SCI_IRQ));
    t.u32(0); // SMI command port: none, the machine is always in ACPI mode
    t.bytes(&[0; 4]); // ACPI enable, disable, S4BIOS, P-state control
    t.u32(u32::from(evt.port));
    t.u32(0); // PM1b event
    t.u32(u32::from(cnt.port));
    t.u32(0); // PM1b control
    t.u32(0); // PM2 control
    t.u32(u32::from(tmr.port));
    t.u32(0); // GPE0
    t.u32(0); // GPE1
    t.u8(layout::PM1A_EVT_BYTES);
    t.u8(layout::PM1A_CNT_BYTES);
    t.u8(0); // PM2 control
    t.u8(layout::PM_TMR_BYTES);
    t.bytes(&[0; 4]); // GPE0 and GPE1 lengths, GPE1 base, C-state control
    t.u16(NO_C2);
    t.u16(NO_C3);
    t.bytes(&[0; 6]); // cache flush size and stride, duty cycle offset and width
    t.bytes(&[0; 2]); // CMOS day and month alarm
    t.u8(layout::CMOS_CENTURY);
    t.u16(boot_arch::LEGACY_DEVICES | boot_arch::VGA_NOT_PRESENT);
    t.u8(0); // reserved
    t.u32(
        feature::WBINVD
            | feature::PROC_C1
            | feature::SLP_BUTTON
            | feature::FIX_RTC
            | timer_width
            | feature::RESET_REG_SUP,
    );
    t.register(reset);
    t.u8(layout::RESET_VALUE);
    t.u16(0); // ARM boot flags
    t.u8(5); // minor version: 6.5
    t.u64(0); // the 32-bit field gives the FACS; both would be a contradiction
    t.u64(dsdt.0);
    t.register(evt);
    t.register(IoRegister::ABSENT); // PM1b event
    t.register(cnt);
    t.register(IoRegister::ABSENT); // PM1b control
    t.register(IoRegister::ABSENT); // PM2 control
    t.register(tmr);
    t.register(IoRegister::ABSENT); // GPE0
    t.register(IoRegister::ABSENT); // GPE1
    t.register(IoRegister::ABSENT); // sleep control
    t.register(IoRegister::ABSENT); // sleep status
    t.bytes(b"PERIGEE\0"); // hypervisor vendor
    t
}

/// FACS (ACPI 6.5, 5.2.10): no header, no checksum; the global lock and the waking vectors are the guest's.
pub(super) fn facs() -> [u8; 64] {
    let mut b = [0; 64];
    b[..4].copy_from_slice(b"FACS");
    b[4] = 64;
    b[32] = 2; // version
    b
}
