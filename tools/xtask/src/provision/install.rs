//! Installing what is missing on Debian.
//!
//! As root, packages that the system's own release offers in a fitting version are installed by
//! apt, as long as that removes nothing. Everything else is unpacked into the cache folder by a
//! private apt ([`super::apt`]): QEMU where the release's is too old, and the guest kernels, which
//! are files for a VM and not this machine's kernel. Without root all of it is unpacked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Part;
use super::apt::{Deb, PrivateApt, unpack};
use super::bochs::bochs_root;
use super::emulator::{QEMU_WANTED, qemu_root};
use super::host::{Mirror, System};
use crate::say;

/// The release that guest kernels come from, whatever release runs here.
const GUEST_RELEASE: &str = "bookworm";
const GUEST_BACKPORTS: &str = "bookworm-backports";
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";

/// Bochs' packages; the second is the smallest of those of which it wants one, for a screen.
const BOCHS_PACKAGES: [&str; 4] = ["bochs", "bochs-term", "bochsbios", "vgabios"];

/// Something to download and unpack.
struct Job {
    debs: Vec<Deb>,
    /// Unpacked below this folder of the cache, or one file of it copied.
    place: Place,
    guests: bool,
}

enum Place {
    /// All of it, as a tree that replaces this folder.
    Tree(PathBuf),
    /// The first file that matches the pattern, under this name.
    File {
        pattern: &'static str,
        name: &'static str,
    },
}

pub(super) fn install(system: &System, missing: &BTreeSet<Part>, cache: &Path) -> Result<()> {
    fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock = fs::File::create(cache.join("lock"))?;
    lock.lock().context("cannot lock the cache folder")?;

    say::step("not here yet:");
    for part in missing {
        say::step(format!("  {}", part.description()));
    }
    let mut missing = missing.clone();
    if rustix::process::geteuid().is_root() {
        install_by_apt(&mut missing, system);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mirror = Mirror::here()
        .context("this system's package sources name no Debian archive with a keyring")?;
    let (suites, preferred) = system.tool_suites().context("this is not Debian")?;
    let tools = PrivateApt::open(cache, &mirror, &suites, preferred)?;
    let guest_suites = [GUEST_RELEASE.to_string(), GUEST_BACKPORTS.to_string()];
    let guests = PrivateApt::open(cache, &mirror, &guest_suites, None)?.ignoring_system();

    let kernels = missing.contains(&Part::Kernel61) || missing.contains(&Part::Kernel612);
    if missing
        .iter()
        .any(|p| !matches!(p, Part::Kernel61 | Part::Kernel612))
    {
        tools.update()?;
    }
    if kernels {
        guests.update()?;
    }
    let jobs = missing
        .iter()
        .map(|part| job(*part, &tools, &guests, cache))
        .collect::<Result<Vec<_>>>()?;
    let total: u64 = jobs
        .iter()
        .flat_map(|job| &job.debs)
        .map(|deb| deb.bytes)
        .sum();
    say::step(format!(
        "unpacking into {} ({} to download, {}; `cargo xtask clean --cache` removes it):",
        cache.display(),
        say::megabytes(total),
        say::expected(total)
    ));
    for deb in jobs.iter().flat_map(|job| &job.debs) {
        say::step(format!(
            "  {} {} ({})",
            deb.name,
            deb.version,
            say::megabytes(deb.bytes)
        ));
    }
    for job in &jobs {
        let apt = if job.guests { &guests } else { &tools };
        let files = apt.download(&job.debs, &cache.join("debs"))?;
        place(&files, &job.place, cache)?;
    }
    // The package files have done their duty; what was unpacked stays.
    let _ = fs::remove_dir_all(cache.join("debs"));
    Ok(())
}

fn job(part: Part, tools: &PrivateApt, guests: &PrivateApt, cache: &Path) -> Result<Job> {
    let one = |deb: Deb, pattern, name, guests| Job {
        debs: vec![deb],
        place: Place::File { pattern, name },
        guests,
    };
    let tree = |packages: &[&str], root| -> Result<Job> {
        let mut debs = tools.resolve(packages)?;
        // The C library must be the one that the system's own dynamic linker belongs to.
        debs.retain(|deb| !["libc6", "libc-bin"].contains(&deb.name.as_str()));
        Ok(Job {
            debs,
            place: Place::Tree(root),
            guests: false,
        })
    };
    Ok(match part {
        Part::Qemu => tree(&["qemu-system-x86", "seabios"], qemu_root(cache))?,
        Part::Bochs => tree(&BOCHS_PACKAGES, bochs_root(cache))?,
        Part::Ovmf => one(
            tools.single("ovmf", None)?,
            "./usr/share/ovmf/OVMF.fd",
            "OVMF.fd",
            false,
        ),
        Part::Busybox => one(
            tools.single("busybox-static", None)?,
            "*bin/busybox",
            "busybox",
            false,
        ),
        Part::Kernel61 => {
            let deb = guests.kernel_behind(KERNEL_METAPACKAGE, GUEST_RELEASE)?;
            one(deb, "./boot/vmlinuz-*", "vmlinuz-6.1", true)
        }
        Part::Kernel612 => {
            let deb = guests.kernel_behind(KERNEL_METAPACKAGE, GUEST_BACKPORTS)?;
            one(deb, "./boot/vmlinuz-*", "vmlinuz-6.12", true)
        }
    })
}

/// Puts the contents of `files` where they belong; a half-finished attempt is never taken for a whole.
fn place(files: &[PathBuf], place: &Place, cache: &Path) -> Result<()> {
    let new = cache.join("unpacking");
    let _ = fs::remove_dir_all(&new);
    match place {
        Place::Tree(root) => {
            for file in files {
                unpack(file, &new, None)?;
            }
            let _ = fs::remove_dir_all(root);
            fs::rename(&new, root)?;
        }
        Place::File { pattern, name } => {
            for file in files {
                unpack(file, &new, Some(pattern))?;
            }
            let found =
                first_file(&new).with_context(|| format!("the package holds no {pattern}"))?;
            fs::rename(found, cache.join(name))?;
            let _ = fs::remove_dir_all(&new);
        }
    }
    Ok(())
}

fn first_file(folder: &Path) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .collect();
    entries.sort();
    entries.iter().find(|p| p.is_file()).cloned().or_else(|| {
        entries
            .iter()
            .filter(|p| p.is_dir())
            .find_map(|d| first_file(d))
    })
}

