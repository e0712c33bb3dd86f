//! The VMs of a run, as the `[[vm]]` tables of `perigee.toml` will name them.

use std::collections::BTreeMap;

/// Which kernel a VM boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestKernel {
    /// Debian 12's own `linux-image-cloud-amd64` (6.1).
    Debian61,
    /// The one in Debian 12's backports (6.12).
    Debian612,
    /// A file on this machine.
    File(std::path::PathBuf),
    /// The micro-kernel that is measured with (`tests/guests/probe`).
    Probe,
    /// A micro-kernel of `tests/guests`, by its package's name.
    Micro(String),
    /// The smallest Multiboot kernel ([`crate::flat_kernel`]).
    Flat,
    /// A name that is on no medium, for a VM that cannot be started.
    Absent,
    /// A path below `/perigee` that the scenario itself puts there (`Scenario::file`).
    OnMedium(String),
}

/// How the name of a micro-kernel begins on a command line.
const MICRO: &str = "micro:";

impl GuestKernel {
    /// What a path on the medium begins with.
    pub const MEDIUM: &str = "medium:";

    /// From a command line: `debian-6.1`, `debian-6.12`, `probe`, `micro:NAME`, `absent` or a path.
    pub fn parse(text: &str) -> Self {
        match text {
            "debian-6.1" => Self::Debian61,
            "debian-6.12" => Self::Debian612,
            "probe" => Self::Probe,
            "flat" => Self::Flat,
            "absent" => Self::Absent,
            on_medium if on_medium.starts_with(Self::MEDIUM) => {
                Self::OnMedium(on_medium[Self::MEDIUM.len()..].into())
            }
            text => match text.strip_prefix(MICRO) {
                Some(name) => Self::Micro(name.into()),
                None => Self::File(text.into()),
            },
        }
    }

    /// The text that [`GuestKernel::parse`] makes this of.
    pub fn text(&self) -> String {
        match self {
            Self::Debian61 => "debian-6.1".into(),
            Self::Debian612 => "debian-6.12".into(),
            Self::File(path) => path.display().to_string(),
            Self::Probe => "probe".into(),
            Self::Flat => "flat".into(),
            Self::Micro(name) => format!("{MICRO}{name}"),
            Self::Absent => "absent".into(),
            Self::OnMedium(path) => format!("{}{path}", Self::MEDIUM),
        }
    }
}

/// One VM of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name, as in the console's prefix.
    pub name: String,
    /// What it boots.
    pub kernel: GuestKernel,
    /// Another initramfs than the one with the memory workload: a file, one of the kernels' names, or "none".
    pub initrd: Option<std::path::PathBuf>,
    /// Kernel command line without the workload's arguments; `None` is the ordinary one.
    pub append: Option<String>,
    /// Arguments of the memory workload.
    pub workload: String,
    /// Further keys of its `[[vm]]` table, values written as in TOML.
    pub keys: BTreeMap<String, String>,
}

impl Vm {
    /// An unmodified Linux with 2 CPUs and 192 MiB that runs the memory workload and powers off.
    pub fn linux(name: &str) -> Self {
        Self {
            name: name.into(),
            kernel: GuestKernel::Debian61,
            initrd: None,
            append: None,
            workload: String::new(),
            keys: BTreeMap::new(),
        }
        .set("cpus", "2")
        .set("memory", "\"192M\"")
    }

    /// The probe with 1 CPU and 128 MiB, which does what `words` say and powers off.
    pub fn probe(name: &str, words: &str) -> Self {
        Self {
            kernel: GuestKernel::Probe,
            ..Self::linux(name)
        }
        .workload(words)
        .set("cpus", "1")
        .set("memory", "\"128M\"")
    }

    /// A micro-kernel of `tests/guests` with 1 CPU and 32 MiB, told what to do by `append`; it powers off at its end.
    pub fn micro(name: &str, guest: &str, append: &str) -> Self {
        Self {
            kernel: GuestKernel::Micro(guest.into()),
            ..Self::linux(name)
        }
        .without_initrd()
        .append(append)
        .set("boot", "\"multiboot\"")
        .set("cpus", "1")
        .set("memory", "\"32M\"")
    }

    /// The same VM with `key = value` in its table; `value` is TOML (`"[3]"`, `"\"off\""`).
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.keys.insert(key.into(), value.into());
        self
    }

    /// The same VM without any initramfs, which Linux ends with a panic.
    pub fn without_initrd(mut self) -> Self {
        self.initrd = Some("none".into());
        self
    }

    /// A VM with one CPU and `memory_mib` that boots the file at this path below `/perigee`, and nothing else.
    pub fn of_file(name: &str, path: &str, memory_mib: u32) -> Self {
        Self::linux(name)
            .kernel(GuestKernel::OnMedium(path.into()))
            .without_initrd()
            .set("cpus", "1")
            .set("memory", &format!("\"{memory_mib}M\""))
    }

    /// The same VM with this kernel command line.
    pub fn append(mut self, text: &str) -> Self {
        self.append = Some(text.into());
        self
    }

    /// The same VM with these arguments for its workload.
    pub fn workload(mut self, arguments: &str) -> Self {
        self.workload = arguments.into();
        self
    }

    /// The same VM with a kernel's image, which is large, as its initramfs.
    pub fn kernel_as_initrd(mut self) -> Self {
        self.initrd = Some("debian-6.1".into());
        self
    }

    /// The same VM with another kernel.
    pub fn kernel(mut self, kernel: GuestKernel) -> Self {
        self.kernel = kernel;
        self
    }
}
