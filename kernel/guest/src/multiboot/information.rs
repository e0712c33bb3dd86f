//! Writes kernel, modules and boot information into guest memory.

use alloc::vec::Vec;
use units::{Gpa, PAGE_BYTES};

use super::error::MultibootError;
use super::image::MultibootImage;
use super::plan::LoadPlan;
use crate::acpi;
use crate::entry::{EntryState, TableRegister, gpr, protected_mode_state};
use crate::memory::GuestMemory;
use crate::shape::{FIRMWARE_BASE, LOW_RAM_END};

/// The loader's area: from here up to the stack's page, which the ACPI tables follow.
const AREA: Gpa = FIRMWARE_BASE;
/// A stack for kernels that push before they have set up their own. The specification promises none (3.2).
const STACK_TOP: Gpa = acpi::RSDP;
/// Room for everything but the stack.
const AREA_BYTES: u64 = STACK_TOP.0 - PAGE_BYTES - AREA.0;

/// What EAX holds at the entry (3.2).
const BOOTLOADER_MAGIC: u64 = 0x2BAD_B002;
const BOOTLOADER_NAME: &[u8] = b"Perigee\0";
/// Selectors as QEMU's loader leaves them: flat 32-bit code and data, then 16-bit ones for real-mode code.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
/// Null; flat 32-bit code and data; 64 KiB of 16-bit code and data (SDM 3A 3.4.5).
const DESCRIPTORS: [u64; 5] = [
    0,
    0x00CF_9B00_0000_FFFF,
    0x00CF_9300_0000_FFFF,
    0x0000_9B00_0000_FFFF,
    0x0000_9300_0000_FFFF,
];

/// Flags of the information structure (3.3): which of its fields hold.
mod flag {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// Offsets in the information structure (3.3).
mod field {
    pub const FLAGS: usize = 0;
    pub const MEM_LOWER: usize = 4;
    pub const MEM_UPPER: usize = 8;
    pub const CMDLINE: usize = 16;
    pub const MODS_COUNT: usize = 20;
    pub const MODS_ADDR: usize = 24;
    pub const MMAP_LENGTH: usize = 44;
    pub const MMAP_ADDR: usize = 48;
    pub const BOOT_LOADER_NAME: usize = 64;
    /// Bytes of the structure with all its optional parts.
    pub const END: usize = 120;
}

/// Writes the kernel, `modules` (the files, in the plan's order) and the boot information; returns the
/// state of the first vCPU.
///
/// # Errors
/// [`MultibootError::ModulesChanged`] if the files are not those of the plan,
/// [`MultibootError::InformationDoesNotFit`] if strings and map are larger than their area,
/// [`MultibootError::Memory`] if the memory is not that of the plan's shape. The first two come before
/// anything is written.
pub fn load(
    plan: &LoadPlan,
    image: &MultibootImage<'_>,
    modules: &[&[u8]],
    memory: &impl GuestMemory,
) -> Result<EntryState, MultibootError> {
    let same = plan.modules.len() == modules.len()
        && plan
            .modules
            .iter()
            .zip(modules)
            .all(|(planned, given)| planned.bytes == given.len() as u64);
    if !same {
        return Err(MultibootError::ModulesChanged);
    }
    let area = Area::of(plan);
    if area.bytes.len() as u64 > AREA_BYTES {
        return Err(MultibootError::InformationDoesNotFit {
            needs: area.bytes.len() as u64,
            has: AREA_BYTES,
        });
    }
    for segment in &image.segments {
        memory.write(segment.gpa, segment.bytes)?;
        clear(
            memory,
            Gpa(segment.gpa.0 + segment.bytes.len() as u64),
            segment.end(),
        )?;
    }
    for (place, bytes) in plan.modules.iter().zip(modules) {
        memory.write(place.gpa, bytes)?;
    }
    memory.write(AREA, &area.bytes)?;

    let gdtr = TableRegister {
        base: AREA.0 + area.gdt as u64,
        limit: (DESCRIPTORS.len() * 8 - 1) as u16,
    };
    let mut state = protected_mode_state(image.entry.0, gdtr, CODE, DATA);
    state.gpr[gpr::RAX] = BOOTLOADER_MAGIC;
    state.gpr[gpr::RBX] = AREA.0 + area.information as u64;
    state.gpr[gpr::RSP] = STACK_TOP.0;
    Ok(state)
}

/// The segment's memory behind what the file holds; another segment may have been there.
fn clear(memory: &impl GuestMemory, from: Gpa, to: Gpa) -> Result<(), MultibootError> {
    let zeros = [0_u8; PAGE_BYTES as usize];
    let mut at = from.0;
    while at < to.0 {
        let bytes = (to.0 - at).min(PAGE_BYTES);
        memory.write(Gpa(at), zeros.get(..bytes as usize).unwrap_or(&zeros))?;
        at += bytes;
    }
    Ok(())
}

/// The loader's area while it grows.
struct Area {
    bytes: Vec<u8>,
    information: usize,
    gdt: usize,
}

impl Area {
    fn of(plan: &LoadPlan) -> Self {
        let mut area = Self {
            bytes: Vec::new(),
            information: 0,
            gdt: 0,
        };
        let gdt: Vec<u8> = DESCRIPTORS.iter().flat_map(|d| d.to_le_bytes()).collect();
        area.gdt = area.put(&gdt);
        area.information = area.put(&[0; field::END]);

        let command_line = area.string(&plan.command_line);
        let loader = area.put(BOOTLOADER_NAME);
        let mut list = Vec::new();
        for module in &plan.modules {
            let string = area.string(&module.string);
            let words = [
                module.gpa.0 as u32,
                (module.gpa.0 + module.bytes) as u32,
                Self::address(string),
                0,
            ];
            list.extend(words.into_iter().flat_map(u32::to_le_bytes));
        }
        let modules = area.put(&list);
        // Each entry says how many bytes follow the word that says so (3.3, mmap_length).
        let mut map = Vec::new();
        for entry in &plan.e820 {
            map.extend(20_u32.to_le_bytes());
            map.extend(entry.gpa.0.to_le_bytes());
            map.extend(entry.bytes.to_le_bytes());
            map.extend((entry.kind as u32).to_le_bytes());
        }
        let map_at = area.put(&map);

        let flags = flag::MEMORY
            | flag::COMMAND_LINE
            | flag::MODULES
            | flag::MEMORY_MAP
            | flag::LOADER_NAME;
        area.set(field::FLAGS, flags);
        area.set(field::MEM_LOWER, (LOW_RAM_END.0 >> 10) as u32);
        area.set(field::MEM_UPPER, (plan.upper_bytes >> 10) as u32);
        area.set(field::CMDLINE, Self::address(command_line));
        area.set(field::MODS_COUNT, plan.modules.len() as u32);
        area.set(field::MODS_ADDR, Self::address(modules));
        area.set(field::MMAP_LENGTH, map.len() as u32);
        area.set(field::MMAP_ADDR, Self::address(map_at));
        area.set(field::BOOT_LOADER_NAME, Self::address(loader));
        area
    }

    /// Appends on a 16-byte boundary; the offset.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let at = self.bytes.len().next_multiple_of(16);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytes);
        at
    }

    fn string(&mut self, text: &str) -> usize {
        let at = self.put(text.as_bytes());
        self.bytes.push(0);
        at
    }

    /// Sets a field of the information structure.
    fn set(&mut self, field: usize, value: u32) {
        let at = self.information + field;
        for (to, from) in self.bytes.iter_mut().skip(at).zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn address(offset: usize) -> u32 {
        (AREA.0 + offset as u64) as u32
    }
}
