//! Where everything goes in the VM's memory.

use alloc::vec::Vec;
use units::{Gpa, PAGE_BYTES};

use super::error::LinuxError;
use super::header::KernelImage;
use crate::shape::{DEVICE_HOLE_BASE, E820Entry, FOUR_GIB, HIGH_RAM_BASE, MemoryLayout, VmShape};

/// The global descriptor table.
pub(super) const GDT: Gpa = Gpa(0x6000);
/// `boot_params`, one page.
pub(super) const BOOT_PARAMS: Gpa = Gpa(0x7000);
/// A page of stack; Linux switches to one of its own before the first push.
pub(super) const STACK_TOP: Gpa = Gpa(0x9000);
/// Page-map level 4, page-directory pointers and four page directories follow each other.
pub(super) const PAGE_TABLES: Gpa = Gpa(0x9000);
/// The command line, with its final zero.
pub(super) const COMMAND_LINE: Gpa = Gpa(0x2_0000);
/// Room for it.
const COMMAND_LINE_BYTES: u64 = 0x1_0000;
/// Offset of `startup_64` in the protected-mode kernel (boot.rst, "64-bit Boot Protocol").
const STARTUP_64: u64 = 0x200;

/// The initrd's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// First byte.
    pub gpa: Gpa,
    /// Bytes.
    pub bytes: u64,
}

/// Where everything goes; made by [`plan`], carried out by [`super::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// First byte of the protected-mode kernel.
    pub kernel: Gpa,
    /// Bytes from there that the kernel needs while it starts.
    pub kernel_bytes: u64,
    /// The first instruction.
    pub entry: Gpa,
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// The command line without its final zero.
    pub command_line: Vec<u8>,
    /// The memory map that the kernel will be told.
    pub e820: Vec<E820Entry>,
}

/// Finds room for the kernel, an initrd of `initrd_bytes` (0 for none) and the command line.
///
/// # Errors
/// [`LinuxError`] says what does not fit.
pub fn plan(
    image: &KernelImage<'_>,
    initrd_bytes: u64,
    command_line: &str,
    shape: &VmShape,
) -> Result<LoadPlan, LinuxError> {
    let limit = image.cmdline_size.min(COMMAND_LINE_BYTES - 1);
    if command_line.len() as u64 > limit {
        return Err(LinuxError::CommandLineTooLong {
            has: command_line.len() as u64,
            limit,
        });
    }
    if let Some(at) = command_line.bytes().position(|b| b == 0) {
        return Err(LinuxError::CommandLineZero { at: at as u64 });
    }
    let kernel = place_kernel(image, &shape.memory)?;
    let initrd = if initrd_bytes == 0 {
        None
    } else {
        Some(place_initrd(
            image,
            initrd_bytes,
            Gpa(kernel.0 + image.init_size),
            &shape.memory,
        )?)
    };
    Ok(LoadPlan {
        kernel,
        kernel_bytes: image.init_size,
        entry: Gpa(kernel.0 + STARTUP_64),
        initrd,
        command_line: command_line.as_bytes().to_vec(),
        e820: shape.memory.e820(),
    })
}

/// At its preferred address: a relocatable kernel that is loaded lower moves itself there anyway,
/// and higher is never better, since RAM from 1 MiB up to 3 GiB is contiguous.
fn place_kernel(image: &KernelImage<'_>, memory: &MemoryLayout) -> Result<Gpa, LinuxError> {
    let at = Gpa(image.pref_address);
    // A preferred address that is not aligned is for the kernel to honour or not; aligning up is safe if
    // it is relocatable.
    let at = match at.0.checked_next_multiple_of(image.alignment) {
        Some(aligned) if image.relocatable => Gpa(aligned),
        _ => at,
    };
    let has = memory
        .ram_end_from(at)
        .filter(|end| *end <= DEVICE_HOLE_BASE)
        .map_or(0, |end| end.0 - at.0);
    if has < image.init_size {
        return Err(LinuxError::KernelDoesNotFit {
            needs: image.init_size,
            from: at.0,
            has,
        });
    }
    Ok(at)
}

/// As high as possible below 3 GiB, so that it is out of the kernel's way; above 4 GiB when there
/// is no room and the kernel can find it there.
fn place_initrd(
    image: &KernelImage<'_>,
    bytes: u64,
    kernel_end: Gpa,
    memory: &MemoryLayout,
) -> Result<Initrd, LinuxError> {
    let low_end = memory
        .ram_end_from(HIGH_RAM_BASE)
        .map_or(0, |e| e.0)
        .min(image.initrd_addr_max.saturating_add(1));
    let low_room = low_end.saturating_sub(kernel_end.0.next_multiple_of(PAGE_BYTES));
    if let Some(start) = low_end
        .checked_sub(bytes)
        .map(|s| s & !(PAGE_BYTES - 1))
        .filter(|s| *s >= kernel_end.0)
    {
        return Ok(Initrd {
            gpa: Gpa(start),
            bytes,
        });
    }
    let high_end = memory.ram_end_from(FOUR_GIB).filter(|_| image.above_4g);
    let high_room = high_end.map_or(0, |e| e.0 - FOUR_GIB.0);
    if let Some(end) = high_end.filter(|_| high_room >= bytes) {
        return Ok(Initrd {
            gpa: Gpa((end.0 - bytes) & !(PAGE_BYTES - 1)),
            bytes,
        });
    }
    Err(LinuxError::InitrdDoesNotFit {
        needs: bytes,
        has: low_room.max(high_room),
    })
}
