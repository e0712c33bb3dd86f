//! What the operator reads and types.
//!
//! There are three devices: the console's UART (where firmware's SPCR says, else COM1), the screen if
//! firmware left one, and a second UART (COM2) for the records that tools read. Everything is polled:
//! a hypervisor that needs an interrupt to say that interrupts are broken is of little use.
//!
//! * [`print`] and the `log` macros write whole lines, [`stand`] keeps an unfinished one below them,
//!   [`read_byte`] reads input, [`record`] writes a record.
//! * A UART takes 87 us for a byte. So text goes into a ring ([`port`]) and leaves it when the UART has room;
//!   [`read_byte`], which the monitor calls many times a second, keeps it going. Until the monitor
//!   first asks for input, everything is sent at once: whoever looks for the reason of an early hang
//!   needs the last line.
//! * [`Emergency`] takes no lock and no memory: panics, NMIs and machine checks write through it.
//!
//! # Locks
//! One for text (UART and screen), then one for records; interrupts are off while they are held, so that a
//! handler that logs cannot wait for itself. Nothing is called under them.

mod emergency;
mod port;
mod ring;
mod screen;
mod text;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use handoff::Framebuffer;
use spin::Mutex;
use topology::spcr::Spcr;
use x86_64::instructions::interrupts::without_interrupts;

use port::{COM1, COM2, Place, SerialPort};
use screen::Screen;

pub use emergency::{Emergency, EmergencyTelemetry, finish_sending};

/// Bytes of early text that are kept for a screen that is found later.
const BACKLOG_BYTES: usize = 8 << 10;
/// Longest standing line; of a longer one the end is not shown until it is a whole line.
const STANDING_BYTES: usize = 768;
/// To the first column, and erase to the end of the line (ECMA-48, 8.3.41).
const ERASE_LINE: &[u8] = b"\r\x1b[K";

struct Text {
    port: Option<SerialPort>,
    screen: Option<Screen>,
    backlog: ArrayVec<u8, BACKLOG_BYTES>,
    /// The unfinished line below everything else.
    standing: ArrayVec<u8, STANDING_BYTES>,
    /// The last byte written was no line end.
    mid_line: bool,
}

static TEXT: Mutex<Text> = Mutex::new(Text {
    port: None,
    screen: None,
    backlog: ArrayVec::new_const(),
    standing: ArrayVec::new_const(),
    mid_line: false,
});
static RECORDS: Mutex<Option<SerialPort>> = Mutex::new(None);
/// Whether somebody keeps the rings going.
static POLLED: AtomicBool = AtomicBool::new(false);

/// Makes `log`, [`print`] and [`record`] work, on COM1 and COM2. The kernel's first act that may fail
/// unheard.
pub fn init_early() {
    TEXT.lock().port = SerialPort::at_io(COM1, None);
    *RECORDS.lock() = SerialPort::at_io(COM2, None);
    text::init();
}

/// Moves to where firmware wants the console, once its tables are read and the kernel's page tables
/// are in force, and starts the screen with what was said so far. If that is COM2, records go to
/// COM1.
pub fn init(spcr: Option<&Spcr>, framebuffer: &Framebuffer) {
    let firmware = spcr.and_then(port::from_spcr);
    let found = without_interrupts(|| {
        let mut text = TEXT.lock();
        if let Some(port) = firmware {
            let records = if port.place() == Place::Io(COM2) {
                COM1
            } else {
                COM2
            };
            emergency::set_ports(port.place(), Place::Io(records));
            if records == COM1 {
                *RECORDS.lock() = text.port.take();
            }
            text.port = Some(port);
        }
        text.screen = Screen::new(framebuffer);
        if let Some(screen) = &mut text.screen {
            emergency::set_surface(screen.surface());
        }
        let backlog = core::mem::take(&mut text.backlog);
        if let Some(screen) = &mut text.screen {
            screen.write(&backlog);
        }
        text.port.as_ref().map(SerialPort::place)
    });
    match found {
        Some(place) => log::info!("console on the UART at {place}"),
        None => log::warn!(
            "no UART answers at COM1 or where the SPCR points: the screen is the only console"
        ),
    }
    if without_interrupts(|| RECORDS.lock().is_none()) {
        log::info!("there is no second UART: telemetry is not recorded");
    }
}

/// Writes text to UART and screen: whole lines, above the standing one if there is one.
pub fn print(text: fmt::Arguments<'_>) {
    without_interrupts(|| {
        let mut console = TEXT.lock();
        console.erase_standing();
        // Both devices swallow what they cannot show.
        let _written = console.write_fmt(text);
        console.draw_standing();
    });
}

