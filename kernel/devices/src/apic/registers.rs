//! The register file, as both modes number it: register `n` is at byte `16 * n` of the register
//! page in xAPIC mode and is MSR `800h + n` in x2APIC mode (SDM 3A tables 11-1 and 11-6).

use super::delivery::{ApicError, LVT_MASKED};
use super::timer::Mode;
use super::{ApicMode, Effect, LocalApic, Lvt, SVR_ENABLE};
use crate::access::Now;

pub(super) const ID: u32 = 0x02;
pub(super) const VERSION: u32 = 0x03;
pub(super) const TPR: u32 = 0x08;
pub(super) const APR: u32 = 0x09;
pub(super) const PPR: u32 = 0x0A;
pub(super) const EOI: u32 = 0x0B;
pub(super) const RRD: u32 = 0x0C;
pub(super) const LDR: u32 = 0x0D;
pub(super) const DFR: u32 = 0x0E;
pub(super) const SVR: u32 = 0x0F;
pub(super) const ISR: u32 = 0x10;
pub(super) const TMR: u32 = 0x18;
pub(super) const IRR: u32 = 0x20;
pub(super) const ESR: u32 = 0x28;
pub(super) const ICR_LOW: u32 = 0x30;
pub(super) const ICR_HIGH: u32 = 0x31;
pub(super) const LVT_TIMER: u32 = 0x32;
pub(super) const LVT_ERROR: u32 = 0x37;
pub(super) const INITIAL_COUNT: u32 = 0x38;
pub(super) const CURRENT_COUNT: u32 = 0x39;
pub(super) const DIVIDE: u32 = 0x3E;
pub(super) const SELF_IPI: u32 = 0x3F;

/// Version 14h, six LVT entries, no EOI-broadcast suppression (SDM 3A 11.4.8).
const VERSION_VALUE: u32 = 0x0005_0014;

/// Writable bits of the ICR's lower half.
pub(super) const ICR_LOW_BITS: u32 = 0x000C_CFFF;
/// Writable bits of the spurious-interrupt register: vector, enable, focus checking.
pub(super) const SVR_BITS: u32 = 0x3FF;
/// Writable bits of the divide configuration register.
pub(super) const DIVIDE_BITS: u32 = 0xB;

impl Lvt {
    /// The LVT entry that is register `number`.
    pub(super) const fn of_register(number: u32) -> Option<Self> {
        match number {
            0x32 => Some(Self::Timer),
            0x33 => Some(Self::Thermal),
            0x34 => Some(Self::Performance),
            0x35 => Some(Self::Lint0),
            0x36 => Some(Self::Lint1),
            0x37 => Some(Self::Error),
            _ => None,
        }
    }

    /// The bits that software may write (SDM 3A figure 11-8).
    pub(super) const fn writable(self, tsc_deadline: bool) -> u32 {
        match self {
            Self::Timer if tsc_deadline => 0x0007_00FF,
            Self::Timer => 0x0003_00FF,
            Self::Thermal | Self::Performance => 0x0001_07FF,
            Self::Lint0 | Self::Lint1 => 0x0001_A7FF,
            Self::Error => 0x0001_00FF,
        }
    }
}

impl LocalApic {
    /// Reads the 32-bit register at `offset` of the register page. Reserved offsets read zero and
    /// are noted in the error status register. All ones outside xAPIC mode, where nothing decodes
    /// the page.
    pub fn mmio_read(&mut self, offset: u16, now: Now) -> u32 {
        if self.mode() != ApicMode::XApic {
            return u32::MAX;
        }
        self.poll(now);
        let value = (offset & 0xF == 0).then(|| self.read_register(u32::from(offset) >> 4, now));
        value.flatten().unwrap_or_else(|| {
            self.report(ApicError::IllegalRegister);
            0
        })
    }

    /// Writes the 32-bit register at `offset` of the register page. Reserved bits are ignored, and
    /// so are writes outside xAPIC mode.
    #[must_use = "an effect that is not carried out loses an interrupt"]
    pub fn mmio_write(&mut self, offset: u16, value: u32, now: Now) -> Option<Effect> {
        if self.mode() != ApicMode::XApic {
            return None;
        }
        self.poll(now);
        let number = u32::from(offset) >> 4;
        if offset & 0xF != 0 {
            self.report(ApicError::IllegalRegister);
            return None;
        }
        match number {
            LDR => self.ldr = value & 0xFF00_0000,
            DFR => self.dfr = value | 0x0FFF_FFFF,
            ICR_HIGH => {
                self.icr = self.icr & 0xFFFF_FFFF | u64::from(value & 0xFF00_0000) << 32;
            }
            ICR_LOW => {
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(value & ICR_LOW_BITS);
                return self.send();
            }
            ID | VERSION | APR | PPR | RRD | CURRENT_COUNT | ISR..ESR => {}
            _ => return self.write_register(number, value, now),
        }
        None
    }

    /// A register that reads alike in both modes, but for ID and LDR; `None` if there is none of
    /// this number.
    pub(super) fn read_register(&self, number: u32, now: Now) -> Option<u32> {
        let x2apic = self.mode() == ApicMode::X2Apic;
        let word = (number & 7) as usize;
        Some(match number {
            ID if x2apic => self.id.0,
            ID => self.id.0 << 24,
            VERSION => VERSION_VALUE,
            TPR => u32::from(self.tpr),
            PPR => u32::from(self.processor_priority()),
            // Arbitration priority, remote read and EOI: nothing to see on these processors.
            APR | RRD | EOI => 0,
            LDR if x2apic => self.logical_id(),
            LDR => self.ldr,
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.word(word),
            TMR..IRR => self.tmr.word(word),
            IRR..ESR => self.irr.word(word),
            ESR => self.esr,
            ICR_LOW => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => self.lvt(Lvt::of_register(number)?),
            INITIAL_COUNT => self.timer.initial_count(),
            CURRENT_COUNT => self.timer.current_count(now.nanos),
            DIVIDE => self.divide,
            _ => return None,
        })
    }

    /// A register that writes alike in both modes.
    pub(super) fn write_register(&mut self, number: u32, value: u32, now: Now) -> Option<Effect> {
        match number {
            TPR => self.tpr = value as u8,
            EOI => return self.end_of_interrupt(),
            SVR => {
                self.svr = value & SVR_BITS;
                if value & SVR_ENABLE == 0 {
                    // SDM 3A 11.4.7.2: disabling by software masks every local interrupt.
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            // SDM 3A 11.5.3: a write shows the errors since the last write.
            ESR => self.esr = core::mem::take(&mut self.errors),
            LVT_TIMER..=LVT_ERROR => {
                if let Some(entry) = Lvt::of_register(number) {
                    self.write_lvt(entry, value);
                }
            }
            INITIAL_COUNT => self.timer.set_initial_count(value, now.nanos),
            DIVIDE => {
                self.divide = value & DIVIDE_BITS;
                self.timer.set_divide_configuration(self.divide, now.nanos);
            }
            _ => self.report(ApicError::IllegalRegister),
        }
        None
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32) {
        let mut value = value & entry.writable(self.config.tsc_deadline);
        if !self.is_software_enabled() {
            value |= LVT_MASKED;
        }
        if entry == Lvt::Timer {
            self.timer.set_mode(Mode::of_lvt(value));
        }
        self.lvt[entry as usize] = value;
    }

    pub(super) fn lvt(&self, entry: Lvt) -> u32 {
        self.lvt[entry as usize]
    }
}
