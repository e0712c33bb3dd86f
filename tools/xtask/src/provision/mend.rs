//! A race in QEMU that ends every hypervisor in it sooner or later, and the copy of QEMU without it.
//!
//! QEMU keeps what SVM adds to a CPU's state (GIF, whether nested paging is on, whose interrupt flag counts) as bits of
//! one word per CPU, `hflags2`, which that CPU's thread changes without a lock. But XRSTOR, FXRSTOR and FLDENV on *any* CPU
//! end in `cpu_clear_ignne` (target/i386/tcg/system/fpu_helper.c, from 4.2 to 10.0 at least), and that clears a bit for MS-DOS'
//! floating-point errors in the word of the *first* CPU: load, AND, store, on the thread of whoever restores. If CPU 0 enters or
//! leaves a guest in between, its change is lost: a host that walks the guest's page tables, interrupts inside the world switch,
//! a guest that no interrupt ends. With two CPUs busy in guests this happens about once a minute.
//!
//! The bit means nothing to any guest here, so the copy has no-operations in the place of that AND. The
//! emulator that was found stays as it is. Where the instruction is not found just once (another build, or a QEMU
//! that no longer has the race) nothing is changed, and all CPUs share one thread: slower, and free of races.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::endian::LittleEndian;

use super::emulator::Qemu;

const FUNCTION: &str = "cpu_clear_ignne";

impl Qemu {
    /// The same emulator without the race, as a copy below `cache`; or itself, if that cannot be had. With it what the
    /// person should know, unless it is as on every day: that there is a new copy, or that all CPUs share a thread.
    ///
    /// # Errors
    /// The copy cannot be written.
    pub(super) fn mended(self, cache: &Path) -> Result<(Self, Option<String>)> {
        let Some(image) = fs::read(&self.program).ok().and_then(without_race) else {
            let news = format!(
                "{} is not an emulator that this knows how to mend, so all CPUs of the machine share one thread ({}): a run takes \
                 several times as long",
                self.program.display(),
                self.acceleration()
            );
            return Ok((self, Some(news)));
        };
        let copy = self.at_home_in(cache);
        if fs::read(&copy.program).is_ok_and(|there| there == image) {
            return Ok((copy, None));
        }
        let place = &copy.program;
        let write = || {
            fs::create_dir_all(place.parent().unwrap_or(cache))?;
            let fresh = place.with_extension(format!("{}", std::process::id()));
            fs::write(&fresh, &image)?;
            fs::set_permissions(&fresh, fs::metadata(&self.program)?.permissions())?;
            fs::rename(&fresh, place)
        };
        write().with_context(|| format!("cannot write {}", place.display()))?;
        let news = format!(
            "this emulator loses state of its first CPU when another restores floating-point registers; {} is a copy without that fault",
            place.display()
        );
        Ok((copy, Some(news)))
    }

    /// What [`Self::mended`] would be, or will be once it is installed, without writing it.
    pub(super) fn mended_later(self, cache: &Path) -> Self {
        match fs::read(&self.program).map(without_race) {
            Ok(None) => self,
            Ok(Some(_)) | Err(_) => self.at_home_in(cache),
        }
    }

    /// Run from `cache` instead, and told where its own files are.
    fn at_home_in(&self, cache: &Path) -> Self {
        let mut copy = self.clone();
        copy.program = cache.join("qemu-mended").join("qemu-system-x86_64");
        copy.mended = true;
        if copy.first_args.is_empty()
            && let Some(prefix) = self.program.parent().and_then(Path::parent)
        {
            let at = |sub: &str| prefix.join(sub).display().to_string();
            copy.env = vec![("QEMU_MODULE_DIR".into(), at("lib/x86_64-linux-gnu/qemu"))];
            copy.first_args = vec![
                "-L".into(),
                at("share/qemu"),
                "-L".into(),
                at("share/seabios"),
            ];
        }
        copy
    }
}

/// The program with no-operations in the place of the AND that races; nothing if there is not just one such AND.
fn without_race(mut image: Vec<u8>) -> Option<Vec<u8>> {
    let (start, length) = function(&image)?;
    let code = image.get_mut(start..start.checked_add(length)?)?;
    let mut hits = (0..code.len()).filter(|at| code.get(*at..).is_some_and(is_the_and));
    let (hit, None) = (hits.next()?, hits.next()) else {
        return None;
    };
    code.get_mut(hit..hit + NOP.len())?.copy_from_slice(&NOP);
    Some(image)
}

/// Ten bytes that do nothing, in one instruction (SDM 2B, NOP).
const NOP: [u8; 10] = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];

/// `andl $~0x80, disp32(register)`.
fn is_the_and(code: &[u8]) -> bool {
    // Opcode 81 /4; a register other than RSP as the base, which would need one byte more.
    matches!(code, [0x81, modrm, _, _, _, _, 0x7f, 0xff, 0xff, 0xff, ..]
        if modrm & 0xf8 == 0xa0 && modrm & 7 != 4)
}

