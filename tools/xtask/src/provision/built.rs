//! A faster Bochs for the long trials, built here from Debian's source.
//!
//! Debian 12's Bochs has its debugger in it: a processor stops after five instructions to let the next one run, and while
//! all of them wait, time passes by one tick a round. That is good enough for a run and for the quick set, but a hundred
//! trials would take most of a day. The same emulator without a debugger, from the source of Debian's newer release, takes
//! about a third of the time.
//!
//! Its loop over several processors is used by fewer people, and had two faults ([`MENDED`]): guests of any hypervisor
//! in it lost their way as soon as an interrupt met an exception.
//!
//! The source is one file of the archive, known by its checksum. It is unpacked and built in the cache folder, without root
//! but for a missing compiler; without network or compiler the trials run in the Bochs that is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::bochs::Bochs;
use super::host::Mirror;
use super::install::apt_install;
use super::{Part, cache_folder, which};
use crate::say;

/// Below the archive's base address.
const SOURCE: &str = "pool/main/b/bochs/bochs_3.0+dfsg.orig.tar.xz";
const SHA256: &str = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b";
const BYTES: u64 = 3_896_488;
/// The folder in the cache, and in the archive.
const NAME: &str = "bochs-3.0";
/// Without strict aliasing rules, which it breaks.
const OPTIMISED: &str = "-O3 -fno-strict-aliasing";
/// What the models that trials ask for have, and nothing that wants a library.
const OPTIONS: [&str; 15] = [
    "--enable-cpu-level=6",
    "--enable-smp",
    "--enable-x86-64",
    "--enable-vmx=2",
    "--enable-avx",
    "--enable-evex",
    "--enable-pci",
    "--enable-all-optimizations",
    "--disable-debugger",
    "--disable-plugins",
    "--disable-docbook",
    "--with-rfb",
    "--with-nogui",
    "--without-x",
    "--without-x11",
];

/// The file with its loop over several processors, and two faults in that: each a text that stands there once, and what
/// it becomes.
const LOOP: &str = "main.cc";
const MENDED: [(&str, &str); 2] = [
    // An exception jumps back to the loop's beginning, where variables in registers are what they were before it.
    (
        "        Bit32u executed = 0, processor = 0;\n        bool run = true;\n",
        "        static Bit32u executed = 0, processor = 0;\n        static bool run = true;\n",
    ),
    // Then the handler has begun: a VM exit before its first instruction must not return to the instruction that raised it.
    (
        "BX_CPU(processor)->icount++;\n          run = false;\n",
        "BX_CPU(processor)->icount++;\n          BX_CPU(processor)->prev_rip = BX_CPU(processor)->gen_reg[BX_64BIT_REG_RIP].rrx;\n          \
         run = false;\n",
    ),
];

impl Bochs {
    /// The faster one, built if need be; itself where that cannot be, or where the person chose this one. Says what it does.
    pub fn faster(self) -> Self {
        if std::env::var_os(Part::Bochs.variable()).is_some() {
            return self;
        }
        match self.built() {
            Ok(bochs) => bochs,
            Err(error) => {
                say::step(format!(
                    "a faster Bochs cannot be built: {error:#}; the long trials run in {} and take several times as long",
                    self.program.display()
                ));
                self
            }
        }
    }

    fn built(&self) -> Result<Self> {
        let cache = cache_folder()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let lock = fs::File::create(cache.join("lock"))?;
        lock.lock().context("cannot lock the cache folder")?;
        let program = cache.join(NAME).join("bochs");
        if !program.is_file() {
            build(&cache)?;
        }
        let name = program.display().to_string();
        let bochs = Self {
            vga_bios: self.vga_bios.clone(),
            ..Self::plain(program)
        };
        bochs
            .probed()
            .with_context(|| format!("{name} does not answer --help as Bochs does"))
    }
}

