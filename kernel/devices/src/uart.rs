//! The 16550A serial port (PC16550D data sheet).
//!
//! The host is infinitely fast: a byte written is gone at once, so the transmitter is always
//! empty and its interrupt follows each write. Input waits in a bounded queue behind the receive
//! FIFO. A FIFO that holds fewer bytes than its trigger level reports the character time-out at
//! once rather than four character times later.

use alloc::collections::VecDeque;

/// Depth of the receive FIFO.
const FIFO: usize = 16;
/// Bytes of input that wait behind it.
const INPUT_LIMIT: usize = 1024;
/// Bytes of output kept for the host.
const OUTPUT_LIMIT: usize = 16 * 1024;

const IER_RECEIVE: u8 = 1;
const IER_TRANSMIT: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;
const LCR_DLAB: u8 = 0x80;
const MCR_OUT2: u8 = 8;
const MCR_LOOP: u8 = 0x10;
const LSR_DATA: u8 = 1;
const LSR_OVERRUN: u8 = 2;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

#[derive(Clone, Debug)]
pub(crate) struct Uart {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    overrun: bool,
    modem_delta: u8,
    transmit_pending: bool,
    received: VecDeque<u8>,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    lost: u64,
}

impl Uart {
    pub(crate) fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: [12, 0], // 9,600 baud
            overrun: false,
            modem_delta: 0,
            transmit_pending: false,
            received: VecDeque::with_capacity(FIFO),
            input: VecDeque::with_capacity(INPUT_LIMIT),
            output: VecDeque::with_capacity(OUTPUT_LIMIT),
            lost: 0,
        }
    }

    /// Reads register `offset`, 0 to 7.
    pub(crate) fn read(&mut self, offset: u16) -> u8 {
        match offset & 7 {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor[0],
            0 => {
                let byte = self.received.pop_front().unwrap_or(0);
                self.fill();
                byte
            }
            1 if self.lcr & LCR_DLAB != 0 => self.divisor[1],
            1 => self.ier,
            2 => {
                let identity = self.interrupt();
                if identity == Some(Interrupt::Transmit) {
                    self.transmit_pending = false;
                }
                identity.map_or(1, |interrupt| interrupt as u8)
                    | if self.fifo_enabled() { 0xC0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let status = self.line_status();
                self.overrun = false;
                status
            }
            6 => self.modem_status() | core::mem::take(&mut self.modem_delta),
            _ => self.scratch,
        }
    }

    /// Writes register `offset`, 0 to 7.
    pub(crate) fn write(&mut self, offset: u16, value: u8) {
        match offset & 7 {
            0 if self.lcr & LCR_DLAB != 0 => self.divisor[0] = value,
            0 => self.transmit(value),
            1 if self.lcr & LCR_DLAB != 0 => self.divisor[1] = value,
            1 => {
                // Enabling the interrupt of an empty transmitter raises it.
                if value & !self.ier & IER_TRANSMIT != 0 {
                    self.transmit_pending = true;
                }
                self.ier = value & 0x0F;
            }
            2 => self.write_fifo_control(value),
            3 => self.lcr = value,
            4 => {
                let before = self.modem_status();
                self.mcr = value & 0x1F;
                self.note_modem_change(before);
                self.fill();
            }
            5 | 6 => {}
            _ => self.scratch = value,
        }
    }

    /// The level of the interrupt line: OUT2 gates it on a PC, and loopback cuts OUT2 off.
    pub(crate) fn interrupting(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.interrupt().is_some()
    }

    /// Whether a write to `offset` reaches the transmitter.
    pub(crate) fn is_transmit(&self, offset: u16) -> bool {
        offset & 7 == 0 && self.lcr & LCR_DLAB == 0
    }

    /// Input from the host; the number of bytes taken.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes
            .len()
            .min(INPUT_LIMIT - self.input.len().min(INPUT_LIMIT));
        self.input.extend(bytes.iter().take(taken));
        self.fill();
        taken
    }

    /// Output for the host; the number of bytes moved.
    pub(crate) fn drain(&mut self, buffer: &mut [u8]) -> usize {
        let moved = buffer.len().min(self.output.len());
        for (slot, byte) in buffer.iter_mut().zip(self.output.drain(..moved)) {
            *slot = byte;
        }
        moved
    }

    /// Output bytes dropped because nobody drained.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// The pending interrupt of the highest priority (data sheet, table IV).
    fn interrupt(&self) -> Option<Interrupt> {
        let waiting = self.received.len();
        if self.ier & IER_LINE != 0 && self.overrun {
            Some(Interrupt::Line)
        } else if self.ier & IER_RECEIVE != 0 && waiting > 0 {
            Some(if waiting >= self.trigger() {
                Interrupt::Received
            } else {
                Interrupt::TimeOut
            })
        } else if self.ier & IER_TRANSMIT != 0 && self.transmit_pending {
            Some(Interrupt::Transmit)
        } else if self.ier & IER_MODEM != 0 && self.modem_delta != 0 {
            Some(Interrupt::Modem)
        } else {
            None
        }
    }

    fn transmit(&mut self, byte: u8) {
        self.transmit_pending = true;
        if self.mcr & MCR_LOOP != 0 {
            if self.received.len() < self.depth() {
                self.received.push_back(byte);
            } else {
                self.overrun = true;
            }
        } else if self.output.len() < OUTPUT_LIMIT {
            self.output.push_back(byte);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & 1 != 0;
        if toggled || value & 3 == 3 {
            self.received.clear();
        }
        if toggled || value & 5 == 5 {
            self.transmit_pending = true;
        }
        // The other bits hold only while the FIFOs are enabled.
        self.fcr = if value & 1 != 0 { value & 0xC9 } else { 0 };
        self.fill();
    }

    fn fifo_enabled(&self) -> bool {
        self.fcr & 1 != 0
    }

    fn depth(&self) -> usize {
        if self.fifo_enabled() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifo_enabled(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Moves waiting input into the FIFO; in loopback the line is disconnected.
    fn fill(&mut self) {
        while self.mcr & MCR_LOOP == 0 && self.received.len() < self.depth() {
            let Some(byte) = self.input.pop_front() else {
                return;
            };
            self.received.push_back(byte);
        }
    }

    fn line_status(&self) -> u8 {
        let data = if self.received.is_empty() {
            0
        } else {
            LSR_DATA
        };
        let overrun = if self.overrun { LSR_OVERRUN } else { 0 };
        LSR_TRANSMITTER_EMPTY | data | overrun
    }

    /// The upper half of the modem status: a peer that is always ready, or in loopback this
    /// port's own outputs RTS, DTR, OUT1 and OUT2 as CTS, DSR, RI and DCD.
    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return 0xB0;
        }
        let m = self.mcr;
        (m & 2) << 3 | (m & 1) << 5 | (m & 0xC) << 4
    }

    /// Delta bits: any change of CTS, DSR, DCD; only the trailing edge of RI.
    fn note_modem_change(&mut self, before: u8) {
        let after = self.modem_status();
        let changed = (before ^ after) & 0xB0 | before & !after & 0x40;
        self.modem_delta |= changed >> 4;
    }
}