/// Takes out of `missing` what the system's own apt installs. What it does not is unpacked later,
/// so a failure here is told and not fatal.
fn install_by_apt(missing: &mut BTreeSet<Part>, system: &System) {
    let own_qemu_is_old = matches!(system.tool_suites(), Some((_, Some(_))));
    let wanted: Vec<(Part, &[&str])> = [
        (Part::Qemu, &["qemu-system-x86"][..]),
        (Part::Bochs, &BOCHS_PACKAGES),
        (Part::Ovmf, &["ovmf"]),
        (Part::Busybox, &["busybox-static"]),
    ]
    .into_iter()
    .filter(|(part, _)| missing.contains(part) && !(*part == Part::Qemu && own_qemu_is_old))
    .collect();
    if wanted.is_empty() {
        return;
    }
    say::step("apt-get update (about 10 MB, less than a minute)");
    if let Err(error) = apt(&["-qq", "update"]) {
        say::step(format!("{error:#}; unpacking instead"));
        return;
    }
    for (part, packages) in wanted {
        if part == Part::Qemu && !packages.iter().all(|p| candidate_is_wanted(p)) {
            continue;
        }
        match apt_install(packages) {
            Ok(()) => {
                missing.remove(&part);
            }
            Err(error) => say::step(format!("{error:#}; unpacking it instead")),
        }
    }
}

/// Installs them by the system's apt, as long as that removes nothing, and says so first.
pub(super) fn apt_install(packages: &[&str]) -> Result<()> {
    let options = ["-y", "--no-install-recommends", "--no-remove", "install"];
    let arguments = [&options[..], packages].concat();
    let names = packages.join(" ");
    match simulated_size(packages) {
        Some(bytes) => say::step(format!(
            "apt-get install {names}: {}, {}",
            say::megabytes(bytes),
            say::expected(bytes)
        )),
        None => say::step(format!("apt-get install {names}")),
    }
    apt(&arguments)
}

fn apt_command() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

fn apt(arguments: &[&str]) -> Result<()> {
    let output = apt_command()
        .args(arguments)
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("E:")).collect();
        bail!(
            "apt-get {} failed: {}",
            arguments.join(" "),
            errors.join(" ")
        );
    }
    Ok(())
}

/// Bytes that installing `packages` downloads.
fn simulated_size(packages: &[&str]) -> Option<u64> {
    let options = [
        "-qq",
        "--no-install-recommends",
        "--no-remove",
        "--print-uris",
        "-y",
        "install",
    ];
    let output = apt_command().args(options).args(packages).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(
        text.lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
            .sum(),
    )
}

/// Whether the system's release offers a QEMU that needs no replacing.
fn candidate_is_wanted(package: &str) -> bool {
    let output = Command::new("apt-cache")
        .env("LC_ALL", "C")
        .args(["policy", package])
        .output();
    output.is_ok_and(|o| {
        candidate_number(&String::from_utf8_lossy(&o.stdout)).is_some_and(|n| n >= QEMU_WANTED)
    })
}

/// Major and minor number of the candidate in what `apt-cache policy` prints.
fn candidate_number(policy: &str) -> Option<(u32, u32)> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut parts = upstream.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_s_version_is_read_past_its_epoch() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7+deb12u13\n  Version table:\n";
        assert_eq!(candidate_number(policy), Some((7, 2)));
        assert_eq!(
            candidate_number("  Candidate: 1:10.0.2+ds-2\n"),
            Some((10, 0))
        );
        assert_eq!(candidate_number("  Candidate: (none)\n"), None);
    }
}
