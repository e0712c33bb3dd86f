//! Whether this host can run Perigee's machine on its own processor, and not in emulation.
//!
//! `/dev/kvm` alone says little: guests of most hosts are offered no virtualization of their own. So the emulator makes a VM
//! with KVM and insists on VT-x or AMD-V in it; what it says when that fails is the reason.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::provision::Qemu;

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Accel {
    /// The emulator.
    #[default]
    Tcg,
    /// The host's processor, by KVM with nested virtualization.
    Kvm,
}

/// A VM that does nothing is made within this time, or never.
const PATIENCE: Duration = Duration::from_secs(30);
/// CPUID's features, as the emulator calls them.
const FEATURES: [&str; 2] = ["vmx", "svm"];

/// The CPU model with which KVM gives a VM virtualization of its own.
///
/// # Errors
/// Why it does not, as one line.
pub fn nested_cpu(qemu: &Qemu) -> Result<String> {
    let mut reasons = Vec::new();
    for feature in FEATURES {
        let cpu = format!("host,migratable=off,+{feature}");
        match try_cpu(qemu, &format!("{cpu},enforce"))? {
            None => return Ok(cpu),
            Some(reason) => reasons.push(format!("{feature}: {reason}")),
        }
    }
    anyhow::bail!(
        "--accel kvm: this host gives its guests no virtualization of their own ({}); run without it",
        reasons.join("; ")
    )
}

/// Makes a VM with this CPU and ends it; `None` if that worked, else what the emulator said.
fn try_cpu(qemu: &Qemu, cpu: &str) -> Result<Option<String>> {
    let mut child = Command::new(&qemu.program)
        .envs(qemu.env.iter().cloned())
        .args(&qemu.first_args)
        .args(["-accel", "kvm", "-machine", "q35", "-cpu", cpu, "-m", "64M"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-S"])
        .args(["-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", qemu.program.display()))?;
    if let Some(mut orders) = child.stdin.take() {
        // One that has ended already does not listen.
        let _ = orders.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}");
    }
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(None);
    }
    Ok(Some(reason(&String::from_utf8_lossy(&output.stderr))))
}

/// The first thing that was wrong, without the program's name.
fn reason(said: &str) -> String {
    let line = said.lines().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or("no reason was given");
    let line = line.split_once(": ").map_or(line, |(_, rest)| rest);
    line.trim_start_matches("warning: ").trim().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_emulator_s_first_complaint_is_the_reason() {
        let said = "qemu-system-x86_64: warning: host doesn't support requested feature: CPUID.01H:ECX.vmx [bit 5]\nqemu-system-x86_64: Host doesn't support requested features\n";
        assert_eq!(
            reason(said),
            "host doesn't support requested feature: CPUID.01H:ECX.vmx [bit 5]"
        );
        let absent =
            "qemu-system-x86_64: Could not access KVM kernel module: No such file or directory\n";
        assert!(reason(absent).starts_with("Could not access KVM"));
        assert_eq!(reason(""), "no reason was given");
    }

    /// An emulator that can make a VM with some feature, or with none.
    fn fake(name: &str, condition: &str) -> (std::path::PathBuf, Qemu) {
        let folder =
            std::env::temp_dir().join(format!("perigee-accel-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let program = folder.join("qemu");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in --version) echo 'QEMU emulator version 10.0.2'; exit 0;; {condition}) exit 0;; esac\n\
             echo 'qemu: warning: not offered here' >&2\nexit 1\n"
        );
        std::fs::write(&program, script).expect("a temporary file");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("ours");
        let qemu = Qemu {
            program,
            env: Vec::new(),
            first_args: Vec::new(),
            version: String::new(),
            mended: false,
        };
        (folder, qemu)
    }

    #[test]
    fn only_a_vm_that_was_made_counts() {
        let (folder, amd) = fake("amd", "*kvm*+svm,enforce*");
        assert_eq!(
            nested_cpu(&amd).expect("AMD-V is there"),
            "host,migratable=off,+svm"
        );
        let _ = std::fs::remove_dir_all(folder);
        let (folder, none) = fake("none", "never");
        let why = nested_cpu(&none).expect_err("nothing is there").to_string();
        assert!(
            why.contains("vmx: not offered here; svm: not offered here"),
            "{why}"
        );
        let _ = std::fs::remove_dir_all(folder);
    }
}
