//! What the test guests are made of: a micro-kernel for one virtual machine, and short tests that run in it.
//!
//! A guest is a Multiboot 1 kernel (`boot`), so the hypervisor's loader starts it, and so does a plain emulator,
//! which is how a test proves itself before it judges anybody. It brings up every processor it finds
//! (`smp`), catches exceptions (`trap`), keeps time by counters that it has compared (`clock`), and
//! runs what is registered (`registry`): each test is a function that returns a sentence if it failed. What a
//! judge reads are lines on the first serial port:
//!
//! ```text
//! GUEST-UP cpus=2 kernel=selftest
//! TESTS 40
//! TEST timer-one-shot ok
//! TEST timer-tsc-deadline skipped: CPUID has no TSC deadline
//! TEST ioapic-level FAILED: the line is high, and 1 interrupt came instead of 2
//! GUEST-RESULT failed 1 of 40 tests: ioapic-level
//! ```
//!
//! Command line: `only=WORD,WORD` runs tests whose name contains a word, `not=WORD` leaves some out, `rounds=N` repeats
//! all, `cpus=N` names the processors where there are no ACPI tables. Further words belong to the guest.
#![no_std]
#![expect(
    unsafe_code,
    reason = "a micro-kernel: descriptors, registers, memory as it is"
)]

mod acpi;
pub mod apic;
mod args;
mod boot;
pub mod clock;
pub mod cpu;
pub mod mark;
pub mod page;
mod percpu;
pub mod power;
pub mod registry;
pub mod serial;
pub mod smp;
pub mod trap;

pub use acpi::Tables;
pub use args::{memory_bytes, number, word};
pub use boot::{
    CODE16, CODE32, CODE64, DATA, DATA16, FIRST_TASK, MAX_CPUS, STACK_BYTES, USER_CODE32,
    USER_CODE64, USER_DATA,
};
pub use percpu::{Cpu, cpu as processor, this};
pub use registry::{Test, Verdict, Why};
pub use trap::{Caught, Frame};

/// What the guest's own crate provides: its name, and what it does once all processors are up.
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// What it does; its end is the machine's.
    pub main: fn(),
}

impl core::fmt::Debug for Guest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name)
    }
}

unsafe extern "Rust" {
    /// Defined by [`guest!`].
    safe static KIT_GUEST: Guest;
}

/// Names the guest and its main function.
#[macro_export]
macro_rules! guest {
    ($name:literal, $main:path) => {
        // SAFETY: the kit looks for this one symbol, with this type.
        #[unsafe(no_mangle)]
        #[allow(unsafe_code, reason = "a symbol that the kit finds")]
        static KIT_GUEST: $crate::Guest = $crate::Guest {
            name: $name,
            main: $main,
        };
    };
}

/// What to say when this is the plain emulator without a hypervisor, which forgives more than processors and
/// chips do: a test that needs their strictness cannot prove itself there.
pub fn plain_emulator() -> Option<&'static str> {
    // "TCGTCGTCGTCG".
    let named = cpu::cpuid(0x4000_0000, 0).ebx == 0x5447_4354;
    (cpu::cpuid(1, 0).ecx >> 31 & 1 != 0 && named).then_some("this emulator forgives it")
}

/// What to say when the processors below may be emulated by one that leaves out checks which a hypervisor neither
/// sees nor could make up for; `processor=strict` on the command line says that they are not.
pub fn lenient_processor() -> Option<&'static str> {
    (word("processor") != Some("strict")).then_some("the emulated processor may not check it")
}

/// Every processor comes here in long mode, with its own stack and interrupts off. `info` is the loader's, for the first.
#[unsafe(no_mangle)]
extern "C" fn kit_entry(info: u32, index: u32) -> ! {
    let index = index as usize;
    trap::install(index);
    if index > 0 {
        smp::serve(index);
    }
    args::read(info);
    apic::switch_on();
    clock::calibrate();
    let online = smp::start();
    print!("GUEST-UP cpus={online} kernel={}", KIT_GUEST.name);
    (KIT_GUEST.main)();
    power::off(0)
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    cpu::cli();
    print!("{info}");
    registry::collapse("it panicked")
}
