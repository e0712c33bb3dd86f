//! The tables that tell a guest what board it runs on.
//!
//! All of them form one block of bytes in the memory that [`crate::shape`] sets aside below 1 MiB.
//! The RSDP is its first structure, on a 16-byte boundary from 0xE0000 on, where a kernel finds it
//! by scanning; `boot_params` names it as well. From there: XSDT, then FADT (with FACS and DSDT),
//! MADT, and for a machine of several nodes SRAT and SLIT.
//!
//! The addresses are those of [`devices::layout`], whose introduction also says what the tables
//! must claim. Structures are written field by field from the ACPI specification 6.5; the chapter
//! stands at each. There is no HPET, no PCI root bridge and no processor object: the MADT is
//! enough for Linux, and an object nobody implements makes noise.

mod aml;
mod dsdt;
mod fadt;
mod madt;
mod numa;
mod table;

use alloc::vec::Vec;
use units::Gpa;

use crate::memory::{GuestMemory, OutOfRange};
use crate::shape::{HIGH_RAM_BASE, VmShape};
use table::Table;

/// Where the RSDP is: the first byte of the BIOS area that kernels scan (ACPI 6.5, 5.2.5.1).
pub const RSDP: Gpa = Gpa(0xE_0000);
/// Room for all tables; a machine of the most vCPUs and nodes needs less than two thirds of it.
pub const AREA_BYTES: u64 = HIGH_RAM_BASE.0 - RSDP.0;

/// All tables as one block of bytes, linked by their final addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Where the block goes; the RSDP is its first structure.
    pub gpa: Gpa,
    /// The bytes, at most [`AREA_BYTES`].
    pub bytes: Vec<u8>,
    /// Signature, offset and length of each structure in `bytes`, for inspection.
    pub directory: Vec<([u8; 4], usize, usize)>,
}

/// Builds the tables of a machine.
#[must_use]
pub fn build(shape: &VmShape) -> Tables {
    let mut block = Block {
        tables: Tables {
            gpa: RSDP,
            bytes: Vec::new(),
            directory: Vec::new(),
        },
    };
    // The RSDP comes first, but points to the rest: room now, bytes at the end.
    block.place(*b"RSDP", &[0; table::RSDP_BYTES], 16);
    let facs = block.place(*b"FACS", &fadt::facs(), 64);
    let dsdt = block.add(dsdt::dsdt());
    let mut listed = Vec::new();
    listed.push(block.add(fadt::fadt(facs, dsdt)));
    listed.push(block.add(madt::madt(shape)));
    if shape.nodes.len() > 1 {
        listed.push(block.add(numa::srat(shape)));
        listed.push(block.add(numa::slit(shape)));
    }
    let mut xsdt = Table::new(*b"XSDT", 1);
    for gpa in listed {
        xsdt.u64(gpa.0);
    }
    let xsdt = block.add(xsdt);
    for (to, from) in block.tables.bytes.iter_mut().zip(table::rsdp(xsdt)) {
        *to = from;
    }
    block.tables
}

/// Builds the tables of a machine and writes them into its memory.
///
/// # Errors
/// [`OutOfRange`] if `memory` is not laid out as `shape` says.
pub fn install(shape: &VmShape, memory: &impl GuestMemory) -> Result<(), OutOfRange> {
    let tables = build(shape);
    memory.write(tables.gpa, &tables.bytes)
}

/// The block while it grows.
struct Block {
    tables: Tables,
}

impl Block {
    /// Appends a structure at the next multiple of `alignment` and says where it will be.
    fn place(&mut self, signature: [u8; 4], bytes: &[u8], alignment: usize) -> Gpa {
        let offset = self.tables.bytes.len().next_multiple_of(alignment);
        self.tables.bytes.resize(offset, 0);
        self.tables.bytes.extend_from_slice(bytes);
        self.tables.directory.push((signature, offset, bytes.len()));
        Gpa(self.tables.gpa.0 + offset as u64)
    }

    fn add(&mut self, table: Table) -> Gpa {
        let signature = table.signature();
        self.place(signature, &table.finish(), 16)
    }
}

#[cfg(test)]
mod tests;
