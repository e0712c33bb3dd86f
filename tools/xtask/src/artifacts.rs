//! Building: the two bare-metal binaries, the guests' workload and the probe.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::micro;
use crate::say;
use crate::session::stop_flag;
use crate::status::Interrupted;

/// The host's target, named so that its flags do not touch build scripts and macros.
const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";
const LOADER_TARGET: &str = "x86_64-unknown-uefi";
/// What the kernel and the micro-kernels are built for.
pub const KERNEL_TARGET: &str = "x86_64-unknown-none";

/// What is built for a run.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The UEFI application.
    pub loader: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The guests' workload, linked statically.
    pub workload: PathBuf,
    /// The guest that is measured with, as a bzImage.
    pub probe: PathBuf,
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// The folder that everything built goes to.
pub fn target_folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => std::path::absolute(&folder).unwrap_or_else(|_| folder.into()),
        None => root().join("target"),
    }
}

/// A folder below `target` for what runs leave behind.
pub fn folder(name: &str) -> Result<PathBuf> {
    let folder = target_folder().join(name);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

impl Artifacts {
    /// Where they are once they are built.
    pub fn places() -> Self {
        let target = target_folder();
        Self {
            loader: target.join(LOADER_TARGET).join("release/boot.efi"),
            kernel: target.join(KERNEL_TARGET).join("release/hypervisor"),
            workload: target
                .join("guest")
                .join(HOST_TARGET)
                .join("release/workload"),
            probe: target
                .join("probe")
                .join(KERNEL_TARGET)
                .join("release/probe"),
        }
    }

    /// Builds them.
    ///
    /// # Errors
    /// The toolchain's targets cannot be had, or something does not compile.
    pub fn build() -> Result<Self> {
        provision_targets()?;
        cargo(&[
            "build",
            "--release",
            "--package",
            "boot",
            "--bin",
            "boot",
            "--target",
            LOADER_TARGET,
        ])?;
        build_kernel(&[])?;
        // A folder of its own: other flags for the same target would rebuild everything each time.
        let guest = target_folder().join("guest").display().to_string();
        let flags = format!(
            "target.{HOST_TARGET}.rustflags=['-Ctarget-feature=+crt-static','-Cstrip=symbols']"
        );
        let workload = [
            "build",
            "--release",
            "--package",
            "workload",
            "--target",
            HOST_TARGET,
        ];
        cargo(&[&workload[..], &["--target-dir", &guest, "--config", &flags]].concat())?;
        micro::build()?;
        build_probe()?;
        let built = Self::places();
        for file in [&built.loader, &built.kernel, &built.workload, &built.probe] {
            if !file.is_file() {
                bail!("the build left no {}", file.display());
            }
        }
        Ok(built)
    }
}

fn build_kernel(features: &[&str]) -> Result<()> {
    let ordinary = [
        "build",
        "--release",
        "--package",
        "hypervisor",
        "--target",
        KERNEL_TARGET,
    ];
    cargo(&[&ordinary[..], features].concat())
}

/// Builds the kernel that obeys `sabotage` of the configuration. Before [`Artifacts::build`], which puts
/// the ordinary kernel back in its place.
///
/// # Errors
/// It does not compile, or cannot be put aside.
pub fn build_sabotaged_kernel() -> Result<PathBuf> {
    provision_targets()?;
    build_kernel(&["--features", "sabotage"])?;
    let built = Artifacts::places().kernel;
    let aside = built.with_file_name("hypervisor-sabotaged");
    std::fs::copy(&built, &aside)
        .with_context(|| format!("cannot copy {} to {}", built.display(), aside.display()))?;
    Ok(aside)
}

/// A `cargo` of the checkout's toolchain, in its root.
pub fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What `cargo run` told us about ourselves is not meant for others.
    for (key, _) in std::env::vars_os() {
        if key
            .to_str()
            .is_some_and(|k| k.starts_with("CARGO_PKG_") || k.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(key);
        }
    }
    command
}

fn cargo(arguments: &[&str]) -> Result<()> {
    finish(cargo_command().args(arguments), arguments)
}

/// The probe: a flat image whose place and header its linker script gives. Its flags take the place of
/// those that the kernel has for the same target.
fn build_probe() -> Result<()> {
    let flags = [
        "-Crelocation-model=static",
        "-Cstrip=symbols",
        "-Clink-arg=-Ttests/guests/probe/probe.ld",
        "-Clink-arg=--oformat=binary",
    ];
    let folder = target_folder().join("probe").display().to_string();
    let build = [
        "build",
        "--release",
        "--package",
        "probe",
        "--target",
        KERNEL_TARGET,
    ];
    let arguments = [&build[..], &["--target-dir", &folder]].concat();
    let mut command = cargo_command();
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    finish(command.args(&arguments), &arguments)
}

fn finish(command: &mut Command, arguments: &[&str]) -> Result<()> {
    let status = command.status().context("cannot run cargo")?;
    if stop_flag()?.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Interrupted.into());
    }
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

/// Builds the emulator plugin that observes a machine from outside.
///
/// # Errors
/// It does not compile.
pub fn build_plugin() -> Result<PathBuf> {
    cargo(&["build", "--release", "--package", "lab"])?;
    let library = target_folder().join("release/liblab.so");
    if library.is_file() {
        Ok(library)
    } else {
        bail!("the build left no {}", library.display())
    }
}

/// Whether the toolchain has core for this target.
fn has_target(target: &str) -> bool {
    let output = Command::new("rustc")
        .current_dir(root())
        .args(["--print", "target-libdir", "--target", target])
        .output();
    let Ok(output) = output else { return false };
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let libraries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    libraries
        .map(|e| e.file_name())
        .any(|name| name.to_string_lossy().starts_with("libcore-"))
}

/// Makes both bare-metal targets usable; does nothing when they are.
pub fn provision_targets() -> Result<()> {
    if [LOADER_TARGET, KERNEL_TARGET].into_iter().all(has_target) {
        return Ok(());
    }
    say::step(
        "the toolchain lacks its bare-metal targets: rustup adds them (about 30 MB), or they are built from",
    );
    say::step("Debian's rust-src of the same release (about 60 MB to download, 2 minutes)");
    let script = root().join("tools/provision-targets.sh");
    let status = Command::new("bash")
        .arg(&script)
        .args([KERNEL_TARGET, LOADER_TARGET])
        .current_dir(root())
        .status()
        .context("cannot run bash")?;
    if !status.success() {
        bail!("{} failed; what it said is above", script.display());
    }
    Ok(())
}
