//! Faults of QEMU that end hypervisors in it sooner or later, and the copy of QEMU without them.
//!
//! The emulator that was found stays as it is; the copy differs from it by one instruction for each fault:
//! * [`ignne`]: one CPU changes state of another
//! * [`injected`]: an interrupt is delivered twice
//!
//! Where one of these instructions is not found just once (another build, or a QEMU that no longer has the fault) nothing is
//! changed, and all CPUs share one thread: slower, free of the race, and an interrupt may still come twice.

mod ignne;
mod injected;
mod program;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::emulator::Qemu;

impl Qemu {
    /// The same emulator without the faults, as a copy below `cache`; or itself, if that cannot be had. With it what the
    /// person should know, unless it is as on every day: that there is a new copy, or that all CPUs share a thread.
    ///
    /// # Errors
    /// The copy cannot be written.
    pub(super) fn mended(self, cache: &Path) -> Result<(Self, Option<String>)> {
        let Some(image) = fs::read(&self.program).ok().and_then(without_faults) else {
            let news = format!(
                "{} is not an emulator that this knows how to mend, so all CPUs of the machine share one thread ({}): a run takes \
                 several times as long, and now and then a guest may get an interrupt twice",
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
            "this emulator loses state of its first CPU when another restores floating-point registers, and delivers injected interrupts \
             twice when it is called meanwhile; {} is a copy without these faults",
            place.display()
        );
        Ok((copy, Some(news)))
    }

    /// What [`Self::mended`] would be, or will be once it is installed, without writing it.
    pub(super) fn mended_later(self, cache: &Path) -> Self {
        match fs::read(&self.program).map(without_faults) {
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

/// The program without all faults; nothing if one of them is not found.
fn without_faults(image: Vec<u8>) -> Option<Vec<u8>> {
    injected::without_second_delivery(ignne::without_race(image)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with all faults.
    fn emulator() -> Vec<u8> {
        let others = injected::tests::functions(&injected::tests::injects());
        let mut functions = vec![("cpu_clear_ignne", &ignne::tests::AND[..])];
        functions.extend(others.iter().map(|(name, code)| (*name, &code[..])));
        program::tests::program(&functions)
    }

    #[test]
    fn an_emulator_that_lacks_a_fault_stays_as_it_is() {
        let image = emulator();
        let mended = without_faults(image.clone()).expect("both are there");
        assert_eq!(without_faults(mended), None);
        let one = program::tests::program(&[("cpu_clear_ignne", &ignne::tests::AND)]);
        for image in [one, b"#!/bin/sh\nexec qemu".to_vec(), Vec::new()] {
            assert_eq!(without_faults(image), None);
        }
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
        let known = qemu("known", &emulator());
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
    fn no_prefix_of_a_program_is_too_short_to_be_looked_at() {
        let whole = emulator();
        for length in 0..whole.len() {
            let _ = without_faults(whole[..length].to_vec());
        }
    }
}
