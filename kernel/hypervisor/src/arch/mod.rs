//! The processor, as the rest of the kernel needs to see it.
//!
//! Everything that only exists because the machine is an x86-64 lives in this room: descriptor
//! tables, interrupt entry, page tables of the kernel itself, per-CPU data, the local APIC, time,
//! starting the other processors, and what happens when something goes wrong.
//!
//! Three habits make the room small:
//!
//! * **Interrupt handlers decide nothing.** A timer tick or a kick from another CPU sets a bit in
//!   the CPU's deferred-work word ([`percpu::PerCpu::defer`]) and acknowledges the APIC. The run
//!   loop looks at the word before it enters a guest, and acts there, with the locks it wants.
//! * **What stops the machine takes no lock.** NMI, machine check, exceptions and panics may come
//!   between any two instructions, so [`report`] and everything below it ([`symbols`],
//!   [`crate::console::emergency`]) read only atomics and memory that never changes.
//! * **A register that may be absent is probed, not guessed.** [`msr::read_checked`] survives the #GP
//!   of a model that lacks the register, by the table in [`fixup`].
//!
//! Read [`entry`] for the first instruction, [`percpu`] for what a CPU knows about itself,
//! [`trap`] for what interrupts it, [`smp`] for how the others come up, and [`report`] for how it
//! ends.

pub mod apic;
pub mod backtrace;
pub mod cpu;
pub mod entry;
pub mod fixup;
pub mod gdt;
pub mod idt;
pub mod interrupts;
pub mod msr;
pub mod paging;
pub mod percpu;
pub mod pmu;
pub mod report;
pub mod smp;
pub mod stack;
pub mod stop;
pub mod symbols;
pub mod time;
pub mod timer;
pub mod trap;
pub mod tsc;
pub mod watchdog;
