//! All tests, in the order in which they run.
#![expect(
    unsafe_code,
    reason = "a test of instructions is written in instructions"
)]

use kit::Test;

mod apic_priority;
mod apic_timer;
mod clocks;
mod code;
mod debug;
mod delivery;
mod faults;
mod ioapic;
mod ipi;
mod memory;
mod mmio;
mod modes;
mod nmi;
mod pic;
mod pit;
mod rtc;
mod shadow;
mod state;
mod user;

kit::guest!("selftest", main);

const GROUPS: &[&[Test]] = &[
    faults::TESTS,
    memory::TESTS,
    code::TESTS,
    mmio::TESTS,
    debug::TESTS,
    shadow::TESTS,
    nmi::TESTS,
    delivery::TESTS,
    modes::TESTS,
    user::TESTS,
    apic_timer::TESTS,
    apic_priority::TESTS,
    ipi::TESTS,
    ioapic::TESTS,
    pic::TESTS,
    pit::TESTS,
    rtc::TESTS,
    clocks::TESTS,
    state::TESTS,
];

fn main() {
    kit::registry::run(GROUPS);
}
