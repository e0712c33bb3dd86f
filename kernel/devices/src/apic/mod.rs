//! The local APIC of one virtual processor (SDM 3A chapter 11, APM 2 chapter 16).
//!
//! A state machine with three doors. The guest comes in by register accesses ([`LocalApic::mmio_read`],
//! [`LocalApic::msr_write`] and their twins, [`LocalApic::set_cr8`]); other processors and devices by
//! [`LocalApic::receive`]; time by [`LocalApic::poll`]. What it wants from the rest of the machine it
//! returns as an [`Effect`], at most one for each call. Before an entry the run loop asks, in this
//! order: [`LocalApic::take_init`], [`LocalApic::take_sipi`], [`LocalApic::take_nmi`],
//! [`LocalApic::pending`] and then, with the guest's interrupt flag set, [`LocalApic::accept`].
//!
//! Invariants:
//! * a vector is accepted only if its class is above every class in service and above TPR's, so
//!   nested interrupts in service have strictly rising classes;
//! * a level-triggered vector's EOI yields exactly one [`Effect::EoiBroadcast`];
//! * a timer raises at most one interrupt a call, however late or fast.

mod delivery;
mod msr;
mod registers;
mod timer;
mod vectors;

#[cfg(test)]
mod tests;

use crate::access::Now;
use crate::layout::LAPIC_BASE;
use crate::message::{InterruptMessage, TriggerMode};
use core::fmt;
use delivery::LVT_MASKED;
use timer::Timer;
use units::{ApicId, Nanos};
use vectors::VectorSet;

/// Spurious-interrupt register: enabled by software.
const SVR_ENABLE: u32 = 1 << 8;

/// Which processor this is at power-on (SDM 3A 9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs at once; its LINT0 starts as ExtINT and LINT1 as NMI, the virtual wire mode in which
    /// firmware leaves them (MP specification 3.6.2.2).
    Bootstrap,
    /// Waits for INIT and SIPI.
    Application,
}

impl Role {
    const fn activity_after_reset(self) -> Activity {
        match self {
            Self::Bootstrap => Activity::Running,
            Self::Application => Activity::WaitForSipi,
        }
    }
}

/// Frequencies and features, which must agree with the guest's CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicConfig {
    /// Input clock of the timer before division, in Hz: [`crate::layout::LAPIC_BUS_HZ`].
    pub bus_hz: u64,
    /// The guest's time-stamp counter, in Hz.
    pub tsc_hz: u64,
    /// CPUID.1:ECX bit 21: x2APIC mode may be entered.
    pub x2apic: bool,
    /// CPUID.1:ECX bit 24: the timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// CPUID 8000_0008h EAX bits 7:0: the width of the base address.
    pub physical_bits: u8,
}

/// The states of IA32_APIC_BASE bits 11:10 (SDM 3A 11.12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// Globally disabled: the 8259A's INTR goes straight to the bootstrap processor.
    Disabled,
    /// Registers in memory.
    XApic,
    /// Registers in MSRs 800h to 83Fh.
    X2Apic,
}

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an effect that is not carried out loses an interrupt"]
pub enum Effect {
    /// Deliver this interprocessor interrupt.
    Ipi(InterruptMessage),
    /// Tell the I/O APIC that a level-triggered vector was served ([`crate::Board::eoi`]).
    EoiBroadcast(u8),
}

/// The access is illegal: inject #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

impl fmt::Display for GeneralProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the local APIC refused a guest's register access; the guest got #GP(0)")
    }
}

impl core::error::Error for GeneralProtection {}

/// Whether the processor executes instructions (SDM 3A 9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs (or halts by itself).
    Running,
    /// It waits for a start-up message.
    WaitForSipi,
}

/// The local vector table, in register order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

/// One local APIC. The kernel keeps each behind a lock of its own.
#[derive(Clone, Debug)]
pub struct LocalApic {
    id: ApicId,
    role: Role,
    config: ApicConfig,
    /// IA32_APIC_BASE.
    base: u64,
    tpr: u8,
    /// xAPIC mode's logical destination, in bits 31:24; x2APIC mode derives its own.
    ldr: u32,
    dfr: u32,
    svr: u32,
    /// Errors that software sees, and those since it last asked.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    divide: u32,
    irr: VectorSet,
    isr: VectorSet,
    tmr: VectorSet,
    timer: Timer,
    nmis: u8,
    init: bool,
    sipi: Option<u8>,
    activity: Activity,
    arbitrations_won: u64,
    lost_ticks: u64,
}

impl LocalApic {
    /// A local APIC as after power-on, in xAPIC mode at [`LAPIC_BASE`], disabled by software.
    pub fn new(id: ApicId, role: Role, config: ApicConfig) -> Self {
        let bootstrap_flag = match role {
            Role::Bootstrap => msr::BASE_BSP,
            Role::Application => 0,
        };
        let mut apic = Self {
            id,
            role,
            config,
            base: LAPIC_BASE.0 | msr::BASE_ENABLE | bootstrap_flag,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xFF,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            divide: 0,
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            timer: Timer::new(config.bus_hz, config.tsc_hz),
            nmis: 0,
            init: false,
            sipi: None,
            activity: role.activity_after_reset(),
            arbitrations_won: 0,
            lost_ticks: 0,
        };
        if role == Role::Bootstrap {
            apic.lvt[Lvt::Lint0 as usize] = 0x700; // ExtINT
            apic.lvt[Lvt::Lint1 as usize] = 0x400; // NMI
        }
        apic
    }

    /// The registers as INIT leaves them (SDM 3A 11.4.7.3): identity, base and events stay.
    fn reset_registers(&mut self) {
        let fresh = Self::new(self.id, self.role, self.config);
        *self = Self {
            base: self.base,
            nmis: self.nmis,
            init: self.init,
            sipi: self.sipi,
            activity: self.activity,
            arbitrations_won: self.arbitrations_won,
            lost_ticks: self.lost_ticks,
            ..fresh
        };
    }

    /// The initial APIC ID, which is also the x2APIC ID.
    pub fn id(&self) -> ApicId {
        self.id
    }

    /// Lets the timer catch up to `now`; true if it raised an interrupt. Call it at
    /// [`Self::next_deadline`] at the latest, and before [`Self::pending`]. Register accesses do
    /// it by themselves.
    pub fn poll(&mut self, now: Now) -> bool {
        let Some(missed) = self.timer.expire(now) else {
            return false;
        };
        let lvt = self.lvt(Lvt::Timer);
        if lvt & LVT_MASKED != 0 {
            return false;
        }
        let vector = lvt as u8;
        let unserved = u64::from(self.irr.contains(vector));
        self.lost_ticks = self
            .lost_ticks
            .saturating_add(missed)
            .saturating_add(unserved);
        self.request(vector, TriggerMode::Edge)
    }

    /// The time-stamp counter jumped (the guest wrote it, or its offset changed): recompute when
    /// a TSC deadline is due.
    pub fn tsc_changed(&mut self, now: Now) {
        self.timer.tsc_changed(now);
    }

    /// When the timer next needs [`Self::poll`], in guest time; `None` while it is stopped or its
    /// interrupt is masked.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.timer
            .due()
            .filter(|_| self.lvt(Lvt::Timer) & LVT_MASKED == 0)
    }

    /// Timer ticks with an unmasked interrupt that came too fast or too late to be delivered one by
    /// one.
    pub fn lost_ticks(&self) -> u64 {
        self.lost_ticks
    }
}
