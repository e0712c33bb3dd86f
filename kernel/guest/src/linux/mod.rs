//! Linux' 64-bit boot protocol: from a bzImage to the first instruction of `startup_64`.
//!
//! The protocol (Linux: Documentation/arch/x86/boot.rst) asks the loader for what firmware and a
//! boot loader do on a PC: the protected-mode kernel at a place that it likes, a zeroed page of
//! `boot_params` with the kernel's own setup header, the memory map, a command line, the initrd,
//! identity-mapping page tables and a GDT with two descriptors. Three steps, so that every refusal
//! comes before a byte is written:
//!
//! 1. [`KernelImage::parse`] checks the file ([`header`](self) fields at their documented offsets);
//! 2. [`plan`] finds room for everything in the VM's memory;
//! 3. [`load`] writes it and returns the register state of the first vCPU.
//!
//! The command line is the configuration's; nothing is added to it. The ACPI tables come from
//! [`crate::acpi::install`]; `boot_params` points to them.

mod error;
mod header;
mod image;
mod plan;

pub use error::LinuxError;
pub use header::KernelImage;
pub use image::load;
pub use plan::{Initrd, LoadPlan, plan};

#[cfg(test)]
mod tests;
