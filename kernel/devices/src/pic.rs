//! The pair of 8259A interrupt controllers of a PC, the slave on input 2 of the master, with the
//! edge/level registers of EISA chipsets (8259A data sheet; ICH "ELCR1", "ELCR2").
//!
//! A request on an edge input stays latched when the line falls; hardware would turn it into a
//! spurious interrupt, and no driver depends on that.

/// What the next write to the data port means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Copy, Debug)]
struct Chip {
    irr: u8,
    isr: u8,
    imr: u8,
    lines: u8,
    elcr: u8,
    elcr_bits: u8,
    vector_base: u8,
    /// The input with the highest priority.
    top: u8,
    expect: Expect,
    single: bool,
    wants_icw4: bool,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    special_fully_nested: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
}

impl Chip {
    const fn new(elcr_bits: u8) -> Self {
        Self {
            irr: 0,
            isr: 0,
            imr: 0,
            lines: 0,
            elcr: 0,
            elcr_bits,
            vector_base: 0,
            top: 0,
            expect: Expect::Mask,
            single: false,
            wants_icw4: false,
            read_isr: false,
            poll: false,
            special_mask: false,
            special_fully_nested: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
        }
    }

    fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1 << (input & 7);
        let rising = asserted && self.lines & bit == 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.elcr & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rising {
            self.irr |= bit;
        }
    }

    /// Distance from the top priority of the first set bit; 8 if none is set.
    fn priority(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.top)).trailing_zeros() as u8
    }

    fn input_at(&self, priority: u8) -> u8 {
        (priority + self.top) & 7
    }

    /// The input for which INT is asserted. `cascade` is the bit of the input that a slave drives.
    fn pending(&self, cascade: u8) -> Option<u8> {
        let requested = self.priority(self.irr & !self.imr);
        let mut served = self.isr;
        if self.special_mask {
            served &= !self.imr;
        }
        if self.special_fully_nested {
            served &= !cascade;
        }
        (requested < self.priority(served)).then(|| self.input_at(requested))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.top = (input + 1) & 7;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        match value {
            // ICW1: start of the initialization sequence.
            _ if value & 0x10 != 0 => {
                *self = Self {
                    irr: self.lines & self.elcr,
                    lines: self.lines,
                    elcr: self.elcr,
                    vector_base: self.vector_base,
                    expect: Expect::Icw2,
                    single: value & 2 != 0,
                    wants_icw4: value & 1 != 0,
                    ..Self::new(self.elcr_bits)
                };
            }
            // OCW3: poll, register to read, special mask mode.
            _ if value & 0x08 != 0 => {
                self.poll = value & 4 != 0;
                if value & 2 != 0 {
                    self.read_isr = value & 1 != 0;
                }
                if value & 0x40 != 0 {
                    self.special_mask = value & 0x20 != 0;
                }
            }
            _ => self.write_ocw2(value >> 5, value & 7),
        }
    }

    fn write_ocw2(&mut self, operation: u8, input: u8) {
        let (ended, rotate) = match operation {
            0 | 4 => {
                self.rotate_on_auto_eoi = operation == 4;
                return;
            }
            1 | 5 => {
                let priority = self.priority(self.isr);
                if priority == 8 {
                    return;
                }
                (Some(self.input_at(priority)), operation == 5)
            }
            3 | 7 => (Some(input), operation == 7),
            6 => (None, true),
            _ => return,
        };
        self.isr &= !ended.map_or(0, |input| 1 << input);
        if rotate {
            self.top = (ended.unwrap_or(input) + 1) & 7;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Mask => {
                self.imr = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                self.vector_base = value & 0xF8;
                match (self.single, self.wants_icw4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Mask,
                }
            }
            Expect::Icw3 if self.wants_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Mask,
            Expect::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                Expect::Mask
            }
        };
    }

    fn read(&mut self, data: bool, cascade: u8) -> u8 {
        if core::mem::take(&mut self.poll) {
            return self.pending(cascade).map_or(0, |input| {
                self.acknowledge(input);
                0x80 | input
            });
        }
        match (data, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    fn write_elcr(&mut self, value: u8) {
        self.elcr = value & self.elcr_bits;
        self.irr = self.irr & !self.elcr | self.lines & self.elcr;
    }
}

/// The bit of the master's input that the slave drives.
const CASCADE: u8 = 1 << crate::layout::CASCADE_IRQ;

/// Master and slave.
#[derive(Clone, Debug)]
pub(crate) struct Pic {
    master: Chip,
    slave: Chip,
}

/// Which of the two chips a port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Master,
    Slave,
}

impl Pic {
    pub(crate) const fn new() -> Self {
        // IRQ 0, 1, 2, 8 and 13 are edge triggered for ever.
        Self {
            master: Chip::new(0xF8),
            slave: Chip::new(0xDE),
        }
    }

    /// Drives one of the 16 ISA interrupts; the cascade is not one of them.
    pub(crate) fn set_line(&mut self, irq: u8, asserted: bool) {
        match irq {
            crate::layout::CASCADE_IRQ => {}
            0..8 => self.master.set_line(irq, asserted),
            8..16 => self.slave.set_line(irq - 8, asserted),
            _ => {}
        }
        self.cascade();
    }

    pub(crate) fn write(&mut self, which: Which, data: bool, value: u8) {
        let chip = self.chip(which);
        if data {
            chip.write_data(value)
        } else {
            chip.write_command(value)
        }
        self.cascade();
    }

    pub(crate) fn read(&mut self, which: Which, data: bool) -> u8 {
        let value = match which {
            Which::Master => self.master.read(data, CASCADE),
            Which::Slave => self.slave.read(data, 0),
        };
        self.cascade();
        value
    }

    pub(crate) fn elcr(&self, which: Which) -> u8 {
        match which {
            Which::Master => self.master.elcr,
            Which::Slave => self.slave.elcr,
        }
    }

    pub(crate) fn write_elcr(&mut self, which: Which, value: u8) {
        self.chip(which).write_elcr(value);
        self.cascade();
    }

    /// Whether the master asserts INTR.
    pub(crate) fn pending(&self) -> bool {
        self.master.pending(CASCADE).is_some()
    }

    /// The interrupt acknowledge cycle: the vector. With nothing pending it is the spurious
    /// vector 7 of the chip that was asked, and nothing comes into service there.
    pub(crate) fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending(CASCADE) else {
            return self.master.vector_base | 7;
        };
        self.master.acknowledge(input);
        let vector = if 1 << input == CASCADE {
            let input = self.slave.pending(0);
            if let Some(input) = input {
                self.slave.acknowledge(input);
            }
            self.slave.vector_base | input.unwrap_or(7)
        } else {
            self.master.vector_base | input
        };
        self.cascade();
        vector
    }

    fn chip(&mut self, which: Which) -> &mut Chip {
        match which {
            Which::Master => &mut self.master,
            Which::Slave => &mut self.slave,
        }
    }

    /// The slave's INT output is the master's input 2.
    fn cascade(&mut self) {
        self.master.irr &= !CASCADE;
        if self.slave.pending(0).is_some() {
            self.master.irr |= CASCADE;
        }
    }
}

#[cfg(test)]
mod tests;
