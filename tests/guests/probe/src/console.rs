//! The first serial port, polled.

use crate::board::COM1;
use crate::cpu;
use core::fmt;

/// Line status register: a byte has come; the transmitter takes one.
const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 1 << 0;
const MAY_SEND: u8 = 1 << 5;

/// Writes to the port.
#[derive(Debug)]
pub struct Port;

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while cpu::in8(LINE_STATUS) & MAY_SEND == 0 {
                cpu::relax();
            }
            cpu::out8(COM1, byte);
        }
        Ok(())
    }
}

/// The byte that came, if one did.
pub fn read() -> Option<u8> {
    (cpu::in8(LINE_STATUS) & DATA_READY != 0).then(|| cpu::in8(COM1))
}

/// Waits until somebody types this byte.
pub fn wait_for(byte: u8) {
    while read() != Some(byte) {
        cpu::relax();
    }
}

/// Prints a line.
macro_rules! println {
    ($($words:tt)*) => {{
        use core::fmt::Write;
        let _ = writeln!($crate::console::Port, $($words)*);
    }};
}
pub(crate) use println;
