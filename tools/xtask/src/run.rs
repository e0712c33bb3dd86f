//! `cargo xtask run` and `cargo xtask image`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use scenarios::{Emulator, Evidence, Machine, Node, Outcome, Override};

use crate::accel::{self, Accel};
use crate::artifacts::{self, Artifacts};
use crate::launch::Invocation;
use crate::plan::{Plan, PlannedVm, Source, Wishes, default_vms, is_multiboot};
use crate::provision::{Lab, Part};
use crate::session::{self, Manner, Transcript};
use crate::status::usage;
use crate::{image, medium, say, verdict};

/// A run without `--timeout` is ended after this long, so that nothing hangs for ever.
const ORDINARY_TIMEOUT: Duration = Duration::from_secs(900);
/// Most nodes that the emulated machine can have.
const MOST_NODES: u32 = 16;
/// Most CPUs that the emulated machine can have.
const MOST_CPUS: u32 = 64;

/// Which guests, and how.
#[derive(Args, Clone, Debug)]
pub struct GuestArgs {
    /// A perigee.toml to use instead of the two default VMs (kernel and initrd name files of this machine)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kernel of every VM: a bzImage, debian-6.1, debian-6.12, or a Multiboot kernel, which runs in one VM with test
    /// devices unless --vm says otherwise
    #[arg(long, value_name = "FILE")]
    kernel: Option<String>,
    /// Initial RAM disk of every VM, or "none"; for a Multiboot kernel "FILE WORDS,FILE WORDS", its modules
    #[arg(long, value_name = "FILE")]
    initrd: Option<String>,
    /// Kernel command line of every VM; words behind " -- " go to the memory workload
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// One key of one VM, for example beta:mode=off or alpha:memory=256M; may be repeated
    #[arg(long = "vm", value_name = "NAME:KEY=VALUE")]
    vm_settings: Vec<String>,
    /// Keep the guests at a shell after their workload
    #[arg(long)]
    stay: bool,
}

/// The options of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The laboratory: qemu emulates AMD-V, bochs emulates VT-x (and is much slower)
    #[arg(long, default_value = "qemu", value_parser = emulator)]
    lab: Emulator,
    /// What executes the machine's instructions in qemu: its emulation, or KVM where the host's guests may host guests
    #[arg(long, value_enum, default_value_t, value_name = "WHAT")]
    accel: Accel,
    /// NUMA nodes of the machine [default: 4; 2 in bochs]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_NODES)))]
    nodes: Option<u32>,
    /// CPUs of the machine, spread over its nodes [default: 2 for each node; 1 in bochs]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_CPUS)))]
    cpus: Option<u32>,
    /// Memory of the machine, spread over its nodes, for example 2G [default: 512M for each node; 256M in bochs]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    #[command(flatten)]
    guests: GuestArgs,
    /// Wait for gdb on TCP port 1234 before the first instruction
    #[arg(long)]
    gdb: bool,
    /// Print the emulator's command line and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the run as JSON to this file
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// End the run with status 4 after this long [default: 900, none with --stay or --gdb]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Boot this disk (made by `cargo xtask image`) and build nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "kernel", "initrd", "append", "vm_settings", "stay"])]
    image: Option<PathBuf>,
}

/// An emulator's name on the command line.
pub fn emulator(name: &str) -> Result<Emulator, String> {
    Emulator::parse(name).ok_or_else(|| "there are qemu and bochs".into())
}

impl GuestArgs {
    fn wishes(&self, machine: &Machine, emulator: Emulator) -> Wishes {
        Wishes {
            config: self.config.clone(),
            host: Vec::new(),
            vms: self.vms(machine, emulator),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            append: self.append.clone(),
            vm_settings: self.vm_settings.clone(),
            stay: self.stay,
        }
    }
}

impl GuestArgs {
    /// The VMs of a run without a configuration: the two of the demonstration, or, for a Multiboot kernel, which
    /// would only run twice, those that `--vm` names, and the first if it names none.
    fn vms(&self, machine: &Machine, emulator: Emulator) -> Vec<scenarios::Vm> {
        let mut vms = default_vms(machine, emulator);
        let foreign = self
            .kernel
            .as_ref()
            .is_some_and(|kernel| is_multiboot(Path::new(kernel)));
        if foreign {
            let named = |vm: &scenarios::Vm| {
                let mut settings = self.vm_settings.iter();
                settings.any(|s| s.split(':').next() == Some(&vm.name))
            };
            let any = vms.iter().any(named);
            let mut first = true;
            vms.retain(|vm| core::mem::take(&mut first) && !any || named(vm));
        }
        vms
    }
}

