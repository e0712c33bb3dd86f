//! How interrupts come in, wait, are accepted and end (SDM 3A 11.6, 11.8; APM 2 16.6).

use super::{Activity, ApicMode, Effect, GeneralProtection, LocalApic, Lvt, Role};
use crate::message::{DeliveryMode, Destination, InterruptMessage, TriggerMode};

/// LVT bit 16.
pub(super) const LVT_MASKED: u32 = 1 << 16;

/// NMIs that wait at a time: one to be handled, and one that the processor would remember meanwhile. A processor that is
/// always there would have begun with the first before the second came.
const MOST_NMIS: u8 = 2;

/// Errors as bits of the error status register (SDM 3A 11.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApicError {
    SendIllegalVector = 1 << 5,
    ReceiveIllegalVector = 1 << 6,
    IllegalRegister = 1 << 7,
}

impl LocalApic {
    /// Whether a message addresses this local APIC. A globally disabled one takes no part.
    pub fn matches(&self, message: &InterruptMessage) -> bool {
        self.mode() != ApicMode::Disabled
            && match message.destination {
                Destination::All => true,
                Destination::AllBut(sender) => sender != self.id,
                Destination::Physical(id) => id == self.id.0,
                Destination::Logical(address) => self.matches_logical(address),
            }
    }

    /// SDM 3A 11.6.2.2 (flat and cluster), 11.12.10.2 (x2APIC: cluster in the upper half).
    fn matches_logical(&self, address: u32) -> bool {
        let own = self.logical_id();
        if self.mode() == ApicMode::X2Apic {
            return own >> 16 == address >> 16 && own & address & 0xFFFF != 0;
        }
        match self.dfr >> 28 {
            0xF => own & address & 0xFF != 0,
            0x0 => own >> 4 == address >> 4 && own & address & 0xF != 0,
            _ => false,
        }
    }

