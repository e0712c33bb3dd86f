//! Which system this is, and where its packages come from: reading `/etc`, nothing else.

use std::fs;
use std::path::{Path, PathBuf};

/// The operating system below us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// Debian, by its release's code name.
    Debian {
        /// "bookworm", "trixie", ...
        codename: String,
    },
    /// Any other system, by the name it gives itself.
    Other(String),
}

/// One key of os-release(5), unquoted.
fn os_release_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.trim().split_once('='))
        .find(|(k, _)| *k == key)
        .map(|(_, value)| value.trim_matches(['"', '\'']))
        .filter(|value| !value.is_empty())
}

impl System {
    /// From the text of `/etc/os-release`. Derivatives of Debian mix their own packages with other
    /// versions, so only Debian itself counts as Debian.
    pub fn from_os_release(text: &str) -> Self {
        let name = os_release_value(text, "PRETTY_NAME")
            .or(os_release_value(text, "ID"))
            .unwrap_or("an unnamed system");
        match (
            os_release_value(text, "ID"),
            os_release_value(text, "VERSION_CODENAME"),
        ) {
            (Some("debian"), Some(codename)) => Self::Debian {
                codename: codename.into(),
            },
            // Debian's testing and unstable leave the release out of the file until it freezes.
            (Some("debian"), None) => Self::Debian {
                codename: "sid".into(),
            },
            _ => Self::Other(name.into()),
        }
    }

    /// This machine's.
    pub fn here() -> Self {
        let text = fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"));
        Self::from_os_release(&text.unwrap_or_default())
    }

    /// The suites that QEMU and the firmware are taken from, and the one that is preferred, if any.
    pub fn tool_suites(&self) -> Option<(Vec<String>, Option<String>)> {
        let Self::Debian { codename } = self else {
            return None;
        };
        let mut suites = vec![codename.clone()];
        if codename != "sid" {
            suites.push(format!("{codename}-updates"));
        }
        // Debian 12 ships QEMU 7.2; its backports have 10.0.2, with x2APIC and the plugins we use.
        let preferred = (codename == "bookworm").then(|| "bookworm-backports".to_string());
        suites.extend(preferred.clone());
        Some((suites, preferred))
    }
}

/// A Debian archive and the keyring that vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Base address.
    pub uri: String,
    /// Keyring file.
    pub keyring: PathBuf,
}

/// Debian's own keyring, part of every Debian system.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The addresses in a deb822 `.sources` file.
fn uris_of_deb822(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.eq_ignore_ascii_case("uris"))
        .flat_map(|(_, value)| value.split_whitespace())
        .map(str::to_string)
        .collect()
}

/// The addresses in a one-line-style `sources.list`.
fn uris_of_list(text: &str) -> Vec<String> {
    let uri = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim();
        let rest = if rest.starts_with('[') {
            rest.split_once(']')?.1
        } else {
            rest
        };
        rest.split_whitespace().next().map(str::to_string)
    };
    text.lines().filter_map(uri).collect()
}

impl Mirror {
    /// The archive that this system's own package sources name.
    pub fn here() -> Option<Self> {
        let keyring = PathBuf::from(KEYRING);
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        let mut parts: Vec<_> = fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        parts.sort();
        files.extend(parts);
        let uris = files.iter().flat_map(|file| uris_of_file(file));
        let uri = Self::choose(uris)?;
        keyring.exists().then_some(Self { uri, keyring })
    }

    /// The first that looks like the main archive: security updates and foreign archives have no
    /// `debian` as the last part of their path.
    fn choose(uris: impl Iterator<Item = String>) -> Option<String> {
        uris.map(|uri| uri.trim_end_matches('/').to_string())
            .find(|uri| uri.ends_with("/debian"))
    }
}

fn uris_of_file(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    match file.extension().and_then(|e| e.to_str()) {
        Some("sources") => uris_of_deb822(&text),
        Some("list") => uris_of_list(&text),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str =
        "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";

    #[test]
    fn debian_12_takes_its_tools_from_backports() {
        let system = System::from_os_release(BOOKWORM);
        assert_eq!(
            system,
            System::Debian {
                codename: "bookworm".into()
            }
        );
        let (suites, preferred) = system.tool_suites().expect("Debian");
        assert_eq!(
            suites,
            ["bookworm", "bookworm-updates", "bookworm-backports"]
        );
        assert_eq!(preferred.as_deref(), Some("bookworm-backports"));
    }

    #[test]
    fn debian_13_needs_no_backports() {
        let (suites, preferred) = System::from_os_release("ID=debian\nVERSION_CODENAME=trixie\n")
            .tool_suites()
            .expect("Debian");
        assert_eq!(suites, ["trixie", "trixie-updates"]);
        assert_eq!(preferred, None);
    }

    #[test]
    fn a_derivative_is_not_debian() {
        let ubuntu =
            "PRETTY_NAME=\"Ubuntu 24.04\"\nID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";
        assert_eq!(
            System::from_os_release(ubuntu),
            System::Other("Ubuntu 24.04".into())
        );
        assert_eq!(
            System::from_os_release("ID=fedora"),
            System::Other("fedora".into())
        );
        assert_eq!(
            System::from_os_release("garbage"),
            System::Other("an unnamed system".into())
        );
        assert_eq!(System::Other("x".into()).tool_suites(), None);
    }

    #[test]
    fn the_mirror_is_the_one_that_the_system_uses() {
        let deb822 = "Types: deb\n# URIs: http://old.example/debian\nURIs: http://mirror.example/debian-security\nSuites: x\n\nURIs:  http://mirror.example/debian/\n";
        assert_eq!(
            Mirror::choose(uris_of_deb822(deb822).into_iter()).as_deref(),
            Some("http://mirror.example/debian")
        );
        let list = "# deb http://no.example/debian x main\ndeb [arch=amd64 signed-by=/k] https://yes.example/debian bookworm main\ndeb-src https://src.example/debian bookworm main\n";
        assert_eq!(uris_of_list(list), ["https://yes.example/debian"]);
        assert_eq!(
            Mirror::choose(["https://packages.example/apt".to_string()].into_iter()),
            None
        );
    }
}