/// Where the function's code is in the file, and how long it is.
fn function(image: &[u8]) -> Option<(usize, usize)> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).ok()?;
    let (symbols, names) = file.dynamic_symbol_table().ok()??;
    let symbol = symbols
        .iter()
        .find(|s| names.get(s.st_name as usize).is_ok_and(|n| n == FUNCTION))?;
    let segment = file.segments()?.iter().find(|s| {
        symbol
            .st_value
            .checked_sub(s.p_vaddr)
            .is_some_and(|offset| s.p_type == elf::abi::PT_LOAD && offset < s.p_filesz)
    })?;
    let start = segment
        .p_offset
        .checked_add(symbol.st_value - segment.p_vaddr)?;
    Some((
        usize::try_from(start).ok()?,
        usize::try_from(symbol.st_size).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AND: [u8; 10] = [0x81, 0xa0, 0x74, 0x2c, 0, 0, 0x7f, 0xff, 0xff, 0xff];

    /// A program with one segment and this code as its one function.
    fn program(name: &str, code: &[u8]) -> Vec<u8> {
        const CODE_AT: u64 = 0x200;
        const LOADED_AT: u64 = 0x40_0000;
        let strings = format!("\0{name}\0").into_bytes();
        let u64s = |words: &[u64]| {
            words
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let symbol = |name: u32, info: u8, value: u64, size: u64| {
            let mut s = name.to_le_bytes().to_vec();
            s.extend([info, 0, 1, 0]);
            s.extend(u64s(&[value, size]));
            s
        };
        let symbols = [
            symbol(0, 0, 0, 0),
            symbol(1, 0x12, LOADED_AT + CODE_AT, code.len() as u64),
        ]
        .concat();
        let strings_at = CODE_AT + code.len() as u64;
        let symbols_at = strings_at + strings.len() as u64;
        let sections_at = symbols_at + symbols.len() as u64;
        let section = |kind: u32, at: u64, size: u64, link: u32, entry: u64| {
            let mut s = [0_u32.to_le_bytes(), kind.to_le_bytes()].concat();
            s.extend(u64s(&[0, 0, at, size]));
            s.extend([link.to_le_bytes(), 1_u32.to_le_bytes()].concat());
            s.extend(u64s(&[1, entry]));
            s
        };
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
        file.extend(u64s(&[0, 64, sections_at]));
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        file.extend(u64s(&[
            0,
            LOADED_AT,
            LOADED_AT,
            sections_at,
            sections_at,
            0x1000,
        ]));
        file.resize(CODE_AT as usize, 0);
        file.extend(code);
        file.extend(&strings);
        file.extend(&symbols);
        file.extend(section(0, 0, 0, 0, 0));
        file.extend(section(3, strings_at, strings.len() as u64, 0, 0));
        file.extend(section(11, symbols_at, symbols.len() as u64, 1, 24));
        file
    }

    #[test]
    fn the_and_and_nothing_else_is_replaced() {
        let code = [&[0x90, 0x81, 0xa4][..], &AND, &[0xc3]].concat();
        let before = program(FUNCTION, &code);
        let after = without_race(before.clone()).expect("it has the race");
        let changed: Vec<usize> = (0..before.len())
            .filter(|i| before[*i] != after[*i])
            .collect();
        assert!(
            changed.iter().all(|i| (0x203..0x20d).contains(i)),
            "{changed:?}"
        );
        assert_eq!(after[0x203..0x20d], NOP);
        assert_eq!(
            without_race(after),
            None,
            "a mended program has no race left"
        );
    }

    /// A folder of this test's own, gone with it.
    struct Folder(std::path::PathBuf);
    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("perigee-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
    }
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_copy_is_told_once_and_one_thread_for_all_cpus_each_time() {
        let folder = Folder::new("mend");
        let qemu = |name: &str, bytes: &[u8]| {
            let program = folder.0.join(name);
            fs::write(&program, bytes).expect("a file");
            Qemu {
                program,
                ..Qemu::unpacked(&folder.0)
            }
        };
        let known = qemu("known", &program(FUNCTION, &AND));
        let (copy, news) = known.clone().mended(&folder.0).expect("a copy");
        assert!(copy.mended && copy.acceleration().ends_with("multi"));
        let place = copy.program.display().to_string();
        assert!(news.is_some_and(|n| n.contains(&place)));
        assert_eq!(known.mended(&folder.0).expect("the copy").1, None);
        let unknown = qemu("unknown", b"#!/bin/sh\nexec qemu");
        for _ in 0..2 {
            let (same, news) = unknown.clone().mended(&folder.0).expect("itself");
            assert_eq!(same.program, unknown.program);
            let news = news.expect("it is told");
            assert!(news.contains(same.acceleration()), "{news}");
            assert!(
                news.contains("unknown") && news.contains("thread=single"),
                "{news}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_stays_as_it_is() {
        let twice = [AND, AND].concat();
        for program in [
            program("cpu_set_ignne", &AND),
            program(FUNCTION, &[0xc3]),
            program(FUNCTION, &twice),
            b"#!/bin/sh\nexec qemu".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(without_race(program), None);
        }
    }

    #[test]
    fn no_prefix_of_a_program_is_too_short_to_be_looked_at() {
        let whole = program(FUNCTION, &AND);
        for length in 0..whole.len() {
            let _ = without_race(whole[..length].to_vec());
        }
    }
}
