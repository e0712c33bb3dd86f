//! The controls that Perigee wants, fitted to what the processor lets it choose.

use crate::Capabilities;
use crate::control::{EntryControls, ExitControls, Pin, Primary, Secondary};

/// Cycles between two PAUSEs that still count as one loop (SDM 3C 26.1.3).
const PLE_GAP: u32 = 128;
/// Cycles that a loop may last before it exits.
const PLE_WINDOW: u32 = 4096;

/// What is written into the control fields of every VMCS on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Pin-based controls.
    pub pin: u32,
    /// Primary controls; windows come and go.
    pub primary: u32,
    /// Secondary controls.
    pub secondary: u32,
    /// VM-exit controls.
    pub exit: u32,
    /// VM-entry controls; IA-32e mode follows the guest's EFER.LMA.
    pub entry: u32,
    /// PAUSE-loop gap and window.
    pub ple: Option<(u32, u32)>,
}

impl Settings {
    /// Chooses. [`Capabilities::read`] has made sure of what is required; the rest is used where offered:
    /// VPID, PAUSE-loop exits, the preemption timer, and the instructions (RDTSCP, INVPCID, XSAVES) that would be #UD
    /// without their control although the guest's CPUID may show them.
    #[must_use]
    pub fn choose(caps: &Capabilities) -> Self {
        // External interrupts stay pending at the exit and are taken in the run loop's window.
        let pin = Pin::EXTERNAL_INTERRUPT | Pin::NMI | Pin::VIRTUAL_NMI | Pin::PREEMPTION_TIMER;
        let primary = Primary::TSC_OFFSET
            | Primary::HLT
            | Primary::MWAIT
            | Primary::RDPMC
            | Primary::CR8_LOAD
            | Primary::CR8_STORE
            | Primary::IO_BITMAPS
            | Primary::MSR_BITMAP
            | Primary::MONITOR
            | Primary::SECONDARY;
        let mut secondary = Secondary::EPT
            | Secondary::UNRESTRICTED
            | Secondary::RDTSCP
            | Secondary::INVPCID
            | Secondary::XSAVES
            | Secondary::WBINVD
            | Secondary::PAUSE_LOOP;
        secondary.set(Secondary::VPID, caps.has_vpid());
        let exit = ExitControls::SAVE_DEBUG
            | ExitControls::HOST_64
            | ExitControls::LOAD_PAT
            | ExitControls::LOAD_EFER;
        let entry = EntryControls::LOAD_DEBUG | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
        let pause_loop = caps.secondary.offers(Secondary::PAUSE_LOOP.bits());
        Self {
            pin: caps.pin.fit(pin.bits()),
            primary: caps.primary.fit(primary.bits()),
            secondary: caps.secondary.fit(secondary.bits()),
            exit: caps.exit.fit(exit.bits()),
            entry: caps.entry.fit(entry.bits()),
            ple: pause_loop.then_some((PLE_GAP, PLE_WINDOW)),
        }
    }

    /// Whether the preemption timer ends the guest's time.
    #[must_use]
    pub const fn uses_preemption_timer(&self) -> bool {
        self.pin & Pin::PREEMPTION_TIMER.bits() != 0
    }

    /// Whether the processor can log which pages guests write. The control is set only while somebody wants to know:
    /// `secondary` is without it.
    #[must_use]
    pub fn can_log_writes(caps: &Capabilities) -> bool {
        caps.has_accessed_dirty() && caps.secondary.offers(Secondary::PML.bits())
    }

    /// Whether translations are tagged.
    #[must_use]
    pub const fn uses_vpid(&self) -> bool {
        self.secondary & Secondary::VPID.bits() != 0
    }

    /// Whether XSAVES exists for the guest, so that the XSS-exiting bitmap is a field.
    #[must_use]
    pub const fn uses_xsaves(&self) -> bool {
        self.secondary & Secondary::XSAVES.bits() != 0
    }
}
