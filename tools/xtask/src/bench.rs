//! `cargo xtask bench`: what Perigee costs, in instructions that the emulator counts.
//!
//! Instructions and not time: an emulator's clock says nothing about hardware, and a busy host makes it say
//! something else each time. The plugin (`tests/lab`) counts what the hypervisor executes between two marks
//! that the guest `probe` sets around each operation; guest instructions are never in it. What an exit costs
//! besides, the world switch itself, is the processor's affair and not counted.

mod boot;
mod moves;
mod profile;
mod ticks;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use scenarios::{Emulator, Evidence, Machine, Vm};
use serde_json::{Value, json};

use crate::artifacts::{Artifacts, cargo_command};
use crate::run::emulator;
use crate::status::usage;
use crate::{say, verdict};
use boot::Measured;

/// Firmware is slow under an observer, and the host may be busy.
const TIMEOUT: Duration = Duration::from_secs(900);
/// The plugin's numbers for the probe's classes, and which CPUs' instructions each is about.
const CLASSES: [(u64, &str, Whose); 12] = [
    (1, "cpuid", Whose::Own),
    (2, "msr read", Whose::Own),
    (3, "msr write", Whose::Own),
    (4, "port in", Whose::Own),
    (5, "port out", Whose::Own),
    (6, "mmio read", Whose::Own),
    (7, "mmio write", Whose::Own),
    (8, "nested fault", Whose::Own),
    (9, "hypercall", Whose::Own),
    (10, "ipi to itself", Whose::Own),
    (11, "timer", Whose::Own),
    (12, "ipi to another", Whose::All),
];
const ABOUT: &str = "\
Median over all operations of a class, hypervisor only. A nested fault is an address that nothing answers;
memory never faults but while it moves. An ipi or a timer is all of it: asking, being interrupted, end of
interrupt; an ipi to another CPU counts what both CPUs execute.";

/// Which CPUs' instructions a class is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Those of the CPU that the operation runs on.
    Own,
    /// Those of all CPUs that run guests.
    All,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Instructions from power-on to the first guest instruction.
    Boot,
    /// Host instructions for each class of exit.
    Exit,
    /// Pauses and pages a second of page moves, by the size of the leaf, as the hypervisor measures them itself.
    Moves,
    /// Looking at accessed bits on this host: a leaf against a flat array, and an interval over 64 GiB.
    Looking,
}

/// The options of `bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What to measure
    what: What,
    /// Measure in this laboratory: qemu (AMD-V), or bochs (VT-x, classes of exit only)
    #[arg(long, value_parser = emulator, default_value = "qemu")]
    lab: Emulator,
    /// Operations of each class of exit
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    count: u32,
    /// Show the functions that the operations of this class of exit spend most instructions in
    #[arg(long, value_name = "CLASS")]
    profile: Option<String>,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Compare with the figures in this file, which an earlier run wrote
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
}

/// `cargo xtask bench`: the exit status.
///
/// # Errors
/// What cannot be built, installed or started; a run that shows nothing; a baseline that cannot be read.
pub fn bench(args: &BenchArgs) -> Result<u8> {
    let baseline = args.baseline.as_deref().map(read_json).transpose()?;
    let profiled = args.profile.as_deref().map(class_named).transpose()?;
    if args.what == What::Looking {
        // It boots nothing and measures time, so whoever reads the figures must know how busy this host is.
        let bench = cargo_command()
            .args(["bench", "--package", "footprint"])
            .status();
        return Ok(u8::from(!bench.context("cannot run cargo")?.success()));
    }
    if args.what == What::Moves {
        say::line(moves::table(args.lab)?);
        return Ok(0);
    }
    if args.lab == Emulator::Bochs {
        if args.what == What::Boot || profiled.is_some() {
            return Err(usage(
                "Bochs has no observer outside: there `bench exit` measures by the guest's own clock, and nothing else.",
            ));
        }
        let figures = ticks::figures(args.count)?;
        return told(args, &figures, baseline.as_ref(), ticks::ABOUT);
    }
    let evidence = run(args.count, profiled.is_some())?;
    let report = evidence
        .plugin
        .as_ref()
        .context("the observer wrote no report")?;
    let figures = match args.what {
        What::Boot => boot_figures(&evidence, &report["host"])?,
        What::Exit | What::Moves | What::Looking => exit_figures(&report["host"])?,
    };
    let status = told(args, &figures, baseline.as_ref(), ABOUT)?;
    if let Some(class) = profiled {
        let kernel = fs::read(&Artifacts::places().kernel)?;
        say::line(profile::table(&report["host"], class, &kernel)?);
    }
    Ok(status)
}