impl RunArgs {
    /// The machine they describe.
    fn machine(&self) -> Result<Machine> {
        let (nodes, cpus, memory) = match self.lab {
            Emulator::Qemu => (4, 2, 512),
            Emulator::Bochs => (2, 1, 256),
        };
        let nodes = self.nodes.unwrap_or(nodes);
        let cpus = self.cpus.unwrap_or(cpus * nodes);
        let memory_mib = match &self.memory {
            None => memory * nodes,
            Some(text) => {
                let bytes =
                    config::parse_size(text).map_err(|why| usage(format!("--memory {why}")))?;
                u32::try_from(bytes >> 20)
                    .map_err(|_| usage(format!("--memory {text} is more than can be emulated.")))?
            }
        };
        let each = (memory_mib / nodes) & !1;
        if each < 128 {
            return Err(usage(format!(
                "--memory gives each of {nodes} nodes {each} MiB; 128 are the least."
            )));
        }
        let share = |n: u32| cpus / nodes + u32::from(n < cpus % nodes);
        let machine = Machine::of(
            (0..nodes)
                .map(|n| Node {
                    cpus: share(n),
                    memory_mib: each,
                })
                .collect(),
        );
        machine.check().map_err(usage)?;
        if self.lab == Emulator::Bochs {
            machine.check_for_bochs().map_err(usage)?;
            if self.gdb {
                return Err(usage(
                    "--gdb: Bochs does not listen to gdb; use --lab qemu.",
                ));
            }
        }
        Ok(machine)
    }

    /// Gives the machine the CPU that goes with what executes it.
    fn accelerate(&self, lab: &Lab, machine: &mut Machine) -> Result<()> {
        if self.accel == Accel::Kvm {
            machine.cpu = accel::nested_cpu(lab.qemu.as_ref().context("QEMU is not here yet")?)?;
        }
        Ok(())
    }

    fn limit(&self) -> Option<Duration> {
        let endless = self.guests.stay || self.gdb;
        self.timeout
            .map(Duration::from_secs)
            .or((!endless).then_some(ORDINARY_TIMEOUT))
    }
}

/// What an emulator needs of the laboratory.
pub fn emulator_parts(emulator: Emulator) -> [Part; 2] {
    let program = match emulator {
        Emulator::Qemu => Part::Qemu,
        Emulator::Bochs => Part::Bochs,
    };
    [program, Part::Ovmf]
}

/// What a plan needs of the laboratory.
pub fn parts(plan: &Plan) -> BTreeSet<Part> {
    plan.guests
        .values()
        .filter_map(|source| match source {
            Source::Kernel(kernel) => Part::of_kernel(kernel),
            Source::OurInitramfs => Some(Part::Busybox),
            Source::File(_) => None,
        })
        .collect()
}

/// Whether a guest of this plan is Linux, or may be.
pub fn hosts_linux(plan: &Plan) -> bool {
    plan.guests.values().any(|source| match source {
        Source::Kernel(kernel) => Part::of_kernel(kernel).is_some(),
        Source::OurInitramfs | Source::File(_) => true,
    })
}

/// The machine as this laboratory emulates it well, with Linux in it or without.
pub fn suited(machine: Machine, emulator: Emulator, lab: &Lab, linux: bool) -> Machine {
    match &lab.bochs {
        Some(bochs) if emulator == Emulator::Bochs && linux => {
            machine.for_linux_in_bochs(&bochs.version)
        }
        _ => machine,
    }
}

/// A folder that disappears with its owner.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    pub fn new() -> Result<Self> {
        let unique = Instant::now();
        let path =
            std::env::temp_dir().join(format!("perigee-{}-{:x}", std::process::id(), hash(unique)));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn hash(value: impl std::hash::Hash) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(value)
}

/// What was run, as far as judging needs to know it.
#[derive(Debug)]
pub struct Subject<'a> {
    /// What emulates the machine.
    pub emulator: Emulator,
    /// The machine.
    pub machine: &'a Machine,
    /// Its VMs.
    pub vms: &'a [PlannedVm],
    /// The seed, if there is one.
    pub seed: Option<u64>,
}

