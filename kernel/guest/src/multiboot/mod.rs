//! The Multiboot protocol, version 1: from a 32-bit image to its first instruction.
//!
//! Test kernels, teaching kernels and other hypervisors speak it, because it asks so little of
//! them: a header of three words somewhere in the first 8 KiB, and in return a flat 32-bit machine with
//! a memory map (Multiboot Specification 0.6.96; section numbers below are its own). Three steps, as for
//! Linux, so that every refusal comes before a byte is written:
//!
//! 1. [`MultibootImage::parse`] checks the file: its header (3.1), and its segments, which an ELF file
//!    names in its program headers and a flat file in the header's address fields;
//! 2. [`plan`] holds them against the VM's memory and finds room for modules;
//! 3. [`load`] writes everything and returns the register state of the first vCPU (3.2).
//!
//! What the loader itself has to say (information structure, memory map, strings, a GDT, a stack) goes
//! into the firmware area below 1 MiB, which the memory map reserves: no kernel and no module can lie
//! there, and no kernel overwrites it by taking what it believes to be free memory.
//!
//! Where the specification leaves room this does as QEMU's loader does, because that is what such
//! kernels have been run with: the command line begins with the kernel's name, modules follow the
//! kernel, and [`module_list`] reads a list of them from one string.

mod error;
mod header;
mod image;
mod information;
mod modules;
mod plan;

pub use error::MultibootError;
pub use header::has_header;
pub use image::{MultibootImage, Segment};
pub use information::load;
pub use modules::{ModuleEntry, module_list};
pub use plan::{LoadPlan, PlacedModule, plan};

#[cfg(test)]
mod tests;
