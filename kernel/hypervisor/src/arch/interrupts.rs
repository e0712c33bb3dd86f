//! The only two places where the hypervisor lets interrupts in.
//!
//! Everywhere else they are off, so that no handler comes between two instructions of the run
//! loop, and no lock needs to care.

use x86_64::instructions::interrupts::{disable, enable, enable_and_hlt};
use x86_64::instructions::nop;

use super::percpu::{self, Activity};
use super::time;

/// Lets pending interrupts in, and closes the door again.
pub fn window() {
    enable();
    // STI takes effect after the instruction that follows it (SDM 2B, STI).
    nop();
    disable();
}

/// Waits for an interrupt, unless work was deferred already. Interrupts are off before and after; one
/// that came before the call is not slept through, because STI takes effect only after HLT has
/// begun.
pub fn wait() {
    let cpu = percpu::current();
    if cpu.has_deferred() {
        return window();
    }
    cpu.set_running(Activity::Idle);
    enable_and_hlt();
    disable();
    cpu.beat(time::now());
    cpu.set_running(Activity::Hypervisor);
}
