//! The emulator: which one there is, and whether it is new enough.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::which;

/// Oldest QEMU that is accepted at all.
const QEMU_OLDEST: (u32, u32) = (7, 2);
/// Oldest QEMU that is taken from the system where a newer one can be had.
pub(super) const QEMU_WANTED: (u32, u32) = (10, 0);

/// An emulator that was started once.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Environment it needs.
    pub env: Vec<(String, String)>,
    /// Options that come first.
    pub first_args: Vec<String>,
    /// What `--version` says, e.g. "10.0.2 (Debian 1:10.0.2+ds-2)".
    pub version: String,
    /// Whether it is our copy without the faults that are told in [`super::mend`].
    pub mended: bool,
}

impl Qemu {
    fn plain(program: PathBuf) -> Self {
        Self {
            program,
            env: Vec::new(),
            first_args: Vec::new(),
            version: String::new(),
            mended: false,
        }
    }

    /// Unpacked below `root`, with its own libraries and modules.
    pub(super) fn unpacked(root: &Path) -> Self {
        let at = |sub: &str| root.join(sub).display().to_string();
        let libraries = [at("usr/lib/x86_64-linux-gnu"), at("lib/x86_64-linux-gnu")].join(":");
        Self {
            program: root.join("usr/bin/qemu-system-x86_64"),
            env: vec![
                ("LD_LIBRARY_PATH".into(), libraries),
                (
                    "QEMU_MODULE_DIR".into(),
                    at("usr/lib/x86_64-linux-gnu/qemu"),
                ),
            ],
            first_args: vec![
                "-L".into(),
                at("usr/share/qemu"),
                "-L".into(),
                at("usr/share/seabios"),
            ],
            version: String::new(),
            mended: false,
        }
    }

    /// Starts it once to learn its version.
    fn probed(mut self) -> Option<Self> {
        let output = Command::new(&self.program)
            .envs(self.env.iter().cloned())
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .ok()
            .filter(|o| o.status.success())?;
        let text = String::from_utf8_lossy(&output.stdout);
        self.version = text
            .lines()
            .next()?
            .trim_start_matches("QEMU emulator version ")
            .trim()
            .to_string();
        Some(self)
    }

    /// What `-accel` gets: a host thread for each CPU of the machine, or one for all where it would race.
    pub fn acceleration(&self) -> &'static str {
        if self.mended {
            "tcg,thread=multi"
        } else {
            "tcg,thread=single"
        }
    }

    /// Major and minor number.
    pub fn number(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// The folder that QEMU and its libraries are unpacked into.
pub(super) fn qemu_root(cache: &Path) -> PathBuf {
    cache.join("qemu")
}

pub(super) fn find_qemu(given: Option<PathBuf>, cache: &Path) -> Result<Option<Qemu>> {
    if let Some(program) = given {
        let name = program.display().to_string();
        let qemu = Qemu::plain(program)
            .probed()
            .with_context(|| format!("{name} does not answer --version"))?;
        if qemu.number().is_some_and(|n| n < QEMU_OLDEST) {
            bail!(
                "{name} is version {}; 7.2 is the oldest that works, 10.0.2 is preferred",
                qemu.version
            );
        }
        return Ok(Some(qemu));
    }
    let unpacked = Qemu::unpacked(&qemu_root(cache)).probed();
    let system = || {
        let qemu = Qemu::plain(which("qemu-system-x86_64")?).probed()?;
        qemu.number()
            .is_some_and(|n| n >= QEMU_OLDEST)
            .then_some(qemu)
    };
    Ok(unpacked.or_else(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_qemu_says() {
        let qemu = |version: &str| Qemu {
            version: version.into(),
            ..Qemu::plain("q".into())
        };
        assert_eq!(
            qemu("10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)").number(),
            Some((10, 0))
        );
        assert_eq!(qemu("7.2.17 (Debian 1:7.2+dfsg-7)").number(), Some((7, 2)));
        assert_eq!(qemu("unknown").number(), None);
    }
}
