//! A private apt: its own sources, lists and cache in our cache folder.
//!
//! The system's sources, lists and packages are neither changed nor needed, and no password is
//! asked for: apt resolves and downloads as whoever runs it, checks signatures with the system's
//! keyring, and `dpkg-deb` unpacks into a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::host::Mirror;
use crate::say;

/// Package lists younger than this are used as they are.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// A package file to download, as apt's `--print-uris` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deb {
    /// Package name.
    pub name: String,
    /// Version, with its epoch.
    pub version: String,
    /// Bytes to download.
    pub bytes: u64,
}

impl Deb {
    /// From one line of `--print-uris`: `'URI' name_version_arch.deb BYTES [HASH]`.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix('\'')?.split_once("' ")?.1;
        let mut words = rest.split_whitespace();
        let mut parts = words.next()?.strip_suffix(".deb")?.split('_');
        let (name, version) = (parts.next()?, parts.next()?);
        Some(Self {
            name: name.into(),
            version: version.replace("%3a", ":"),
            bytes: words.next()?.parse().ok()?,
        })
    }
}

/// One set of suites with its own lists.
#[derive(Debug)]
pub struct PrivateApt {
    dir: PathBuf,
    preferred: Option<String>,
    /// Count what is installed on the system as there (for programs that run with its libraries).
    knows_system: bool,
}

impl PrivateApt {
    /// Below `cache`, over `suites` of `mirror`, packages from `preferred` winning.
    pub fn open(
        cache: &Path,
        mirror: &Mirror,
        suites: &[String],
        preferred: Option<String>,
    ) -> Result<Self> {
        let dir = cache.join("apt").join(suites.join("+"));
        for sub in ["etc", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot create {}", dir.join(sub).display()))?;
        }
        let sources = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {}\n",
            mirror.uri,
            suites.join(" "),
            mirror.keyring.display()
        );
        fs::write(dir.join("etc/perigee.sources"), sources)?;
        Ok(Self {
            dir,
            preferred,
            knows_system: true,
        })
    }

    /// Resolves as if nothing were installed on the system.
    pub fn ignoring_system(mut self) -> Self {
        self.knows_system = false;
        self
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        let mut set = |option: String| {
            command.args(["-o", &option]);
        };
        set("Dir::Etc::SourceList=/dev/null".into());
        set(format!("Dir::Etc::SourceParts={dir}/etc"));
        set(format!("Dir::State::Lists={dir}/lists"));
        set(format!("Dir::Cache={dir}/cache"));
        set("APT::Sandbox::User=".into());
        set("Acquire::Languages=none".into());
        set("Acquire::Retries=3".into());
        // Hooks of the system's configuration tidy the system's cache and need its rights.
        set("APT::Update::Post-Invoke=".into());
        set("APT::Update::Post-Invoke-Success=".into());
        set("Debug::NoLocking=1".into());
        if !self.knows_system {
            set("Dir::State::status=/dev/null".into());
        }
        if let Some(release) = &self.preferred {
            set(format!("APT::Default-Release={release}"));
        }
        command.env("LC_ALL", "C");
        command
    }

    /// Fetches the package lists unless they are fresh.
    pub fn update(&self) -> Result<()> {
        let stamp = self.dir.join("updated");
        let fresh = |t: SystemTime| t.elapsed().is_ok_and(|age| age < LISTS_FRESH);
        if fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .is_ok_and(fresh)
        {
            return Ok(());
        }
        say::step("fetching Debian's package lists (about 10 MB, less than a minute)");
        let output = self
            .command("apt-get")
            .args(["-q", "update"])
            .output()
            .context("cannot run apt-get")?;
        let text = String::from_utf8_lossy(&output.stderr);
        // apt-get update counts an archive that it could not reach as a warning.
        if !output.status.success() || text.contains("Failed to fetch") {
            bail!("Debian's package lists cannot be fetched: {}", text.trim());
        }
        fs::write(stamp, "")?;
        Ok(())
    }

    fn uris(&self, what: &str, arguments: &[&str]) -> Result<Vec<Deb>> {
        let output = self
            .command("apt-get")
            .args(arguments)
            .output()
            .context("cannot run apt-get")?;
        if !output.status.success() {
            bail!(
                "apt cannot resolve {what}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(Deb::parse)
            .collect())
    }

    /// `packages` and all they need that is not there.
    pub fn resolve(&self, packages: &[&str]) -> Result<Vec<Deb>> {
        let mut arguments = vec![
            "-qq",
            "--no-install-recommends",
            "--reinstall",
            "--print-uris",
            "install",
        ];
        arguments.extend(packages);
        self.uris(&packages.join(", "), &arguments)
    }

    /// One package file, without what it needs; `release` picks a suite.
    pub fn single(&self, package: &str, release: Option<&str>) -> Result<Deb> {
        let wanted = release.map_or(package.to_string(), |r| format!("{package}/{r}"));
        let mut found = self.uris(&wanted, &["-qq", "--print-uris", "download", &wanted])?;
        found
            .pop()
            .with_context(|| format!("{wanted} has no package file"))
    }

    /// The real package behind a kernel's metapackage.
    pub fn kernel_behind(&self, metapackage: &str, release: &str) -> Result<Deb> {
        let wanted = format!("{metapackage}/{release}");
        let output = self
            .command("apt-cache")
            .args(["show", &wanted])
            .output()
            .context("cannot run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (name, version) =
            exact_dependency(&text).with_context(|| format!("{wanted} names no kernel package"))?;
        let exact = format!("{name}={version}");
        let mut found = self.uris(&exact, &["-qq", "--print-uris", "download", &exact])?;
        found
            .pop()
            .with_context(|| format!("{exact} has no package file"))
    }

    /// Downloads `debs` into `to`, telling of progress; what is there already is kept.
    pub fn download(&self, debs: &[Deb], to: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(to)?;
        let missing: Vec<&Deb> = debs
            .iter()
            .filter(|deb| find_deb(to, deb).is_none())
            .collect();
        if !missing.is_empty() {
            let total: u64 = missing.iter().map(|deb| deb.bytes).sum();
            let before = folder_bytes(to);
            let log = fs::File::create(self.dir.join("download.log"))?;
            let mut child = self
                .command("apt-get")
                .args(["-q", "download"])
                .args(
                    missing
                        .iter()
                        .map(|deb| format!("{}={}", deb.name, deb.version)),
                )
                .current_dir(to)
                .stdin(std::process::Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("cannot run apt-get")?;
            let mut progress = say::Progress::new("downloading", total);
            let status = loop {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                std::thread::sleep(Duration::from_millis(200));
                progress.at(folder_bytes(to).saturating_sub(before));
            };
            if !status.success() {
                let log = fs::read_to_string(self.dir.join("download.log")).unwrap_or_default();
                // Lists that name files the archive has replaced since are a common reason.
                let _ = fs::remove_file(self.dir.join("updated"));
                bail!(
                    "a download failed: {}",
                    log.lines()
                        .filter(|l| l.starts_with("E:"))
                        .collect::<Vec<_>>()
                        .join(" ")
                );
            }
            progress.done();
        }
        debs.iter()
            .map(|deb| {
                find_deb(to, deb)
                    .with_context(|| format!("apt did not leave {} in {}", deb.name, to.display()))
            })
            .collect()
    }
}

/// The downloaded file of `deb` in `folder`, if it is there whole.
fn find_deb(folder: &Path, deb: &Deb) -> Option<PathBuf> {
    let stem = format!("{}_{}_", deb.name, deb.version.replace(':', "%3a"));
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let whole = entry.metadata().is_ok_and(|m| m.len() == deb.bytes);
        (whole && entry.file_name().to_string_lossy().starts_with(&stem)).then(|| entry.path())
    })
}

