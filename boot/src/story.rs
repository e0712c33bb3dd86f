//! The loader's way through the boot, step by step.

use alloc::{format, string::String, vec::Vec};
use core::time::Duration;

use handoff::KERNEL_BASE;
use loader::{acpi_table, image, medium};
use uefi::{Status, boot, entry};

use crate::{
    facts,
    files::{self, LoadedFile, Volume},
    leave::{self, Departure},
    pages::Pages,
    screen::say,
};

/// How long a failure stays on the screen before firmware goes on.
const FAILURE_SHOWN: Duration = Duration::from_secs(5);

/// A sentence that says what stops the boot and what to do about it.
pub struct Failure(pub String);

#[entry]
fn main() -> Status {
    let started = facts::tsc();
    // Firmware resets a machine whose loader takes five minutes (UEFI 2.10, 7.5): a slow medium
    // may. Where there is no watchdog there is nothing to switch off.
    let _no_watchdog = boot::set_watchdog_timer(0, 0x1_0000, None);
    crate::screen::init();
    say!("Perigee {} loader", env!("CARGO_PKG_VERSION"));
    match load(started) {
        Ok(departure) => leave::leave(departure),
        Err(Failure(sentence)) => {
            crate::screen::end_line();
            say!("cannot boot: {sentence}");
            say!(
                "back to firmware in {} s, or at a key",
                FAILURE_SHOWN.as_secs()
            );
            crate::screen::wait_for_key(FAILURE_SHOWN);
            Status::LOAD_ERROR
        }
    }
}

/// Everything that can still fail: on return only the leap itself is left to do.
fn load(started: u64) -> Result<Departure, Failure> {
    facts::require_cpu()?;
    let mut volume = Volume::of_this_application()?;
    let mut modules = Vec::new();
    let kernel_file = volume.load(medium::KERNEL)?;
    let (kernel, plan) = build_kernel(&kernel_file)?;
    modules.push(kernel_file);
    modules.push(volume.load(medium::CONFIG)?);
    for path in volume.list(medium::ACPI)? {
        modules.extend(whole_table(volume.load(&path)?));
    }
    for path in volume.list(medium::GUESTS)? {
        modules.push(volume.load(&path)?);
    }
    Departure::prepare(started, kernel, &plan, &modules)
}

/// Turns the kernel's file into the image that runs.
fn build_kernel(file: &LoadedFile) -> Result<(Pages, image::Plan<'static>), Failure> {
    let broken = |error: image::ImageError| {
        Failure(format!(
            "\\perigee\\{}: {error}. Copy kernel.elf of this Perigee release to the medium again",
            medium::KERNEL
        ))
    };
    let plan = image::plan(file.contents()).map_err(broken)?;
    let mut kernel = Pages::allocate(plan.image_bytes(), "the kernel image")?;
    let relocations = plan
        .build(KERNEL_BASE, kernel.bytes_mut())
        .map_err(broken)?;
    say!(
        "kernel image {} at {:#x}, entry +{:#x}, {relocations} relocations",
        medium::Size(kernel.len()),
        kernel.phys(),
        plan.entry()
    );
    Ok((kernel, plan))
}

/// An override table, unless it is damaged: then it is named and left out.
fn whole_table(file: LoadedFile) -> Option<LoadedFile> {
    match acpi_table::check(file.contents()) {
        Ok(signature) => {
            say!(
                "{} overrides ACPI table {}",
                file.path(),
                files::ascii(&signature)
            );
            Some(file)
        }
        Err(error) => {
            say!(
                "{} is skipped, firmware's table stays: {error}",
                file.path()
            );
            None
        }
    }
}
