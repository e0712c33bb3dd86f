//! `cargo xtask lint`: what formatting, Clippy and the house rules ask for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::artifacts::{KERNEL_TARGET, cargo_command, root};
use crate::micro;

/// A check with its name; `Err` says what is wrong.
pub type Check = (&'static str, fn() -> Result<(), String>);

/// All checks, the quick ones first.
pub const CHECKS: [Check; 3] = [
    ("lint/fmt", fmt),
    ("lint/house", house),
    ("lint/clippy", clippy),
];

/// Runs cargo with these words.
///
/// # Errors
/// It cannot be run, or ends with an error.
pub fn cargo(arguments: &[&str]) -> Result<(), String> {
    match cargo_command().args(arguments).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("`cargo {}` complains", arguments.join(" "))),
        Err(error) => Err(format!("cargo cannot be run: {error}")),
    }
}

fn fmt() -> Result<(), String> {
    cargo(&["fmt", "--all", "--check"])
}

fn clippy() -> Result<(), String> {
    let strict = ["--", "-D", "warnings"];
    for name in micro::NAMES.into_iter().chain(["kit", "probe"]) {
        let guest = ["clippy", "--quiet", "-p", name, "--target", KERNEL_TARGET];
        cargo(&[&guest[..], &strict].concat())?;
    }
    cargo(&[&["clippy", "--quiet", "--all-targets"][..], &strict].concat())?;
    cargo(
        &[
            &["clippy", "--quiet", "-p", "boot", "--lib", "--tests"][..],
            &strict,
        ]
        .concat(),
    )?;
    cargo(
        &[
            &[
                "clippy",
                "--quiet",
                "-p",
                "boot",
                "--target",
                "x86_64-unknown-uefi",
            ][..],
            &strict,
        ]
        .concat(),
    )?;
    cargo(
        &[
            &[
                "clippy",
                "--quiet",
                "-p",
                "hypervisor",
                "--target",
                "x86_64-unknown-none",
            ][..],
            &strict,
        ]
        .concat(),
    )?;
    // The kernel for tests as well.
    cargo(
        &[
            &[
                "clippy",
                "--quiet",
                "-p",
                "hypervisor",
                "--features",
                "sabotage",
                "--target",
                "x86_64-unknown-none",
            ][..],
            &strict,
        ]
        .concat(),
    )
}

/// The floors of the house: a crate may use those on lower floors only.
const FLOORS: [&[&str]; 6] = [
    &["units", "handoff"],
    &["telemetry"],
    &["topology", "memory", "devices", "config", "vmcs", "pmu"],
    &["footprint", "sched", "guest"],
    &["migrate"],
    &["hypervisor", "boot"],
];
/// Crates beside the house, which may use every floor of it but the last.
const TOOLS: [&str; 2] = ["tools", "tests"];
/// Folders whose crates may hold unsafe code.
const MAY_BE_UNSAFE: [&str; 6] = [
    "boot/src",
    "kernel/hypervisor",
    "tests/guests",
    "tests/lab",
    "tests/fuzz",
    "tests/native",
];

fn floor(package: &str) -> Option<usize> {
    FLOORS.iter().position(|names| names.contains(&package))
}

/// Whether `user`, which lies in `folder`, may depend on `used`, both of this workspace.
fn may_use(user: &str, folder: &Path, used: &str) -> Result<(), String> {
    let tool = TOOLS.iter().any(|top| folder.starts_with(top));
    let allowed = match (floor(user), floor(used)) {
        (Some(user), Some(used)) => used < user,
        // The fuzz targets drive the decisions of the loader, which need no firmware.
        (None, _) if user == "fuzz" && used == "boot" => true,
        (None, used) if tool => used.is_none_or(|used| used < FLOORS.len() - 1),
        _ => false,
    };
    if allowed {
        Ok(())
    } else {
        Err(format!(
            "{user} must not depend on {used}: arrows point down (kernel/README.md)"
        ))
    }
}

/// Arrows between crates, lints switched on, and unsafe code only where it may be.
fn house() -> Result<(), String> {
    let wrong = problems().map_err(|e| format!("{e:#}"))?;
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n  "))
    }
}

