//! The board: every device of one virtual machine but the local APICs, behind one struct.
//!
//! A call first lets time-driven devices catch up with `now`, then does its work, then drives the
//! interrupt lines. Lines go to both interrupt controllers, as on a PC; which of the two gets
//! through is the guest's choice. After any call the kernel takes what the board produced:
//! [`Board::take_message`] until `None`, [`Board::power_event`], [`Board::serial_output`], and it
//! looks at [`Board::pic_pending`] and [`Board::next_deadline`].

use crate::access::AccessSize;
use crate::acpi_pm::AcpiPm;
use crate::ioapic::IoApic;
use crate::layout::{
    COM1, COM1_IRQ, ELCR, I8042_COMMAND, I8042_DATA, IOAPIC_BASE, IOAPIC_BYTES, PCI_ADDRESS,
    PCI_DATA, PIC_MASTER, PIC_SLAVE, PIT, PIT_IRQ, PM_TMR, PM_TMR_BYTES, PM1A_CNT, PM1A_CNT_BYTES,
    PM1A_EVT, PORT_A, PORT_B, POST, RESET_PORT, RTC, RTC_IRQ, SCI_IRQ, isa_pin,
};
use crate::message::InterruptMessage;
use crate::pci::Pci;
use crate::pic::{Pic, Which};
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::test::{Request, TestConfig, TestDevices};
use crate::uart::Uart;
use crate::unclaimed::Unclaimed;
pub use crate::unclaimed::UnclaimedAccess;
use units::{Gpa, Nanos};

/// What differs between boards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoardConfig {
    /// The real-time clock's UTC time at guest time zero, in seconds since 1970.
    pub unix_seconds: u64,
    /// What the devices of test kernels tell; `None` for a board without them.
    pub test: Option<TestConfig>,
}

/// What a machine asks its hypervisor to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Switch off (ACPI S5).
    Off,
    /// Reset every processor and device.
    Reset,
    /// End with this value: a test kernel wrote it to its exit port.
    Exit(u32),
}

/// Bit 2 of the reset control register: reset the processors.
const RESET_CPU: u8 = 0x04;
/// Port 92h bit 0: fast reset; bit 1: A20, which is always on.
const FAST_RESET: u8 = 0x01;
const A20: u8 = 0x02;
/// The keyboard controller command that pulses the reset line.
const PULSE_RESET: u8 = 0xFE;
const PM1A_CNT_LAST: u16 = PM1A_CNT + PM1A_CNT_BYTES as u16 - 1;
const PM_TMR_LAST: u16 = PM_TMR + PM_TMR_BYTES as u16 - 1;
const COM1_LAST: u16 = COM1 + 7;
const PCI_DATA_LAST: u16 = PCI_DATA + 3;
/// Interrupt lines that go to both interrupt controllers; those from here on are the I/O APIC's alone.
const ISA_LINES: u8 = 16;
/// The other port that kernels write to wait a microsecond.
const DELAY: u16 = 0xED;

/// All devices of one machine. One lock around it is enough: no call blocks or loops long.
#[derive(Clone, Debug)]
pub struct Board {
    pic: Pic,
    ioapic: IoApic,
    pit: Pit,
    rtc: Rtc,
    pm: AcpiPm,
    uart: Uart,
    pci: Pci,
    port_a: u8,
    reset_control: u8,
    post_code: u8,
    power: Option<PowerEvent>,
    test: Option<TestDevices>,
    unclaimed: Unclaimed,
    /// The latest time the board has seen: it never goes back.
    now: Nanos,
}

impl Board {
    /// A board as after power-on, at guest time zero.
    pub fn new(config: BoardConfig) -> Self {
        Self {
            pic: Pic::new(),
            ioapic: IoApic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(config.unix_seconds),
            pm: AcpiPm::new(),
            uart: Uart::new(),
            pci: Pci::default(),
            port_a: A20,
            reset_control: 0,
            post_code: 0,
            power: None,
            test: config.test.map(TestDevices::new),
            unclaimed: Unclaimed::default(),
            now: Nanos::ZERO,
        }
    }

