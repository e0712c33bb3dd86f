//! `cargo xtask fuzz`: searches for inputs that break what must not break, by libFuzzer.
//!
//! libFuzzer needs instrumentation that only a nightly toolchain has, so this is no part of the tests; they
//! replay the corpora that it leaves. What it finds goes to `target/fuzz`: the corpus that grows, and the
//! inputs that break a target, for a person to keep in `tests/fuzz/corpus` under a name that tells.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::artifacts::{root, target_folder};
use crate::say;
use crate::status::usage;

const TOOLCHAIN: &str = "nightly";

/// What to search, and for how long.
#[derive(clap::Args, Debug)]
pub struct FuzzArgs {
    /// The target; without one all of them, one after the other
    target: Option<String>,
    /// How long to search in each
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Add what reaches new code to the kept corpus afterwards, as few inputs as possible
    #[arg(long)]
    keep: bool,
}

/// Runs the search; 0 if nothing was found.
///
/// # Errors
/// No such target, or a tool is missing.
pub fn fuzz(args: &FuzzArgs) -> Result<u8> {
    let targets = targets()?;
    let chosen = match &args.target {
        Some(name) if !targets.contains(name) => {
            return Err(usage(format!(
                "no fuzz target is called {name:?}; there are {}.",
                targets.join(", ")
            )));
        }
        Some(name) => vec![name.clone()],
        None => targets,
    };
    if let Some(missing) = missing() {
        say::line(missing);
        return Ok(5);
    }
    let mut status = 0;
    for target in chosen {
        let work = target_folder().join("fuzz/corpus").join(&target);
        let found = target_folder().join("fuzz/found").join(&target);
        std::fs::create_dir_all(&work)?;
        std::fs::create_dir_all(&found)?;
        let kept = root().join("tests/fuzz/corpus").join(&target);
        say::step(format!("{target}: searching for {} s", args.seconds));
        let search = cargo_fuzz("run")
            .arg(&target)
            .args([&work, &kept])
            .arg("--")
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .args(["-print_final_stats=1", "-timeout=10", "-max_len=8192"])
            .status()
            .context("cannot run cargo")?;
        if !search.success() {
            say::line(format!(
                "fuzz/{target} ... FAILED: the input is in {}",
                found.display()
            ));
            status = 1;
            continue;
        }
        say::line(format!("fuzz/{target} ... ok"));
        if args.keep {
            keep(&target, &work, &kept)?;
        }
    }
    Ok(status)
}

/// The targets: each has a corpus.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("tests/fuzz/corpus");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// libFuzzer picks the fewest inputs that reach what all of them reach.
fn keep(target: &str, work: &Path, kept: &Path) -> Result<()> {
    let status = cargo_fuzz("run")
        .arg(target)
        .args([kept, work])
        .args([
            "--",
            "-set_cover_merge=1",
            "-use_counters=0",
            "-max_len=2048",
        ])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        say::line(format!("fuzz/{target}: the corpus could not be merged"));
    }
    Ok(())
}

fn cargo_fuzz(what: &str) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(root())
        // The repository's own toolchain is a stable one.
        .env("RUSTUP_TOOLCHAIN", TOOLCHAIN)
        .env_remove("RUSTFLAGS")
        .args(["fuzz", what, "--fuzz-dir", "tests/fuzz/libfuzzer"])
        // The targets are safe code, which the sanitizers would only slow down.
        .args(["--sanitizer", "none", "--target-dir"])
        .arg(target_folder().join("fuzz"));
    command
}

/// What this machine lacks, with the way to get it.
fn missing() -> Option<String> {
    let succeeds = |arguments: &[&str]| {
        Command::new("cargo")
            .env("RUSTUP_TOOLCHAIN", TOOLCHAIN)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !succeeds(&["--version"]) {
        return Some(format!(
            "Fuzzing needs a {TOOLCHAIN} toolchain: rustup toolchain install {TOOLCHAIN}. (The kept inputs are replayed \
             without one: cargo xtask test host/fuzz.)"
        ));
    }
    if !succeeds(&["fuzz", "--version"]) {
        return Some(String::from(
            "Fuzzing needs cargo-fuzz: cargo install cargo-fuzz. (The kept inputs are replayed without it: cargo \
             xtask test host/fuzz.)",
        ));
    }
    None
}
