//! `cargo xtask test`: lints, host tests and emulator scenarios, and one line that counts them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use scenarios::{Action, Scenario, Tier};
use serde_json::Value;

use crate::artifacts::{self, Artifacts, root};
use crate::host_tests::{PermittedSkips, Tally, host_packages, host_tests};
use crate::plan::{Plan, Wishes};
use crate::provision::{Lab, Part};
use crate::qemu::Invocation;
use crate::run::{Scratch, Subject, parts, prepare};
use crate::session::{self, Manner};
use crate::status::usage;
use crate::{lint, micro, say};

/// The options of `test`.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Only trials whose name contains this
    filter: Option<String>,
    /// Name the trials and run none
    #[arg(long)]
    list: bool,
    /// The long scenarios as well
    #[arg(long)]
    full: bool,
    /// Seed of the random scenarios [default: a new one, printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Scenarios that run at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    jobs: u8,
}

/// The name under which the host tests are listed and filtered.
const HOST: &str = "host/";

/// `cargo xtask test`: the exit status.
///
/// # Errors
/// A filter that names nothing, a file of permitted skips that cannot be read.
pub fn test(args: &TestArgs) -> Result<u8> {
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(std::process::id()) ^ unix_nanos());
    let wanted = |name: &str| {
        args.filter
            .as_ref()
            .is_none_or(|f| name.contains(f.as_str()))
    };
    let checks: Vec<_> = lint::CHECKS
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .collect();
    let packages: Vec<String> = host_packages()?
        .into_iter()
        .filter(|p| wanted(&format!("{HOST}{p}")))
        .collect();
    let scenarios: Vec<Scenario> = scenarios::all(seed)
        .into_iter()
        .filter(|s| wanted(&label(s)) && (args.full || args.list || s.tier == Tier::Quick))
        .collect();
    let reference = wanted(micro::REFERENCE);
    if args.list {
        list(&checks, &packages, reference, &scenarios);
        return Ok(0);
    }
    if checks.is_empty() && packages.is_empty() && scenarios.is_empty() && !reference {
        return Err(usage(format!(
            "no trial's name contains {:?}; --list names them all (some run with --full only).",
            args.filter.as_deref().unwrap_or("")
        )));
    }
    let permitted = PermittedSkips::read(&root().join("tests/scenarios/permitted-skips.toml"))?;
    let stop = session::stop_flag()?;
    say::line(format!("seed {seed} (the same again: --seed {seed})"));

    let mut tally = Tally::default();
    for (name, check) in checks {
        tally.add(told(name, check()));
    }
    if !packages.is_empty() {
        tally.add(host_tests(&packages, &permitted)?);
    }
    if reference && !stop.load(Ordering::Relaxed) {
        tally.add(told(micro::REFERENCE, prove_selftests()));
    }
    if !scenarios.is_empty() && !stop.load(Ordering::Relaxed) {
        tally.add(emulator_trials(&scenarios, args.jobs));
    }
    let interrupted = stop.load(Ordering::Relaxed);
    if interrupted {
        say::line("interrupted: the rest did not run");
    }
    say::line(tally.line());
    Ok(if interrupted {
        130
    } else {
        u8::from(tally.failed > 0)
    })
}

/// The self-tests on the plain emulator.
fn prove_selftests() -> Result<(), String> {
    let needed = [Part::Qemu].into();
    Lab::ensure(&needed)
        .and_then(|lab| micro::reference(&lab))
        .unwrap_or_else(|error| Err(format!("{error:#}")))
}

fn unix_nanos() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| {
        d.as_secs().wrapping_mul(1_000_003) ^ u64::from(d.subsec_nanos())
    })
}

fn label(scenario: &Scenario) -> String {
    format!("scenario/{}", scenario.name)
}

fn told(name: &str, result: Result<(), String>) -> Tally {
    match result {
        Ok(()) => {
            say::line(format!("{name} ... ok"));
            Tally {
                passed: 1,
                ..Tally::default()
            }
        }
        Err(why) => {
            say::line(format!("{name} ... FAILED\n  {why}"));
            Tally {
                failed: 1,
                ..Tally::default()
            }
        }
    }
}

fn list(checks: &[lint::Check], packages: &[String], reference: bool, scenarios: &[Scenario]) {
    checks.iter().for_each(|(name, _)| say::line(*name));
    packages
        .iter()
        .for_each(|package| say::line(format!("{HOST}{package}")));
    if reference {
        say::line(format!(
            "{}: the self-test guest passes on the plain emulator, so that it may judge Perigee",
            micro::REFERENCE
        ));
    }
    for scenario in scenarios {
        let full = if scenario.tier == Tier::Full {
            " [--full]"
        } else {
            ""
        };
        say::line(format!("{}{full}: {}", label(scenario), scenario.about));
    }
}

