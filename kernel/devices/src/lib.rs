//! The devices room: what a stock PC kernel expects to find around its processors.
//!
//! A guest kernel drives hardware that it believes in: local APICs, an I/O APIC, the old pair of
//! 8259A, timers, a clock, a serial port, ACPI's fixed registers. Here each of them is a state
//! machine without a thread, a lock or a clock. Accesses come in as calls that carry the guest's
//! time; interrupts go out as values that the kernel delivers. So everything runs in host tests,
//! byte by byte, and a recorded run replays.
//!
//! * [`LocalApic`] is one processor's interrupt controller and timer, one behind each lock;
//! * [`Board`] is all the rest of a machine behind one more;
//! * [`InterruptMessage`] is what travels between them; [`lowest_priority`] arbitrates;
//! * [`layout`] holds every port, address, pin and frequency, for the guest's ACPI tables too.
//!
//! # The kernel's side of the bargain
//! After a call on the board, take [`Board::take_message`] until `None`, deliver each message to
//! every local APIC that [`LocalApic::matches`] by [`LocalApic::receive`] (or to the one that
//! [`lowest_priority`] names), and look at [`Board::power_event`]. Carry out each [`Effect`] that a
//! local APIC returns in the same way. Keep a timer armed for the earlier of
//! [`Board::next_deadline`] and [`LocalApic::next_deadline`]. No call needs two of the locks.
//!
//! # Invariants
//! * Time is derived, never counted: a device stores when something began and computes the rest,
//!   so a call costs the same however much time has passed.
//! * Work per call is bounded whatever the guest programs. Timers that tick faster than every
//!   100 us, or while nobody looked, deliver once and count the rest as lost.
//! * Queues are bounded: one waiting message a pin, 16 KiB of serial output, 1 KiB of input, 64 KiB of lines to be shown.
//! * No input panics. What no device claims reads all ones, is counted, and its first
//!   occurrences are reported.
//!
//! [`test`] holds devices that no PC has, for VMs that run test kernels and ask for them.
//!
//! There is no HPET and no keyboard controller, and PCI is a host bridge with nothing behind it; reads
//! there give the values that end a kernel's probing at once. Read on in [`apic`] for priorities and modes, in [`board`] for the
//! port map, then in any device: each file names its data sheet.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod acpi_pm;
pub mod apic;
pub mod board;
mod guest_console;
mod ioapic;
pub mod layout;
mod message;
mod pci;
mod pic;
mod pit;
mod rtc;
mod scale;
pub mod test;
mod uart;
mod unclaimed;

pub use access::{AccessSize, Now};
pub use apic::{Activity, ApicConfig, ApicMode, Effect, GeneralProtection, LocalApic, Role};
pub use board::{Board, BoardConfig, PowerEvent, UnclaimedAccess};
pub use guest_console::GuestConsole;
pub use message::{DeliveryMode, Destination, InterruptMessage, TriggerMode, lowest_priority};
