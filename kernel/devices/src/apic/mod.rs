//! The local APIC of one virtual processor (SDM 3A chapter 11, APM 2 chapter 16).

mod vectors;

use crate::access::Now;
use crate::message::InterruptMessage;
use core::fmt;
use units::{ApicId, Gpa, Nanos};

/// Which processor this is at power-on (SDM 3A 9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs at once; its LINT0 starts as ExtINT, LINT1 as NMI, as firmware leaves them.
    Bootstrap,
    /// Waits for INIT and SIPI.
    Application,
}

/// Frequencies and features, which must agree with the guest's CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicConfig {
    /// Input clock of the timer before division, in Hz.
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
    /// Globally disabled: INTR and NMI go straight to the processor.
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
    /// Tell the I/O APICs that a level-triggered vector was served.
    EoiBroadcast(u8),
}

/// The access is illegal: inject #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

impl fmt::Display for GeneralProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the local APIC refused the MSR access; the guest gets #GP(0)")
    }
}

/// Whether the processor executes instructions (SDM 3A 9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs (or halts by itself).
    Running,
    /// It waits for a start-up message.
    WaitForSipi,
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    id: ApicId,
}

impl LocalApic {
    /// A local APIC as after power-on.
    pub fn new(id: ApicId, role: Role, config: ApicConfig) -> Self {
        let _ = (role, config);
        Self { id }
    }
    /// The initial APIC ID, which is also the x2APIC ID.
    pub fn id(&self) -> ApicId {
        self.id
    }
    /// Enabled, and how its registers are reached.
    pub fn mode(&self) -> ApicMode {
        ApicMode::XApic
    }
    /// The page where this processor sees its registers; `None` unless in xAPIC mode.
    pub fn mmio_base(&self) -> Option<Gpa> {
        None
    }
    /// Reads the 32-bit register at `offset` of the register page.
    pub fn mmio_read(&mut self, offset: u16, now: Now) -> u32 {
        let _ = (offset, now);
        0
    }
    /// Writes the 32-bit register at `offset` of the register page.
    pub fn mmio_write(&mut self, offset: u16, value: u32, now: Now) -> Option<Effect> {
        let _ = (offset, value, now);
        None
    }
    /// Whether [`Self::msr_read`] and [`Self::msr_write`] own this MSR: IA32_APIC_BASE (1Bh),
    /// IA32_TSC_DEADLINE (6E0h) and 800h to 8FFh.
    pub const fn claims_msr(msr: u32) -> bool {
        matches!(msr, 0x1B | 0x6E0 | 0x800..=0x8FF)
    }
    /// RDMSR of a claimed MSR.
    pub fn msr_read(&mut self, msr: u32, now: Now) -> Result<u64, GeneralProtection> {
        let _ = (msr, now);
        Err(GeneralProtection)
    }
    /// WRMSR of a claimed MSR.
    pub fn msr_write(
        &mut self,
        msr: u32,
        value: u64,
        now: Now,
    ) -> Result<Option<Effect>, GeneralProtection> {
        let _ = (msr, value, now);
        Err(GeneralProtection)
    }
    /// CR8: the task priority class.
    pub fn cr8(&self) -> u8 {
        0
    }
    /// MOV to CR8; `Err` if a reserved bit (63:4) is set.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let _ = value;
        Ok(())
    }
    /// Whether a message addresses this local APIC.
    pub fn matches(&self, message: &InterruptMessage) -> bool {
        let _ = message;
        false
    }
    /// Takes a message that [`Self::matches`] (or that [`crate::lowest_priority`] assigned); true
    /// if the processor should be woken or interrupted to look at it.
    pub fn receive(&mut self, message: &InterruptMessage) -> bool {
        let _ = message;
        false
    }
    /// Lets the timer catch up to `now`; true if it raised an interrupt. Call it at
    /// [`Self::next_deadline`] at the latest, and before [`Self::pending`].
    pub fn poll(&mut self, now: Now) -> bool {
        let _ = now;
        false
    }
    /// The time-stamp counter jumped (the guest wrote it, or its offset changed): recompute when
    /// a TSC deadline is due.
    pub fn tsc_changed(&mut self, now: Now) {
        let _ = now;
    }
    /// When the timer next needs [`Self::poll`], in guest time.
    pub fn next_deadline(&self) -> Option<Nanos> {
        None
    }
    /// The vector that would interrupt the processor now: the highest requested one if it is
    /// above the processor priority.
    pub fn pending(&self) -> Option<u8> {
        None
    }
    /// Accepts [`Self::pending`]: it moves from requested to in service. Inject what it returns.
    pub fn accept(&mut self) -> Option<u8> {
        None
    }
    /// Whether LINT0 passes the 8259A's INTR to this processor.
    pub fn extint_enabled(&self) -> bool {
        false
    }
    /// Whether an NMI waits.
    pub fn nmi_pending(&self) -> bool {
        false
    }
    /// Takes the waiting NMI, to inject it.
    pub fn take_nmi(&mut self) -> bool {
        false
    }
    /// Takes a waiting INIT: the local APIC has reset itself and now waits for SIPI if it is an
    /// application processor; reset the processor likewise.
    pub fn take_init(&mut self) -> bool {
        false
    }
    /// Takes a waiting SIPI: start at 4 KiB times the value returned, in real mode. Only while
    /// [`Activity::WaitForSipi`]; it then runs.
    pub fn take_sipi(&mut self) -> Option<u8> {
        None
    }
    /// Whether the processor runs.
    pub fn activity(&self) -> Activity {
        Activity::Running
    }
    /// Whether anything waits that would end a HLT: interrupt, NMI, INIT or a usable SIPI.
    pub fn has_work(&self) -> bool {
        false
    }
    /// Spurious-interrupt register bit 8, in an APIC that is not globally disabled.
    pub fn is_software_enabled(&self) -> bool {
        false
    }
    /// The processor priority register (SDM 3A 11.8.3.1).
    pub fn processor_priority(&self) -> u8 {
        0
    }
    /// Lowest-priority messages taken so far.
    pub fn arbitrations_won(&self) -> u64 {
        0
    }
    /// Timer ticks that came too fast or too late to be delivered one by one.
    pub fn lost_ticks(&self) -> u64 {
        0
    }
}