fn problems() -> Result<Vec<String>> {
    let output = cargo_command()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest
            .parent()
            .and_then(|p| p.strip_prefix(root()).ok())
            .unwrap_or(Path::new(""))
            .to_path_buf();
        let ours = |d: &&Value| d["path"].is_string() && d["kind"].is_null();
        for used in package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(ours)
        {
            wrong.extend(may_use(name, &folder, used["name"].as_str().unwrap_or_default()).err());
        }
        let text = std::fs::read_to_string(&manifest)?;
        if !text.contains("[lints]\nworkspace = true") {
            wrong.push(format!(
                "{} does not take the workspace's lints",
                folder.join("Cargo.toml").display()
            ));
        }
        sources(&root().join(&folder).join("src"), &mut |file, text| {
            wrong.extend(unsafe_problem(file, text))
        })?;
    }
    Ok(wrong)
}

fn sources(folder: &Path, each: &mut impl FnMut(&Path, &str)) -> Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, each)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path)?;
            each(path.strip_prefix(root()).unwrap_or(&path), &text);
        }
    }
    Ok(())
}

/// That each block has its SAFETY comment is Clippy's `undocumented_unsafe_blocks`, denied in the
/// workspace; here is what Clippy does not know: where unsafe code may be, and that a file gives a reason.
fn unsafe_problem(file: &Path, text: &str) -> Option<String> {
    let may = MAY_BE_UNSAFE.iter().any(|top| file.starts_with(top));
    let opts_in = text.contains("unsafe_code,");
    let reasoned =
        text.contains("expect(\n    unsafe_code,") || text.contains("expect(unsafe_code, reason");
    let name = file.display();
    match (opts_in, may, reasoned) {
        (true, false, _) if !text.contains("MAY_BE_UNSAFE") => Some(format!(
            "{name} opts into unsafe code, which only {MAY_BE_UNSAFE:?} may"
        )),
        (true, true, false) => Some(format!("{name} opts into unsafe code without a reason")),
        _ => None,
    }
}

/// `cargo xtask lint`: the exit status.
pub fn lint() -> u8 {
    let mut status = 0;
    for (name, check) in CHECKS {
        match check() {
            Ok(()) => crate::say::line(format!("{name} ... ok")),
            Err(why) => {
                crate::say::line(format!("{name} ... FAILED: {why}"));
                status = 1;
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_point_down() {
        let kernel = Path::new("kernel/x");
        assert!(may_use("sched", kernel, "units").is_ok());
        assert!(may_use("migrate", kernel, "footprint").is_ok());
        assert!(may_use("hypervisor", kernel, "migrate").is_ok());
        assert!(
            may_use("sched", kernel, "migrate")
                .is_err_and(|why| why.contains("sched must not depend on migrate"))
        );
        assert!(may_use("units", kernel, "telemetry").is_err());
        assert!(may_use("footprint", kernel, "sched").is_err());
        assert!(
            may_use("kitchen", kernel, "units").is_err(),
            "a crate without a floor"
        );
        assert!(may_use("xtask", Path::new("tools/xtask"), "config").is_ok());
        assert!(may_use("xtask", Path::new("tools/xtask"), "hypervisor").is_err());
        assert!(may_use("fuzz", Path::new("tests/fuzz"), "boot").is_ok());
        assert!(may_use("lab", Path::new("tests/lab"), "boot").is_err());
    }

    #[test]
    fn unsafe_code_needs_its_place_and_a_reason() {
        let with_reason = "#![expect(unsafe_code, reason = \"registers\")]";
        assert_eq!(
            unsafe_problem(Path::new("kernel/hypervisor/src/a.rs"), with_reason),
            None
        );
        assert!(
            unsafe_problem(
                Path::new("kernel/hypervisor/src/a.rs"),
                "#![allow(unsafe_code,)]"
            )
            .is_some()
        );
        assert!(unsafe_problem(Path::new("kernel/sched/src/a.rs"), with_reason).is_some());
        assert_eq!(
            unsafe_problem(
                Path::new("kernel/sched/src/a.rs"),
                "#![forbid(unsafe_code)]"
            ),
            None
        );
    }
}
