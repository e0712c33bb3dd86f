//! What the loader decides, apart from the firmware it runs under.
//!
//! `boot` is a UEFI application: it reads the kernel, the configuration, guest images and ACPI
//! override tables from the `\perigee` folder of the medium it was started from, leaves boot
//! services and calls the kernel. Talking to firmware needs unsafe code and a machine; deciding
//! needs neither. So the decisions live here, as plain functions over bytes and slices that run
//! under `cargo test -p boot --lib`, and the binary (`main.rs`) only asks firmware and obeys:
//!
//! * [`medium`]: what a path on the medium means, and in which order files are loaded;
//! * [`image`]: a kernel ELF file becomes a checked plan, and the plan a relocated image;
//! * [`acpi_table`]: whether an override table is whole;
//! * [`memory_map`]: firmware's memory map becomes the kernel's, every type with a defined use;
//! * [`tables`]: the page tables that the kernel is entered on;
//! * [`clock`]: firmware's calendar time as seconds since 1970;
//! * [`console`]: whether a line on the screen is on the serial port as well.
//!
//! Invariants: no input, however damaged, makes these functions panic; an error is a value whose
//! `Display` is a sentence with the fix; where two statements about a piece of memory contradict
//! each other, the more careful one wins. The contract with the kernel is the crate `handoff`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi_table;
pub mod clock;
pub mod console;
pub mod image;
pub mod medium;
pub mod memory_map;
pub mod tables;
