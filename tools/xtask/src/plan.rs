//! From wishes to a run: which machine, what `perigee.toml` says, which guest files lie beside it.
//!
//! The configuration's schema belongs to the crate `config`; here the file is put together as a
//! TOML table and handed to that crate to be checked. A guest's `kernel` and `initrd` name files of
//! this machine at first (or `debian-6.1`, `debian-6.12`); they are copied to the medium's
//! `guests` folder and the entries rewritten.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use guest::multiboot::module_list;
use scenarios::{Emulator, FileChange, GuestKernel, Machine, Vm};
use toml::{Table, Value};

use crate::status::usage;

/// Options that every VM gets unless told otherwise: serial console, Debian's `quiet`, and no
/// waiting for a person after a panic.
pub const APPEND: &str = "console=ttyS0 quiet panic=1";
/// What keeps a guest at a shell after its workload.
const STAY: &str = "perigee.stay";
/// Keys whose values are text even where they look like a number.
const TEXT_KEYS: [&str; 12] = [
    "name",
    "memory",
    "kernel",
    "initrd",
    "append",
    "priority",
    "mode",
    "boot",
    "workload",
    "on_poweroff",
    "on_reset",
    "on_fault",
];
/// Keys of a `[[vm]]` table, and `workload`, which becomes a part of `append`.
const KEYS: [&str; 20] = [
    "name",
    "cpus",
    "memory",
    "kernel",
    "initrd",
    "append",
    "memory_nodes",
    "start_node",
    "cpu_affinity",
    "weight",
    "cap",
    "priority",
    "mode",
    "vnuma",
    "boot",
    "test_devices",
    "on_poweroff",
    "on_reset",
    "on_fault",
    "workload",
];
/// The value of `boot` for test kernels.
const MULTIBOOT: &str = "multiboot";

/// What the person or the scenario wants.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// A `perigee.toml` to start from instead of [`Wishes::vms`].
    pub config: Option<PathBuf>,
    /// Keys of the `[host]` table, values as in TOML.
    pub host: Vec<(String, String)>,
    /// The VMs, when there is no file.
    pub vms: Vec<Vm>,
    /// For every VM.
    pub kernel: Option<String>,
    /// For every VM.
    pub initrd: Option<String>,
    /// For every VM.
    pub append: Option<String>,
    /// `NAME:KEY=VALUE`, for one VM.
    pub vm_settings: Vec<String>,
    /// Guests end at a shell.
    pub stay: bool,
}

/// Where a file of the medium comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A guest kernel.
    Kernel(GuestKernel),
    /// The initramfs with the workload.
    OurInitramfs,
    /// A file of this machine.
    File(PathBuf),
}

/// A VM as the harness needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedVm {
    /// Its name.
    pub name: String,
    /// Who says how it went.
    pub judged: Judge,
    /// Whether it starts again when it asks for a reset, so that a reset is no failure.
    pub resets: bool,
}

/// Who says how a VM's run went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// The workload in our initramfs, or our probe, which must report a result.
    Workload,
    /// The guest itself, which must write its verdict to the exit port.
    ExitPort,
    /// Nobody: that it powers off is enough.
    PowerOff,
}

/// All that a boot medium is made of, besides loader and kernel.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The text of `perigee.toml`.
    pub toml: String,
    /// Files below `guests`, by their path below `/perigee`.
    pub guests: BTreeMap<String, Source>,
    /// The VMs in their order.
    pub vms: Vec<PlannedVm>,
    /// What is different on the medium in the end, by path.
    pub changes: Vec<(String, FileChange)>,
}

/// The two VMs of a run without a configuration: `alpha` wherever it is near its memory, `beta`
/// with its pages on the last node and its CPUs on the first, for Perigee to find and mend. In Bochs, where one
/// thread emulates everything, they are smaller.
pub fn default_vms(machine: &Machine, emulator: Emulator) -> Vec<Vm> {
    let last = machine
        .nodes
        .iter()
        .rposition(|n| n.memory_mib > 0)
        .unwrap_or(0);
    // Each touches part of its memory for a while, under a tag of its own for an observer outside.
    let (alpha, beta) = match emulator {
        Emulator::Qemu => (
            Vm::linux("alpha").workload("--mib 64 --seconds 10 --tag 1"),
            Vm::linux("beta").workload("--mib 64 --seconds 15 --tag 2"),
        ),
        Emulator::Bochs => {
            let small = |name| Vm::linux(name).set("cpus", "1").set("memory", "\"96M\"");
            (
                small("alpha").workload("--mib 8 --seconds 3 --tag 1"),
                small("beta").workload("--mib 8 --seconds 4 --tag 2"),
            )
        }
    };
    let beta = if last > 0 {
        beta.set("memory_nodes", &format!("[{last}]"))
            .set("start_node", "0")
    } else {
        beta
    };
    vec![alpha, beta]
}

