//! `perigee.toml`: right as a whole and readable again, or refused with places inside the text.

use std::collections::BTreeSet;

/// The file itself.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match config::parse(text) {
        Ok(configuration) => {
            let names: BTreeSet<_> = configuration.vms.iter().map(|vm| &vm.name).collect();
            assert_eq!(names.len(), configuration.vms.len(), "names are unique");
            assert!(configuration.vms.len() <= config::MAX_VMS);
            for vm in &configuration.vms {
                assert!((1..=64).contains(&vm.cpus));
            }
            let again = config::parse(&configuration.to_toml());
            assert_eq!(again.as_ref(), Ok(&configuration), "it is read as written");
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            let mut last = 1;
            for error in errors {
                let lines = text.split('\n').count();
                let line = text.split('\n').nth(error.line as usize - 1);
                let Some(line) = line else {
                    panic!("line {} of {lines}: {error}", error.line);
                };
                assert!(
                    (1..=line.chars().count() + 1).contains(&(error.column as usize)),
                    "column {} of {line:?}: {error}",
                    error.column
                );
                assert!(error.line >= last, "in the order of the lines");
                last = error.line;
                assert!(error.message.ends_with(['.', '?']), "{error}");
            }
        }
    }
}
