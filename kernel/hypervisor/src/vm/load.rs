//! Kernel, modules and tables into a VM's memory, by the boot protocol that its configuration names.

use super::{GuestRam, Images};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use config::BootProtocol;
use core::fmt::Display;
use guest::linux::{self, KernelImage, LinuxError};
use guest::multiboot::{self, MultibootError, MultibootImage};
use guest::{EntryState, VmShape};
use units::Gpa;

/// Fills a VM's memory and says in which state its first virtual CPU starts.
///
/// # Errors
/// A sentence that names the VM, the file and what is wrong with it.
pub fn load<F>(
    config: &config::Vm,
    images: &impl Images,
    shape: &VmShape,
    ram: &GuestRam<F>,
) -> Result<EntryState, String>
where
    F: memory::table::TableFormat<Address = Gpa>,
{
    let kernel = find(config, images, "kernel", &config.kernel)?;
    let entry = match config.boot {
        BootProtocol::Linux => linux(config, images, kernel, shape, ram),
        BootProtocol::Multiboot => multiboot(config, images, kernel, shape, ram),
    }?;
    guest::acpi::install(shape, ram).map_err(|e| about(config, "ACPI tables", &e))?;
    Ok(entry)
}

fn linux<F>(
    config: &config::Vm,
    images: &impl Images,
    kernel: &[u8],
    shape: &VmShape,
    ram: &GuestRam<F>,
) -> Result<EntryState, String>
where
    F: memory::table::TableFormat<Address = Gpa>,
{
    let refused = |e: LinuxError| about(config, &config.kernel, &e);
    let initrd = match &config.initrd {
        Some(name) => find(config, images, "initrd", name)?,
        None => &[],
    };
    let image = KernelImage::parse(kernel).map_err(|e| {
        let sentence = refused(e.clone());
        if e == LinuxError::NotBzImage && multiboot::has_header(kernel) {
            format!("{sentence}. It is a Multiboot kernel: `boot = \"multiboot\"` loads it")
        } else {
            sentence
        }
    })?;
    let plan = linux::plan(&image, initrd.len() as u64, &config.append, shape).map_err(refused)?;
    linux::load(&plan, &image, initrd, ram).map_err(refused)
}

fn multiboot<F>(
    config: &config::Vm,
    images: &impl Images,
    kernel: &[u8],
    shape: &VmShape,
    ram: &GuestRam<F>,
) -> Result<EntryState, String>
where
    F: memory::table::TableFormat<Address = Gpa>,
{
    let refused = |e: MultibootError| about(config, &config.kernel, &e);
    let image = MultibootImage::parse(kernel).map_err(|e| {
        let sentence = refused(e.clone());
        if e == MultibootError::NoHeader && KernelImage::parse(kernel).is_ok() {
            format!(
                "{sentence}. It is a Linux bzImage: leave `boot` out, or write `boot = \"linux\"`"
            )
        } else {
            sentence
        }
    })?;
    let entries = match &config.initrd {
        Some(list) => multiboot::module_list(list).map_err(|e| about(config, "initrd", &e))?,
        None => Vec::new(),
    };
    let mut files = Vec::with_capacity(entries.len());
    for entry in &entries {
        files.push(find(config, images, "module", &entry.file)?);
    }
    let modules: Vec<(u64, &str)> = files
        .iter()
        .zip(&entries)
        .map(|(file, entry)| (file.len() as u64, entry.string.as_str()))
        .collect();
    let plan = multiboot::plan(&image, &config.kernel, &config.append, &modules, shape)
        .map_err(refused)?;
    multiboot::load(&plan, &image, &files, ram).map_err(refused)
}

fn find<'i>(
    config: &config::Vm,
    images: &'i impl Images,
    what: &str,
    name: &str,
) -> Result<&'i [u8], String> {
    images.find(name).ok_or_else(|| {
        format!(
            "{}: the {what} {name:?} is not on the boot medium below /perigee; the VM was not started",
            config.name
        )
    })
}

fn about(config: &config::Vm, what: &str, why: &dyn Display) -> String {
    format!("{}: {what}: {why}", config.name)
}