/// The nearest of `known` to what was typed, as the end of a sentence.
fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let best = known
        .clone()
        .min_by_key(|k| strsim::damerau_levenshtein(typed, k));
    match best
        .filter(|k| strsim::damerau_levenshtein(typed, k) <= typed.len().max(k.len()).div_ceil(2))
    {
        Some(best) => format!("did you mean {best:?}?"),
        None => format!("there are: {}.", known.collect::<Vec<_>>().join(", ")),
    }
}

/// A value as TOML, or as text where it is none.
fn value(key: &str, text: &str) -> Value {
    let text_value = || Value::String(text.into());
    if TEXT_KEYS.contains(&key) {
        return text_value();
    }
    let parsed = format!("v = {text}").parse::<Table>().ok();
    parsed
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(text_value)
}

fn literal(key: &str, toml: &str) -> Result<Value> {
    let table = format!("v = {toml}")
        .parse::<Table>()
        .with_context(|| format!("{key} = {toml} is not TOML"))?;
    table
        .get("v")
        .cloned()
        .with_context(|| format!("{key} has no value"))
}

/// All that `config` complains about, as one usage error.
fn check(text: &str, whose: &str) -> Result<()> {
    config::parse(text).map(|_| ()).map_err(|errors| {
        let lines = errors
            .iter()
            .map(|e| format!("\n  {e}"))
            .collect::<String>();
        usage(format!("{whose} is not accepted:{lines}"))
    })
}

impl Plan {
    /// Puts a run together.
    ///
    /// # Errors
    /// A usage error for a configuration, VM, key, value or file that is not as it should be.
    pub fn new(wishes: &Wishes) -> Result<Self> {
        let (mut document, base) = wishes.document()?;
        let mut tables = match document.remove("vm") {
            Some(Value::Array(entries)) => entries
                .into_iter()
                .filter_map(|e| e.try_into::<Table>().ok())
                .collect(),
            _ => Vec::new(),
        };
        apply_settings(&mut tables, wishes)?;
        let mut plan = Self {
            toml: String::new(),
            guests: BTreeMap::new(),
            vms: Vec::new(),
            changes: Vec::new(),
        };
        for table in &mut tables {
            plan.add(table, &base, wishes)?;
        }
        // The whole document at once: a table inside a `[[vm]]` needs its full path as a header.
        document
            .entry("host")
            .or_insert_with(|| Value::Table(Table::new()));
        document.insert(
            "vm".into(),
            Value::Array(tables.into_iter().map(Value::Table).collect()),
        );
        plan.toml = document.to_string();
        check(&plan.toml, "what was asked for")?;
        Ok(plan)
    }

    /// Takes a VM in: its files get their place on the medium, its command line its last words.
    fn add(&mut self, table: &mut Table, base: &Path, wishes: &Wishes) -> Result<()> {
        let mut text = |key: &str| {
            table
                .remove(key)
                .and_then(|v| v.as_str().map(str::to_string))
        };
        let kernel = text("kernel").unwrap_or_else(|| "debian-6.1".into());
        let initrd = text("initrd");
        let workload = text("workload").unwrap_or_default();
        let append = text("append");
        let name = table
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string();

        let kernel = GuestKernel::parse(&kernel);
        let placed = match &kernel {
            GuestKernel::File(path) => {
                let path = existing(base, path, &name, "kernel")?;
                if wishes.config.is_none() && !table.contains_key("boot") && is_multiboot(&path) {
                    ask_for_test_machine(table);
                }
                self.place(Source::File(path))
            }
            GuestKernel::Absent => "guests/absent".into(),
            GuestKernel::OnMedium(path) => path.clone(),
            known => self.place(Source::Kernel(known.clone())),
        };
        table.insert("kernel".into(), Value::String(placed));
        if table.get("boot").and_then(Value::as_str) == Some(MULTIBOOT) {
            let list = initrd.filter(|text| text != "none");
            return self.add_multiboot(table, base, name, list, append);
        }
        let probe = kernel == GuestKernel::Probe;
        let initrd = match initrd.as_deref() {
            None if probe => None,
            None => Some(Source::OurInitramfs),
            Some("none") => None,
            Some(file) => Some(match GuestKernel::parse(file) {
                GuestKernel::File(path) => Source::File(existing(base, &path, &name, "initrd")?),
                debian => Source::Kernel(debian),
            }),
        };
        let reports = initrd == Some(Source::OurInitramfs);
        if let Some(initrd) = initrd {
            table.insert("initrd".into(), Value::String(self.place(initrd)));
        }
        let append = append.unwrap_or_else(|| APPEND.into());
        let append = if probe {
            workload
        } else if reports {
            with_workload(&append, &workload, wishes.stay)
        } else {
            append
        };
        table.insert("append".into(), Value::String(append));
        let judged = if reports || probe {
            Judge::Workload
        } else {
            Judge::of_table(table)
        };
        self.vms.push(PlannedVm {
            name,
            judged,
            resets: starts_again(table),
        });
        Ok(())
    }

