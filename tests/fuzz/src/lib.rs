//! Fuzz targets: what a stranger's bytes can reach, each with the invariants that must hold.
//!
//! A target is a function of bytes. It builds the input of one door of Perigee from them, goes
//! through, and asserts what the crate behind it promises: not only that nothing panics, but that
//! results are consistent, work is bounded and errors change nothing. [`Input`] reads the bytes front to
//! back; where they end it gives zeros, so that any prefix is an input too.
//!
//! * `cargo xtask fuzz [TARGET] [--seconds N]` searches for inputs that break a target, by libFuzzer.
//! * `corpus/TARGET` keeps inputs: the [`seeds`], what once broke something (`found-*`), and what the search
//!   found worth keeping. `cargo xtask test host/fuzz` replays all of them on the stable toolchain.
//!
//! A panic is the finding, so these crates assert freely.
#![forbid(unsafe_code)]

mod acpi;
mod board;
mod boot_info;
mod bzimage;
mod config;
mod cpu;
mod emulator;
mod input;
mod kernel_elf;
mod local_apic;
mod memory;
mod multiboot;
mod operands;
mod regions;
pub mod seeds;
mod tables;
mod walk;

pub use input::Input;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Goes through with these bytes; panics if an invariant does not hold.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 14] = [
    Target {
        name: "acpi",
        run: acpi::run,
    },
    Target {
        name: "config",
        run: config::run,
    },
    Target {
        name: "kernel_elf",
        run: kernel_elf::run,
    },
    Target {
        name: "boot_info",
        run: boot_info::run,
    },
    Target {
        name: "bzimage",
        run: bzimage::run,
    },
    Target {
        name: "multiboot",
        run: multiboot::run,
    },
    Target {
        name: "emulator",
        run: emulator::run,
    },
    Target {
        name: "walk",
        run: walk::run,
    },
    Target {
        name: "operands",
        run: operands::run,
    },
    Target {
        name: "regions",
        run: regions::run,
    },
    Target {
        name: "tables",
        run: tables::run,
    },
    Target {
        name: "board",
        run: board::run,
    },
    Target {
        name: "local_apic",
        run: local_apic::run,
    },
    Target {
        name: "cpu",
        run: cpu::run,
    },
];

/// The target with this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
