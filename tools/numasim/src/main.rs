//! The command line: `cargo run --release -p numasim -- COMMAND`.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use numasim::compare;
use numasim::optimum;
use numasim::perigee::Options;
use numasim::report::{Report, Trial};
use numasim::scenario::Scenario;
use numasim::svg;

mod cost;
mod progress;

/// Simulated NUMA machines under Perigee's policies and others.
#[derive(Parser, Debug)]
#[command(name = "numasim")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run one scenario from a TOML file under every policy
    Run {
        /// The file
        scenario: PathBuf,
        /// Write the outcomes as JSON
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Run one seed of the report, and say what the planner said
    Seed {
        /// The seed
        seed: u64,
        /// Simulated seconds
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// Print the planner's sentences
        #[arg(long)]
        say: bool,
    },
    /// Compare all policies on random machines and mixes
    Report {
        /// Number of seeds
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// The first of them
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Simulated seconds of each run
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// Folder for report.json and ratios.svg
        #[arg(long)]
        out: Option<PathBuf>,
        /// Compare with these only, commas between them: a policy, or "optimum"
        #[arg(long, value_delimiter = ',', default_values_t = everybody())]
        against: Vec<String>,
        /// Fail if the worst ratio is below this, in per cent
        #[arg(long)]
        at_least: Option<f64>,
        /// Threads
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Run a host of 64 nodes and 1,024 CPUs under Perigee
    Large {
        /// Number of VMs
        #[arg(long, default_value_t = 10_000)]
        vms: usize,
        /// Simulated seconds
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
    },
    /// Measure what a decision costs with 10 to 10,000 vCPUs
    Cost {
        /// Folder for cost.svg
        #[arg(long)]
        out: Option<PathBuf>,
        /// Only with so many CPUs
        #[arg(long)]
        cpus: Option<u32>,
        /// Only with so many vCPUs
        #[arg(long)]
        vcpus: Option<u32>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run { scenario, json } => run(&scenario, json.as_deref()),
        Command::Seed { seed, seconds, say } => one_seed(seed, seconds, say),
        Command::Report {
            seeds,
            from,
            seconds,
            out,
            against,
            at_least,
            jobs,
        } => {
            let others = Others::named(&against)?;
            let seeds = from..from.saturating_add(seeds);
            let report = report(seeds, seconds, &others, out.as_deref(), jobs)?;
            at_least.map_or(Ok(()), |per_cent| report.holds(per_cent))
        }
        Command::Large { vms, seconds } => large(vms, seconds),
        Command::Cost { out, cpus, vcpus } => cost::measure(out.as_deref(), (cpus, vcpus)),
    }
}

/// Whom Perigee is compared with.
struct Others {
    policies: Vec<&'static str>,
    optimum: bool,
}

/// What the best placement is called among policies.
const OPTIMUM: &str = "optimum";

fn everybody() -> Vec<String> {
    let others = compare::POLICIES.into_iter().skip(1).chain([OPTIMUM]);
    others.map(String::from).collect()
}

impl Others {
    fn named(names: &[String]) -> Result<Self> {
        if let Some(unknown) = names.iter().find(|name| !everybody().contains(name)) {
            bail!(
                "{unknown:?} is nobody to compare with; there are {}",
                everybody().join(", ")
            );
        }
        let asked = |policy: &&str| names.iter().any(|name| name == policy);
        Ok(Self {
            policies: compare::POLICIES
                .into_iter()
                .skip(1)
                .filter(asked)
                .collect(),
            optimum: asked(&OPTIMUM),
        })
    }

    fn trial(&self, s: &Scenario) -> Trial {
        let names: Vec<&str> = [&compare::POLICIES[..1], &self.policies].concat();
        Trial {
            scenario: s.name.clone(),
            seed: s.seed,
            entitled: s.entitled(),
            outcomes: compare::those(s, &names, Options::default()),
            optimum: self.optimum.then(|| optimum::best(s)).flatten(),
        }
    }
}

fn one_seed(seed: u64, seconds: f64, say: bool) -> Result<()> {
    let scenario = Scenario::random(seed, seconds);
    let options = Options {
        say,
        ..Options::default()
    };
    for (i, vm) in scenario.vms.iter().enumerate() {
        let mut held = vec![0; scenario.machine.nodes()];
        vm.pages.iter().for_each(|n| held[*n] += 1);
        println!(
            "vm{i}: {:?}, {} vCPUs of weight {} start on node {}, pages {held:?}",
            vm.kind, vm.vcpus, vm.weight, vm.start
        );
    }
    let outcomes = compare::all(&scenario, options);
    for o in &outcomes {
        let figures = o.throughput.iter().zip(&o.cpus);
        let figures: Vec<String> = figures.map(|(t, c)| format!("{t:.3e} ({c:.2})")).collect();
        println!(
            "{:<13} local {:.2}, {}",
            o.policy,
            o.local,
            figures.join(" ")
        );
    }
    let trial = Trial {
        scenario: scenario.name.clone(),
        seed,
        entitled: scenario.entitled(),
        outcomes,
        optimum: optimum::best(&scenario),
    };
    print!("{}", Report::of(vec![trial]).table());
    Ok(())
}

fn run(path: &Path, json: Option<&Path>) -> Result<()> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let scenario = Scenario::parse(&path.display().to_string(), &text)?;
    let report = Report::of(vec![Others::named(&everybody())?.trial(&scenario)]);
    print!("{}", report.table());
    if let Some(json) = json {
        write(json, &serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn report(
    seeds: Range<u64>,
    seconds: f64,
    others: &Others,
    out: Option<&Path>,
    jobs: usize,
) -> Result<Report> {
    if seeds.is_empty() || seconds <= 0.0 {
        bail!("a report needs a seed and a time");
    }
    let bar = progress::Bar::new("trials", seeds.end - seeds.start);
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let work = || {
        let mut done = Vec::new();
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= seeds.end {
                return done;
            }
            done.push(others.trial(&Scenario::random(seed, seconds)));
            bar.step();
        }
    };
    let mut trials: Vec<Trial> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let results = workers
            .into_iter()
            .map(|w| w.join().expect("a trial does not panic"));
        results.flatten().collect()
    });
    bar.end();
    trials.sort_by_key(|t| t.seed);
    let report = Report::of(trials);
    print!("{}", report.table());
    if let Some(out) = out {
        std::fs::create_dir_all(out)?;
        write(
            &out.join("report.json"),
            &serde_json::to_string_pretty(&report)?,
        )?;
        write(&out.join("ratios.svg"), &svg::ratios(&report))?;
    }
    Ok(report)
}