    /// The rest of a Multiboot VM: modules in the place of an initramfs, and no words that are Linux'.
    fn add_multiboot(
        &mut self,
        table: &mut Table,
        base: &Path,
        name: String,
        modules: Option<String>,
        append: Option<String>,
    ) -> Result<()> {
        if let Some(list) = modules {
            let entries =
                module_list(&list).map_err(|e| usage(format!("initrd of {name}: {e}")))?;
            let mut placed = Vec::new();
            for entry in entries {
                let source = match GuestKernel::parse(&entry.file) {
                    GuestKernel::File(path) => {
                        Source::File(existing(base, &path, &name, "initrd")?)
                    }
                    known => Source::Kernel(known),
                };
                let words = entry.string.strip_prefix(&entry.file).unwrap_or("");
                let place = self.place(source);
                placed.push(format!("{place}{words}").replace(',', ",,"));
            }
            table.insert("initrd".into(), Value::String(placed.join(",")));
        }
        table.insert("append".into(), Value::String(append.unwrap_or_default()));
        self.vms.push(PlannedVm {
            name,
            judged: Judge::of_table(table),
            resets: starts_again(table),
        });
        Ok(())
    }

    /// The path below `/perigee` for this file; the same file is there once.
    fn place(&mut self, source: Source) -> String {
        if let Some((path, _)) = self.guests.iter().find(|(_, s)| **s == source) {
            return path.clone();
        }
        let name = match &source {
            Source::Kernel(GuestKernel::Debian612) => "vmlinuz-6.12".to_string(),
            Source::Kernel(GuestKernel::Probe) => "probe".to_string(),
            Source::Kernel(GuestKernel::Micro(name)) => format!("{name}.elf"),
            Source::Kernel(GuestKernel::Flat) => "flat".to_string(),
            Source::Kernel(_) => "vmlinuz-6.1".to_string(),
            Source::OurInitramfs => "initrd.gz".to_string(),
            Source::File(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.chars()
                    .map(|c| {
                        if c.is_ascii_alphanumeric() || ".-_".contains(c) {
                            c
                        } else {
                            '_'
                        }
                    })
                    .take(40)
                    .collect()
            }
        };
        let free = |path: &String| !self.guests.contains_key(path);
        let path = std::iter::once(format!("guests/{name}"))
            .chain((2..).map(|n| format!("guests/{n}-{name}")))
            .find(free)
            .expect("an endless series of names has one that is free");
        self.guests.insert(path.clone(), source);
        path
    }
}

impl Judge {
    /// Who judges a VM that does not run our workload.
    fn of_table(table: &Table) -> Self {
        match table.get("test_devices").and_then(Value::as_bool) {
            Some(true) => Self::ExitPort,
            _ => Self::PowerOff,
        }
    }
}

/// Whether a VM of this table starts again when it asks for a reset, as it does unless told otherwise.
fn starts_again(table: &Table) -> bool {
    table.get("on_reset").and_then(Value::as_str) != Some("off")
}

/// Whether a kernel of this machine is for the Multiboot protocol. A bzImage is not, whatever its bytes look like.
pub fn is_multiboot(kernel: &Path) -> bool {
    let file = std::fs::read(kernel).unwrap_or_default();
    guest::multiboot::has_header(&file) && guest::linux::KernelImage::parse(&file).is_err()
}

/// What a Multiboot kernel gets where nobody said otherwise: most of them are tests.
fn ask_for_test_machine(table: &mut Table) {
    table.insert("boot".into(), Value::String(MULTIBOOT.into()));
    table.entry("test_devices").or_insert(Value::Boolean(true));
}

/// Linux gives the words behind `--` to process 1, which hands them to the workload.
fn with_workload(append: &str, workload: &str, stay: bool) -> String {
    let (options, arguments) = append.split_once(" -- ").unwrap_or((append, workload));
    let stay = if stay {
        format!(" {STAY}")
    } else {
        String::new()
    };
    if arguments.is_empty() {
        format!("{options}{stay}")
    } else {
        format!("{options}{stay} -- {arguments}")
    }
}