/// Runs the scenarios, `jobs` at a time, after building what they need once.
fn emulator_trials(scenarios: &[Scenario], jobs: u8) -> Tally {
    let bench = match Bench::set_up(scenarios) {
        Ok(bench) => bench,
        Err(error) => {
            say::line(format!("no scenario can run: {error:#}"));
            return Tally {
                failed: scenarios.len(),
                ..Tally::default()
            };
        }
    };
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let result = bench
                        .trial(scenario)
                        .unwrap_or_else(|error| Err(format!("{error:#}")));
                    let name = format!("{} ({} s)", label(scenario), begun.elapsed().as_secs());
                    let mut tally = tally
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    tally.add(told(&name, result));
                    if session::stop_flag().is_ok_and(|stop| stop.load(Ordering::Relaxed)) {
                        break;
                    }
                }
            });
        }
    });
    tally
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What all scenarios share.
struct Bench {
    lab: Lab,
    artifacts: Artifacts,
    /// The kernel that can be sabotaged, if a scenario wants it.
    sabotaged: Option<PathBuf>,
    plugin: Option<PathBuf>,
}

impl Bench {
    fn set_up(scenarios: &[Scenario]) -> Result<Self> {
        let mut needed: std::collections::BTreeSet<Part> = [Part::Qemu, Part::Ovmf].into();
        for scenario in scenarios {
            needed.extend(parts(&plan(scenario)?, true));
        }
        let lab = Lab::ensure(&needed)?;
        let sabotaged = match scenarios.iter().any(Scenario::wants_sabotaged_kernel) {
            true => Some(artifacts::build_sabotaged_kernel()?),
            false => None,
        };
        let artifacts = Artifacts::build()?;
        let plugin = if scenarios.iter().any(|s| s.plugin.is_some()) {
            Some(artifacts::build_plugin()?)
        } else {
            None
        };
        Ok(Self {
            lab,
            artifacts,
            sabotaged,
            plugin,
        })
    }

    /// What the scenario's machine boots from.
    fn artifacts_for(&self, scenario: &Scenario) -> Artifacts {
        let mut artifacts = self.artifacts.clone();
        if let Some(kernel) = self
            .sabotaged
            .iter()
            .find(|_| scenario.wants_sabotaged_kernel())
        {
            artifacts.kernel = kernel.clone();
        }
        artifacts
    }

    /// Boots the scenario's machine and judges what it left; the inner error is the judge's.
    fn trial(&self, scenario: &Scenario) -> Result<Result<(), String>> {
        scenario.machine.check().map_err(anyhow::Error::msg)?;
        let folder = artifacts::folder(&format!("scenarios/{}", scenario.name))?;
        let plan = plan(scenario)?;
        std::fs::write(folder.join("perigee.toml"), &plan.toml)?;
        let scratch = Scratch::new()?;
        let disk = scratch.path().join("medium.img");
        prepare(
            &plan,
            &scenario.overrides,
            &self.lab,
            &self.artifacts_for(scenario),
            &disk,
        )?;

        let (qemu, firmware) = (
            self.lab.qemu.as_ref().context("no QEMU")?,
            self.lab.ovmf.as_ref().context("no firmware")?,
        );
        let mut invocation = Invocation::new(
            qemu,
            &scenario.machine,
            firmware,
            &disk,
            &session::records_file(&folder),
        );
        let counted = folder.join("plugin.json");
        let _ = std::fs::remove_file(&counted);
        if let Some(arguments) = &scenario.plugin {
            let library = self
                .plugin
                .as_ref()
                .context("the observer plugin is not built")?;
            let arguments = format!(
                "out={},{},{arguments}",
                counted.display(),
                scenario.machine.plugin_args()
            );
            invocation = invocation.with_plugin(library, arguments.trim_end_matches(','));
        }
        let control = scratch.path().join("control");
        if scenario.steps.iter().any(|step| step.what == Action::Nmi) {
            invocation = invocation.with_control(&control);
        }
        std::fs::write(folder.join("command-line.txt"), format!("{invocation}\n"))?;
        let manner = Manner {
            timeout: Some(scenario.timeout),
            attended: false,
            steps: &scenario.steps,
            control: Some(&control),
            folder: &folder,
        };
        let transcript = session::run(&invocation, &manner)?;
        let plugin = match &scenario.plugin {
            Some(_) => Some(read_json(&counted)?),
            None => None,
        };
        let subject = Subject {
            machine: &scenario.machine,
            vms: &plan.vms,
            seed: scenario.seed,
        };
        let evidence = subject.evidence(&transcript, plugin);
        Ok(scenario.judge(&evidence).map_err(|why| {
            let seed = scenario
                .seed
                .map_or(String::new(), |seed| format!(" (seed {seed})"));
            format!(
                "{why}{seed}\n  the run ended: {}\n  logs: {}",
                evidence.outcome,
                folder.display()
            )
        }))
    }
}

fn plan(scenario: &Scenario) -> Result<Plan> {
    let wishes = Wishes {
        host: scenario.host_table(),
        vms: scenario.vms.clone(),
        ..Wishes::default()
    };
    Plan::new(&wishes).with_context(|| format!("scenario {}", scenario.name))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the plugin wrote no {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_a_plan() {
        let all = scenarios::all(1);
        for (i, scenario) in all.iter().enumerate() {
            assert!(
                all.iter()
                    .skip(i + 1)
                    .all(|other| other.name != scenario.name),
                "{} twice",
                scenario.name
            );
            assert!(
                scenario
                    .name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            );
            plan(scenario).expect("a scenario's configuration is accepted");
            scenario
                .machine
                .check()
                .expect("a scenario's machine can be built");
        }
    }
}
