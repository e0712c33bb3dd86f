//! The test micro-kernels of `tests/guests`: built, made into what a Multiboot loader takes, and proved on the plain
//! emulator before they judge Perigee.
//!
//! The compiler links 64-bit ELF files; Multiboot 1 loaders want 32-bit ones, whose code may be 64 bits wide all the
//! same. Only headers differ.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use scenarios::Machine;
use scenarios::selftest;

use crate::artifacts::{self, KERNEL_TARGET, cargo_command, target_folder};
use crate::launch::Invocation;
use crate::provision::{Lab, Qemu};
use crate::session::{self, Manner};

/// Packages of the micro-kernels, each with one program of the same name.
pub const NAMES: [&str; 5] = ["selftest", "hostile", "corners", "stamps", "locks"];
/// Position dependent, linked for 1 MiB.
pub const FLAGS: &str = "-Crelocation-model=static -Ccode-model=small \
    -Clink-arg=-Ttests/guests/kit/guest.ld -Clink-arg=--no-pie";

/// Where a micro-kernel is once it is built.
pub fn place(name: &str) -> PathBuf {
    target_folder().join("guest").join(format!("{name}.elf"))
}

/// Builds them all.
///
/// # Errors
/// One does not compile, or is not what a loader takes.
pub fn build() -> Result<()> {
    let folder = target_folder().join("guest");
    let mut command = cargo_command();
    command
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--release", "--target", KERNEL_TARGET])
        .arg("--target-dir")
        .arg(&folder);
    for name in NAMES {
        command.args(["--package", name]);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the micro-kernels of tests/guests do not compile");
    }
    for name in NAMES {
        let linked = folder.join(KERNEL_TARGET).join("release").join(name);
        let bytes = std::fs::read(&linked)
            .with_context(|| format!("the build left no {}", linked.display()))?;
        let small = to_elf32(&bytes).with_context(|| format!("{}", linked.display()))?;
        std::fs::write(place(name), small)?;
    }
    Ok(())
}

/// Bytes of a 32-bit file's header, and of each entry of its program headers (ELF 1.2, figures 1-3 and 2-1).
const HEADER: u32 = 52;
const PROGRAM_HEADER: u32 = 32;
const PAGE: u32 = 4096;

/// The same program with 32-bit headers.
fn to_elf32(file: &[u8]) -> Result<Vec<u8>> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).context("it is no ELF file")?;
    let segments: Vec<_> = elf
        .segments()
        .context("it has no program headers")?
        .iter()
        .filter(|s| s.p_type == PT_LOAD)
        .collect();
    let word = |n: u64| u32::try_from(n).context("it lies above 4 GiB");
    let count = u16::try_from(segments.len())?;
    let mut out = b"\x7fELF\x01\x01\x01".to_vec();
    out.resize(16, 0);
    let executable_for_386: [u16; 2] = [2, 3];
    out.extend(
        executable_for_386
            .iter()
            .flat_map(|half| half.to_le_bytes()),
    );
    for n in [1, word(elf.ehdr.e_entry)?, HEADER, 0, 0] {
        out.extend(n.to_le_bytes());
    }
    for half in [HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let mut at = (HEADER + PROGRAM_HEADER * u32::from(count)).next_multiple_of(PAGE);
    let mut body = Vec::new();
    for segment in &segments {
        let data = elf
            .segment_data(segment)
            .context("a segment lies past the end of the file")?;
        let bytes = word(segment.p_filesz)?;
        for n in [
            PT_LOAD,
            at,
            word(segment.p_vaddr)?,
            word(segment.p_paddr)?,
            bytes,
            word(segment.p_memsz)?,
            segment.p_flags,
            PAGE,
        ] {
            out.extend(n.to_le_bytes());
        }
        body.extend_from_slice(data);
        let padded = bytes.next_multiple_of(PAGE);
        body.resize(body.len() + (padded - bytes) as usize, 0);
        at += padded;
    }
    out.resize(out.len().next_multiple_of(PAGE as usize), 0);
    out.extend(body);
    Ok(out)
}

/// The name of the trial that proves the self-tests.
pub const REFERENCE: &str = "reference/selftest";
/// The plain emulator is done in half a minute; hosts are noisy.
const LIMIT: Duration = Duration::from_secs(240);

/// Runs the self-tests on the emulator's own machine, without Perigee: what fails there is wrong with the test.
///
/// # Errors
/// The emulator cannot be run; inside, what the judge says.
pub fn reference(lab: &Lab) -> Result<Result<(), String>> {
    artifacts::provision_targets()?;
    let qemu: &Qemu = lab.qemu.as_ref().context("no QEMU")?;
    build()?;
    let folder = artifacts::folder("scenarios/reference-selftest")?;
    let invocation = Invocation::plain(qemu, Machine::CPU, 2, Path::new(&place("selftest")));
    std::fs::write(folder.join("command-line.txt"), format!("{invocation}\n"))?;
    let manner = Manner {
        timeout: Some(LIMIT),
        attended: false,
        steps: &[],
        control: None,
        folder: &folder,
    };
    let transcript = session::run(&invocation, &manner)?;
    let lines = transcript.console.iter().map(|line| line.what.as_str());
    Ok(selftest::judge(lines, &selftest::SKIPPED_ON_PLAIN_EMULATOR)
        .map_err(|why| format!("{why}\n  logs: {}", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit file with one segment of four bytes at 1 MiB, eight in memory.
    fn elf64() -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [2_u16, 62] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1_u32.to_le_bytes());
        for n in [0x10_0000_u64, 64, 0] {
            file.extend(n.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [64_u16, 56, 1, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for n in [1_u32, 7] {
            file.extend(n.to_le_bytes());
        }
        for n in [120_u64, 0x10_0000, 0x10_0000, 4, 8, 4096] {
            file.extend(n.to_le_bytes());
        }
        file.extend([1, 2, 3, 4]);
        file
    }

    #[test]
    fn a_program_keeps_its_bytes_in_32_bit_headers() {
        let small = to_elf32(&elf64()).expect("valid");
        let elf = ElfBytes::<LittleEndian>::minimal_parse(&small).expect("an ELF file");
        assert_eq!(elf.ehdr.class, elf::file::Class::ELF32);
        assert_eq!((elf.ehdr.e_machine, elf.ehdr.e_entry), (3, 0x10_0000));
        let segments: Vec<_> = elf.segments().expect("program headers").iter().collect();
        assert_eq!(segments.len(), 1);
        assert_eq!((segments[0].p_paddr, segments[0].p_memsz), (0x10_0000, 8));
        assert_eq!(elf.segment_data(&segments[0]).expect("bytes"), [1, 2, 3, 4]);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(to_elf32(b"#!/bin/sh").is_err());
        let mut high = elf64();
        high[24..32].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        assert!(to_elf32(&high).is_err_and(|e| e.to_string().contains("4 GiB")));
        let mut cut = elf64();
        cut.truncate(122);
        assert!(to_elf32(&cut).is_err());
    }
}
