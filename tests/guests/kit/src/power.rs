//! Off: the emulators' exit port if it is there, ACPI's soft off else.

use crate::Tables;
use crate::cpu::{cli, hlt, outl, outw};

/// Where `isa-debug-exit` sits when it is there.
const EXIT_PORT: u16 = 0xf4;
const SLEEP_ENABLE: u16 = 1 << 13;

/// Switches the machine off; `code` goes to the exit port.
pub fn off(code: u32) -> ! {
    cli();
    outl(EXIT_PORT, code);
    let tables = Tables::read();
    outw(tables.pm1a_control, tables.off_type << 10 | SLEEP_ENABLE);
    loop {
        cli();
        hlt();
    }
}
