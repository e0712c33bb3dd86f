//! `cargo xtask test`: lints, host tests and emulator scenarios, and one line that counts them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use scenarios::{Emulator, Scenario, Stamped, Tier};
use serde_json::Value;

use crate::artifacts::{self, Artifacts, root};
use crate::host_tests::{PermittedSkips, Tally, host_packages, host_tests};
use crate::plan::{Plan, Wishes};
use crate::provision::{Lab, Part};
use crate::run::{
    Places, Scratch, Subject, emulator, emulator_parts, hosts_linux, invocation, parts, prepare,
    suited, tables,
};
use crate::session::{self, Manner};
use crate::status::usage;
use crate::summary::{Result as Outcome, Summary};
use crate::{lint, micro, say};

/// So much of a console is told when a trial fails.
const TOLD_LINES: usize = 24;
const TOLD_CHARS: usize = 200;

/// The options of `test`.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Only trials whose name contains one of these
    filter: Vec<String>,
    /// Name the trials and run none
    #[arg(long)]
    list: bool,
    /// The long scenarios as well
    #[arg(long)]
    full: bool,
    /// What is known to fail as well, to see how far it is
    #[arg(long)]
    gaps: bool,
    /// Scenarios in this laboratory only: qemu (AMD-V) or bochs (VT-x) [default: both]
    #[arg(long, value_parser = emulator)]
    lab: Option<Emulator>,
    /// Seed of the random scenarios [default: a new one, printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Scenarios that run at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    jobs: u8,
}

impl TestArgs {
    fn wants(&self, tier: Tier) -> bool {
        match tier {
            Tier::Quick => true,
            Tier::Full => self.full,
            Tier::Gap => self.gaps,
        }
    }
}

/// The name under which the host tests are listed and filtered.
const HOST: &str = "host/";

/// The bound on harm, which takes minutes: with `--full`.
const HARM_BOUND: lint::Check = ("host/harm-bound", harm_bound);