/// Prints the figures and keeps them.
fn told(args: &BenchArgs, figures: &Value, baseline: Option<&Value>, about: &str) -> Result<u8> {
    say::line(table(args.what, figures, baseline, about));
    if let Some(path) = &args.json {
        fs::write(path, format!("{figures:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(0)
}

/// The number of the class with this name.
fn class_named(name: &str) -> Result<u64> {
    let found = CLASSES.iter().find(|(_, known, _)| *known == name);
    let names = || CLASSES.map(|(_, name, _)| name).join(", ");
    found
        .map(|(number, ..)| *number)
        .ok_or_else(|| usage(format!("--profile {name}: there are {}.", names())))
}

fn read_json(path: &Path) -> Result<Value> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Boots a machine of two CPUs with the probe in it, under the observer.
fn run(count: u32, profile: bool) -> Result<Evidence> {
    let vm = Vm::probe("probe", &format!("bench cpus=2 count={count}"));
    Measured {
        emulator: Emulator::Qemu,
        machine: &Machine::row(1, 2, 1024),
        vm: vm.set("cpus", "2").set("mode", "\"off\""),
        steps: &[],
        observer: Some(if profile { "profile" } else { "count" }),
    }
    .run()
}

/// From power-on to the first guest instruction.
fn boot_figures(evidence: &Evidence, host: &Value) -> Result<Value> {
    let cpu = host["boot_cpu"].as_u64().context("no guest began")? as usize;
    let by_cpu: Vec<(u64, u64)> = serde_json::from_value(host["boot"].clone())?;
    let own = by_cpu
        .get(cpu)
        .context("the observer names a CPU that is not there")?;
    let all = by_cpu
        .iter()
        .fold((0, 0), |sum, cpu| (sum.0 + cpu.0, sum.1 + cpu.1));
    let phases = verdict::phases(None, evidence, Duration::ZERO);
    let ms = |name: &str| {
        let phase = phases.iter().find(|p| p.name.starts_with(name))?;
        Some(phase.took?.as_millis() as u64)
    };
    Ok(json!({
        "kind": "boot",
        "rows": [
            { "name": "firmware and loader", "instructions": own.0, "all_cpus": all.0 },
            { "name": "kernel to the first guest instruction", "instructions": own.1, "all_cpus": all.1 },
        ],
        "host_ms": { "firmware": ms("firmware"), "loader": ms("loader"), "kernel": ms("kernel") },
    }))
}

/// The classes of exits.
fn exit_figures(host: &Value) -> Result<Value> {
    let measured = host["classes"]
        .as_array()
        .context("the observer counted no operation")?;
    let mut rows = Vec::new();
    for (number, name, whose) in CLASSES {
        let class = measured.iter().find(|class| class["class"] == number);
        let class = class.with_context(|| format!("no operation of class {name:?} was counted"))?;
        let spread = match whose {
            Whose::Own => &class["own"],
            Whose::All => &class["all"],
        };
        rows.push(json!({
            "name": name,
            "operations": class["operations"],
            "instructions": spread["median"],
            "least": spread["least"],
            "p90": spread["p90"],
            "most": spread["most"],
            "exits": class["exits"]["median"],
        }));
    }
    Ok(json!({ "kind": "exit", "rows": rows }))
}

/// For a person.
fn table(what: What, figures: &Value, baseline: Option<&Value>, about: &str) -> String {
    let columns: &[(&str, &str)] = match what {
        What::Boot => &[("instructions", "boot CPU"), ("all_cpus", "all CPUs")],
        What::Exit | What::Moves | What::Looking => &[
            ("instructions", "instructions"),
            ("least", "least"),
            ("p90", "90 %"),
            ("most", "most"),
            ("exits", "exits"),
            ("operations", "operations"),
        ],
    };
    let mut text = format!("{:<38}", "");
    for (_, title) in columns {
        let _ = write!(text, "{title:>14}");
    }
    if baseline.is_some() {
        let _ = write!(text, "{:>14}", "baseline");
    }
    for row in figures["rows"].as_array().into_iter().flatten() {
        let name = row["name"].as_str().unwrap_or_default();
        let _ = write!(text, "\n{name:<38}");
        for (key, _) in columns {
            let _ = write!(text, "{:>14}", row[*key].as_u64().unwrap_or(0));
        }
        if let Some(baseline) = baseline {
            let _ = write!(text, "{:>14}", change(row, baseline));
        }
    }
    if what == What::Exit {
        let _ = write!(text, "\n{about}");
    }
    text
}

/// How a row differs from the one of the same name in the baseline.
fn change(row: &Value, baseline: &Value) -> String {
    let rows = baseline["rows"].as_array();
    let before = rows.and_then(|rows| rows.iter().find(|old| old["name"] == row["name"]));
    let before = before
        .and_then(|old| old["instructions"].as_u64())
        .filter(|n| *n > 0);
    match (before, row["instructions"].as_u64()) {
        (Some(before), Some(now)) => {
            let percent = (now as f64 - before as f64) * 100.0 / before as f64;
            format!("{before} {percent:+.1}%")
        }
        _ => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(medians: impl Fn(u64) -> u64) -> Value {
        let classes: Vec<Value> = CLASSES
            .iter()
            .map(|(number, ..)| {
                let spread =
                    |n: u64| json!({"least": n - 1, "median": n, "p90": n + 1, "most": n + 9});
                json!({"class": number, "operations": 5, "own": spread(medians(*number)),
                       "all": spread(2 * medians(*number)), "exits": spread(1)})
            })
            .collect();
        json!({ "classes": classes })
    }

    #[test]
    fn each_class_has_a_row_and_a_comparison() {
        let before = exit_figures(&host(|n| 1000 * n)).expect("complete");
        let now = exit_figures(&host(|n| 900 * n)).expect("complete");
        assert_eq!(now["rows"][0]["instructions"], 900);
        assert_eq!(
            now["rows"][11]["instructions"],
            2 * 900 * 12,
            "both CPUs of an ipi"
        );
        let text = table(What::Exit, &now, Some(&before), ABOUT);
        assert!(text.contains("1000 -10.0%"), "{text}");
        let mut less = host(|n| n);
        less["classes"].as_array_mut().expect("an array").remove(3);
        assert!(exit_figures(&less).is_err_and(|why| why.to_string().contains("port in")));
    }
}
