//! What the loader handed over, copied into the kernel's own memory.
#![expect(
    unsafe_code,
    reason = "the loader's structures are host-physical addresses"
)]

use alloc::vec::Vec;
use core::ops::Range;
use core::slice;

use handoff::{BootInfo, BootInfoError, MemoryKind, MemoryRegion, Module, ModuleKind};
use spin::Once;
use units::{Hpa, PAGE_BYTES};

use super::{direct, direct_map, early};

static INFO: Once<BootInfo> = Once::new();
static REGIONS: Once<Vec<MemoryRegion>> = Once::new();
static MODULES: Once<Vec<Module>> = Once::new();

/// Takes over memory from the loader: from here on [`super::alloc`] gives frames from memory that no
/// firmware and no loader uses, of whatever node they are. (The heap works before, as far as the
/// kernel image's first block reaches.)
///
/// # Errors
/// The boot information is not what this kernel understands; nothing works then.
///
/// # Safety
/// Called once, first of all, on the boot processor, with the loader's page tables or their equal in
/// force, and `info` is what the loader passed.
pub unsafe fn init_early(info: &BootInfo) -> Result<(), BootInfoError> {
    info.check()?;
    direct_map::init(info);
    // SAFETY: `check` found both lists inside the direct map; the loader filled them, in memory of kind
    // `Handoff`, which nobody reuses before `release_boot_memory`. Both structures are integers only.
    let (regions, modules) = unsafe {
        (
            slice::from_raw_parts(
                direct(Hpa(info.memory_map)).cast(),
                info.memory_map_len as usize,
            ),
            match info.modules_len {
                0 => &[],
                len => slice::from_raw_parts(direct(Hpa(info.modules)).cast(), len as usize),
            },
        )
    };
    early::init(regions);
    INFO.call_once(|| *info);
    let modules = MODULES.call_once(|| whole(modules, info.direct_map_end));
    let stays = |m: &&Module| {
        matches!(
            m.kind(),
            Some(ModuleKind::KernelElf | ModuleKind::GuestImage)
        )
    };
    let pages = |m: &Module| m.base..(m.base + m.bytes).next_multiple_of(PAGE_BYTES);
    let files: Vec<Range<u64>> = modules.iter().filter(stays).map(pages).collect();
    REGIONS.call_once(|| files.iter().fold(regions.to_vec(), keep));
    Ok(())
}

/// The modules that lie where the direct map reaches.
fn whole(modules: &[Module], direct_map_end: u64) -> Vec<Module> {
    let fits = |m: &&Module| {
        m.base != 0
            && m.base
                .checked_add(m.bytes)
                .is_some_and(|end| end <= direct_map_end)
    };
    modules.iter().filter(fits).copied().collect()
}

/// The memory map, with a file marked as the kernel's. The symbols of its ELF file are read when something goes
/// wrong, which may be at any time; guests' images are loaded again whenever their VM starts again.
fn keep(regions: Vec<MemoryRegion>, file: &Range<u64>) -> Vec<MemoryRegion> {
    let mut kept = Vec::with_capacity(regions.len() + 2);
    for region in &regions {
        let start = file.start.clamp(region.base, region.end());
        let end = file.end.clamp(start, region.end());
        let parts = [
            (region.base, start, region.kind),
            (start, end, MemoryKind::Kernel as u32),
            (end, region.end(), region.kind),
        ];
        for (from, to, kind) in parts {
            if from < to {
                kept.push(MemoryRegion {
                    base: from,
                    bytes: to - from,
                    kind,
                    ..*region
                });
            }
        }
    }
    kept
}

/// What the loader said about the machine.
///
/// # Panics
/// Before [`init_early`], which is among the kernel's first acts.
pub fn boot_info() -> &'static BootInfo {
    INFO.get()
        .expect("init_early ran before anything that asks")
}

/// The loader's memory map, ascending, without overlaps; empty before [`init_early`]. The kernel's own ELF
/// file and the guests' images count as kernel here.
pub fn memory_map() -> &'static [MemoryRegion] {
    REGIONS.get().map_or(&[], Vec::as_slice)
}

/// The files that the loader read, in its order. Their contents are gone after
/// [`super::release_boot_memory`], except those of the kernel's own ELF file and of guests' images.
pub fn modules() -> &'static [Module] {
    MODULES.get().map_or(&[], Vec::as_slice)
}
