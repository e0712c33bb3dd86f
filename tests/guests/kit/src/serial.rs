//! The first serial port, by polling, a line at a time.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::cpu::{inb, outb, pause};

/// The first serial port.
pub const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

static BUSY: AtomicBool = AtomicBool::new(false);

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(send);
        Ok(())
    }
}

/// The port as the kit needs it, whatever was written to its registers: 8 bits, no interrupts (16550, table II).
pub fn reset() {
    outb(COM1 + 3, 0x83);
    outb(COM1, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x03);
    outb(COM1 + 1, 0);
    outb(COM1 + 2, 0);
    outb(COM1 + 4, 0x03);
}

/// Sends a byte once there is room.
pub fn send(byte: u8) {
    // Bounded: a port that is never ready must not hide what else went wrong.
    let _ready = (0..1_000_000).any(|_| inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0);
    outb(COM1, byte);
}

/// Prints one line, whole even if several processors print.
pub fn line(what: fmt::Arguments<'_>) {
    let interrupts = crate::cpu::rflags() & crate::cpu::IF != 0;
    crate::cpu::cli();
    let mut patience = 0_u32;
    while BUSY.swap(true, SeqCst) && patience < 100_000_000 {
        pause();
        patience += 1;
    }
    // The port cannot fail.
    let _ = Port.write_fmt(what);
    send(b'\r');
    send(b'\n');
    BUSY.store(false, SeqCst);
    if interrupts {
        crate::cpu::sti();
    }
}

/// Prints one line.
#[macro_export]
macro_rules! print {
    ($($what:tt)*) => { $crate::serial::line(format_args!($($what)*)) };
}