/// From nothing to the program; a half-finished attempt is never taken for a whole.
fn build(cache: &Path) -> Result<()> {
    let mirror = Mirror::here().context("this system's package sources name no Debian archive")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    say::step(format!(
        "building a faster Bochs for the long trials, once: {} of Debian's source to fetch, then about {} minutes",
        say::megabytes(BYTES),
        (4 / cores).max(1)
    ));
    compilers()?;
    let work = cache.join("building");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    let source = work.join("source.tar.xz");
    run(
        Command::new("/usr/lib/apt/apt-helper")
            .args(["-o", "APT::Sandbox::User=", "download-file"])
            .arg(format!("{}/{SOURCE}", mirror.uri))
            .arg(&source)
            .arg(format!("SHA256:{SHA256}")),
        &work,
    )?;
    run(
        Command::new("tar")
            .arg("-xJf")
            .arg(&source)
            .arg("-C")
            .arg(&work),
        &work,
    )?;
    let tree = work.join(NAME);
    let text = fs::read_to_string(tree.join(LOOP))?;
    fs::write(tree.join(LOOP), mended(text)?)?;
    run(
        Command::new("./configure")
            .args(OPTIONS)
            .env("CFLAGS", OPTIMISED)
            .env("CXXFLAGS", OPTIMISED)
            .current_dir(&tree),
        &work,
    )?;
    run(
        Command::new("make")
            .arg(format!("-j{cores}"))
            .current_dir(&tree),
        &work,
    )?;
    let place = cache.join(NAME);
    fs::create_dir_all(&place)?;
    fs::rename(tree.join("bochs"), place.join("bochs"))?;
    let _ = fs::remove_dir_all(&work);
    Ok(())
}

/// The loop without its faults.
fn mended(mut text: String) -> Result<String> {
    for (fault, mend) in MENDED {
        if text.matches(fault).count() != 1 {
            bail!("{LOOP} is not the file that this knows how to mend");
        }
        text = text.replace(fault, mend);
    }
    Ok(text)
}

/// What compiles it; installed as root, asked for otherwise.
fn compilers() -> Result<()> {
    let missing = || -> Vec<&str> {
        let needed = [("g++", "g++"), ("make", "make"), ("xz", "xz-utils")];
        let lacking = needed
            .into_iter()
            .filter(|(program, _)| which(program).is_none());
        lacking.map(|(_, package)| package).collect()
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    if rustix::process::geteuid().is_root() {
        apt_install(&packages)?;
    }
    match missing()[..] {
        [] => Ok(()),
        ref still => bail!("{} is missing", still.join(" and ")),
    }
}

/// Runs it to its end; what it says goes into a file, whose last lines are the error's.
fn run(command: &mut Command, work: &Path) -> Result<()> {
    let log: PathBuf = work.join("log");
    let output = fs::File::create(&log)?;
    let name = command.get_program().display().to_string();
    let status = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(&log).unwrap_or_default();
    let last: Vec<&str> = text.lines().rev().take(2).collect();
    bail!(
        "{name} failed: {}",
        last.into_iter().rev().collect::<Vec<_>>().join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_faults_must_be_there_once() {
        let whole: String = MENDED.map(|(fault, _)| fault).concat();
        let expected: String = MENDED.map(|(_, mend)| mend).concat();
        assert_eq!(mended(whole.clone()).ok(), Some(expected));
        assert!(mended(MENDED[0].0.into()).is_err());
        assert!(mended(whole.repeat(2)).is_err());
    }

    #[test]
    fn a_failure_is_told_by_its_last_lines() {
        let work = std::env::temp_dir().join(format!("perigee-built-{}", std::process::id()));
        fs::create_dir_all(&work).expect("a temporary folder");
        let script = "echo first; echo second; echo third >&2; exit 3";
        let why = run(Command::new("sh").args(["-c", script]), &work).expect_err("it fails");
        assert_eq!(why.to_string(), "sh failed: second third");
        assert!(run(&mut Command::new("true"), &work).is_ok());
        let _ = fs::remove_dir_all(&work);
    }
}