impl Subject<'_> {
    /// The evidence in a transcript.
    pub fn evidence(&self, transcript: &Transcript, plugin: Option<serde_json::Value>) -> Evidence {
        let mut evidence = Evidence {
            emulator: self.emulator,
            machine: self.machine.clone(),
            vms: self.vms.iter().map(|vm| vm.name.clone()).collect(),
            outcome: Outcome::Clean,
            console: transcript.console.clone(),
            records: transcript.records.clone(),
            torn_records: transcript.torn_records,
            plugin,
            seed: self.seed,
        };
        evidence.outcome = verdict::outcome(transcript, self.vms, &evidence);
        evidence
    }
}

/// Builds everything and writes the medium to `disk`.
pub fn prepare(
    plan: &Plan,
    overrides: &[Override],
    lab: &Lab,
    artifacts: &Artifacts,
    disk: &Path,
) -> Result<()> {
    image::write_disk(disk, &medium::files(artifacts, plan, overrides, lab)?)
}

/// The ACPI tables on the medium: those that the emulator's firmware lacks, and over them what was asked for.
pub fn tables(emulator: Emulator, machine: &Machine, wanted: &[Override]) -> Vec<Override> {
    let mut tables = match emulator {
        Emulator::Qemu => Vec::new(),
        Emulator::Bochs => machine.bochs_tables(),
    };
    tables.retain(|table| wanted.iter().all(|w| w.name != table.name));
    tables.extend(wanted.iter().cloned());
    tables
}

/// Where a run's files are.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The disk that is booted.
    pub disk: &'a Path,
    /// What remains of the run.
    pub folder: &'a Path,
    /// What does not.
    pub scratch: &'a Path,
}

/// The line that starts `emulator` with this machine, and the emulator's version.
///
/// # Errors
/// The laboratory lacks it.
pub fn invocation(
    emulator: Emulator,
    lab: &Lab,
    machine: &Machine,
    places: Places<'_>,
) -> Result<(Invocation, String)> {
    let firmware = lab.ovmf.as_ref().context("no firmware")?;
    let records = session::records_file(places.folder);
    Ok(match emulator {
        Emulator::Qemu => {
            let qemu = lab.qemu.as_ref().context("no QEMU")?;
            (
                Invocation::qemu(qemu, machine, firmware, places.disk, &records),
                qemu.version.clone(),
            )
        }
        Emulator::Bochs => {
            let bochs = lab.bochs.as_ref().context("no Bochs")?;
            (
                Invocation::bochs(bochs, machine, firmware, &records, places),
                bochs.version.clone(),
            )
        }
    })
}