/// Interrupt identification, as register values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupt {
    Modem = 0,
    Transmit = 2,
    Received = 4,
    Line = 6,
    TimeOut = 0xC,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_fifo(trigger: u8) -> Uart {
        let mut uart = Uart::new();
        uart.write(2, trigger << 6 | 1);
        uart.write(4, MCR_OUT2);
        uart
    }

    #[test]
    fn linux_autoconfiguration_finds_a_16550a() {
        // The probes of 8250_port.c, autoconfig() and autoconfig_16550a().
        let mut uart = Uart::new();
        uart.write(1, 0);
        assert_eq!(uart.read(1) & 0xF, 0);
        uart.write(1, 0x0F);
        assert_eq!(uart.read(1) & 0xF, 0xF);
        uart.write(1, 0);
        uart.write(4, MCR_LOOP | 0x0A);
        assert_eq!(uart.read(6) & 0xF0, 0x90, "loopback");
        uart.write(4, 0);
        uart.write(3, 0xBF);
        uart.write(2, 0);
        uart.write(3, 0);
        uart.write(2, 1);
        assert_eq!(uart.read(2) >> 6, 3, "16550A: both FIFO bits");
        uart.write(3, LCR_DLAB);
        assert_ne!(uart.read(2), 0, "no extended feature register of a 16650");
        uart.write(3, 0);
        uart.write(1, 0x40);
        assert_eq!(uart.read(1) & 0x40, 0, "not an XScale port");
    }

    #[test]
    fn fifo_size_test_by_loopback_counts_16() {
        // 8250_port.c, size_fifo().
        let mut uart = Uart::new();
        uart.write(2, 7);
        uart.write(4, MCR_LOOP | 2);
        (0..=255).for_each(|byte| uart.write(0, byte));
        let mut count = 0;
        while uart.read(5) & LSR_DATA != 0 {
            assert_eq!(uart.read(0), count);
            count += 1;
        }
        assert_eq!(count, 16);
    }

    #[test]
    fn the_transmit_interrupt_test_of_linux_finds_no_bug() {
        // 8250_port.c, serial8250_do_startup(): "Check for a THRE bug".
        let mut uart = with_fifo(0);
        uart.write(1, IER_TRANSMIT);
        assert_eq!(uart.read(2) & 0xF, 2);
        assert_eq!(uart.read(2) & 0xF, 1, "reading cleared it");
        uart.write(1, 0);
        uart.write(1, IER_TRANSMIT);
        assert_eq!(uart.read(2) & 0xF, 2);
        uart.write(1, 0);
        assert!(!uart.interrupting());
    }

    #[test]
    fn interrupts_come_in_the_documented_order() {
        let mut uart = with_fifo(2);
        uart.write(1, 0x0F);
        uart.receive(b"12345678");
        uart.write(4, MCR_LOOP);
        (0..9).for_each(|_| uart.write(0, 0));
        uart.write(4, MCR_OUT2);
        assert_eq!(uart.read(2), 0xC6, "overrun");
        assert_ne!(uart.read(5) & LSR_OVERRUN, 0);
        assert_eq!(uart.read(2), 0xC4, "at the trigger level");
        b"12345678\0"
            .iter()
            .for_each(|byte| assert_eq!(uart.read(0), *byte));
        assert_eq!(uart.read(2), 0xCC, "below it");
        (0..7).for_each(|_| assert_eq!(uart.read(0), 0));
        assert_eq!(uart.read(2), 0xC2, "transmitter");
        assert_eq!(uart.read(2), 0xC0, "modem lines");
        assert_ne!(uart.read(6) & 0xF, 0);
        assert_eq!(uart.read(2), 0xC1);
    }

    #[test]
    fn out2_gates_the_line() {
        let mut uart = Uart::new();
        uart.write(1, IER_RECEIVE);
        uart.receive(b"x");
        assert!(!uart.interrupting());
        uart.write(4, MCR_OUT2);
        assert!(uart.interrupting());
        assert_eq!(uart.read(0), b'x');
        assert!(!uart.interrupting());
    }

    #[test]
    fn queues_are_bounded_and_keep_order() {
        let mut uart = with_fifo(0);
        let text = [b'a'; 2000];
        assert_eq!(uart.receive(&text), INPUT_LIMIT);
        assert_eq!(
            uart.receive(&text),
            FIFO,
            "what moved into the FIFO made room"
        );
        (0..OUTPUT_LIMIT + 5).for_each(|i| uart.write(0, i as u8));
        assert_eq!(uart.lost(), 5);
        let mut out = [0; 300];
        assert_eq!(uart.drain(&mut out), 300);
        assert!(out.iter().enumerate().all(|(i, byte)| *byte == i as u8));
        uart.write(0, 1);
        assert_eq!(uart.lost(), 5);
    }

    #[test]
    fn divisor_and_scratch_are_storage() {
        let mut uart = Uart::new();
        uart.write(3, LCR_DLAB | 3);
        uart.write(0, 1);
        uart.write(1, 2);
        uart.write(7, 0x5A);
        assert_eq!(
            (uart.read(0), uart.read(1), uart.read(7), uart.read(3)),
            (1, 2, 0x5A, 0x83)
        );
        uart.write(3, 3);
        assert_eq!(uart.drain(&mut [0; 4]), 0, "divisor writes are not output");
    }
}