    /// The guest's IN instruction. Bits above `size` are zero.
    pub fn port_read(&mut self, port: u16, size: AccessSize, now: Nanos) -> u32 {
        self.poll(now);
        let ones = size.ones() as u32; // at most 32 bits for a port
        let value = match port {
            PM1A_EVT..PM1A_CNT => self.pm.event_block() >> lane(port, PM1A_EVT),
            PM1A_CNT..=PM1A_CNT_LAST => u32::from(self.pm.control()) >> lane(port, PM1A_CNT),
            PM_TMR..=PM_TMR_LAST => AcpiPm::timer(self.now) >> lane(port, PM_TMR),
            PCI_ADDRESS if size > AccessSize::Word => self.pci.address(),
            PCI_DATA..=PCI_DATA_LAST => self.pci.read(port - PCI_DATA, size),
            _ => match self.test.as_mut().and_then(|t| t.port_read(port, size)) {
                Some(value) => value,
                None => self.read_bytes(port, size),
            },
        };
        self.drive_lines();
        value & ones
    }

    /// The guest's OUT instruction. Bits of `value` above `size` are ignored.
    pub fn port_write(&mut self, port: u16, size: AccessSize, value: u32, now: Nanos) {
        self.poll(now);
        let mask = size.ones() as u32;
        let value = value & mask;
        match port {
            PM1A_EVT..PM1A_CNT => {
                let lane = lane(port, PM1A_EVT);
                self.pm.write_event_block(value << lane, mask << lane);
            }
            PM1A_CNT..=PM1A_CNT_LAST => {
                let lane = lane(port, PM1A_CNT);
                if self
                    .pm
                    .write_control((value << lane) as u16, (mask << lane) as u16)
                {
                    self.power = Some(PowerEvent::Off);
                }
            }
            PM_TMR..=PM_TMR_LAST => {}
            PCI_ADDRESS if size > AccessSize::Word => self.pci.set_address(value),
            // No function has a register that can be changed.
            PCI_DATA..=PCI_DATA_LAST => {}
            // Not the address register, and not the reset control register behind it.
            PCI_ADDRESS if size == AccessSize::Word => {}
            _ => match self
                .test
                .as_mut()
                .and_then(|t| t.port_write(port, size, value))
            {
                Some(request) => self.obey(request),
                None => self.write_bytes(port, size, value),
            },
        }
        self.drive_lines();
    }

    /// Whether a guest-physical address belongs to a device of the board.
    pub fn mmio_claims(&self, gpa: Gpa) -> bool {
        Self::is_ioapic(gpa) || self.test.is_some() && TestDevices::claims(gpa)
    }

    const fn is_ioapic(gpa: Gpa) -> bool {
        gpa.0 >= IOAPIC_BASE.0 && gpa.0 - IOAPIC_BASE.0 < IOAPIC_BYTES
    }

    /// A load from a claimed address. Bits above `size` are zero; elsewhere all ones.
    pub fn mmio_read(&mut self, gpa: Gpa, size: AccessSize, now: Nanos) -> u64 {
        if !Self::is_ioapic(gpa) {
            let test = self.test.as_ref().filter(|_| TestDevices::claims(gpa));
            return test.map_or(size.ones(), |t| t.memory_read(gpa, size));
        }
        self.poll(now);
        let offset = gpa.0 - IOAPIC_BASE.0;
        // The registers are 32 bits wide, 16 bytes apart.
        let value = u64::from(self.ioapic.read(offset & !3)) >> (8 * (offset & 3));
        value & size.ones()
    }

    /// A store to a claimed address; elsewhere, or to the middle of a register, ignored.
    pub fn mmio_write(&mut self, gpa: Gpa, size: AccessSize, value: u64, now: Nanos) {
        if Self::is_ioapic(gpa) {
            self.poll(now);
            self.ioapic
                .write(gpa.0 - IOAPIC_BASE.0, (value & size.ones()) as u32);
        } else if let Some(test) = self.test.as_mut().filter(|_| TestDevices::claims(gpa)) {
            test.memory_write(gpa, size, value);
        }
    }

