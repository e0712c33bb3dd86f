//! What a trial consists of.

use std::fmt;
use std::time::Duration;

use crate::{Emulator, Evidence, Machine, Vm};

/// What takes QEMU a second may take Bochs so many.
const SLOWNESS_OF_BOCHS: u32 = 6;

/// When a scenario runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Always.
    Quick,
    /// With `--full` only.
    Full,
    /// With `--gaps` only: it shows what Perigee should do and does not yet.
    Gap,
}

/// An ACPI table that replaces the firmware's, as a file below `/perigee/acpi`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// File name, ending in `.aml`.
    pub name: String,
    /// The table with its header and checksum.
    pub bytes: Vec<u8>,
}

/// How a file of the boot medium is not what it usually is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChange {
    /// It holds these bytes.
    Put(Vec<u8>),
    /// It is missing.
    Remove,
    /// Only so many bytes of it are there.
    Cut(usize),
    /// This byte of it is inverted.
    Flip(usize),
}

/// Something that happens to the machine from outside, once a line of the console asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// It happens once a line of the console contains this.
    pub after: String,
    /// What happens.
    pub what: Action,
}

/// What happens to a machine from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// An operator types this on the console, `\r` for Enter.
    Type(String),
    /// Every CPU receives an NMI, as from a server's diagnostic button.
    Nmi,
    /// A machine-check bank of CPU 0 reports an uncorrected error.
    MachineCheck,
    /// The emulator stops the whole machine and lets it go on at once, so many times.
    Stops(u32),
}

impl Action {
    /// Whether it comes through the emulator's control socket.
    pub fn needs_control(&self) -> bool {
        match self {
            Self::Type(_) => false,
            Self::Nmi | Self::MachineCheck | Self::Stops(_) => true,
        }
    }
}

/// How a scenario is judged: a sentence when the evidence does not convince.
type Judge = Box<dyn Fn(&Evidence) -> Result<(), String> + Send + Sync>;

/// One trial on one machine.
pub struct Scenario {
    /// Its name: words joined by hyphens, unique.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// When it runs in QEMU.
    pub tier: Tier,
    /// When it runs in Bochs.
    pub bochs_tier: Tier,
    /// The machine.
    pub machine: Machine,
    /// It is about what QEMU does not emulate, VT-x for one.
    pub bochs_only: bool,
    /// A smaller one for Bochs, where one thread emulates all CPUs.
    pub bochs_machine: Option<Machine>,
    /// Keys of the `[host]` table, values written as in TOML.
    pub host: Vec<(String, String)>,
    /// How the kernel is broken on purpose.
    pub sabotage: Vec<String>,
    /// The VMs.
    pub vms: Vec<Vm>,
    /// ACPI tables that replace the firmware's.
    pub overrides: Vec<Override>,
    /// What is different on the boot medium, by path.
    pub files: Vec<(String, FileChange)>,
    /// What happens to it from outside, in this order.
    pub steps: Vec<Step>,
    /// Arguments of the observer plugin besides the machine's shape and its output file; `None` runs without it.
    pub plugin: Option<String>,
    /// The run is ended after this long, with an outcome of its own.
    pub timeout: Duration,
    /// The same in Bochs, if it is not so many times as long as Bochs is slow.
    pub bochs_timeout: Option<Duration>,
    /// The random seed this was made from, if any.
    pub seed: Option<u64>,
    judge: Judge,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario")
            .field("name", &self.name)
            .field("tier", &self.tier)
            .finish_non_exhaustive()
    }
}

