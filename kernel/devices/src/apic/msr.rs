//! The MSRs of a local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC range.

use super::delivery::ApicError;
use super::registers::{
    APR, CURRENT_COUNT, DFR, DIVIDE, DIVIDE_BITS, EOI, ESR, ICR_HIGH, ICR_LOW, ICR_LOW_BITS, ID,
    INITIAL_COUNT, ISR, LDR, LVT_ERROR, LVT_TIMER, PPR, RRD, SELF_IPI, SVR, SVR_BITS, TPR, VERSION,
};
use super::{ApicMode, Effect, GeneralProtection, LocalApic, Lvt};
use crate::access::Now;
use crate::message::TriggerMode;
use units::Gpa;

/// IA32_APIC_BASE (SDM 3A 11.4.4).
pub(super) const APIC_BASE: u32 = 0x1B;
/// IA32_TSC_DEADLINE (SDM 3A 11.5.4.1).
const TSC_DEADLINE: u32 = 0x6E0;
/// First MSR of the x2APIC range (SDM 3A 11.12.1.2).
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8FF;

pub(super) const BASE_BSP: u64 = 1 << 8;
const BASE_EXTD: u64 = 1 << 10;
pub(super) const BASE_ENABLE: u64 = 1 << 11;

impl LocalApic {
    /// Whether [`Self::msr_read`] and [`Self::msr_write`] own this MSR: IA32_APIC_BASE (1Bh),
    /// IA32_TSC_DEADLINE (6E0h) and 800h to 8FFh.
    pub const fn claims_msr(msr: u32) -> bool {
        matches!(msr, APIC_BASE | TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST)
    }

    /// Enabled, and how its registers are reached.
    pub fn mode(&self) -> ApicMode {
        match (self.base & BASE_ENABLE != 0, self.base & BASE_EXTD != 0) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        }
    }

    /// The page where this processor sees its registers; `None` unless in xAPIC mode.
    pub fn mmio_base(&self) -> Option<Gpa> {
        (self.mode() == ApicMode::XApic).then_some(Gpa(self.base & !0xFFF))
    }

    /// RDMSR of a claimed MSR. [`GeneralProtection`] for what does not exist, is write-only, or
    /// belongs to the mode that is not on.
    pub fn msr_read(&mut self, msr: u32, now: Now) -> Result<u64, GeneralProtection> {
        self.poll(now);
        match msr {
            APIC_BASE => Ok(self.base),
            TSC_DEADLINE if self.config.tsc_deadline => Ok(self.timer.deadline()),
            X2APIC_FIRST..=X2APIC_LAST if self.mode() == ApicMode::X2Apic => {
                match msr - X2APIC_FIRST {
                    ICR_LOW => Ok(self.icr),
                    ICR_HIGH | EOI | SELF_IPI | DFR | APR | RRD => Err(GeneralProtection),
                    number => self
                        .read_register(number, now)
                        .map(u64::from)
                        .ok_or(GeneralProtection),
                }
            }
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of a claimed MSR. [`GeneralProtection`] for reserved bits, read-only registers,
    /// illegal mode changes, and as for [`Self::msr_read`]; nothing has changed then.
    pub fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        now: Now,
    ) -> Result<Option<Effect>, GeneralProtection> {
        self.poll(now);
        match msr {
            APIC_BASE => self.write_base(value).map(|()| None),
            TSC_DEADLINE if self.config.tsc_deadline => {
                self.timer.set_deadline(value, now);
                self.poll(now);
                Ok(None)
            }
            X2APIC_FIRST..=X2APIC_LAST if self.mode() == ApicMode::X2Apic => {
                self.write_x2apic(msr - X2APIC_FIRST, value, now)
            }
            _ => Err(GeneralProtection),
        }
    }

    fn write_x2apic(
        &mut self,
        number: u32,
        value: u64,
        now: Now,
    ) -> Result<Option<Effect>, GeneralProtection> {
        let writable = match number {
            ID | VERSION | PPR | LDR | ISR..ESR | CURRENT_COUNT => return Err(GeneralProtection),
            DFR | APR | RRD | ICR_HIGH => return Err(GeneralProtection),
            TPR | SELF_IPI => 0xFF,
            EOI | ESR => 0,
            SVR => u64::from(SVR_BITS),
            ICR_LOW => !0xFFFF_FFFF | u64::from(ICR_LOW_BITS),
            LVT_TIMER..=LVT_ERROR => Lvt::of_register(number).map_or(0, |entry| {
                u64::from(entry.writable(self.config.tsc_deadline))
            }),
            INITIAL_COUNT => 0xFFFF_FFFF,
            DIVIDE => u64::from(DIVIDE_BITS),
            _ => return Err(GeneralProtection),
        };
        // Delivery status and remote IRR are read-only rather than reserved: software writes back
        // what it read.
        let read_only = match number {
            LVT_TIMER..=LVT_ERROR => 0x5000,
            ICR_LOW => 0x1000,
            _ => 0,
        };
        if value & !(writable | read_only) != 0 {
            return Err(GeneralProtection);
        }
        let low = value as u32; // but for the ICR, the upper half is zero
        match number {
            ICR_LOW => {
                self.icr = value & writable;
                Ok(self.send())
            }
            SELF_IPI => {
                if low < 16 {
                    self.report(ApicError::SendIllegalVector);
                } else {
                    self.request(low as u8, TriggerMode::Edge);
                }
                Ok(None)
            }
            _ => Ok(self.write_register(number, low, now)),
        }
    }

    /// The legal transitions of SDM 3A figure 11-27: xAPIC and disabled either way, xAPIC to
    /// x2APIC, x2APIC to disabled. The bootstrap flag is read-only here.
    fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let address_bits = u64::MAX >> (64 - self.physical_bits()) & !0xFFF;
        let mode_bits = BASE_ENABLE | if self.config.x2apic { BASE_EXTD } else { 0 };
        if value & !(address_bits | mode_bits | BASE_BSP) != 0 {
            return Err(GeneralProtection);
        }
        let new = match (value & BASE_ENABLE != 0, value & BASE_EXTD != 0) {
            (false, true) => return Err(GeneralProtection),
            (false, false) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        };
        match (self.mode(), new) {
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic) => {
                return Err(GeneralProtection);
            }
            (ApicMode::XApic, ApicMode::X2Apic) => self.icr &= 0xFFFF_FFFF,
            // Enabling again starts from the state after power-on (SDM 3A 11.4.3).
            (ApicMode::XApic | ApicMode::X2Apic, ApicMode::Disabled) => self.reset_registers(),
            _ => {}
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        Ok(())
    }

    /// CPUID's width, kept inside what the architecture allows.
    fn physical_bits(&self) -> u32 {
        u32::from(self.config.physical_bits).clamp(32, 52)
    }
}