    /// Lets time-driven devices catch up to `now`. Call it at [`Board::next_deadline`] at the
    /// latest; other calls that take a time do it by themselves. A time before the latest one
    /// seen counts as that one.
    pub fn poll(&mut self, now: Nanos) {
        self.now = self.now.max(now);
        if self.pit.poll(self.now) {
            self.set_irq(PIT_IRQ, true);
            self.set_irq(PIT_IRQ, false);
        }
        self.rtc.poll(self.now);
        self.pm.poll(self.now);
        self.drive_lines();
    }

    /// When a device next needs [`Board::poll`]; `None` if never without an access.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let deadlines = [
            self.pit.next_deadline(),
            self.rtc.next_deadline(),
            self.pm.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// A local APIC broadcast the end of a level-triggered interrupt
    /// ([`crate::Effect::EoiBroadcast`]).
    pub fn eoi(&mut self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }

    /// The next interrupt that the I/O APIC sends. Take them until `None` after every other call.
    #[must_use = "an interrupt that is taken must be delivered"]
    pub fn take_message(&mut self) -> Option<InterruptMessage> {
        self.ioapic.take_message()
    }

    /// Whether the 8259A pair asserts INTR, for processors where
    /// [`crate::LocalApic::extint_enabled`].
    pub fn pic_pending(&self) -> bool {
        self.pic.pending()
    }

    /// The processor's interrupt acknowledge cycle: the vector to inject. Spurious if nothing is
    /// pending any more.
    #[must_use = "an acknowledged interrupt must be injected"]
    pub fn pic_vector(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// Bytes for the guest to read from its serial port; the number taken, the rest is for later.
    pub fn serial_input(&mut self, bytes: &[u8]) -> usize {
        let taken = self.uart.receive(bytes);
        self.drive_lines();
        taken
    }

    /// Moves bytes that the guest wrote to its serial port into `buffer`; the number moved.
    pub fn serial_output(&mut self, buffer: &mut [u8]) -> usize {
        self.uart.drain(buffer)
    }

    /// Output bytes lost because nobody drained them.
    pub fn serial_lost(&self) -> u64 {
        self.uart.lost()
    }

    /// Presses the ACPI power button, which asks the guest to shut down.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.drive_lines();
    }

    /// Whether the guest asked to be switched off or reset; asked once.
    pub fn power_event(&mut self) -> Option<PowerEvent> {
        self.power.take()
    }

    /// The next port access that nobody claimed: each port and direction once, a bounded number.
    pub fn take_unclaimed(&mut self) -> Option<UnclaimedAccess> {
        self.unclaimed.take()
    }

    /// How many port accesses nobody claimed.
    pub fn unclaimed_count(&self) -> u64 {
        self.unclaimed.count()
    }

    /// Timer ticks of any device that came too fast or too late to be delivered one by one.
    pub fn lost_ticks(&self) -> u64 {
        self.pit.lost().saturating_add(self.rtc.lost())
    }

    /// The last byte written to port 80h, where firmware and boot code report progress.
    pub fn post_code(&self) -> u8 {
        self.post_code
    }

    /// A bus splits a wide access to byte-wide devices. Where even the first byte finds nobody,
    /// the access is reported as the guest made it.
    fn read_bytes(&mut self, port: u16, size: AccessSize) -> u32 {
        let Some(first) = self.read_byte(port) else {
            self.unclaimed.note(port, size, None);
            return u32::MAX;
        };
        (1..u16::from(size.bytes().min(4))).fold(u32::from(first), |value, i| {
            let byte = self.read_byte(port.wrapping_add(i)).unwrap_or(0xFF);
            value | u32::from(byte) << (8 * i)
        })
    }

    fn write_bytes(&mut self, port: u16, size: AccessSize, value: u32) {
        let [first, rest @ ..] = value.to_le_bytes();
        if !self.write_byte(port, first) {
            self.unclaimed.note(port, size, Some(value));
            return;
        }
        for (i, byte) in (1..u16::from(size.bytes().min(4))).zip(rest) {
            self.write_byte(port.wrapping_add(i), byte);
        }
    }