/// `cargo xtask run`: the exit status.
///
/// # Errors
/// A usage error, or what cannot be built, installed or started.
pub fn run(args: &RunArgs) -> Result<u8> {
    let mut machine = args.machine()?;
    let plan = match &args.image {
        Some(_) => None,
        None => Some(Plan::new(&args.guests.wishes(&machine, args.lab))?),
    };
    if let Some(missing) = args.image.as_ref().filter(|image| !image.is_file()) {
        return Err(usage(format!(
            "--image {}: there is no such file.",
            missing.display()
        )));
    }
    let mut needed: BTreeSet<Part> = plan.as_ref().map_or(BTreeSet::new(), parts);
    needed.extend(emulator_parts(args.lab));
    if args.dry_run {
        return dry_run(args, machine, plan.as_ref(), &needed);
    }
    say::line(
        "Stop: Ctrl-C. Switch consoles: Ctrl-A then 0 for Perigee, 1 to 9 for a guest, n for the next, h for help.",
    );
    session::stop_flag()?;
    let lab = Lab::ensure(&needed)?;
    args.accelerate(&lab, &mut machine)?;
    let linux = plan.as_ref().is_none_or(hosts_linux);
    let machine = suited(machine, args.lab, &lab, linux);

    let scratch = Scratch::new()?;
    let folder = artifacts::folder("run")?;
    let (disk, build) = match (&args.image, &plan) {
        (Some(image), _) => (image.clone(), None),
        (None, plan) => {
            let begun = Instant::now();
            let artifacts = Artifacts::build()?;
            let build = begun.elapsed();
            let disk = scratch.path().join("medium.img");
            prepare(
                plan.as_ref().context("no plan")?,
                &tables(args.lab, &machine, &[]),
                &lab,
                &artifacts,
                &disk,
            )?;
            (disk, Some(build))
        }
    };
    let places = Places {
        disk: &disk,
        folder: &folder,
        scratch: scratch.path(),
    };
    let (mut invocation, version) = invocation(args.lab, &lab, &machine, places)?;
    if args.accel == Accel::Kvm {
        invocation = invocation.with_kvm();
    }
    say::step(format!(
        "{} {version} ({})",
        args.lab.title(),
        invocation.program
    ));
    if args.gdb {
        invocation = invocation.with_gdb();
        tell_gdb();
    }
    let control = scratch.path().join("control");
    if args.lab == Emulator::Qemu {
        invocation = invocation.with_control(&control);
    }
    let vms = plan.as_ref().map_or(Vec::new(), |plan| plan.vms.clone());
    let manner = Manner {
        timeout: args.limit(),
        attended: true,
        steps: &[],
        control: Some(&control),
        folder: &folder,
    };
    let transcript = session::run(&invocation, &manner)?;
    let evidence = Subject {
        emulator: args.lab,
        machine: &machine,
        vms: &vms,
        seed: None,
    }
    .evidence(&transcript, None);
    let phases = verdict::phases(build, &evidence, transcript.took);
    tell(&evidence, &phases, &folder);
    if let Some(path) = &args.report {
        let report = verdict::report(&evidence, &phases, &version, &invocation.to_string());
        fs::write(path, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(evidence.outcome.exit_status())
}

/// The end of a run, for the person.
fn tell(evidence: &Evidence, phases: &[verdict::Phase], folder: &Path) {
    say::line("Phases:");
    for phase in phases {
        match phase.took {
            Some(took) => say::line(format!(
                "  {:<32} {:>7.1} s",
                phase.name,
                took.as_secs_f64()
            )),
            None => say::line(format!("  {:<32} {:>9}", phase.name, "-")),
        }
    }
    for name in &evidence.vms {
        let guest = evidence.guest(name);
        let result = guest.result().unwrap_or("no result");
        say::line(format!("{name}: {result} {}", guest.details));
    }
    say::line(format!(
        "Result: {} (exit status {})",
        evidence.outcome,
        evidence.outcome.exit_status()
    ));
    say::line(format!("Logs: {}", folder.display()));
}

fn tell_gdb() {
    say::line("The machine waits for gdb on port 1234:");
    say::line(format!(
        "  gdb -ex 'target remote :1234' -ex 'add-symbol-file {} -o {:#x}' -ex 'hbreak kernel_entry' -ex continue",
        Artifacts::places().kernel.display(),
        handoff::KERNEL_BASE
    ));
}

/// Prints the line that would run. The disk it names is made here if everything for it is there;
/// nothing is built or installed.
fn dry_run(
    args: &RunArgs,
    mut machine: Machine,
    plan: Option<&Plan>,
    needed: &BTreeSet<Part>,
) -> Result<u8> {
    let lab = Lab::survey(needed)?;
    args.accelerate(&lab, &mut machine)?;
    let machine = suited(machine, args.lab, &lab, plan.is_none_or(hosts_linux));
    let folder = artifacts::folder("run")?;
    let disk = args
        .image
        .clone()
        .unwrap_or_else(|| folder.join("medium.img"));
    let tables = tables(args.lab, &machine, &[]);
    if let (None, Some(plan)) = (&args.image, plan)
        && let Err(error) = prepare(plan, &tables, &lab, &Artifacts::places(), &disk)
    {
        say::step(format!(
            "{} is not written: {error:#}; `cargo xtask build` makes what it needs",
            disk.display()
        ));
    }
    let places = Places {
        disk: &disk,
        folder: &folder,
        scratch: &folder,
    };
    let (mut invocation, _) = invocation(args.lab, &lab.or_future_places()?, &machine, places)?;
    if args.accel == Accel::Kvm {
        invocation = invocation.with_kvm();
    }
    if args.gdb {
        invocation = invocation.with_gdb();
    }
    say::line(format!("{invocation}"));
    Ok(0)
}

/// `cargo xtask image FILE`.
///
/// # Errors
/// As for [`run`].
pub fn image(file: &Path, guests: &GuestArgs) -> Result<u8> {
    // A real machine's nodes are not known here: both VMs start where Perigee thinks best.
    let plan = Plan::new(&guests.wishes(&Machine::row(1, 1, 1024), Emulator::Qemu))?;
    let lab = Lab::ensure(&parts(&plan))?;
    prepare(&plan, &[], &lab, &Artifacts::build()?, file)?;
    let megabytes = say::megabytes(fs::metadata(file)?.len());
    say::line(format!(
        "{} ({megabytes}): write it to a USB stick or a disk, and start the server from it by UEFI.",
        file.display()
    ));
    Ok(0)
}
