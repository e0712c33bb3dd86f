//! What lies on the boot medium, read together from everywhere.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use scenarios::{FileChange, GuestKernel, Override};

use crate::artifacts::Artifacts;
use crate::image::Files;
use crate::initramfs;
use crate::plan::{Plan, Source};
use crate::provision::Lab;
use crate::slim;

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// All files of the medium (the loader's `medium.rs` says who reads what).
///
/// # Errors
/// One of them cannot be read.
pub fn files(
    artifacts: &Artifacts,
    plan: &Plan,
    overrides: &[Override],
    lab: &Lab,
) -> Result<Files> {
    let kernel = read(&artifacts.kernel)?;
    let mut files = Files::from([
        ("EFI/BOOT/BOOTX64.EFI".to_string(), read(&artifacts.loader)?),
        (
            "perigee/kernel.elf".to_string(),
            slim::without_debug(&kernel).unwrap_or(kernel),
        ),
        (
            "perigee/perigee.toml".to_string(),
            plan.toml.clone().into_bytes(),
        ),
    ]);
    for (path, source) in &plan.guests {
        let content = match source {
            Source::File(file) => read(file)?,
            Source::Kernel(GuestKernel::Probe) => read(&artifacts.probe)?,
            Source::Kernel(GuestKernel::Flat) => scenarios::flat_kernel(),
            Source::Kernel(kernel) => {
                read(&lab.kernel(kernel).context("a guest kernel is missing")?)?
            }
            Source::OurInitramfs => {
                let busybox = lab.busybox.as_ref().context("busybox is missing")?;
                initramfs::build(&read(busybox)?, &read(&artifacts.workload)?)?
            }
        };
        files.insert(format!("perigee/{path}"), content);
    }
    for table in overrides {
        files.insert(format!("perigee/acpi/{}", table.name), table.bytes.clone());
    }
    for (path, change) in &plan.changes {
        alter(&mut files, path, change).with_context(|| format!("cannot change {path}"))?;
    }
    Ok(files)
}

/// Makes one file other than it usually is.
fn alter(files: &mut Files, path: &str, change: &FileChange) -> Result<()> {
    if let FileChange::Put(bytes) = change {
        files.insert(path.to_string(), bytes.clone());
        return Ok(());
    }
    let bytes = files.get_mut(path).context("there is no such file")?;
    match change {
        FileChange::Put(_) => {}
        FileChange::Cut(length) if *length < bytes.len() => bytes.truncate(*length),
        FileChange::Cut(_) => bail!("it is shorter than that already"),
        FileChange::Flip(at) => match bytes.get_mut(*at) {
            Some(byte) => *byte = !*byte,
            None => bail!("it is shorter than that"),
        },
        FileChange::Remove => drop(files.remove(path)),
    }
    Ok(())
}
