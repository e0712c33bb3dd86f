//! The configuration as structures. `Default` of each is what an empty file means.

use crate::Sabotage;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use units::{CpuId, NodeId};

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// The `[host]` table.
    pub host: Host,
    /// The `[[vm]]` tables in the order of the file; a VM's number is its index.
    pub vms: Vec<Vm>,
}

/// The `[host]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What the planner may move.
    pub mode: Mode,
    /// Least severe message shown.
    pub log: LogLevel,
    /// Whether the machine powers off when all VMs are off.
    pub poweroff: bool,
    /// The scheduler's time slice in milliseconds.
    pub quantum_ms: u32,
    /// Interval between two looks at accessed bits, in milliseconds.
    pub sample_ms: u32,
    /// Interval between two planner passes, in milliseconds.
    pub plan_ms: u32,
    /// Where messages go.
    pub console: Console,
    /// How the kernel is to be broken, for tests.
    pub sabotage: Vec<Sabotage>,
    /// What random choices of such tests begin with.
    pub seed: u64,
    /// Whether a spinning virtual CPU's slice goes to a preempted neighbour of its VM.
    pub donate: bool,
    /// Whether hardware threads of one core may run virtual CPUs of different VMs at a time.
    pub share_cores: bool,
    /// How many of each CPU's performance counters may be used; 0 for none.
    pub counters: u8,
    /// Which nodes have page tables of a VM's.
    pub roots: Roots,
    /// How often a second a running virtual CPU is stopped to see what it is about to touch; 0 for never.
    pub looks: u32,
    /// Whether thresholds follow the load and the use that moves were of.
    pub adapt: bool,
    /// Whether every step of the scheduler is recorded, for a replay.
    pub trace: bool,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            log: LogLevel::default(),
            poweroff: true,
            quantum_ms: 10,
            sample_ms: 100,
            plan_ms: 1000,
            console: Console::default(),
            sabotage: Vec::new(),
            seed: 0,
            donate: true,
            share_cores: false,
            counters: 4,
            roots: Roots::default(),
            looks: 1000,
            adapt: true,
            trace: false,
        }
    }
}

/// One `[[vm]]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Unique name, 1 to 16 of `a-z 0-9 -`.
    pub name: String,
    /// Number of virtual CPUs, 1 to 64.
    pub cpus: u16,
    /// Guest memory in bytes, a multiple of 2 MiB and never 0.
    pub memory_bytes: u64,
    /// The kernel's path on the boot medium, below `/perigee`.
    pub kernel: String,
    /// The initial RAM disk's path.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub append: String,
    /// Where the VM's pages start, in guest-physical order; empty when the kernel chooses (near
    /// home). When it is not empty, the sizes add up to [`Vm::memory_bytes`].
    pub memory_nodes: Vec<NodeShare>,
    /// Where the vCPUs start.
    pub start_node: Option<NodeId>,
    /// Where the vCPUs may run at all.
    pub affinity: Affinity,
    /// Share of CPU time under contention, 1 to 65535.
    pub weight: u16,
    /// Upper bound of the CPU time of all its vCPUs together, in percent of one CPU; 0 for none.
    pub cap_percent: u32,
    /// Scheduling class.
    pub priority: Priority,
    /// What the planner may move of this VM, when it is not the host's mode.
    pub mode: Option<Mode>,
    /// Whether the guest sees one NUMA node per entry of [`Vm::memory_nodes`].
    pub vnuma: bool,
    /// How the kernel is loaded and entered.
    pub boot: BootProtocol,
    /// Whether the board has the devices that test kernels end and configure themselves by.
    pub test_devices: bool,
    /// What follows when the guest switches itself off.
    pub on_poweroff: AtEnd,
    /// What follows when the guest asks for a reset.
    pub on_reset: AtEnd,
    /// What follows when it did something that cannot be continued.
    pub on_fault: AtEnd,
}

