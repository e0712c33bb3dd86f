//! The I/O APIC: 24 pins, each with an entry that says which vector goes where (82093AA; the EOI
//! register and version 20h are those of later chipsets).
//!
//! An edge sends one message; it is lost while the pin is masked (82093AA 3.2.4). A level sends
//! one message and sets *remote IRR*; the EOI clears that, and a line still asserted then sends
//! the next. Messages wait in one slot a pin until the board is asked for them: a second edge of
//! the same pin before that is the same interrupt.

use crate::layout::IOAPIC_ID;
use crate::message::{DeliveryMode, Destination, InterruptMessage, TriggerMode};

const PINS: usize = crate::layout::IOAPIC_PINS as usize;

/// Highest entry number in bits 23:16, version in bits 7:0.
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
/// The pin is active low (82093AA 3.2.4, INTPOL).
const LOW: u64 = 1 << 13;
const LOGICAL: u64 = 1 << 11;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask; destination.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

#[derive(Clone, Debug)]
pub(crate) struct IoApic {
    id: u32,
    select: u8,
    entries: [u64; PINS],
    high: [bool; PINS],
    outbox: [Option<InterruptMessage>; PINS],
    /// Something is in the outbox; asked after every access to any device.
    posted: bool,
}

impl IoApic {
    pub(crate) const fn new() -> Self {
        Self {
            id: (IOAPIC_ID as u32) << 24,
            select: 0,
            entries: [MASKED; PINS],
            high: [false; PINS],
            outbox: [None; PINS],
            posted: false,
        }
    }

