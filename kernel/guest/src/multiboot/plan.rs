//! Where a kernel and its modules lie in the VM's memory.

use alloc::string::String;
use alloc::vec::Vec;
use units::{Gpa, PAGE_BYTES};

use super::error::MultibootError;
use super::image::MultibootImage;
use crate::shape::{DEVICE_HOLE_BASE, E820Entry, HIGH_RAM_BASE, MemoryLayout, VmShape};

/// A module's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedModule {
    /// First byte, on a page boundary.
    pub gpa: Gpa,
    /// Bytes.
    pub bytes: u64,
    /// Its string.
    pub string: String,
}

/// Where everything goes; made by [`plan`], carried out by [`super::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Modules in their order.
    pub modules: Vec<PlacedModule>,
    /// The kernel's command line, its name first.
    pub command_line: String,
    /// The memory map that the kernel will be told.
    pub e820: Vec<E820Entry>,
    /// RAM from 1 MiB to the first hole, in bytes.
    pub upper_bytes: u64,
}

/// Holds the kernel against the VM's memory and finds room for `modules`, given as bytes and string.
///
/// `name` is the kernel's own, with which its command line begins.
///
/// # Errors
/// [`MultibootError`] says what does not fit.
pub fn plan(
    image: &MultibootImage<'_>,
    name: &str,
    command_line: &str,
    modules: &[(u64, &str)],
    shape: &VmShape,
) -> Result<LoadPlan, MultibootError> {
    for segment in &image.segments {
        if !is_ram(&shape.memory, segment.gpa, segment.memory_bytes) {
            return Err(MultibootError::NotInMemory {
                what: "segment",
                gpa: segment.gpa,
                bytes: segment.memory_bytes,
            });
        }
    }
    // As QEMU and GRUB do: a kernel reads its own name there.
    let command_line = if command_line.is_empty() {
        String::from(name)
    } else {
        alloc::format!("{name} {command_line}")
    };
    let strings = modules.iter().map(|(_, string)| *string);
    if command_line.contains('\0') || strings.clone().any(|s| s.contains('\0')) {
        return Err(MultibootError::ZeroByte {
            what: "command line or a module's string",
        });
    }
    let sizes: Vec<u64> = modules.iter().map(|(bytes, _)| *bytes).collect();
    let places = place(&sizes, image.end(), &shape.memory)?;
    let upper_end = shape.memory.ram_end_from(HIGH_RAM_BASE);
    Ok(LoadPlan {
        modules: places
            .into_iter()
            .zip(modules)
            .map(|(gpa, (bytes, string))| PlacedModule {
                gpa,
                bytes: *bytes,
                string: String::from(*string),
            })
            .collect(),
        command_line,
        e820: shape.memory.e820(),
        upper_bytes: upper_end.map_or(0, |end| end.0.min(DEVICE_HOLE_BASE.0) - HIGH_RAM_BASE.0),
    })
}

fn is_ram(memory: &MemoryLayout, gpa: Gpa, bytes: u64) -> bool {
    bytes == 0 || memory.is_ram(gpa, bytes)
}

/// One after the other on page boundaries behind the kernel; behind 1 MiB where the kernel lies below it and
/// they do not fit there.
fn place(
    sizes: &[u64],
    kernel_end: Gpa,
    memory: &MemoryLayout,
) -> Result<Vec<Gpa>, MultibootError> {
    let needs = sizes.iter().try_fold(0_u64, |sum, bytes| {
        sum.checked_add(bytes.checked_next_multiple_of(PAGE_BYTES)?)
    });
    let needs = needs.unwrap_or(u64::MAX);
    if needs == 0 {
        return Ok(sizes.iter().map(|_| kernel_end).collect());
    }
    let behind = Gpa(kernel_end.0.next_multiple_of(PAGE_BYTES));
    let free = |from: Gpa| {
        let end = memory.ram_end_from(from).map_or(0, |end| end.0);
        end.min(DEVICE_HOLE_BASE.0).saturating_sub(from.0)
    };
    let candidates = [behind, behind.max(HIGH_RAM_BASE)];
    let start = candidates.into_iter().find(|from| free(*from) >= needs);
    let start = start.ok_or_else(|| MultibootError::ModulesDoNotFit {
        needs,
        has: candidates.into_iter().map(free).max().unwrap_or(0),
    })?;
    let mut at = start.0;
    Ok(sizes
        .iter()
        .map(|bytes| {
            let gpa = Gpa(at);
            at += bytes.next_multiple_of(PAGE_BYTES);
            gpa
        })
        .collect())
}
