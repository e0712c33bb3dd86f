//! The laboratory: emulator, firmware, busybox and guest kernels, found or installed.
//!
//! Each part is looked for in three places: where an environment variable points, in our cache
//! folder, on the system. What is missing is installed on Debian (`install.rs`); on any other
//! system the error says which file is missing and how to point to it.

mod apt;
mod bochs;
mod built;
mod emulator;
mod host;
mod install;
mod mend;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use scenarios::GuestKernel;

pub use bochs::Bochs;
use bochs::{bochs_root, find_bochs};
pub use emulator::Qemu;
use emulator::{QEMU_WANTED, find_qemu, qemu_root};
use host::System;

/// A part of the laboratory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// QEMU for x86.
    Qemu,
    /// Bochs, which has VT-x.
    Bochs,
    /// UEFI firmware for either.
    Ovmf,
    /// A statically linked busybox for the guests.
    Busybox,
    /// Debian 12's guest kernel.
    Kernel61,
    /// The one from its backports.
    Kernel612,
}

impl Part {
    /// The environment variable that points to it.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Qemu => "PERIGEE_QEMU",
            Self::Bochs => "PERIGEE_BOCHS",
            Self::Ovmf => "PERIGEE_OVMF",
            Self::Busybox => "PERIGEE_BUSYBOX",
            Self::Kernel61 => "PERIGEE_VMLINUZ",
            Self::Kernel612 => "PERIGEE_VMLINUZ_6_12",
        }
    }

    /// What it is, for somebody who must find it.
    pub fn description(self) -> &'static str {
        match self {
            Self::Qemu => {
                "qemu-system-x86_64, version 10.0.2 (7.2 or later works, with less to see)"
            }
            Self::Bochs => {
                "bochs-bin (or bochs), version 2.7 or later, with VT-x and more than one CPU"
            }
            Self::Ovmf => {
                "OVMF.fd, UEFI firmware for emulators with code and variables in one file"
            }
            Self::Busybox => "busybox, linked statically",
            Self::Kernel61 => "vmlinuz of Debian 12's linux-image-cloud-amd64 (6.1)",
            Self::Kernel612 => "vmlinuz of linux-image-cloud-amd64 in Debian 12's backports (6.12)",
        }
    }

    /// The part that a guest kernel needs; none for a file of the user's.
    pub fn of_kernel(kernel: &GuestKernel) -> Option<Self> {
        match kernel {
            GuestKernel::Debian61 => Some(Self::Kernel61),
            GuestKernel::Debian612 => Some(Self::Kernel612),
            GuestKernel::File(_)
            | GuestKernel::Probe
            | GuestKernel::Flat
            | GuestKernel::Micro(_)
            | GuestKernel::Absent
            | GuestKernel::OnMedium(_) => None,
        }
    }
}

/// What the laboratory consists of, as far as it is there.
#[derive(Clone, Debug, Default)]
pub struct Lab {
    /// The emulator with AMD-V.
    pub qemu: Option<Qemu>,
    /// The emulator with VT-x.
    pub bochs: Option<Bochs>,
    /// UEFI firmware.
    pub ovmf: Option<PathBuf>,
    /// Static busybox.
    pub busybox: Option<PathBuf>,
    /// Debian 12's guest kernel.
    pub kernel_61: Option<PathBuf>,
    /// The one from backports.
    pub kernel_612: Option<PathBuf>,
}

/// Our cache folder, whether or not it exists.
pub fn cache_folder() -> Result<PathBuf> {
    let absolute =
        |value: std::ffi::OsString| Some(PathBuf::from(value)).filter(|p| p.is_absolute());
    let base = std::env::var_os("XDG_CACHE_HOME").and_then(absolute);
    let base = base.or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Ok(base
        .context("neither XDG_CACHE_HOME nor HOME says where caches go")?
        .join("perigee"))
}