    /// The logical identity that destinations are compared with.
    pub(super) fn logical_id(&self) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => (self.id.0 >> 4) << 16 | 1 << (self.id.0 & 0xF),
            ApicMode::XApic | ApicMode::Disabled => self.ldr >> 24,
        }
    }

    /// Takes a message that [`Self::matches`] (or that [`crate::lowest_priority`] assigned); true
    /// if the processor should be woken or interrupted to look at it.
    pub fn receive(&mut self, message: &InterruptMessage) -> bool {
        match message.delivery {
            DeliveryMode::Fixed => self.request(message.vector, message.trigger),
            DeliveryMode::LowestPriority => {
                self.arbitrations_won = self.arbitrations_won.saturating_add(1);
                self.request(message.vector, message.trigger)
            }
            DeliveryMode::Nmi => {
                // One that waits for SIPI has no handler yet: dropped, not kept (SDM 3A 9.4).
                if self.activity == Activity::Running {
                    self.nmis = (self.nmis + 1).min(MOST_NMIS);
                }
                self.nmi_pending()
            }
            DeliveryMode::Init => {
                self.init = true;
                self.sipi = None;
                true
            }
            DeliveryMode::Startup => {
                let waits = self.init || self.activity == Activity::WaitForSipi;
                if waits {
                    self.sipi = Some(message.vector);
                }
                waits
            }
            // No SMM; and the board wires the 8259A to LINT0, to no pin of the I/O APIC.
            DeliveryMode::Smi | DeliveryMode::ExtInt => false,
        }
    }

    /// Makes a vector pending; false if this local APIC does not take it.
    pub(super) fn request(&mut self, vector: u8, trigger: TriggerMode) -> bool {
        if !self.is_software_enabled() {
            return false;
        }
        if vector < 16 {
            self.report(ApicError::ReceiveIllegalVector);
            return true;
        }
        self.irr.insert(vector);
        match trigger {
            TriggerMode::Edge => self.tmr.remove(vector),
            TriggerMode::Level => self.tmr.insert(vector),
        }
        true
    }

    /// Notes an error and raises the error interrupt if that is unmasked.
    pub(super) fn report(&mut self, error: ApicError) {
        self.errors |= error as u32;
        let lvt = self.lvt(Lvt::Error);
        // An illegal vector in this register is not reported once more.
        if lvt & LVT_MASKED == 0 && lvt as u8 >= 16 && self.is_software_enabled() {
            self.irr.insert(lvt as u8);
            self.tmr.remove(lvt as u8);
        }
    }

    /// The processor priority register (SDM 3A 11.8.3.1): the higher of what software asked for
    /// and what is being served.
    pub fn processor_priority(&self) -> u8 {
        let served = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= served >> 4 {
            self.tpr
        } else {
            served & 0xF0
        }
    }

    /// The vector that would interrupt the processor now: the highest requested one if its
    /// priority class is above the processor's.
    pub fn pending(&self) -> Option<u8> {
        if !self.is_software_enabled() {
            return None;
        }
        self.irr
            .highest()
            .filter(|vector| vector >> 4 > self.processor_priority() >> 4)
    }

    /// Accepts [`Self::pending`]: it moves from requested to in service. Inject what it returns.
    pub fn accept(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(vector)
    }

    /// The EOI register: ends the highest interrupt in service.
    pub(super) fn end_of_interrupt(&mut self) -> Option<Effect> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.tmr
            .contains(vector)
            .then_some(Effect::EoiBroadcast(vector))
    }

    /// Sends what the interrupt command register says (SDM 3A 11.6.1, 11.12.9). Interprocessor
    /// interrupts are edge triggered; the trigger and level bits only tell INIT from the ancient
    /// INIT de-assert, which does nothing.
    pub(super) fn send(&mut self) -> Option<Effect> {
        let low = self.icr as u32;
        let high = (self.icr >> 32) as u32;
        let vector = low as u8;
        let delivery = match DeliveryMode::from_bits(low >> 8)? {
            DeliveryMode::ExtInt | DeliveryMode::Smi => return None,
            DeliveryMode::Init if low >> 14 & 3 == 0b10 => return None,
            mode => mode,
        };
        if vector < 16 && matches!(delivery, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
            self.report(ApicError::SendIllegalVector);
            return None;
        }
        let logical = low & 1 << 11 != 0;
        let destination = match (low >> 18 & 3, self.mode()) {
            (1, _) => Destination::Physical(self.id.0),
            (2, _) => Destination::All,
            (3, _) => Destination::AllBut(self.id),
            (_, ApicMode::X2Apic) => Destination::from_32_bits(high, logical),
            _ => Destination::from_8_bits((high >> 24) as u8, logical),
        };
        let message = InterruptMessage {
            destination,
            delivery,
            vector,
            trigger: TriggerMode::Edge,
        };
        if low >> 18 & 3 == 1 {
            self.receive(&message);
            return None;
        }
        Some(Effect::Ipi(message))
    }

    /// Whether LINT0 passes the 8259A's INTR to this processor (SDM 3A 11.5.1). A globally
    /// disabled local APIC lets it through.
    pub fn extint_enabled(&self) -> bool {
        let lint0 = self.lvt(Lvt::Lint0);
        match self.mode() {
            ApicMode::Disabled => self.role == Role::Bootstrap,
            ApicMode::XApic | ApicMode::X2Apic => lint0 & LVT_MASKED == 0 && lint0 >> 8 & 7 == 7,
        }
    }

    /// CR8: the task priority class (SDM 3A 11.8.6).
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// MOV to CR8; `Err` if a reserved bit (63:4) is set.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        match u8::try_from(value) {
            Ok(class @ 0..=15) => {
                self.tpr = class << 4;
                Ok(())
            }
            _ => Err(GeneralProtection),
        }
    }

    /// Whether an NMI waits.
    pub fn nmi_pending(&self) -> bool {
        self.nmis > 0
    }

    /// Takes a waiting NMI, to inject it.
    pub fn take_nmi(&mut self) -> bool {
        let waits = self.nmi_pending();
        self.nmis = self.nmis.saturating_sub(1);
        waits
    }

    /// The processor is in an NMI's handler: of those that came meanwhile it remembers one (APM 2 8.1.3).
    pub fn merge_nmis(&mut self) {
        self.nmis = self.nmis.min(1);
    }

    /// Takes a waiting INIT: the local APIC has reset itself and an application processor now
    /// waits for SIPI; reset the processor likewise (SDM 3A 9.4, 11.4.7.3). A bootstrap
    /// processor would run on from the reset vector.
    pub fn take_init(&mut self) -> bool {
        let taken = core::mem::take(&mut self.init);
        if taken {
            let sipi = self.sipi.take();
            self.reset_registers();
            self.nmis = 0;
            self.activity = self.role.activity_after_reset();
            self.sipi = sipi.filter(|_| self.activity == Activity::WaitForSipi);
        }
        taken
    }

    /// Takes a waiting SIPI: start at 4 KiB times the value returned, in real mode. `None` unless
    /// [`Activity::WaitForSipi`] and no INIT waits; the processor is [`Activity::Running`] then.
    pub fn take_sipi(&mut self) -> Option<u8> {
        if self.init || self.activity != Activity::WaitForSipi {
            return None;
        }
        let vector = self.sipi.take()?;
        self.activity = Activity::Running;
        Some(vector)
    }

    /// Whether the processor runs or waits to be started.
    pub fn activity(&self) -> Activity {
        self.activity
    }

    /// Whether anything of this local APIC's would wake the processor: INIT, a usable SIPI, or
    /// while it runs an NMI or a pending vector. The 8259A's INTR is apart.
    pub fn has_work(&self) -> bool {
        self.init
            || match self.activity {
                Activity::WaitForSipi => self.sipi.is_some(),
                Activity::Running => self.nmi_pending() || self.pending().is_some(),
            }
    }

    /// Whether anything waits that wakes a processor which halted with interrupts off: INIT, a usable
    /// SIPI, an NMI.
    pub fn has_unmaskable_work(&self) -> bool {
        self.init
            || match self.activity {
                Activity::WaitForSipi => self.sipi.is_some(),
                Activity::Running => self.nmi_pending(),
            }
    }

    /// Spurious-interrupt register bit 8, in a local APIC that is not globally disabled.
    pub fn is_software_enabled(&self) -> bool {
        self.mode() != ApicMode::Disabled && self.svr & super::SVR_ENABLE != 0
    }

    /// Lowest-priority messages taken so far.
    pub fn arbitrations_won(&self) -> u64 {
        self.arbitrations_won
    }
}