/// Keeps `line` standing as the unfinished last line, below whatever else is printed, instead of the one that
/// stood there; an empty one is none.
pub fn stand(line: &str) {
    without_interrupts(|| TEXT.lock().stand(line.as_bytes()));
}

/// Ends the standing line: it is a line like any other from now on.
pub fn settle() {
    without_interrupts(|| {
        let mut console = TEXT.lock();
        if !console.standing.is_empty() {
            console.standing.clear();
            console.write_bytes(b"\n");
        }
    });
}

/// The next byte that the operator has typed, if there is one. Also keeps output going.
pub fn read_byte() -> Option<u8> {
    POLLED.store(true, Ordering::Relaxed);
    without_interrupts(|| {
        let mut text = TEXT.lock();
        if let Some(port) = RECORDS.lock().as_mut() {
            port.pump();
        }
        let port = text.port.as_mut()?;
        port.pump();
        port.read()
    })
}

/// Bytes of text that would be taken without waiting; all of them if there is no UART.
pub fn room() -> usize {
    without_interrupts(|| {
        let mut text = TEXT.lock();
        text.port.as_mut().map_or(usize::MAX, |port| {
            port.pump();
            port.room()
        })
    })
}

/// Whether text or records wait for their wire.
pub fn is_sending() -> bool {
    without_interrupts(|| {
        let text = TEXT
            .lock()
            .port
            .as_ref()
            .is_some_and(SerialPort::is_sending);
        text || RECORDS.lock().as_ref().is_some_and(SerialPort::is_sending)
    })
}

/// Writes a record, whole or, if records come faster than the port takes them, not at all; those that `may_be_lost` go
/// first. The record brings its own line end. Returns whether it was taken.
pub fn record(line: &[u8], may_be_lost: bool) -> bool {
    without_interrupts(|| {
        let mut port = RECORDS.lock();
        let Some(port) = port.as_mut() else {
            return false;
        };
        let taken = port.write_whole(line, may_be_lost);
        finish(port);
        taken
    })
}

/// Returns when everything written so far has left for the wire.
pub fn flush() {
    without_interrupts(|| {
        if let Some(port) = TEXT.lock().port.as_mut() {
            port.drain();
        }
        if let Some(port) = RECORDS.lock().as_mut() {
            port.drain();
        }
    });
}

/// For [`Emergency`]: sends what still waits, unless somebody was stopped with the lock in hand.
fn drain_if_free() {
    if let Some(mut text) = TEXT.try_lock()
        && let Some(port) = text.port.as_mut()
    {
        port.drain();
    }
}

fn finish(port: &mut SerialPort) {
    if POLLED.load(Ordering::Relaxed) {
        port.pump();
    } else {
        port.drain();
    }
}

impl Text {
    fn stand(&mut self, line: &[u8]) {
        let line = line.get(..STANDING_BYTES).unwrap_or(line);
        // Usually a key was typed: what stands there already is not drawn again.
        match line.strip_prefix(self.standing.as_slice()) {
            Some(more) if self.mid_line || self.standing.is_empty() => {
                let (at, more) = (self.standing.len(), more.len());
                self.standing.extend(line.iter().skip(at).copied());
                if more > 0 {
                    self.write_standing(at);
                }
            }
            _ => {
                self.erase_standing();
                self.standing = line.iter().copied().collect();
                self.draw_standing();
            }
        }
    }

    fn erase_standing(&mut self) {
        if !self.standing.is_empty() && self.mid_line {
            self.write_bytes(ERASE_LINE);
            self.mid_line = false;
        }
    }

    fn draw_standing(&mut self) {
        if !self.standing.is_empty() && !self.mid_line {
            self.write_standing(0);
        }
    }

    fn write_standing(&mut self, from: usize) {
        let line = self.standing.clone();
        self.write_bytes(line.get(from..).unwrap_or(&[]));
    }

    fn write_bytes(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.mid_line = *last != b'\n';
        }
        if let Some(port) = &mut self.port {
            port.write_text(bytes);
            finish(port);
        }
        match &mut self.screen {
            Some(screen) => screen.write(bytes),
            None => {
                let room = self.backlog.remaining_capacity().min(bytes.len());
                self.backlog.extend(bytes.iter().copied().take(room));
            }
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes());
        Ok(())
    }
}