    /// `None` if nobody claims the port.
    fn read_byte(&mut self, port: u16) -> Option<u8> {
        let now = self.now;
        Some(match port {
            0x20..=0x21 => self.pic.read(Which::Master, port != PIC_MASTER),
            0xA0..=0xA1 => self.pic.read(Which::Slave, port != PIC_SLAVE),
            ELCR => self.pic.elcr(Which::Master),
            0x4D1 => self.pic.elcr(Which::Slave),
            PIT..=0x43 => self.pit.read(port - PIT, now),
            PORT_B => self.pit.port_b(now),
            // No keyboard controller: its status says so to every probe.
            I8042_DATA | I8042_COMMAND => 0xFF,
            RTC => 0xFF, // write-only
            0x71 => self.rtc.read(now),
            POST => self.post_code,
            DELAY => 0xFF,
            PORT_A => self.port_a,
            RESET_PORT => self.reset_control,
            // Bytes reach the PCI address register as little as they do on a PC.
            PCI_ADDRESS..PCI_DATA => 0xFF,
            COM1..=COM1_LAST => self.uart.read(port - COM1),
            _ => return None,
        })
    }

    /// False if nobody claims the port.
    fn write_byte(&mut self, port: u16, value: u8) -> bool {
        let now = self.now;
        match port {
            0x20..=0x21 => self.pic.write(Which::Master, port != PIC_MASTER, value),
            0xA0..=0xA1 => self.pic.write(Which::Slave, port != PIC_SLAVE, value),
            ELCR => self.pic.write_elcr(Which::Master, value),
            0x4D1 => self.pic.write_elcr(Which::Slave, value),
            PIT..=0x43 => self.pit.write(port - PIT, value, now),
            PORT_B => self.pit.write_port_b(value, now),
            I8042_COMMAND if value == PULSE_RESET => self.reset(),
            I8042_DATA | I8042_COMMAND | DELAY => {}
            RTC => self.rtc.select(value),
            0x71 => self.rtc.write(value, now),
            POST => self.post_code = value,
            PORT_A => {
                if value & !self.port_a & FAST_RESET != 0 {
                    self.reset();
                }
                self.port_a = value & FAST_RESET | A20;
            }
            RESET_PORT => {
                if value & !self.reset_control & RESET_CPU != 0 {
                    self.reset();
                }
                self.reset_control = value & 0x0E;
            }
            PCI_ADDRESS..PCI_DATA => {}
            COM1..=COM1_LAST => {
                let offset = port - COM1;
                if self.uart.is_transmit(offset) {
                    // The transmitter is full and then empty again: an edge for the I/O APIC.
                    self.set_irq(COM1_IRQ, false);
                }
                self.uart.write(offset, value);
            }
            _ => return false,
        }
        true
    }

    /// Does what a test device asked for.
    fn obey(&mut self, request: Request) {
        match request {
            Request::Done => {}
            Request::Exit(value) => self.power = Some(PowerEvent::Exit(value)),
            Request::Line { line, asserted } if line < ISA_LINES => self.set_irq(line, asserted),
            Request::Line { line, asserted } => self.ioapic.set_line(line, asserted),
        }
    }

    fn reset(&mut self) {
        self.power = Some(PowerEvent::Reset);
    }

    /// Passes the devices' interrupt outputs on to both controllers.
    fn drive_lines(&mut self) {
        self.set_irq(COM1_IRQ, self.uart.interrupting());
        self.set_irq(RTC_IRQ, self.rtc.interrupting());
        self.set_irq(SCI_IRQ, self.pm.interrupting());
    }

    fn set_irq(&mut self, irq: u8, asserted: bool) {
        self.pic.set_line(irq, asserted);
        if let Some(pin) = isa_pin(irq) {
            self.ioapic.set_line(pin, asserted);
        }
    }
}

/// How far into a register block a port reaches, in bits.
const fn lane(port: u16, base: u16) -> u32 {
    8 * (port - base) as u32
}
