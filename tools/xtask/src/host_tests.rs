//! The tests that run on the host, counted by what libtest prints, and the skips that are permitted.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::artifacts::cargo_command;
use crate::say;

/// Packages with host tests that no bare `cargo test` builds, because their binaries are for bare metal.
const LIBRARIES_OF_BARE_PACKAGES: [&str; 1] = ["boot"];

/// What is counted on the last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Trials that held.
    pub passed: usize,
    /// Trials that did not.
    pub failed: usize,
    /// Trials that were skipped with permission.
    pub skipped: usize,
}

impl Tally {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// The last line.
    pub fn line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The packages with host tests.
///
/// # Errors
/// cargo does not describe the workspace.
pub fn host_packages() -> Result<Vec<String>> {
    let output = cargo_command()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let default: Vec<&str> = metadata["workspace_default_members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let mut names: Vec<String> = packages
        .iter()
        .filter(|p| p["id"].as_str().is_some_and(|id| default.contains(&id)))
        .filter_map(|p| p["name"].as_str().map(str::to_string))
        .collect();
    names.extend(LIBRARIES_OF_BARE_PACKAGES.map(String::from));
    Ok(names)
}

/// Runs `cargo test` for these packages and counts what libtest says.
///
/// # Errors
/// cargo cannot be run.
pub fn host_tests(packages: &[String], permitted: &PermittedSkips) -> Result<Tally> {
    let (bare, hosted): (Vec<_>, Vec<_>) = packages
        .iter()
        .partition(|p| LIBRARIES_OF_BARE_PACKAGES.contains(&p.as_str()));
    let mut tally = Tally::default();
    let selections = [(hosted, &[][..]), (bare, &["--lib"][..])];
    for (names, extra) in selections
        .into_iter()
        .filter(|(names, _)| !names.is_empty())
    {
        let mut command = cargo_command();
        command.args(["test", "--no-fail-fast"]).args(extra);
        command.args(names.iter().flat_map(|name| ["--package", name]));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run cargo test")?;
        let mut counted = Tally::default();
        let output = child.stdout.take().context("cargo test has no output")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            counted.add(libtest_line(&line, permitted));
            say::line(line);
        }
        if !child.wait()?.success() && counted.failed == 0 {
            say::line("host tests ... FAILED: they do not compile or did not finish");
            counted.failed = 1;
        }
        tally.add(counted);
    }
    Ok(tally)
}

/// What a line of libtest's counts for. An ignored test is a skip, and one without permission a failure.
fn libtest_line(line: &str, permitted: &PermittedSkips) -> Tally {
    let mut tally = Tally::default();
    if let Some(counts) = line.strip_prefix("test result: ") {
        let number = |what: &str| {
            let before = counts.split(what).next().unwrap_or_default();
            before
                .split_whitespace()
                .next_back()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        };
        tally.passed = number(" passed");
        tally.failed = number(" failed");
    } else if let Some((name, _)) = line
        .strip_prefix("test ")
        .and_then(|rest| rest.split_once(" ... ignored"))
    {
        match permitted.reason(name) {
            Some(_) => tally.skipped = 1,
            None => {
                say::line(format!(
                    "{name} is skipped without permission (tests/scenarios/permitted-skips.toml)"
                ));
                tally.failed = 1;
            }
        }
    }
    tally
}

/// The trials that may be skipped, each with its reason.
#[derive(Debug, Default)]
pub struct PermittedSkips(Vec<(String, String)>);

impl PermittedSkips {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or an entry has no reason.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not as it should be", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse()?;
        let mut skips = Vec::new();
        for (name, reason) in table {
            let reason = reason
                .as_str()
                .map(str::trim)
                .unwrap_or_default()
                .to_string();
            if reason.is_empty() {
                bail!("{name} has no reason");
            }
            skips.push((name, reason));
        }
        Ok(Self(skips))
    }

    /// Why this trial may be skipped.
    pub fn reason(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, reason)| reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_s_lines_are_counted() {
        let permitted = PermittedSkips::parse("\"slow::known\" = \"takes a day\"").expect("valid");
        let count = |line: &str| libtest_line(line, &permitted);
        let result = "test result: FAILED. 21 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.39s";
        assert_eq!(
            count(result),
            Tally {
                passed: 21,
                failed: 1,
                skipped: 0
            }
        );
        assert_eq!(
            count("test slow::known ... ignored, takes a day").skipped,
            1
        );
        assert_eq!(count("test slow::unknown ... ignored").failed, 1);
        assert_eq!(count("test fine ... ok"), Tally::default());
    }

    #[test]
    fn a_skip_needs_a_reason() {
        assert!(PermittedSkips::parse("x = \" \"").is_err());
        assert!(PermittedSkips::parse("x = 3").is_err());
        assert!(PermittedSkips::parse("# nothing\n").is_ok_and(|p| p.reason("x").is_none()));
    }

    #[test]
    fn the_last_line_is_what_scripts_read() {
        assert_eq!(
            Tally {
                passed: 3,
                failed: 0,
                skipped: 1
            }
            .line(),
            "3 passed, 0 failed, 1 skipped"
        );
    }
}