fn large(vms: usize, seconds: f64) -> Result<()> {
    if vms == 0 || vms > usize::from(u16::MAX) {
        bail!("there are 1 to 65535 VMs");
    }
    let scenario = Scenario::large(vms, seconds);
    let options = Options {
        sample: 500_000_000,
        plan: 2_000_000_000,
        ..Options::default()
    };
    let mut policy = compare::policy("perigee", options).context("Perigee is a policy")?;
    let world = numasim::world::World::new(scenario.machine.clone(), &scenario.vms);
    let mut engine = numasim::engine::Engine::new(world, policy.as_mut(), 1);
    let began = Instant::now();
    let steps = (seconds * 10.0).ceil() as u64;
    let bar = progress::Bar::new("tenths of a second", steps);
    for step in 1..=steps {
        engine.run(step * 100_000_000);
        bar.step();
    }
    bar.end();
    let outcome = engine.measure.outcome("perigee", &engine.world);
    println!(
        "{}: {seconds} s simulated in {:.1} s, {} events; local {:.1} %, wake p50 {:.0} us, p99 {:.0} us, {:.0} vCPU moves and {:.0} pages a minute",
        scenario.name,
        began.elapsed().as_secs_f64(),
        engine.events,
        outcome.local * 100.0,
        outcome.wake_p50_us,
        outcome.wake_p99_us,
        outcome.moves_per_minute,
        outcome.pages_per_minute
    );
    Ok(())
}
