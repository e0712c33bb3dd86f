//! ACPI's fixed hardware: PM1 event and control registers and the power-management timer (ACPI
//! 6.5, 4.8.3). The board is always in ACPI mode.

use crate::layout::{PM_TMR_HZ, S5_SLP_TYP};
use crate::scale::{nanos_to_ticks, ticks_to_nanos};
use units::Nanos;

const TIMER: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC: u16 = 1 << 10;
const WAKE: u16 = 1 << 15;
const STATUS_BITS: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC | WAKE;
const ENABLE_BITS: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;

const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_TYPE: u16 = 7 << 10;
const SLEEP_ENABLE: u16 = 1 << 13;

#[derive(Clone, Copy, Debug)]
pub(crate) struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    /// How often the timer's top bit had changed at the last poll.
    top_changes: u64,
}

impl AcpiPm {
    pub(crate) const fn new() -> Self {
        Self {
            status: 0,
            enable: 0,
            control: SCI_ENABLED,
            top_changes: 0,
        }
    }

    /// Status in the lower and enable in the upper half, as the event block lays them out.
    pub(crate) fn event_block(&self) -> u32 {
        u32::from(self.enable) << 16 | u32::from(self.status)
    }

    /// Writes the bits of the event block that `mask` covers: ones clear status bits.
    pub(crate) fn write_event_block(&mut self, value: u32, mask: u32) {
        let (status, enable) = (value & mask, (value & mask) >> 16);
        self.status &= !(status as u16);
        let mask = (mask >> 16) as u16;
        self.enable = (self.enable & !mask | enable as u16) & ENABLE_BITS;
    }

    pub(crate) fn control(&self) -> u16 {
        self.control
    }

    /// Writes the bits of the control register that `mask` covers; true if that switches the
    /// machine off. Sleep states other than S5 do not exist here.
    pub(crate) fn write_control(&mut self, value: u16, mask: u16) -> bool {
        self.control = (self.control & !mask | value & mask) & SLEEP_TYPE | SCI_ENABLED;
        value & mask & SLEEP_ENABLE != 0 && self.control & SLEEP_TYPE == u16::from(S5_SLP_TYP) << 10
    }

    /// The timer register: 32 bits at 3.579545 MHz.
    pub(crate) fn timer(now: Nanos) -> u32 {
        nanos_to_ticks(now, PM_TMR_HZ) as u32
    }

    pub(crate) fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    pub(crate) fn poll(&mut self, now: Nanos) {
        let changes = nanos_to_ticks(now, PM_TMR_HZ) >> 31;
        if changes > self.top_changes {
            self.top_changes = changes;
            self.status |= TIMER;
        }
    }

    /// When the timer's top bit changes next, if that would interrupt.
    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        let wanted = self.enable & TIMER != 0 && self.status & TIMER == 0;
        wanted.then(|| ticks_to_nanos(self.top_changes.saturating_add(1) << 31, PM_TMR_HZ))
    }

    /// The level of the system control interrupt.
    pub(crate) fn interrupting(&self) -> bool {
        self.status & self.enable & STATUS_BITS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_the_enable_bit_switches_off() {
        let mut pm = AcpiPm::new();
        assert!(
            !pm.write_control(u16::from(S5_SLP_TYP) << 10, 0xFFFF),
            "the type alone"
        );
        assert!(
            !pm.write_control(SLEEP_ENABLE | 1 << 10, 0xFFFF),
            "another state"
        );
        assert!(pm.write_control(SLEEP_ENABLE | u16::from(S5_SLP_TYP) << 10, 0xFFFF));
        assert_eq!(
            pm.control(),
            SCI_ENABLED | u16::from(S5_SLP_TYP) << 10,
            "SLP_EN reads zero"
        );
    }

    #[test]
    fn the_power_button_interrupts_until_its_status_is_cleared() {
        let mut pm = AcpiPm::new();
        pm.press_power_button();
        assert!(!pm.interrupting());
        pm.write_event_block(u32::from(POWER_BUTTON) << 16, 0xFFFF_0000);
        assert!(pm.interrupting());
        pm.write_event_block(u32::from(POWER_BUTTON), 0x0000_FFFF);
        assert!(!pm.interrupting());
        assert_eq!(
            pm.event_block(),
            u32::from(POWER_BUTTON) << 16,
            "enable is untouched"
        );
    }

    #[test]
    fn the_timer_runs_at_its_frequency_and_reports_its_top_bit() {
        assert_eq!(AcpiPm::timer(Nanos::from_secs(1)), 3_579_545);
        let mut pm = AcpiPm::new();
        pm.write_event_block(u32::from(TIMER) << 16, 0xFFFF_0000);
        let due = pm.next_deadline().expect("enabled");
        assert_eq!(AcpiPm::timer(due), 1 << 31);
        pm.poll(due - Nanos(1));
        assert!(!pm.interrupting());
        pm.poll(due);
        assert!(pm.interrupting());
        assert_eq!(pm.next_deadline(), None);
    }
}
