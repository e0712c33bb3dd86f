//! A UART of the 16550 family, behind a ring.
#![expect(unsafe_code, reason = "a UART's registers are ports or device memory")]

use alloc::boxed::Box;
use core::fmt;
use core::num::NonZeroU8;
use core::ptr::NonNull;

use topology::spcr::{AddressSpace, Spcr};
use uart_16550::backend::{MmioBackend, PioBackend};
use uart_16550::{BaudRate, Config, Uart16550};
use units::Hpa;

use super::ring::Ring;
use crate::arch::paging;

/// First port of the first serial line of a PC.
pub(super) const COM1: u16 = 0x3f8;
/// First port of the second.
pub(super) const COM2: u16 = 0x2f8;

const RING_BYTES: usize = 32 << 10;
const DEFAULT_BAUD: u32 = 115_200;
/// Polls without progress after which a UART counts as stuck (a port access takes about 1 us on
/// hardware, a byte 87 us at 115200 baud, a FIFO of 16 bytes 1.4 ms).
const PATIENCE: u32 = 1_000_000;

enum Uart {
    Io(Uart16550<PioBackend>),
    Memory(Uart16550<MmioBackend>),
}

/// Where a UART is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// First I/O port.
    Io(u16),
    /// Host-physical address of the first register, and bytes from one register to the next.
    Memory(u64, u8),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(port) => write!(f, "I/O port {port:#x}"),
            Self::Memory(address, _) => write!(f, "address {address:#x}"),
        }
    }
}

/// A UART that answered, and what is still to be sent.
pub(super) struct SerialPort {
    uart: Uart,
    place: Place,
    ring: Box<Ring<RING_BYTES>>,
    last: u8,
    stuck: bool,
}

/// Where firmware's SPCR wants the console, if a UART of the family answers there and it is not COM1,
/// which is in use already.
pub(super) fn from_spcr(spcr: &Spcr) -> Option<SerialPort> {
    let register = spcr.register.filter(|_| spcr.is_16550)?;
    match register.space {
        AddressSpace::Io => {
            let port = u16::try_from(register.address)
                .ok()
                .filter(|port| *port != COM1)?;
            SerialPort::at_io(port, spcr.baud)
        }
        AddressSpace::Memory => {
            // A 16550's registers are bytes; wider ones are bytes at wider distances (SPCR 1.10, 2.1).
            let stride = NonZeroU8::new(register.bit_width.div_ceil(8)).unwrap_or(NonZeroU8::MIN);
            SerialPort::in_memory(register.address, stride, spcr.baud)
        }
        _ => None,
    }
}

impl SerialPort {
    /// The UART at `base`, if one answers, set to `baud` (115200 if none is given), 8N1.
    pub(super) fn at_io(base: u16, baud: Option<u32>) -> Option<Self> {
        // SAFETY: the standard port of a PC, or the one that firmware's table names for this purpose; the kernel
        // drives it from here only. Where no UART is, the presence test fails and nothing else is written.
        let mut uart = unsafe { Uart16550::new_port(base) }.ok()?;
        if !uart.check_present() {
            return None;
        }
        wait_for(|| {
            uart.lsr()
                .contains(uart_16550::spec::registers::LSR::TRANSMITTER_EMPTY)
        });
        uart.init(line(baud)).ok()?;
        Some(Self::new(Uart::Io(uart), Place::Io(base)))
    }

    /// The UART with registers in device memory, if one answers.
    fn in_memory(base: u64, stride: NonZeroU8, baud: Option<u32>) -> Option<Self> {
        const REGISTERS: u64 = 8;
        let registers = paging::map_device(Hpa(base), REGISTERS * u64::from(stride.get()))
            .inspect_err(|error| {
                log::warn!("the SPCR's UART at {base:#x} cannot be mapped: {error}")
            })
            .ok()?;
        // SAFETY: device memory that firmware's table names for this purpose, mapped uncached for ever just
        // above, and driven from here only.
        let mut uart =
            unsafe { Uart16550::new_mmio(NonNull::new(registers)?, stride.get()) }.ok()?;
        if !uart.check_present() {
            return None;
        }
        wait_for(|| {
            uart.lsr()
                .contains(uart_16550::spec::registers::LSR::TRANSMITTER_EMPTY)
        });
        uart.init(line(baud)).ok()?;
        Some(Self::new(
            Uart::Memory(uart),
            Place::Memory(base, stride.get()),
        ))
    }

    fn new(uart: Uart, place: Place) -> Self {
        Self {
            uart,
            place,
            ring: Box::new(Ring::new()),
            last: 0,
            stuck: false,
        }
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Queues text with carriage returns where they are missing; waits for room if there is none.
    pub(super) fn write_text(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' && self.last != b'\r' {
                self.queue(b'\r');
            }
            self.queue(*byte);
            self.last = *byte;
        }
    }

    /// Queues all bytes if there is room for all, else none. What `may_be_lost` leaves half of the room to what may not.
    pub(super) fn write_whole(&mut self, bytes: &[u8], may_be_lost: bool) -> bool {
        let spare = if may_be_lost { RING_BYTES / 2 } else { 0 };
        let wanted = bytes.len() + spare;
        if self.ring.room() < wanted {
            self.pump();
        }
        let fits = self.ring.room() >= wanted;
        if fits {
            bytes.iter().for_each(|byte| self.queue(*byte));
        }
        fits
    }

    /// Bytes that can be queued without waiting.
    pub(super) fn room(&self) -> usize {
        self.ring.room()
    }

    /// Whether something waits that the UART could not take.
    pub(super) fn is_sending(&self) -> bool {
        !self.stuck && !self.ring.front().is_empty()
    }

    fn queue(&mut self, byte: u8) {
        if self.ring.room() == 0 {
            self.send_some();
        }
        // A stuck UART loses text rather than stopping the machine.
        let _kept = self.ring.push(byte);
    }

    /// Sends what the UART takes at once.
    pub(super) fn pump(&mut self) {
        loop {
            let sent = self.send();
            if sent == 0 {
                return;
            }
            self.stuck = false;
        }
    }

    /// Sends everything, or until the UART is stuck.
    pub(super) fn drain(&mut self) {
        while !self.ring.front().is_empty() && self.send_some() {}
    }

    /// Waits until the UART takes something; `false` if it does not.
    fn send_some(&mut self) -> bool {
        let patience = if self.stuck { 1 } else { PATIENCE };
        for _ in 0..patience {
            if self.send() > 0 {
                self.stuck = false;
                return true;
            }
            core::hint::spin_loop();
        }
        self.stuck = true;
        false
    }

    fn send(&mut self) -> usize {
        let bytes = self.ring.front();
        let sent = match &mut self.uart {
            Uart::Io(uart) => uart.send_bytes(bytes),
            Uart::Memory(uart) => uart.send_bytes(bytes),
        };
        self.ring.consume(sent);
        sent
    }

    /// A received byte.
    pub(super) fn read(&mut self) -> Option<u8> {
        match &mut self.uart {
            Uart::Io(uart) => uart.try_receive_byte().ok(),
            Uart::Memory(uart) => uart.try_receive_byte().ok(),
        }
    }
}

/// Lets the loader's last line leave before the FIFO is reset.
fn wait_for(mut done: impl FnMut() -> bool) {
    let _left = (0..PATIENCE).any(|_| done());
}

fn line(baud: Option<u32>) -> Config {
    let baud_rate = BaudRate::from_integer(baud.unwrap_or(DEFAULT_BAUD));
    Config {
        baud_rate,
        ..Config::DEFAULT
    }
}