    /// A 32-bit read of the register page.
    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => self.read_selected(),
            _ => 0,
        }
    }

    /// A 32-bit write to the register page.
    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => self.write_selected(value),
            0x40 => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            0x00 | 0x02 => self.id,
            0x01 => VERSION,
            select => match self
                .entry_of(select)
                .and_then(|(pin, _)| self.entries.get(pin))
            {
                Some(entry) if select & 1 == 0 => *entry as u32,
                Some(entry) => (*entry >> 32) as u32,
                None => u32::MAX,
            },
        }
    }

    fn write_selected(&mut self, value: u32) {
        if self.select == 0 {
            self.id = value & 0x0F00_0000;
            return;
        }
        let Some((pin, shift)) = self.entry_of(self.select) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(pin) else {
            return;
        };
        let half = 0xFFFF_FFFF << shift;
        *entry = (*entry & !half | u64::from(value) << shift) & WRITABLE | *entry & REMOTE_IRR;
        if *entry & LEVEL == 0 {
            // How software without an EOI register clears it, and so the hardware does.
            *entry &= !REMOTE_IRR;
        }
        self.send_if_level(pin);
    }

    /// Pin and bit position of a selected half entry.
    fn entry_of(&self, select: u8) -> Option<(usize, u32)> {
        let half = usize::from(select.checked_sub(0x10)?);
        (half / 2 < PINS).then_some((half / 2, if half % 2 == 0 { 0 } else { 32 }))
    }

    /// Drives a pin. The board's lines are high when a device requests an interrupt, all of them, and the
    /// tables that it shows its guests say so; whoever programs a pin as active low hears the opposite.
    pub(crate) fn set_line(&mut self, pin: u8, high: bool) {
        let pin = usize::from(pin);
        let (Some(line), Some(entry)) = (self.high.get_mut(pin), self.entries.get(pin)) else {
            return;
        };
        let changes = high != *line;
        *line = high;
        if entry & LEVEL != 0 {
            self.send_if_level(pin);
        } else if changes && self.active(pin) && entry & MASKED == 0 {
            self.send(pin);
        }
    }

    /// Whether a pin's line stands where its entry says that it requests an interrupt.
    fn active(&self, pin: usize) -> bool {
        let (high, entry) = (self.high.get(pin), self.entries.get(pin));
        high.zip(entry)
            .is_some_and(|(high, entry)| *high == (entry & LOW == 0))
    }

    /// An EOI, broadcast by a local APIC or written to the EOI register: every level entry with
    /// this vector may send again.
    pub(crate) fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let Some(entry) = self.entries.get_mut(pin) else {
                continue;
            };
            if *entry as u8 == vector && *entry & LEVEL != 0 {
                *entry &= !REMOTE_IRR;
                self.send_if_level(pin);
            }
        }
    }

    /// The next message on its way out.
    pub(crate) fn take_message(&mut self) -> Option<InterruptMessage> {
        if !self.posted {
            return None;
        }
        let message = self.outbox.iter_mut().find_map(Option::take);
        self.posted = message.is_some();
        message
    }

    fn send_if_level(&mut self, pin: usize) {
        let Some(entry) = self.entries.get(pin) else {
            return;
        };
        if entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL && self.active(pin) {
            self.send(pin);
        }
    }

    fn send(&mut self, pin: usize) {
        let (Some(entry), Some(slot)) = (self.entries.get_mut(pin), self.outbox.get_mut(pin))
        else {
            return;
        };
        let Some(delivery) = DeliveryMode::from_bits((*entry >> 8) as u32) else {
            return;
        };
        // Only interrupts that end with an EOI wait for one.
        let acknowledged = matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        let trigger = if *entry & LEVEL != 0 && acknowledged {
            TriggerMode::Level
        } else {
            TriggerMode::Edge
        };
        if trigger == TriggerMode::Level {
            *entry |= REMOTE_IRR;
        }
        self.posted = true;
        *slot = Some(InterruptMessage {
            destination: Destination::from_8_bits((*entry >> 56) as u8, *entry & LOGICAL != 0),
            delivery,
            vector: *entry as u8,
            trigger,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(io: &mut IoApic, pin: u8, entry: u64) {
        io.write(0, u32::from(0x11 + 2 * pin));
        io.write(0x10, (entry >> 32) as u32);
        io.write(0, u32::from(0x10 + 2 * pin));
        io.write(0x10, entry as u32);
    }

    fn entry(io: &mut IoApic, pin: u8) -> u64 {
        io.write(0, u32::from(0x11 + 2 * pin));
        let high = u64::from(io.read(0x10));
        io.write(0, u32::from(0x10 + 2 * pin));
        high << 32 | u64::from(io.read(0x10))
    }

    #[test]
    fn identifies_itself_as_linux_expects() {
        let mut io = IoApic::new();
        io.write(0, 1);
        assert_eq!(io.read(0x10), 0x0017_0020);
        assert_eq!(entry(&mut io, 23), MASKED);
        io.write(0, 0x10 + 48);
        assert_eq!(io.read(0x10), u32::MAX);
    }

    #[test]
    fn an_edge_sends_once_and_is_lost_while_masked() {
        let mut io = IoApic::new();
        io.set_line(4, true);
        program(&mut io, 4, 0x02 << 56 | 0x31);
        assert_eq!(
            io.take_message(),
            None,
            "the edge came while the pin was masked"
        );
        io.set_line(4, false);
        io.set_line(4, true);
        let message = io.take_message().expect("the edge");
        assert_eq!(
            (message.vector, message.destination),
            (0x31, Destination::Physical(2))
        );
        assert_eq!(message.trigger, TriggerMode::Edge);
        io.set_line(4, true);
        assert_eq!(io.take_message(), None);
    }

    #[test]
    fn a_level_sends_again_only_after_the_eoi() {
        let mut io = IoApic::new();
        program(&mut io, 9, LEVEL | LOGICAL | 0x0F << 56 | 0x59);
        io.set_line(9, true);
        let message = io.take_message().expect("the level");
        assert_eq!(
            (message.trigger, message.destination),
            (TriggerMode::Level, Destination::Logical(0x0F))
        );
        assert_ne!(entry(&mut io, 9) & REMOTE_IRR, 0);
        io.set_line(9, false);
        io.set_line(9, true);
        assert_eq!(io.take_message(), None, "remote IRR holds it back");
        io.end_of_interrupt(0x58);
        assert_eq!(io.take_message(), None, "another vector's EOI");
        io.end_of_interrupt(0x59);
        assert!(
            io.take_message().is_some(),
            "still asserted: delivered again"
        );
        io.set_line(9, false);
        io.write(0x40, 0x59);
        assert_eq!(io.take_message(), None);
        assert_eq!(entry(&mut io, 9) & REMOTE_IRR, 0);
    }

    #[test]
    fn a_masked_level_is_sent_when_unmasked_and_edge_mode_clears_remote_irr() {
        let mut io = IoApic::new();
        program(&mut io, 9, MASKED | LEVEL | 0x59);
        io.set_line(9, true);
        assert_eq!(io.take_message(), None);
        program(&mut io, 9, LEVEL | 0x59);
        assert!(io.take_message().is_some());
        program(&mut io, 9, MASKED | 0x59);
        program(&mut io, 9, MASKED | LEVEL | 0x59);
        assert_eq!(entry(&mut io, 9) & REMOTE_IRR, 0);
        program(&mut io, 9, LEVEL | 0x59 | REMOTE_IRR);
        assert!(
            io.take_message().is_some(),
            "software cannot set remote IRR"
        );
    }

    #[test]
    fn a_pin_that_is_active_low_hears_a_line_that_falls() {
        let mut io = IoApic::new();
        io.set_line(4, true);
        program(&mut io, 4, LEVEL | LOW | 0x31);
        assert_eq!(io.take_message(), None, "the line is high");
        io.set_line(4, false);
        assert!(io.take_message().is_some(), "it fell");
        io.set_line(4, true);
        io.end_of_interrupt(0x31);
        assert_eq!(io.take_message(), None, "it rose before the EOI");
        program(&mut io, 4, LOW | 0x32);
        io.set_line(4, false);
        assert_eq!(io.take_message().map(|m| m.vector), Some(0x32), "an edge");
        io.set_line(4, true);
        assert_eq!(io.take_message(), None, "the other edge");
    }

    #[test]
    fn a_level_nmi_waits_for_no_eoi() {
        let mut io = IoApic::new();
        program(&mut io, 3, LEVEL | 4 << 8);
        io.set_line(3, true);
        let message = io.take_message().expect("the NMI");
        assert_eq!(
            (message.delivery, message.trigger),
            (DeliveryMode::Nmi, TriggerMode::Edge)
        );
        assert_eq!(entry(&mut io, 3) & REMOTE_IRR, 0);
    }
}
