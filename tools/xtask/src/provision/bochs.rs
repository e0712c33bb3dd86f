//! The emulator with VT-x: which one there is, and what it can do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::which;

/// Oldest Bochs whose VT-x is complete enough.
const OLDEST: (u32, u32) = (2, 7);

/// A Bochs that was started once.
#[derive(Clone, Debug)]
pub struct Bochs {
    /// The program.
    pub program: PathBuf,
    /// Environment it needs.
    pub env: Vec<(String, String)>,
    /// The video BIOS, without which it does not start.
    pub vga_bios: PathBuf,
    /// Its version, e.g. "2.7".
    pub version: String,
    /// It was built with its debugger, at whose prompt it starts.
    pub has_debugger: bool,
    /// It was built with sound cards, which it must be told not to play.
    pub has_sound: bool,
}

impl Bochs {
    pub(super) fn plain(program: PathBuf) -> Self {
        let shared = |root: Option<&Path>| {
            let bios = root?.join("share/vgabios/vgabios.bin");
            bios.is_file().then_some(bios)
        };
        let beside = shared(program.parent().and_then(Path::parent));
        Self {
            program,
            env: Vec::new(),
            vga_bios: beside
                .or_else(|| shared(Some(Path::new("/usr"))))
                .unwrap_or_else(|| "/usr/share/bochs/VGABIOS-lgpl-latest".into()),
            version: String::new(),
            has_debugger: true,
            has_sound: true,
        }
    }

    /// Unpacked below `root`, with its own libraries and plugins.
    pub(super) fn unpacked(root: &Path) -> Self {
        let at = |sub: &str| root.join(sub).display().to_string();
        let libraries = [at("usr/lib/x86_64-linux-gnu"), at("lib/x86_64-linux-gnu")].join(":");
        Self {
            env: vec![
                ("LD_LIBRARY_PATH".into(), libraries),
                (
                    "LTDL_LIBRARY_PATH".into(),
                    at("usr/lib/x86_64-linux-gnu/bochs/plugins"),
                ),
            ],
            vga_bios: root.join("usr/share/vgabios/vgabios.bin"),
            ..Self::plain(root.join("usr/bin/bochs-bin"))
        }
    }

    /// Starts it to learn what it is.
    pub(super) fn probed(mut self) -> Option<Self> {
        let help = self.says(&["--help"])?;
        self.version = version_in(&help)?;
        self.has_debugger = help.lines().any(|line| line.trim().starts_with("-rc "));
        let features = self.says(&["--help", "features"])?;
        self.has_sound = features.lines().any(|line| line.trim() == "sb16");
        Some(self)
    }

    fn says(&self, arguments: &[&str]) -> Option<String> {
        let output = Command::new(&self.program)
            .envs(self.env.iter().cloned())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&said).into_owned())
    }

    /// Major and minor number.
    fn number(&self) -> Option<(u32, u32)> {
        let (major, rest) = self.version.split_once('.')?;
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some((major.parse().ok()?, minor.parse().ok()?))
    }
}

/// The version in the banner that it ends with: `Bochs x86 Emulator 2.7`.
fn version_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Bochs x86 Emulator ")?;
    rest.split_whitespace().next().map(str::to_string)
}

/// The folder that Bochs and its libraries are unpacked into.
pub(super) fn bochs_root(cache: &Path) -> PathBuf {
    cache.join("bochs")
}

pub(super) fn find_bochs(given: Option<PathBuf>, cache: &Path) -> Result<Option<Bochs>> {
    let fits = |bochs: &Bochs| bochs.number().is_some_and(|n| n >= OLDEST);
    if let Some(program) = given {
        let name = program.display().to_string();
        return match Bochs::plain(program).probed() {
            Some(bochs) if fits(&bochs) => Ok(Some(bochs)),
            Some(old) => bail!(
                "{name} is version {}; 2.7 is the oldest that works",
                old.version
            ),
            None => bail!("{name} does not answer --help as Bochs does"),
        };
    }
    let unpacked = || Bochs::unpacked(&bochs_root(cache)).probed();
    // Debian's `bochs` is a script around the program proper.
    let system = || Bochs::plain(which("bochs-bin").or_else(|| which("bochs"))?).probed();
    Ok(unpacked().or_else(system).filter(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_tells_the_version() {
        let banner = "=====\n       Bochs x86 Emulator 2.7\n  Built from SVN\n";
        assert_eq!(version_in(banner).as_deref(), Some("2.7"));
        assert_eq!(version_in("QEMU emulator version 10.0.2"), None);
        let bochs = |version: &str| Bochs {
            version: version.into(),
            ..Bochs::plain("b".into())
        };
        assert_eq!(bochs("2.7").number(), Some((2, 7)));
        assert_eq!(bochs("3.0.devel").number(), Some((3, 0)));
        assert_eq!(bochs("new").number(), None);
    }
}
