//! The front door: `cargo xtask build | run | image | test | bench | fuzz | lint | clean`.
//!
//! Everything that a person or a machine does with this repository goes through here, so that a
//! fresh checkout on a fresh machine needs nothing before it. The parts, in the order of a run:
//!
//! * [`provision`] finds or installs the laboratory: QEMU, firmware, busybox, guest kernels;
//! * [`artifacts`] builds loader, kernel and workload, and provides the toolchain's targets;
//! * [`micro`] does so for the test micro-kernels, and proves their tests on the plain emulator;
//! * [`plan`] turns wishes into `perigee.toml` and a list of guest files;
//! * [`medium`], [`slim`], [`initramfs`] and [`image`] make the disk that firmware boots;
//! * [`qemu`] and [`bochs`] compose an emulator's command line ([`accel`]: with the host's processor), [`launch`] starts it, [`session`] follows it to its
//!   end, [`console`] is the person's terminal meanwhile;
//! * [`verdict`] says what the run's transcript means; [`status`] which exit status that is;
//! * [`trials`] does all this for each scenario in each emulator, which [`summary`] puts into a table, after
//!   [`host_tests`]; [`bench`] counts instructions; [`fuzz`] searches; [`lint`] keeps the house rules.

mod accel;
mod artifacts;
mod bench;
mod bochs;
mod console;
mod control;
mod fuzz;
mod host_tests;
mod image;
mod initramfs;
mod launch;
mod lint;
mod medium;
mod micro;
mod plan;
mod provision;
mod qemu;
mod run;
mod say;
mod session;
mod slim;
mod status;
mod summary;
mod trials;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Perigee's front door.
#[derive(Parser, Debug)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Build loader, kernel and the guests' workload
    Build,
    /// Boot Perigee with two Linux guests on an emulated NUMA machine
    ///
    /// Exit status: 0 clean, 1 guest failure or data mismatch, 2 usage, 3 hypervisor panic, 4 timeout,
    /// 5 something needed could not be built, installed or started, 130 interrupted.
    Run(run::RunArgs),
    /// Write a bootable disk for a real server
    Image {
        /// The disk image to write
        file: PathBuf,
        #[command(flatten)]
        guests: run::GuestArgs,
    },
    /// Run lints, host tests and emulator scenarios; the last line counts them
    Test(trials::TestArgs),
    /// Count the instructions that Perigee costs, in the emulator
    Bench(bench::BenchArgs),
    /// Search for inputs that break what a stranger's bytes can reach
    Fuzz(fuzz::FuzzArgs),
    /// Check formatting, Clippy and the house rules
    Lint,
    /// Remove what was built
    Clean {
        /// Remove what was unpacked into the cache folder as well
        #[arg(long)]
        cache: bool,
    },
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(launch::GUARD) {
        eprintln!("xtask: {:#}", launch::guard(args));
        return ExitCode::from(5);
    }
    // clap ends usage errors with status 2 itself.
    match obey(Cli::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(status::of_error(&error))
        }
    }
}

fn obey(command: Command) -> Result<u8> {
    match command {
        Command::Build => artifacts::Artifacts::build().map(|_| 0),
        Command::Run(args) => run::run(&args),
        Command::Image { file, guests } => run::image(&file, &guests),
        Command::Test(args) => trials::test(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Lint => Ok(lint::lint()),
        Command::Clean { cache } => clean(cache),
    }
}

fn clean(cache: bool) -> Result<u8> {
    if cache {
        let folder = provision::cache_folder()?;
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        say::step(format!("{} is removed", folder.display()));
    }
    let status = artifacts::cargo_command().arg("clean").status()?;
    Ok(if status.success() { 0 } else { 5 })
}