/// A busybox that runs in a guest without libraries: its ELF file names no interpreter.
fn is_static(program: &Path) -> bool {
    fs::read(program).is_ok_and(|bytes| {
        bytes.starts_with(b"\x7fELF") && !bytes.windows(9).any(|w| w == b"/ld-linux")
    })
}

fn first_existing(paths: &[&str]) -> Option<PathBuf> {
    paths.iter().map(PathBuf::from).find(|p| p.is_file())
}

impl Lab {
    /// Looks for `needed` and changes nothing.
    ///
    /// # Errors
    /// An environment variable that points nowhere, or to an emulator that is too old.
    pub fn survey(needed: &BTreeSet<Part>) -> Result<Self> {
        let cache = cache_folder()?;
        let mut lab = Self::default();
        for part in needed {
            let given = match std::env::var_os(part.variable()).map(PathBuf::from) {
                Some(path) if !path.is_file() => bail!(
                    "{} points to {}, which is no file",
                    part.variable(),
                    path.display()
                ),
                given => given,
            };
            match part {
                Part::Qemu => lab.qemu = find_qemu(given, &cache)?,
                Part::Bochs => lab.bochs = find_bochs(given, &cache)?,
                Part::Ovmf => {
                    lab.ovmf = given
                        .or_else(|| cached(&cache, "OVMF.fd"))
                        .or_else(system_ovmf)
                }
                Part::Busybox => {
                    let system = || {
                        first_existing(&["/bin/busybox", "/usr/bin/busybox"])
                            .filter(|b| is_static(b))
                    };
                    lab.busybox = given.or_else(|| cached(&cache, "busybox")).or_else(system);
                }
                Part::Kernel61 => lab.kernel_61 = given.or_else(|| cached(&cache, "vmlinuz-6.1")),
                Part::Kernel612 => {
                    lab.kernel_612 = given.or_else(|| cached(&cache, "vmlinuz-6.12"))
                }
            }
        }
        Ok(lab)
    }

    /// Looks for `needed` and installs what is missing, telling what and how long first.
    ///
    /// # Errors
    /// What is missing and how to supply it, where it cannot be installed.
    pub fn ensure(needed: &BTreeSet<Part>) -> Result<Self> {
        let lab = Self::survey(needed)?;
        let missing: BTreeSet<Part> = needed
            .iter()
            .copied()
            .filter(|part| lab.lacks(*part))
            .collect();
        if missing.is_empty() {
            return lab.mended();
        }
        let system = System::here();
        if system.tool_suites().is_none()
            || which("apt-get").is_none()
            || which("dpkg-deb").is_none()
        {
            bail!(not_debian(
                &system,
                &missing
                    .iter()
                    .copied()
                    .filter(|p| lab.really_lacks(*p))
                    .collect::<Vec<_>>()
            ))
        }
        let done = install::install(&system, &missing, &cache_folder()?);
        let lab = Self::survey(needed)?;
        let still: Vec<Part> = needed
            .iter()
            .copied()
            .filter(|part| lab.really_lacks(*part))
            .collect();
        match done {
            Err(error) if still.is_empty() => {
                crate::say::step(format!("{error:#}; going on with what the system has"))
            }
            Err(error) => return Err(error.context(list("still missing", &still))),
            Ok(()) if !still.is_empty() => bail!(list("installed, and yet missing", &still)),
            Ok(()) => {}
        }
        lab.mended()
    }

    /// With our copy of the emulator, without a race that it has.
    fn mended(mut self) -> Result<Self> {
        if let Some(qemu) = self.qemu.take() {
            let (qemu, news) = qemu.mended(&cache_folder()?)?;
            if let Some(news) = news {
                crate::say::step(news);
            }
            self.qemu = Some(qemu);
        }
        Ok(self)
    }

    /// With the Bochs that the long trials deserve.
    pub fn with_faster_bochs(mut self) -> Self {
        self.bochs = self.bochs.map(Bochs::faster);
        self
    }

