//! The devices room.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod access;
mod acpi_pm;
pub mod apic;
pub mod board;
mod ioapic;
pub mod layout;
mod message;
mod pic;
mod pit;
mod rtc;
mod rtc_calendar;
mod scale;
mod uart;
mod unclaimed;

pub use access::{AccessSize, Now};
pub use apic::{Activity, ApicConfig, ApicMode, Effect, GeneralProtection, LocalApic, Role};
pub use board::{Board, BoardConfig, PowerEvent, UnclaimedAccess};
pub use message::{DeliveryMode, Destination, InterruptMessage, TriggerMode, lowest_priority};
