//! Out of boot services and into the kernel.
//!
//! Everything the kernel finds is made while firmware still answers: page tables, stack, boot
//! information. Then boot services end, the last memory map is written into memory set aside for
//! it, and a few instructions that are mapped in both worlds switch from one to the other.
#![expect(unsafe_code, reason = "ends boot services, loads CR3 and jumps")]

use alloc::{format, vec, vec::Vec};
use core::{arch::naked_asm, mem};

use handoff::{
    BootInfo, KERNEL_BASE, LOADER_STACK_BYTES, LOADER_STACK_TOP, MAGIC, MemoryKind, MemoryRegion,
    Module, VERSION,
};
use loader::{
    image::Plan,
    medium::Size,
    memory_map::{self, Map, MapFull},
    tables::Layout,
};
use uefi::{
    boot,
    mem::memory_map::{MemoryMap, MemoryType},
};
use x86_64::{
    instructions::interrupts,
    registers::{
        control::{Cr0, Cr0Flags, Cr4, Cr4Flags},
        model_specific::{Efer, EferFlags},
    },
};

use crate::{
    facts,
    files::LoadedFile,
    pages::Pages,
    screen::{self, say},
    story::Failure,
};

/// Ending boot services may split regions; so many more than now are possible.
const SPARE_REGIONS: usize = 64;

/// All that is left to do once nothing can go wrong any more.
pub struct Departure {
    info: &'static mut [BootInfo],
    regions: &'static mut [MemoryRegion],
    own: Vec<(u64, u64, MemoryKind)>,
    tables_phys: u64,
    entry: u64,
}

impl Departure {
    /// Makes everything that the kernel finds when it is entered.
    pub fn prepare(
        started: u64,
        kernel: Pages,
        plan: &Plan<'_>,
        files: &[LoadedFile],
    ) -> Result<Self, Failure> {
        let mut own = vec![(kernel.phys(), kernel.len(), MemoryKind::Kernel)];
        own.extend(
            files
                .iter()
                .map(|f| (f.pages().0, f.pages().1, MemoryKind::Module)),
        );
        let modules = Pages::allocate(
            (files.len() * size_of::<Module>()) as u64,
            "the list of modules",
        )?;
        let modules_phys = modules.phys();
        for (slot, file) in modules.into_array::<Module>().iter_mut().zip(files) {
            *slot = file.module();
        }
        let stack = Pages::allocate(LOADER_STACK_BYTES, "the kernel's first stack")?;
        let info_page = Pages::allocate(size_of::<BootInfo>() as u64, "boot information")?;
        let framebuffer = facts::framebuffer();

        let (region_room, direct_map_end) = measure_memory(own.len())?;
        let region_pages = Pages::allocate(
            (region_room * size_of::<MemoryRegion>()) as u64,
            "the memory map",
        )?;
        let regions_phys = region_pages.phys();

        let jump = switch as *const () as u64;
        let layout = Layout {
            kernel_phys: kernel.phys(),
            segments: plan.segments(),
            stack_phys: stack.phys(),
            direct_map_end,
            framebuffer: (framebuffer.base, framebuffer.bytes),
            jump: (jump / 4096 * 4096, 2),
            gib_pages: facts::has_gib_pages(),
        };
        let pool = Pages::allocate(layout.pool_pages() * 4096, "page tables")?;
        let pool_phys = pool.phys();
        let tables_phys = layout
            .build(pool.into_array(), pool_phys)
            .map_err(|error| {
                Failure(format!(
                    "{error}: this is a defect of Perigee's loader, please report it"
                ))
            })?;

        let info = info_page.into_array::<BootInfo>();
        if let Some(slot) = info.first_mut() {
            *slot = BootInfo {
                magic: MAGIC,
                version: VERSION,
                size_bytes: size_of::<BootInfo>() as u32,
                memory_map: regions_phys,
                memory_map_len: 0,
                modules: modules_phys,
                modules_len: files.len() as u64,
                rsdp: facts::rsdp(),
                kernel_phys: kernel.phys(),
                kernel_bytes: kernel.len(),
                direct_map_end,
                framebuffer,
                tsc_loader_start: started,
                tsc_handoff: 0,
                unix_time_s: facts::unix_time_s(),
            };
            if slot.rsdp == 0 {
                say!(
                    "firmware publishes no ACPI tables: put MADT, SRAT and SLIT into \\perigee\\acpi"
                );
            }
        }
        Ok(Self {
            info,
            regions: region_pages.into_array(),
            own,
            tables_phys,
            entry: KERNEL_BASE + plan.entry(),
        })
    }
}

