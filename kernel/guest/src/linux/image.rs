//! Writes what was planned into guest memory.

use alloc::vec;
use alloc::vec::Vec;
use units::{Gpa, PAGE_BYTES};

use super::error::LinuxError;
use super::header::{KernelImage, field};
use super::plan::{BOOT_PARAMS, COMMAND_LINE, GDT, LoadPlan, PAGE_TABLES, STACK_TOP};
use crate::acpi;
use crate::entry::{EntryState, TableRegister, gpr, long_mode_state};
use crate::memory::GuestMemory;
use crate::shape::FOUR_GIB;

/// `__BOOT_CS` and `__BOOT_DS` (boot.rst, "64-bit Boot Protocol").
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Flat 64-bit code, execute and read; flat data, read and write (SDM 3A 3.4.5).
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];

/// Offsets in `boot_params` outside of the setup header (Linux: Documentation/arch/x86/zero-page.rst).
mod zero_page {
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const EXT_RAMDISK_IMAGE: usize = 0x0C0;
    pub const EXT_RAMDISK_SIZE: usize = 0x0C4;
    pub const E820_ENTRIES: usize = 0x1E8;
    pub const E820_TABLE: usize = 0x2D0;
    pub const E820_ENTRY_BYTES: usize = 20;
    pub const E820_MAX_ENTRIES: usize = 128;
}

/// `type_of_loader` of loaders without a number of their own.
const UNDEFINED_LOADER: u8 = 0xFF;
/// `vid_mode`: "normal".
const VIDEO_NORMAL: u16 = 0xFFFF;

/// Page-table entry bits: present, writable; page size in a directory.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// Writes the kernel, `initrd` (empty for none), the command line, `boot_params`, a GDT and page
/// tables that map the first 4 GiB to themselves; returns the state of the first vCPU.
///
/// Memory that is not written is left alone; it is expected to be zero. The ACPI tables are the
/// business of [`crate::acpi::install`].
///
/// # Errors
/// [`LinuxError::InitrdChanged`] if `initrd` is not the one of the plan, [`LinuxError::Memory`] if the memory
/// is not that of the plan's shape.
pub fn load(
    plan: &LoadPlan,
    image: &KernelImage<'_>,
    initrd: &[u8],
    memory: &impl GuestMemory,
) -> Result<EntryState, LinuxError> {
    let planned = plan.initrd.map_or(0, |i| i.bytes);
    if planned != initrd.len() as u64 {
        return Err(LinuxError::InitrdChanged {
            planned,
            given: initrd.len() as u64,
        });
    }
    memory.write(plan.kernel, image.payload)?;
    if let Some(i) = plan.initrd {
        memory.write(i.gpa, initrd)?;
    }
    memory.write(COMMAND_LINE, &plan.command_line)?;
    memory.write(Gpa(COMMAND_LINE.0 + plan.command_line.len() as u64), &[0])?;
    memory.write(BOOT_PARAMS, &boot_params(plan, image))?;
    let gdt: Vec<u8> = DESCRIPTORS.iter().flat_map(|d| d.to_le_bytes()).collect();
    memory.write(GDT, &gdt)?;
    memory.write(PAGE_TABLES, &identity_tables(PAGE_TABLES))?;

    let gdtr = TableRegister {
        base: GDT.0,
        limit: (gdt.len() - 1) as u16,
    };
    let mut state = long_mode_state(plan.entry.0, PAGE_TABLES.0, gdtr, BOOT_CS, BOOT_DS);
    state.gpr[gpr::RSI] = BOOT_PARAMS.0;
    state.gpr[gpr::RSP] = STACK_TOP.0;
    Ok(state)
}

/// The zero page: the kernel's own setup header with the loader's fields filled in.
fn boot_params(plan: &LoadPlan, image: &KernelImage<'_>) -> Vec<u8> {
    let mut page = vec![0u8; PAGE_BYTES as usize];
    put(&mut page, field::SETUP_SECTS, image.setup_header());
    put(&mut page, field::VID_MODE, &VIDEO_NORMAL.to_le_bytes());
    put(&mut page, field::TYPE_OF_LOADER, &[UNDEFINED_LOADER]);
    put(
        &mut page,
        field::CMD_LINE_PTR,
        &(COMMAND_LINE.0 as u32).to_le_bytes(),
    );
    let (at, bytes) = plan.initrd.map_or((0, 0), |i| (i.gpa.0, i.bytes));
    put(&mut page, field::RAMDISK_IMAGE, &(at as u32).to_le_bytes());
    put(
        &mut page,
        field::RAMDISK_SIZE,
        &(bytes as u32).to_le_bytes(),
    );
    put(
        &mut page,
        zero_page::EXT_RAMDISK_IMAGE,
        &((at >> 32) as u32).to_le_bytes(),
    );
    put(
        &mut page,
        zero_page::EXT_RAMDISK_SIZE,
        &((bytes >> 32) as u32).to_le_bytes(),
    );
    put(
        &mut page,
        zero_page::ACPI_RSDP_ADDR,
        &acpi::RSDP.0.to_le_bytes(),
    );

    let mut entries = 0u8;
    for e in plan.e820.iter().take(zero_page::E820_MAX_ENTRIES) {
        let at = zero_page::E820_TABLE + usize::from(entries) * zero_page::E820_ENTRY_BYTES;
        put(&mut page, at, &e.gpa.0.to_le_bytes());
        put(&mut page, at + 8, &e.bytes.to_le_bytes());
        put(&mut page, at + 16, &(e.kind as u32).to_le_bytes());
        entries += 1;
    }
    put(&mut page, zero_page::E820_ENTRIES, &[entries]);
    page
}

/// Page-map level 4, one page-directory-pointer table and a page directory of 2 MiB pages for each
/// GiB, contiguous from `base` (SDM 3A 4.5).
fn identity_tables(base: Gpa) -> Vec<u8> {
    let gibs = FOUR_GIB.0 >> 30;
    let page = |n: u64| base.0 + n * PAGE_BYTES;
    let mut tables = vec![0u8; ((2 + gibs) * PAGE_BYTES) as usize];
    put(&mut tables, 0, &(page(1) | PRESENT_WRITABLE).to_le_bytes());
    for gib in 0..gibs {
        put(
            &mut tables,
            (PAGE_BYTES + gib * 8) as usize,
            &(page(2 + gib) | PRESENT_WRITABLE).to_le_bytes(),
        );
    }
    for large in 0..gibs * 512 {
        let entry = large << 21 | PRESENT_WRITABLE | LARGE_PAGE;
        put(
            &mut tables,
            (2 * PAGE_BYTES + large * 8) as usize,
            &entry.to_le_bytes(),
        );
    }
    tables
}

fn put(b: &mut [u8], at: usize, data: &[u8]) {
    for (to, from) in b.iter_mut().skip(at).zip(data) {
        *to = *from;
    }
}
