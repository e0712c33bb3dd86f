//! A machine that is booted to be measured.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};
use scenarios::{Emulator, Evidence, Machine, Outcome, Step, Vm};

use super::{TIMEOUT, read_json};
use crate::artifacts::{self, Artifacts};
use crate::plan::{Plan, Wishes};
use crate::provision::Lab;
use crate::run::{Places, Scratch, Subject, emulator_parts, invocation, parts, prepare, tables};
use crate::say;
use crate::session::{self, Manner};

/// What is booted, and who looks.
#[derive(Debug)]
pub struct Measured<'a> {
    /// Where.
    pub emulator: Emulator,
    /// On what.
    pub machine: &'a Machine,
    /// The guest.
    pub vm: Vm,
    /// What an operator types.
    pub steps: &'a [Step],
    /// What the observer outside does with the host's instructions, `count` or `profile`; None without one.
    pub observer: Option<&'a str>,
}

impl Measured<'_> {
    /// Runs it to its clean end.
    ///
    /// # Errors
    /// What cannot be built, installed or started, and any other end.
    pub fn run(self) -> Result<Evidence> {
        let Self {
            emulator, machine, ..
        } = self;
        let plan = Plan::new(&Wishes {
            vms: vec![self.vm],
            ..Wishes::default()
        })?;
        let mut needed = parts(&plan);
        needed.extend(emulator_parts(emulator));
        let lab = Lab::ensure(&needed)?;
        let built = Artifacts::build()?;
        let name = match emulator {
            Emulator::Qemu => "bench",
            Emulator::Bochs => "bench@bochs",
        };
        let folder = artifacts::folder(name)?;
        let scratch = Scratch::new()?;
        let disk = scratch.path().join("medium.img");
        prepare(&plan, &tables(emulator, machine, &[]), &lab, &built, &disk)?;
        let places = Places {
            disk: &disk,
            folder: &folder,
            scratch: scratch.path(),
        };
        let (mut invocation, _) = invocation(emulator, &lab, machine, places)?;
        let mut counted: Option<PathBuf> = None;
        if let Some(what) = self.observer {
            let file = folder.join("plugin.json");
            let _ = fs::remove_file(&file);
            let machine = machine.plugin_args();
            let arguments = format!("out={},{machine},host={what}", file.display());
            invocation = invocation.with_plugin(&artifacts::build_plugin()?, &arguments);
            counted = Some(file);
        }
        let manner = Manner {
            timeout: Some(TIMEOUT),
            attended: false,
            steps: self.steps,
            control: None,
            folder: &folder,
        };
        say::step("the emulator boots and counts, which takes a minute or two");
        let transcript = session::run(&invocation, &manner)?;
        let subject = Subject {
            emulator,
            machine,
            vms: &plan.vms,
            seed: None,
        };
        let mut evidence = subject.evidence(&transcript, None);
        if evidence.outcome != Outcome::Clean {
            let logs = folder.display();
            bail!("the run ended: {}; logs: {logs}", evidence.outcome);
        }
        evidence.plugin = counted.as_deref().map(read_json).transpose()?;
        Ok(evidence)
    }
}