/// `cargo xtask test`: the exit status.
///
/// # Errors
/// A filter that names nothing, a file of permitted skips that cannot be read.
pub fn test(args: &TestArgs) -> Result<u8> {
    let seed = args
        .seed
        .unwrap_or_else(|| u64::from(std::process::id()) ^ unix_nanos());
    let wanted =
        |name: &str| args.filter.is_empty() || args.filter.iter().any(|f| name.contains(f));
    let harm = (args.full || args.list).then_some(HARM_BOUND);
    let checks: Vec<_> = lint::CHECKS
        .into_iter()
        .chain(harm)
        .filter(|(name, _)| wanted(name))
        .collect();
    let packages: Vec<String> = host_packages()?
        .into_iter()
        .filter(|p| wanted(&format!("{HOST}{p}")))
        .collect();
    let scenarios = scenarios::all(seed);
    let trials: Vec<Trial> = scenarios
        .iter()
        .flat_map(|scenario| Emulator::ALL.map(|emulator| Trial { scenario, emulator }))
        .filter(|t| args.lab.is_none_or(|lab| lab == t.emulator) && wanted(&t.label()))
        .filter(|t| args.list || args.wants(t.tier()))
        .collect();
    let reference = wanted(micro::REFERENCE);
    if args.list {
        list(&checks, &packages, reference, &trials);
        return Ok(0);
    }
    if checks.is_empty() && packages.is_empty() && trials.is_empty() && !reference {
        return Err(usage(format!(
            "no trial's name contains \"{}\"; --list names them all (some run with --full or --gaps only).",
            args.filter.join("\" or \"")
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
    if !trials.is_empty() && !stop.load(Ordering::Relaxed) {
        tally.add(emulator_trials(&trials, args.jobs, &permitted));
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

/// In the simulator, on 200 random machines and mixes, Perigee is never below 98 % of itself in mode "off".
fn harm_bound() -> Result<(), String> {
    let words = "run --release --quiet -p numasim -- report --seeds 200 --against perigee-off --at-least 98";
    lint::cargo(&words.split(' ').collect::<Vec<_>>())
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

/// One scenario in one emulator.
#[derive(Clone, Copy)]
struct Trial<'a> {
    scenario: &'a Scenario,
    emulator: Emulator,
}

impl Trial<'_> {
    /// `NAME`, or `NAME@bochs`.
    fn name(&self) -> String {
        match self.emulator {
            Emulator::Qemu => self.scenario.name.clone(),
            other => format!("{}@{}", self.scenario.name, other.name()),
        }
    }
    fn label(&self) -> String {
        format!("scenario/{}", self.name())
    }
    fn tier(&self) -> Tier {
        self.scenario.tier_in(self.emulator)
    }
    /// Whether the slow emulator's faster build is worth its making.
    fn is_long_in_bochs(&self) -> bool {
        self.emulator == Emulator::Bochs && self.tier() != Tier::Quick
    }
    /// The observer's arguments, where the emulator can have one.
    fn plugin(&self) -> Option<&str> {
        let arguments = self.scenario.plugin.as_deref();
        arguments.filter(|_| self.emulator == Emulator::Qemu)
    }
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

fn list(checks: &[lint::Check], packages: &[String], reference: bool, trials: &[Trial<'_>]) {
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
    for trial in trials {
        let full = match trial.tier() {
            Tier::Quick => "",
            Tier::Full => " [--full]",
            Tier::Gap => " [--gaps]",
        };
        say::line(format!("{}{full}: {}", trial.label(), trial.scenario.about));
    }
}

/// Runs the trials, `jobs` at a time, after building what they need once.
fn emulator_trials(trials: &[Trial<'_>], jobs: u8, permitted: &PermittedSkips) -> Tally {
    let summary = Mutex::new(Summary::default());
    let tell = |trial: &Trial<'_>, seconds: Option<u64>, outcome: Outcome| {
        let label = match seconds {
            Some(seconds) => format!("{} ({seconds} s)", trial.label()),
            None => trial.label(),
        };
        say::line(outcome.line(&label));
        let mut summary = summary
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        summary.add(&trial.scenario.name, trial.emulator, seconds, outcome);
    };
    let mut hosted = Vec::new();
    for trial in trials {
        match trial.scenario.cannot_run_in(trial.emulator) {
            None => hosted.push(*trial),
            Some(why) => {
                let skip = match permitted.reason(&trial.label()) {
                    Some(reason) => Outcome::Skipped(reason.into()),
                    None => Outcome::Failed(format!(
                        "{why}, which tests/scenarios/permitted-skips.toml does not permit"
                    )),
                };
                tell(trial, None, skip);
            }
        }
    }
    if !hosted.is_empty() {
        match Bench::set_up(&hosted) {
            Ok(bench) => bench.run(&hosted, jobs, &tell),
            Err(error) => {
                let why = format!("nothing can run: {error:#}");
                hosted
                    .iter()
                    .for_each(|trial| tell(trial, None, Outcome::Failed(why.clone())));
            }
        }
    }
    let summary = summary
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    say::line(summary.table());
    summary.tally()
}

/// What all scenarios share.
struct Bench {
    lab: Lab,
    /// The same with a faster Bochs, for the trials that only `--full` runs there.
    long: Lab,
    artifacts: Artifacts,
    /// The kernel that can be sabotaged, if a scenario wants it.
    sabotaged: Option<PathBuf>,
    plugin: Option<PathBuf>,
}

impl Bench {
    fn set_up(trials: &[Trial<'_>]) -> Result<Self> {
        let mut needed = std::collections::BTreeSet::new();
        for trial in trials {
            needed.extend(emulator_parts(trial.emulator));
            needed.extend(parts(&plan(trial.scenario)?));
        }
        let lab = Lab::ensure(&needed)?;
        let long = match trials.iter().any(Trial::is_long_in_bochs) {
            true => lab.clone().with_faster_bochs(),
            false => lab.clone(),
        };
        let sabotaged = match trials.iter().any(|t| t.scenario.wants_sabotaged_kernel()) {
            true => Some(artifacts::build_sabotaged_kernel()?),
            false => None,
        };
        let artifacts = Artifacts::build()?;
        let plugin = if trials.iter().any(|t| t.plugin().is_some()) {
            Some(artifacts::build_plugin()?)
        } else {
            None
        };
        Ok(Self {
            lab,
            long,
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

    fn run(
        &self,
        trials: &[Trial<'_>],
        jobs: u8,
        tell: &(impl Fn(&Trial<'_>, Option<u64>, Outcome) + Sync),
    ) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let begun = Instant::now();
                        let result = self
                            .trial(trial)
                            .unwrap_or_else(|error| Err(format!("{error:#}")));
                        let outcome = result.map_or_else(Outcome::Failed, |()| Outcome::Passed);
                        tell(trial, Some(begun.elapsed().as_secs()), outcome);
                        if session::stop_flag().is_ok_and(|stop| stop.load(Ordering::Relaxed)) {
                            break;
                        }
                    }
                });
            }
        });
    }

    /// Boots the scenario's machine and judges what it left; the inner error is the judge's.
    fn trial(&self, trial: &Trial<'_>) -> Result<Result<(), String>> {
        let scenario = trial.scenario;
        let lab = if trial.is_long_in_bochs() {
            &self.long
        } else {
            &self.lab
        };
        let plan = plan(scenario)?;
        let machine = scenario.machine_in(trial.emulator).clone();
        let machine = &suited(machine, trial.emulator, lab, hosts_linux(&plan));
        machine.check().map_err(anyhow::Error::msg)?;
        let folder = artifacts::folder(&format!("scenarios/{}", trial.name()))?;
        std::fs::write(folder.join("perigee.toml"), &plan.toml)?;
        let scratch = Scratch::new()?;
        let disk = scratch.path().join("medium.img");
        let overrides = tables(trial.emulator, machine, &scenario.overrides);
        prepare(
            &plan,
            &overrides,
            &self.lab,
            &self.artifacts_for(scenario),
            &disk,
        )?;

        let places = Places {
            disk: &disk,
            folder: &folder,
            scratch: scratch.path(),
        };
        let (mut invocation, _) = invocation(trial.emulator, lab, machine, places)?;
        let counted = folder.join("plugin.json");
        let _ = std::fs::remove_file(&counted);
        if let Some(arguments) = trial.plugin() {
            let library = self
                .plugin
                .as_ref()
                .context("the observer plugin is not built")?;
            let arguments = format!(
                "out={},{},{arguments}",
                counted.display(),
                machine.plugin_args()
            );
            invocation = invocation.with_plugin(library, arguments.trim_end_matches(','));
        }
        let control = scratch.path().join("control");
        if trial.emulator == Emulator::Qemu {
            invocation = invocation.with_control(&control);
        }
        std::fs::write(folder.join("command-line.txt"), format!("{invocation}\n"))?;
        let manner = Manner {
            timeout: Some(scenario.timeout_in(trial.emulator)),
            attended: false,
            steps: &scenario.steps,
            control: Some(&control),
            folder: &folder,
        };
        let transcript = session::run(&invocation, &manner)?;
        let plugin = match trial.plugin() {
            Some(_) => Some(read_json(&counted)?),
            None => None,
        };
        let subject = Subject {
            emulator: trial.emulator,
            machine,
            vms: &plan.vms,
            seed: scenario.seed,
        };
        let evidence = subject.evidence(&transcript, plugin);
        Ok(scenario.judge(&evidence).map_err(|why| {
            let seed = scenario
                .seed
                .map_or(String::new(), |seed| format!(" (seed {seed})"));
            format!(
                "{why}{seed}\n  the run ended: {}\n  the console ended:\n{}  logs: {}",
                evidence.outcome,
                end_of(&evidence.console),
                folder.display()
            )
        }))
    }
}

/// The last lines of a console, for whoever cannot read the logs afterwards.
fn end_of(console: &[Stamped<String>]) -> String {
    let first = console.len().saturating_sub(TOLD_LINES);
    let lines = console.iter().skip(first);
    lines
        .map(|line| {
            let line: String = line.what.trim_end().chars().take(TOLD_CHARS).collect();
            format!("    {line}\n")
        })
        .collect()
}

fn plan(scenario: &Scenario) -> Result<Plan> {
    let wishes = Wishes {
        host: scenario.host_table(),
        vms: scenario.vms.clone(),
        ..Wishes::default()
    };
    let mut plan = Plan::new(&wishes).with_context(|| format!("scenario {}", scenario.name))?;
    plan.changes = scenario.files.clone();
    Ok(plan)
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

    #[test]
    fn every_trial_can_run_or_may_be_skipped() {
        let file = root().join("tests/scenarios/permitted-skips.toml");
        let permitted = PermittedSkips::read(&file).expect("ours");
        for scenario in (0..40).flat_map(scenarios::all) {
            for emulator in Emulator::ALL {
                let trial = Trial {
                    scenario: &scenario,
                    emulator,
                };
                let why = scenario.cannot_run_in(emulator);
                let label = trial.label();
                assert!(
                    why.is_none() || permitted.reason(&label).is_some(),
                    "{label}: {why:?}, and that is not permitted"
                );
            }
        }
    }
}