    /// Not there, or there in a version that a newer one should replace.
    fn lacks(&self, part: Part) -> bool {
        let old = |q: &Qemu| {
            q.number().is_some_and(|n| n < QEMU_WANTED)
                && std::env::var_os(Part::Qemu.variable()).is_none()
        };
        self.really_lacks(part) || (part == Part::Qemu && self.qemu.as_ref().is_some_and(old))
    }

    fn really_lacks(&self, part: Part) -> bool {
        match part {
            Part::Qemu => self.qemu.is_none(),
            Part::Bochs => self.bochs.is_none(),
            Part::Ovmf => self.ovmf.is_none(),
            Part::Busybox => self.busybox.is_none(),
            Part::Kernel61 => self.kernel_61.is_none(),
            Part::Kernel612 => self.kernel_612.is_none(),
        }
    }

    /// The same with emulators and firmware where they will be once they are installed, if they are not there.
    ///
    /// # Errors
    /// No folder for caches is known.
    pub fn or_future_places(mut self) -> Result<Self> {
        let cache = cache_folder()?;
        let qemu = self
            .qemu
            .take()
            .unwrap_or_else(|| Qemu::unpacked(&qemu_root(&cache)));
        self.qemu = Some(qemu.mended_later(&cache));
        self.bochs
            .get_or_insert_with(|| Bochs::unpacked(&bochs_root(&cache)));
        self.ovmf.get_or_insert_with(|| cache.join("OVMF.fd"));
        Ok(self)
    }

    /// The file of a guest kernel.
    pub fn kernel(&self, kernel: &GuestKernel) -> Option<PathBuf> {
        match kernel {
            GuestKernel::Debian61 => self.kernel_61.clone(),
            GuestKernel::Debian612 => self.kernel_612.clone(),
            GuestKernel::File(path) => Some(path.clone()),
            GuestKernel::Micro(name) => Some(crate::micro::place(name)),
            GuestKernel::Probe
            | GuestKernel::Flat
            | GuestKernel::Absent
            | GuestKernel::OnMedium(_) => None,
        }
    }
}

fn cached(cache: &Path, name: &str) -> Option<PathBuf> {
    Some(cache.join(name)).filter(|p| p.is_file())
}

fn system_ovmf() -> Option<PathBuf> {
    first_existing(&[
        "/usr/share/ovmf/OVMF.fd",
        "/usr/share/OVMF/OVMF.fd",
        "/usr/share/qemu/OVMF.fd",
    ])
}

/// A program on the search path.
pub fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

fn list(head: &str, parts: &[Part]) -> String {
    let lines = parts
        .iter()
        .map(|p| format!("\n  {} (or set {}=FILE)", p.description(), p.variable()));
    format!("{head}:{}", lines.collect::<String>())
}

fn not_debian(system: &System, missing: &[Part]) -> String {
    let name = match system {
        System::Debian { codename } => format!("Debian {codename} without apt-get and dpkg-deb"),
        System::Other(name) => name.clone(),
    };
    let head = format!(
        "this is {name}; on Debian the following would be installed by itself, here it is missing"
    );
    format!(
        "{}\nInstall it with this system's package manager, or set the variables.",
        list(&head, missing)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_system_is_told_each_missing_file_and_its_variable() {
        let text = not_debian(
            &System::Other("Fedora 42".into()),
            &[Part::Qemu, Part::Kernel61],
        );
        for word in [
            "Fedora 42",
            "qemu-system-x86_64",
            "10.0.2",
            "PERIGEE_QEMU=FILE",
            "PERIGEE_VMLINUZ=FILE",
            "vmlinuz",
        ] {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
        assert!(!text.contains("PERIGEE_OVMF"));
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        let shell = fs::canonicalize("/bin/sh").expect("a system has a shell");
        assert!(!is_static(&shell));
        assert!(!is_static(Path::new("/etc/passwd")));
    }
}
