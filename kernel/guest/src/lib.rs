//! Everything that makes a stock Linux run as a guest, and nothing that needs a CPU to do it.
//!
//! A guest is born, asks questions, and now and then touches something that is not there. The
//! hypervisor has to answer as a machine would. All of those answers are decisions about bytes
//! and numbers, so they live here, pure and testable on any host; `hypervisor` only carries them
//! out. Guest memory is reached through one door, [`GuestMemory`], which the kernel implements
//! over the VM's frames and the tests over a `Vec`.
//!
//! * **Birth.** [`shape`] says what the machine is: processors, memory, virtual nodes.
//!   [`linux`] checks a bzImage and loads it by the 64-bit boot protocol, [`multiboot`] does the
//!   same for a 32-bit kernel; [`acpi`] writes the tables that describe the board; [`entry`] holds register states: the kernel's entry, the
//!   reset state, and that of a processor woken by SIPI.
//! * **Questions.** [`cpuid`] and [`msr`] are policies as tables. Both deny by default: a guest
//!   sees what somebody decided it may see, and a bit that a future CPU invents is off.
//!   [`pvclock`] gives the bytes of the KVM-compatible clock and steal-time pages.
//! * **Touching.** [`walk`] translates guest-virtual addresses as the processor would, [`mmio`]
//!   decodes and executes the instruction behind a device access, [`inject`] says what
//!   becomes of an exception that meets another one on its way, and [`task_switch`] does what hardware
//!   leaves to software. [`operands`] says what a guest that stopped is about to touch next.
//!
//! Invariants:
//! * No input panics: images, tables, instruction bytes, page tables and register values are all
//!   the guest's or a stranger's. Errors are values whose `Display` is a sentence.
//! * The board's addresses come from [`devices::layout`]; none is repeated here.
//! * What [`cpuid`] shows, [`msr`] and the masks for CR4, XCR0, EFER and XSS agree with, because
//!   both are derived from the same policy.
//!
//! Read [`shape`] first, then [`linux`]; the policies can be read alone.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod cpuid;
pub mod entry;
pub mod inject;
pub mod linux;
pub mod memory;
pub mod mmio;
pub mod msr;
pub mod multiboot;
pub mod operands;
pub mod pvclock;
pub mod shape;
pub mod speculation;
pub mod task_switch;
pub mod walk;

pub use entry::EntryState;
pub use memory::{GuestMemory, OutOfRange, VecMemory};
pub use shape::{MemoryLayout, VmShape};
