//! The board: every device of one virtual machine but the local APICs, behind one struct.

use crate::access::AccessSize;
use crate::message::InterruptMessage;
use units::{Gpa, Nanos};

/// What differs between boards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoardConfig {
    /// The real-time clock's UTC time at guest time zero, in seconds since 1970.
    pub unix_seconds: u64,
}

/// What a machine asks its hypervisor to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Switch off (ACPI S5).
    Off,
    /// Reset every processor and device.
    Reset,
}

/// A port access that no device claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnclaimedAccess {
    /// The port.
    pub port: u16,
    /// The width.
    pub size: AccessSize,
    /// The value written, or `None` for a read.
    pub written: Option<u32>,
}

/// All devices of one machine. One lock around it is enough: no call blocks or loops long.
#[derive(Debug)]
pub struct Board {
    power: Option<PowerEvent>,
}

impl Board {
    /// A board as after power-on, at guest time zero.
    pub fn new(config: BoardConfig) -> Self {
        let _ = config;
        Self { power: None }
    }

    /// The guest's IN instruction. Bits above `size` are zero.
    pub fn port_read(&mut self, port: u16, size: AccessSize, now: Nanos) -> u32 {
        let _ = (port, now);
        size.ones() as u32
    }

    /// The guest's OUT instruction. Bits of `value` above `size` are ignored.
    pub fn port_write(&mut self, port: u16, size: AccessSize, value: u32, now: Nanos) {
        let _ = (port, size, value, now);
    }

    /// Whether a guest-physical address belongs to a device of the board.
    pub fn mmio_claims(&self, gpa: Gpa) -> bool {
        let _ = gpa;
        false
    }

    /// A load from a claimed address. Bits above `size` are zero; elsewhere all ones.
    pub fn mmio_read(&mut self, gpa: Gpa, size: AccessSize, now: Nanos) -> u64 {
        let _ = (gpa, now);
        size.ones()
    }

    /// A store to a claimed address; elsewhere ignored.
    pub fn mmio_write(&mut self, gpa: Gpa, size: AccessSize, value: u64, now: Nanos) {
        let _ = (gpa, size, value, now);
    }

    /// Lets time-driven devices catch up to `now`. Call it at [`Board::next_deadline`] at the latest.
    pub fn poll(&mut self, now: Nanos) {
        let _ = now;
    }

    /// When a device next needs [`Board::poll`]; `None` if never without an access.
    pub fn next_deadline(&self) -> Option<Nanos> {
        None
    }

    /// A local APIC broadcast the end of a level-triggered interrupt
    /// ([`crate::Effect::EoiBroadcast`]).
    pub fn eoi(&mut self, vector: u8) {
        let _ = vector;
    }

    /// The next interrupt that the I/O APIC sends. Take them until `None` after every other call.
    #[must_use = "an interrupt that is taken must be delivered"]
    pub fn take_message(&mut self) -> Option<InterruptMessage> {
        None
    }

    /// Whether the 8259A pair asserts INTR, for processors where
    /// [`crate::LocalApic::extint_enabled`].
    pub fn pic_pending(&self) -> bool {
        false
    }

    /// The processor's interrupt acknowledge cycle: the vector to inject. Spurious if nothing is
    /// pending any more.
    #[must_use = "an acknowledged interrupt must be injected"]
    pub fn pic_vector(&mut self) -> u8 {
        7
    }

    /// Bytes for the guest to read from its serial port; the number taken, the rest is for later.
    pub fn serial_input(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    /// Moves bytes that the guest wrote to its serial port into `buffer`; the number moved.
    pub fn serial_output(&mut self, buffer: &mut [u8]) -> usize {
        let _ = buffer;
        0
    }

    /// Output bytes lost because nobody drained them.
    pub fn serial_lost(&self) -> u64 {
        0
    }

    /// Presses the ACPI power button, which asks the guest to shut down.
    pub fn press_power_button(&mut self) {}

    /// Whether the guest asked to be switched off or reset; asked once.
    pub fn power_event(&mut self) -> Option<PowerEvent> {
        self.power.take()
    }

    /// The next port access that nobody claimed, each port and direction once, a bounded number.
    pub fn take_unclaimed(&mut self) -> Option<UnclaimedAccess> {
        None
    }

    /// How many port accesses nobody claimed.
    pub fn unclaimed_count(&self) -> u64 {
        0
    }

    /// Timer ticks of any device that came too fast or too late to be delivered one by one.
    pub fn lost_ticks(&self) -> u64 {
        0
    }
}