/// How many regions the final memory map may have, and where the direct map ends.
fn measure_memory(own: usize) -> Result<(usize, u64), Failure> {
    let now = boot::memory_map(MemoryType::LOADER_DATA).map_err(|error| {
        Failure(format!(
            "firmware does not tell its memory map ({}): update the firmware",
            error.status()
        ))
    })?;
    let room = now.len() + 2 * own + SPARE_REGIONS;
    let mut list = vec![memory_map::EMPTY; room];
    let mut map = Map::new(&mut list);
    add_firmware(&mut map, &now)
        .map_err(|error| Failure(format!("{error}: update the firmware")))?;
    Ok((room, memory_map::direct_map_end(map.regions())))
}

fn add_firmware(map: &mut Map<'_>, firmware: &impl MemoryMap) -> Result<(), MapFull> {
    for d in firmware.entries() {
        map.add_firmware(d.phys_start, d.page_count, d.ty.0, d.att.bits())?;
    }
    Ok(())
}

/// Ends boot services and enters the kernel.
pub fn leave(departure: Departure) -> ! {
    let Departure {
        info,
        regions,
        own,
        tables_phys,
        entry,
    } = departure;
    say!("leaving firmware");
    screen::forget_firmware();
    // SAFETY: no protocol and no firmware string is alive here: files and the screen were closed in
    // `prepare` and before it. What stays in use is EfiLoaderData, which firmware does not touch.
    let firmware = unsafe { boot::exit_boot_services(Some(MemoryType::LOADER_DATA)) };
    interrupts::disable();

    let mut map = Map::new(regions);
    let filled = add_firmware(&mut map, &firmware).and_then(|()| {
        own.iter()
            .try_for_each(|(base, bytes, kind)| map.add_own(*base, *bytes, *kind))
    });
    // The heap ended with boot services: what lives there stays until the kernel reuses the memory.
    mem::forget((firmware, own));
    if let Err(error) = filled {
        stop(error);
    }
    let regions = map.finish();
    let usable = regions
        .iter()
        .filter(|r| r.kind() == MemoryKind::Usable)
        .map(|r| r.bytes)
        .sum();
    say!(
        "{} usable in {} regions, entering the kernel",
        Size(usable),
        regions.len()
    );

    let Some(slot) = info.first_mut() else {
        stop("the page for boot information is empty")
    };
    slot.memory_map_len = regions.len() as u64;
    slot.tsc_handoff = facts::tsc();
    let info_phys = core::ptr::from_mut(slot) as u64;

    // SAFETY: `require_cpu` found execute-disable and four-level paging. CR0.WP makes read-only pages
    // hold in ring 0, which none of the loader's remaining writes meets; without CR4.PGE, PCIDE and CET
    // the load of CR3 leaves nothing of firmware's address space behind (SDM 3A 4.10.4.1).
    unsafe {
        Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE));
        Cr4::update(|cr4| {
            cr4.remove(Cr4Flags::CONTROL_FLOW_ENFORCEMENT | Cr4Flags::PAGE_GLOBAL | Cr4Flags::PCID)
        });
        Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT));
    }
    // SAFETY: the tables map this function's pages where they are now, the stack below
    // `LOADER_STACK_TOP` and the kernel's entry, which follows the contract in `handoff`.
    unsafe { switch(tables_phys, LOADER_STACK_TOP - 8, entry, info_phys) }
}

/// Says what is wrong where firmware can no longer be returned to.
fn stop(reason: impl core::fmt::Display) -> ! {
    say!("cannot boot: {reason}");
    loop {
        x86_64::instructions::hlt();
    }
}

/// Loads CR3 and the stack pointer, and jumps with the boot information's address in `rdi`. The word
/// at the stack pointer is zero: to the kernel's entry it looks like the return address of a call
/// from nowhere, which aligns the stack as the System V ABI asks and ends a backtrace.
///
/// # Safety
/// `tables` maps this function at its present address, and what `stack` and `entry` point to.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(tables: u64, stack: u64, entry: u64, info: u64) -> ! {
    naked_asm!(
        "mov cr3, rdi",
        "mov rsp, rsi",
        "mov rdi, rcx",
        "xor ebp, ebp",
        "jmp rdx",
    )
}
