//! The way out for what stops the machine: no lock, no memory, no waiting for ever.
//!
//! Whoever writes here has stopped the other CPUs, perhaps in the middle of a line of theirs, perhaps with
//! the console's lock in their hands (if nobody has it, what still waits is sent first). So the UART is driven directly (three registers are enough), and
//! the screen is written from its top again, in alarm colours, by a cursor that only this file knows.
#![expect(unsafe_code, reason = "the UART is driven past its driver")]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use spin::Once;
use units::Hpa;
use x86_64::instructions::port::Port;

use super::port::{COM1, COM2, Place};
use super::screen::{Paint, Surface};
use crate::mm;

/// The text UART: bits 63:56 are the distance of its registers in memory, 0 for I/O ports.
static PORT: AtomicU64 = AtomicU64::new(COM1 as u64);
/// The same for records.
static RECORDS: AtomicU64 = AtomicU64::new(COM2 as u64);
static SURFACE: Once<Surface> = Once::new();
/// Column in bits 15:0, row in bits 31:16.
static CURSOR: AtomicU32 = AtomicU32::new(0);

const STRIDE_SHIFT: u32 = 56;
const LINE_STATUS: u8 = 5;
const TRANSMIT_EMPTY: u8 = 1 << 5;
/// The last bit of the last byte is out, too.
const TRANSMITTER_IDLE: u8 = 1 << 6;
const PATIENCE: u32 = 100_000;

/// Remembers the UARTs for text and for records.
pub(super) fn set_ports(text: Place, records: Place) {
    let word = |place| match place {
        Place::Io(port) => u64::from(port),
        Place::Memory(address, stride) => address | u64::from(stride) << STRIDE_SHIFT,
    };
    PORT.store(word(text), Ordering::Relaxed);
    RECORDS.store(word(records), Ordering::Relaxed);
}

/// Remembers the screen.
pub(super) fn set_surface(surface: Surface) {
    SURFACE.call_once(|| surface);
}

/// Text for the operator, on UART and screen.
#[derive(Clone, Copy, Debug)]
pub struct Emergency;

/// A record for tools, on their UART.
#[derive(Clone, Copy, Debug)]
pub struct EmergencyTelemetry;

impl Write for Emergency {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        super::drain_if_free();
        let port = PORT.load(Ordering::Relaxed);
        for byte in text.bytes() {
            if byte == b'\n' {
                send(port, b'\r');
            }
            send(port, byte);
        }
        if let Some(surface) = SURFACE.get() {
            text.bytes().for_each(|byte| show(surface, byte));
        }
        Ok(())
    }
}

impl Write for EmergencyTelemetry {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let port = RECORDS.load(Ordering::Relaxed);
        text.bytes().for_each(|byte| send(port, byte));
        Ok(())
    }
}

/// Waits until both UARTs have sent what they took: a machine that goes off loses the rest.
pub fn finish_sending() {
    for port in [&PORT, &RECORDS] {
        let port = port.load(Ordering::Relaxed);
        let _idle = (0..PATIENCE).any(|_| read(port, LINE_STATUS) & TRANSMITTER_IDLE != 0);
    }
}

fn send(port: u64, byte: u8) {
    let ready = (0..PATIENCE).any(|_| read(port, LINE_STATUS) & TRANSMIT_EMPTY != 0);
    if ready {
        write(port, 0, byte);
    }
}

/// Where register `index` is, if the UART is in memory.
fn in_memory(port: u64, index: u8) -> Option<*mut u8> {
    let stride = port >> STRIDE_SHIFT;
    let base = mm::device(Hpa(port & ((1 << STRIDE_SHIFT) - 1)));
    (stride > 0).then(|| base.wrapping_add(stride as usize * usize::from(index)))
}

fn read(port: u64, index: u8) -> u8 {
    match in_memory(port, index) {
        // SAFETY: a UART that answered there before, whose registers stay mapped.
        Some(register) => unsafe { register.read_volatile() },
        // SAFETY: reading the line status of a UART only clears error bits, which nobody here uses.
        None => unsafe { Port::new(port as u16 + u16::from(index)).read() },
    }
}

fn write(port: u64, index: u8, byte: u8) {
    match in_memory(port, index) {
        // SAFETY: as in `read`.
        Some(register) => unsafe { register.write_volatile(byte) },
        // SAFETY: the transmit register of a UART that says it is ready. Its driver's lock is not
        // taken: the other CPUs are stopped, and text out of order is better than none.
        None => unsafe { Port::new(port as u16 + u16::from(index)).write(byte) },
    }
}

fn show(surface: &Surface, byte: u8) {
    let cursor = CURSOR.load(Ordering::Relaxed);
    let (mut column, mut row) = (cursor & 0xffff, cursor >> 16);
    if byte == b'\n' || column >= surface.columns() {
        (column..surface.columns()).for_each(|rest| surface.draw(rest, row, b' ', Paint::Alarm));
        (column, row) = (0, (row + 1) % surface.rows());
    }
    if byte != b'\n' {
        surface.draw(column, row, byte, Paint::Alarm);
        column += 1;
    }
    CURSOR.store(column | row << 16, Ordering::Relaxed);
}