impl Scenario {
    /// A scenario of the quick set on four nodes with two CPUs and 512 MiB each, without VMs.
    pub fn quick(
        name: &str,
        about: &str,
        judge: impl Fn(&Evidence) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            tier: Tier::Quick,
            bochs_tier: Tier::Full,
            machine: Machine::row(4, 2, 512),
            bochs_only: false,
            bochs_machine: None,
            host: Vec::new(),
            sabotage: Vec::new(),
            vms: Vec::new(),
            overrides: Vec::new(),
            files: Vec::new(),
            steps: Vec::new(),
            plugin: None,
            timeout: Duration::from_secs(240),
            bochs_timeout: None,
            seed: None,
            judge: Box::new(judge),
        }
    }

    /// The same, for `--full` only.
    pub fn full(
        name: &str,
        about: &str,
        judge: impl Fn(&Evidence) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            tier: Tier::Full,
            ..Self::quick(name, about, judge)
        }
    }

    /// The same, of what is known to fail so far: neither set has it.
    pub fn gap(
        name: &str,
        about: &str,
        judge: impl Fn(&Evidence) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            tier: Tier::Gap,
            bochs_tier: Tier::Gap,
            ..Self::quick(name, about, judge)
        }
    }

    /// On this machine.
    pub fn on(mut self, machine: Machine) -> Self {
        self.machine = machine;
        self
    }

    /// About VT-x, or what else QEMU does not emulate.
    pub fn in_bochs_only(mut self) -> Self {
        self.bochs_only = true;
        self
    }

    /// In Bochs on this machine.
    pub fn on_bochs(mut self, machine: Machine) -> Self {
        self.bochs_machine = Some(machine);
        self
    }

    /// In Bochs in the quick set, too.
    pub fn quick_in_bochs(mut self) -> Self {
        self.bochs_tier = Tier::Quick;
        self
    }

    /// With this VM as well.
    pub fn vm(mut self, vm: Vm) -> Self {
        self.vms.push(vm);
        self
    }

    /// With `key = value` in the `[host]` table; `value` is TOML.
    pub fn host(mut self, key: &str, value: &str) -> Self {
        self.host.push((key.into(), value.into()));
        self
    }

    /// On a kernel that is broken in the way that `config::Sabotage` calls `name`.
    pub fn sabotaged(mut self, name: &str) -> Self {
        self.sabotage.push(name.into());
        self
    }

    /// Whether it needs the kernel that was built to be sabotaged.
    pub fn wants_sabotaged_kernel(&self) -> bool {
        !self.sabotage.is_empty()
    }

    /// All keys of the `[host]` table.
    pub fn host_table(&self) -> Vec<(String, String)> {
        let names: Vec<String> = self.sabotage.iter().map(|n| format!("{n:?}")).collect();
        let sabotage = ("sabotage".to_string(), format!("[{}]", names.join(", ")));
        let wanted = self.wants_sabotaged_kernel().then_some(sabotage);
        self.host.iter().cloned().chain(wanted).collect()
    }

    /// With this ACPI table in place of the firmware's.
    pub fn table(mut self, name: &str, bytes: Vec<u8>) -> Self {
        self.overrides.push(Override {
            name: name.into(),
            bytes,
        });
        self
    }

    /// With this file of the boot medium (`perigee/...`) changed.
    pub fn file(mut self, path: &str, change: FileChange) -> Self {
        self.files.push((path.into(), change));
        self
    }

    /// With `keys` typed once a line of the console contains `after`.
    pub fn type_after(mut self, after: &str, keys: &str) -> Self {
        self.steps.push(Step {
            after: after.into(),
            what: Action::Type(keys.into()),
        });
        self
    }

    /// What follows waits until so many more lines of the console contain `line`.
    pub fn wait_for(self, line: &str, times: usize) -> Self {
        (0..times).fold(self, |trial, _| trial.type_after(line, ""))
    }

    /// With an NMI on every CPU once a line of the console contains `after`.
    pub fn nmi_after(mut self, after: &str) -> Self {
        self.steps.push(Step {
            after: after.into(),
            what: Action::Nmi,
        });
        self
    }

    /// With so many short stops of the whole machine once a line of the console contains `after`.
    pub fn stops_after(mut self, after: &str, times: u32) -> Self {
        self.steps.push(Step {
            after: after.into(),
            what: Action::Stops(times),
        });
        self
    }

    /// With an uncorrected machine check once a line of the console contains `after`.
    pub fn machine_check_after(mut self, after: &str) -> Self {
        self.steps.push(Step {
            after: after.into(),
            what: Action::MachineCheck,
        });
        self
    }

    /// Observed from outside by the QEMU plugin, with these arguments besides the machine's shape.
    pub fn observed(mut self, arguments: &str) -> Self {
        self.plugin = Some(arguments.into());
        self
    }

    /// Ended after this long.
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Ended after this long in Bochs.
    pub fn within_in_bochs(mut self, timeout: Duration) -> Self {
        self.bochs_timeout = Some(timeout);
        self
    }

    /// Made from this seed.
    pub fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// When it runs there.
    pub fn tier_in(&self, emulator: Emulator) -> Tier {
        match emulator {
            Emulator::Qemu => self.tier,
            Emulator::Bochs => self.bochs_tier,
        }
    }

    /// The machine that it has there.
    pub fn machine_in(&self, emulator: Emulator) -> &Machine {
        match (emulator, &self.bochs_machine) {
            (Emulator::Bochs, Some(machine)) => machine,
            _ => &self.machine,
        }
    }

    /// The time that it has there.
    pub fn timeout_in(&self, emulator: Emulator) -> Duration {
        match emulator {
            Emulator::Qemu => self.timeout,
            Emulator::Bochs => self
                .bochs_timeout
                .unwrap_or(self.timeout * SLOWNESS_OF_BOCHS),
        }
    }

    /// Why it cannot run there, as the beginning of a sentence.
    pub fn cannot_run_in(&self, emulator: Emulator) -> Option<String> {
        if emulator == Emulator::Qemu {
            return self
                .bochs_only
                .then(|| "QEMU does not emulate what it is about".into());
        }
        if self.steps.iter().any(|step| step.what.needs_control()) {
            return Some(
                "Bochs lets nobody stop it or send an NMI or a machine check from outside".into(),
            );
        }
        self.machine_in(emulator).check_for_bochs().err()
    }

    /// Judges a run of this scenario.
    ///
    /// # Errors
    /// The first thing that did not convince, as a sentence.
    pub fn judge(&self, evidence: &Evidence) -> Result<(), String> {
        // A kernel that was told to give a frame to two VMs sees both give it back.
        if !self.sabotage.iter().any(|way| way == "foreign-frame") {
            evidence.keeps_its_frames()?;
        }
        (self.judge)(evidence)
    }
}