fn folder_bytes(folder: &Path) -> u64 {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.metadata().ok())
        .map(|m| m.len())
        .sum()
}

/// `name (= version)` out of a package's Depends line.
fn exact_dependency(show: &str) -> Option<(String, String)> {
    let depends = show
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))?;
    let (name, version) = depends
        .split(',')
        .find_map(|d| d.trim().split_once(" (= "))?;
    Some((name.into(), version.trim_end_matches(')').into()))
}

/// Unpacks a package file into `root`; with `only`, just the members that match it.
pub fn unpack(deb: &Path, root: &Path, only: Option<&str>) -> Result<()> {
    fs::create_dir_all(root)?;
    let status = match only {
        None => Command::new("dpkg-deb")
            .arg("-x")
            .arg(deb)
            .arg(root)
            .status(),
        Some(pattern) => {
            let mut dpkg = Command::new("dpkg-deb")
                .arg("--fsys-tarfile")
                .arg(deb)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .context("cannot run dpkg-deb")?;
            let members = dpkg.stdout.take().context("dpkg-deb has no output")?;
            let status = Command::new("tar")
                .arg("-x")
                .arg("-C")
                .arg(root)
                .args(["--wildcards", pattern])
                .stdin(members)
                .status();
            dpkg.wait()?;
            status
        }
    };
    if !status.context("cannot run dpkg-deb and tar")?.success() {
        bail!(
            "{} cannot be unpacked: delete it, or `cargo xtask clean --cache`",
            deb.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_print_uris_names_package_version_and_size() {
        let line = "'http://m.example/q.deb' qemu-system-x86_1%3a10.0.2+ds-2~bpo12+1_amd64.deb 10176912 SHA256:00";
        let deb = Deb {
            name: "qemu-system-x86".into(),
            version: "1:10.0.2+ds-2~bpo12+1".into(),
            bytes: 10_176_912,
        };
        assert_eq!(Deb::parse(line), Some(deb));
        assert_eq!(
            Deb::parse("'http://m.example/q.deb' seabios_1.16_all.deb 5 ").map(|d| d.bytes),
            Some(5)
        );
        assert_eq!(Deb::parse("Reading package lists..."), None);
    }

    #[test]
    fn a_metapackage_leads_to_its_kernel() {
        let show = "Package: linux-image-cloud-amd64\nDepends: kmod, linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";
        let (name, version) = exact_dependency(show).expect("there");
        assert_eq!(
            (name.as_str(), version.as_str()),
            ("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1")
        );
        assert_eq!(exact_dependency("Depends: a, b (>= 1)\n"), None);
    }
}