impl Vm {
    /// A VM with every optional key at its default.
    pub fn new(
        name: impl Into<String>,
        cpus: u16,
        memory_bytes: u64,
        kernel: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            cpus,
            memory_bytes,
            kernel: kernel.into(),
            initrd: None,
            append: String::new(),
            memory_nodes: Vec::new(),
            start_node: None,
            affinity: Affinity::default(),
            weight: 256,
            cap_percent: 0,
            priority: Priority::default(),
            mode: None,
            vnuma: false,
            boot: BootProtocol::default(),
            test_devices: false,
            on_poweroff: AtEnd::Off,
            on_reset: AtEnd::Restart,
            on_fault: AtEnd::Off,
        }
    }

    /// What the planner may move of this VM on `host`.
    pub fn mode_on(&self, host: &Host) -> Mode {
        self.mode.unwrap_or(host.mode)
    }
}

/// A piece of guest memory and the node that holds it at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeShare {
    /// The node.
    pub node: NodeId,
    /// Bytes, a multiple of 2 MiB and never 0.
    pub bytes: u64,
}

/// Where vCPUs may run at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// On every CPU.
    #[default]
    Auto,
    /// On the CPUs of these nodes; never empty.
    Nodes(Vec<NodeId>),
    /// On these CPUs; never empty.
    Cpus(Vec<CpuId>),
}

macro_rules! keyword {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl Keyword for $name {
            const WORDS: &'static [&'static str] = &[$($text),+];
            fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// A value that is one word out of a list.
pub trait Keyword: Sized {
    /// The list.
    const WORDS: &'static [&'static str];
    /// The value that `word` stands for.
    fn from_word(word: &str) -> Option<Self>;
}

keyword!(
    /// What the planner may do.
    Mode {
        /// Move vCPUs and pages.
        #[default]
        Auto = "auto",
        /// Decide and report, move nothing.
        DryRun = "dry-run",
        /// Move vCPUs only.
        VcpuOnly = "vcpu-only",
        /// Move pages only.
        PagesOnly = "pages-only",
        /// Plan nothing; the scheduler balances load without looking at memory.
        Off = "off",
    }
);

keyword!(
    /// What follows when a VM has ended.
    AtEnd {
        /// It stays off.
        #[default]
        Off = "off",
        /// It starts again from its images.
        Restart = "restart",
    }
);

impl Mode {
    /// Whether plans are made at all.
    pub const fn plans(self) -> bool {
        !matches!(self, Self::Off)
    }
    /// Whether vCPUs may move for the sake of their memory.
    pub const fn moves_vcpus(self) -> bool {
        matches!(self, Self::Auto | Self::VcpuOnly)
    }
    /// Whether pages may move.
    pub const fn moves_pages(self) -> bool {
        matches!(self, Self::Auto | Self::PagesOnly)
    }
}

keyword!(
    /// Least severe message shown.
    LogLevel {
        /// Errors only.
        Error = "error",
        /// And warnings.
        Warn = "warn",
        /// And what an operator wants to follow.
        #[default]
        Info = "info",
        /// And what a developer wants to follow.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
);

keyword!(
    /// Where messages go.
    Console {
        /// To every console device found.
        #[default]
        Auto = "auto",
        /// To the UART alone.
        Serial = "serial",
        /// To the framebuffer alone.
        Framebuffer = "framebuffer",
        /// Nowhere.
        None = "none",
    }
);

keyword!(
    /// Which nodes have page tables of a VM's.
    Roots {
        /// Those that do a good part of its running.
        #[default]
        Auto = "auto",
        /// Its home.
        One = "one",
        /// All that have memory, from its start on.
        Every = "every",
    }
);

keyword!(
    /// Scheduling class of a VM.
    Priority {
        /// Runs when the others leave time; never less than the scheduler's floor.
        Low = "low",
        /// The ordinary class.
        #[default]
        Normal = "normal",
        /// Before the others.
        High = "high",
    }
);

keyword!(
    /// How a VM's kernel is loaded and entered.
    BootProtocol {
        /// Linux' 64-bit boot protocol, for a bzImage.
        #[default]
        Linux = "linux",
        /// Multiboot 0.6.96, for a 32-bit ELF file or a flat image with load addresses.
        Multiboot = "multiboot",
    }
);
