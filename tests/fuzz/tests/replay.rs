//! Every kept input still goes through its target.

use fuzz::{TARGETS, seeds};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

fn replay(target: &str) {
    let run = fuzz::target(target).expect("the target exists").run;
    let mut files: Vec<PathBuf> = fs::read_dir(corpus(target))
        .expect("each target has a corpus")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no inputs");
    for file in files {
        let bytes = fs::read(&file).expect("it can be read");
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&bytes)));
        assert!(outcome.is_ok(), "{} breaks {target}", file.display());
    }
}

macro_rules! replays {
    ($($target:ident),*) => {
        $(#[test] fn $target() { replay(stringify!($target)); })*

        #[test]
        fn every_target_is_replayed() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($target)),*]);
        }
    };
}

replays!(
    acpi, config, kernel_elf, boot_info, bzimage, multiboot, emulator, walk, operands, regions,
    tables, board, local_apic, cpu
);

#[test]
fn the_seeds_are_kept() {
    for seed in seeds::all() {
        let file = corpus(seed.target).join(&seed.name);
        let kept = fs::read(&file).unwrap_or_default();
        assert!(
            kept == seed.bytes,
            "{} is not the seed: run `cargo run -p fuzz --bin seeds`",
            file.display()
        );
    }
}

#[test]
fn no_input_at_all_is_an_input() {
    for target in TARGETS {
        (target.run)(&[]);
    }
}

#[test]
fn each_target_has_a_wrapper_for_libfuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("its manifest");
    for target in TARGETS {
        let name = target.name;
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        let wrapper = folder.join(format!("fuzz_targets/{name}.rs"));
        let text = fs::read_to_string(wrapper).expect("its wrapper");
        assert!(text.contains(&format!("\"{name}\"")), "{name}");
    }
}