fn existing(base: &Path, path: &Path, vm: &str, key: &str) -> Result<PathBuf> {
    let path = base.join(path);
    if !path.is_file() {
        return Err(usage(format!(
            "{key} of {vm}: {} is not a file.",
            path.display()
        )));
    }
    Ok(path.canonicalize()?)
}

impl Wishes {
    /// The document to start from, and the folder that its paths are relative to.
    fn document(&self) -> Result<(Table, PathBuf)> {
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path)
                .map_err(|e| usage(format!("--config {}: {e}.", path.display())))?;
            check(&text, &path.display().to_string())?;
            let document = text
                .parse()
                .with_context(|| format!("{} is not TOML", path.display()))?;
            return Ok((document, path.parent().unwrap_or(Path::new("")).into()));
        }
        let mut host = Table::new();
        for (key, toml) in &self.host {
            host.insert(key.clone(), literal(key, toml)?);
        }
        let mut vms = Vec::new();
        for vm in &self.vms {
            let text = |text: &str| Value::String(text.into());
            // A guest that panics asks for a reset: in a laboratory that is its end and a failure.
            let mut table = Table::from_iter([
                ("name".to_string(), text(&vm.name)),
                ("on_reset".to_string(), text("off")),
            ]);
            for (key, toml) in &vm.keys {
                table.insert(key.clone(), literal(key, toml)?);
            }
            let kernel = vm.kernel.text();
            let mut set = |key: &str, text: Option<String>| {
                text.map(|t| table.insert(key.into(), Value::String(t)))
            };
            set("kernel", Some(kernel));
            set(
                "initrd",
                vm.initrd.as_ref().map(|p| p.display().to_string()),
            );
            set("append", vm.append.clone());
            set("workload", Some(vm.workload.clone()));
            vms.push(Value::Table(table));
        }
        let document = Table::from_iter([
            ("host".to_string(), Value::Table(host)),
            ("vm".to_string(), Value::Array(vms)),
        ]);
        Ok((document, PathBuf::new()))
    }
}

fn apply_settings(tables: &mut [Table], wishes: &Wishes) -> Result<()> {
    for (key, text) in [
        ("kernel", &wishes.kernel),
        ("initrd", &wishes.initrd),
        ("append", &wishes.append),
    ] {
        for table in tables.iter_mut() {
            if let Some(text) = text {
                table.insert(key.into(), value(key, &from_here(key, text)));
            }
        }
    }
    for setting in &wishes.vm_settings {
        let parts = setting
            .split_once(':')
            .and_then(|(name, rest)| Some((name, rest.split_once('=')?)));
        let (name, (key, text)) = parts.ok_or_else(|| {
            usage(format!(
                "--vm {setting}: write it as NAME:KEY=VALUE, for example beta:mode=off."
            ))
        })?;
        let names: Vec<String> = tables
            .iter()
            .filter_map(|t| t.get("name").and_then(Value::as_str).map(str::to_string))
            .collect();
        let table = tables
            .iter_mut()
            .find(|t| t.get("name").and_then(Value::as_str) == Some(name))
            .ok_or_else(|| {
                usage(format!(
                    "--vm {setting}: no VM is called {name:?}; {}",
                    nearest(name, names.iter().map(String::as_str))
                ))
            })?;
        if !KEYS.contains(&key) {
            return Err(usage(format!(
                "--vm {setting}: no key is called {key:?}; {}",
                nearest(key, KEYS.iter().copied())
            )));
        }
        table.insert(key.into(), value(key, &from_here(key, text)));
    }
    Ok(())
}

/// A path on the command line is relative to where the person stands, not to the configuration.
fn from_here(key: &str, text: &str) -> String {
    let names_file = match key {
        "kernel" => matches!(GuestKernel::parse(text), GuestKernel::File(_)),
        "initrd" => text != "none" && matches!(GuestKernel::parse(text), GuestKernel::File(_)),
        _ => false,
    };
    if key == "initrd" && !Path::new(text).is_file() && text.contains([',', ' ']) {
        return modules_from_here(text).unwrap_or_else(|| text.into());
    }
    match std::path::absolute(text) {
        Ok(path) if names_file => path.display().to_string(),
        _ => text.into(),
    }
}

/// The same for each file of a list of modules.
fn modules_from_here(list: &str) -> Option<String> {
    let absolute = module_list(list).ok()?.into_iter().map(|entry| {
        let path = std::path::absolute(&entry.file).ok()?;
        let words = entry.string.strip_prefix(&entry.file)?;
        Some(format!("{}{words}", path.display()).replace(',', ",,"))
    });
    Some(absolute.collect::<Option<Vec<_>>>()?.join(","))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
