//! What VT-x thinks of a wrong VMCS, what Perigee's checker thinks of it, and what becomes of a VM that gets one.
//!
//! A kernel that was built for tests makes valid VMCSs with one random mistake each, asks the checker, enters, and prints
//! both answers. They must agree: accept or reject. Bochs 2.7 is not the manual, though; where it is known to leave
//! out a rule of the SDM, or to have one of its own, [`KNOWN`] says so, and such a trial counts for nothing.

use std::time::Duration;

use crate::{Evidence, Machine, Outcome, Scenario, Vm};

/// Trials on which checker and processor must agree.
const LEAST: usize = 200;

/// Where Bochs 2.7 (`VMenterLoadCheckGuestState`) departs from the SDM: a part of the trial's line, and what it does.
const KNOWN: [(&str, &str); 11] = [
    (
        "64-bit, guest SS ",
        "it checks nothing of SS in 64-bit mode if the selector's RPL is 0 (27.3.1.2 does)",
    ),
    (
        "guest SS access rights = ",
        "it compares the DPL of CS with the RPL of CS, not with the DPL of SS",
    ),
    (
        "guest CS access rights = ",
        "it compares the DPL of CS with the RPL of CS, not with the DPL of SS",
    ),
    (
        "guest CS selector = ",
        "it compares the DPL of CS with the RPL of CS, about which 27.3.1.2 says nothing",
    ),
    (
        "guest RIP = ",
        "it does not compare the bits above the linear-address width (27.3.1.4)",
    ),
    (
        "guest IA32_DEBUGCTL = ",
        "it has no reserved bits there (27.3.1.1)",
    ),
    (
        "guest pending debug exceptions = ",
        "it looks at the low half only, and not whether the guest steps (27.3.1.5)",
    ),
    (
        "guest interruptibility state = ",
        "it does not look at pending debug exceptions, nor at virtual NMIs (27.3.1.5)",
    ),
    (
        "guest activity state = ",
        "it does not look at which events reach a halted processor (27.3.1.5)",
    ),
    (
        "real-mode, guest RFLAGS = ",
        "it lets virtual-8086 mode begin without protected mode (27.3.1.4)",
    ),
    (
        "VM-entry interruption information = ",
        "it takes type 7 without having the monitor trap flag (27.2.1.3)",
    ),
];

/// The trials of this file.
pub fn scenarios(seed: u64) -> Vec<Scenario> {
    let seed = seed & i64::MAX as u64;
    let small = |name| {
        Vm::linux(name)
            .set("cpus", "1")
            .set("memory", "\"96M\"")
            .workload("--mib 8 --seconds 2")
    };
    vec![
        Scenario::full(
            "vmcs-mistakes",
            "the checker and the processor agree about 200 VMCSs with a random mistake each",
            agree,
        )
        .in_bochs_only()
        .on(Machine::row(1, 1, 256))
        .sabotaged("mutate-vmcs")
        .host("seed", &seed.to_string())
        .seeded(seed),
        Scenario::full(
            "vmcs-rejected-vm-stops",
            "a VM whose VMCS becomes invalid stops with the field's name, and the other one goes on",
            stops_alone,
        )
        .in_bochs_only()
        .on(Machine::row(2, 1, 256))
        .sabotaged("break-vmcs")
        .within(Duration::from_secs(600))
        .vm(small("alpha"))
        .vm(small("beta")),
    ]
}

/// What one line says: the trial, and whether checker and processor accept.
fn trial(line: &str) -> Option<(&str, bool, bool)> {
    let (_, rest) = line.split_once("vmcs trial ")?;
    let (_, rest) = rest.split_once(": ")?;
    let (what, rest) = rest.split_once(": the checker ")?;
    let (checker, processor) = rest.split_once("; the processor ")?;
    Some((
        what,
        checker.starts_with("accepts"),
        processor.starts_with("accepts"),
    ))
}

fn agree(e: &Evidence) -> Result<(), String> {
    if e.outcome != Outcome::Clean {
        return Err(format!("the host did not go on: {}", e.outcome));
    }
    let trials = e.console.iter().filter_map(|l| trial(&l.what));
    let (same, other): (Vec<_>, Vec<_>) = trials.partition(|(_, a, b)| a == b);
    let known = |what: &str| KNOWN.iter().any(|(part, _)| what.contains(part));
    if let Some((what, checker, _)) = other.iter().find(|(what, ..)| !known(what)) {
        let word = |accepts| if accepts { "accepts" } else { "rejects" };
        return Err(format!(
            "{what}: the checker {} it, the processor {} it",
            word(*checker),
            word(!*checker)
        ));
    }
    let accepted = same.iter().filter(|(_, a, _)| *a).count();
    let rejected = same.len() - accepted;
    if same.len() < LEAST || accepted < LEAST / 10 || rejected < LEAST / 10 {
        return Err(format!(
            "{LEAST} agreements are wanted, many of either kind; there are {accepted} on what is right and {rejected} on what is wrong"
        ));
    }
    Ok(())
}

fn stops_alone(e: &Evidence) -> Result<(), String> {
    let words = [
        "alpha",
        "guest RFLAGS",
        "a reserved bit is 1",
        "SDM 3C 27.3.1.4",
    ];
    let named = |line: &str| words.iter().all(|word| line.contains(word));
    if !e.console.iter().any(|line| named(&line.what)) {
        return Err(format!("no line says why alpha stopped, with {words:?}"));
    }
    if e.guest("beta").ok != Some(true) {
        return Err("beta did not go on".into());
    }
    match &e.outcome {
        Outcome::GuestFailed(why) if why.contains("alpha") && !why.contains("beta") => Ok(()),
        other => Err(format!("it ended as: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Emulator, Stamped};

    fn evidence(lines: Vec<String>) -> Evidence {
        let stamped = |what| Stamped {
            at: Duration::ZERO,
            what,
        };
        Evidence {
            emulator: Emulator::Bochs,
            machine: Machine::row(1, 1, 256),
            vms: Vec::new(),
            outcome: Outcome::Clean,
            console: lines.into_iter().map(stamped).collect(),
            records: Vec::new(),
            torn_records: 0,
            plugin: None,
            seed: Some(1),
        }
    }

    fn line(what: &str, checker: &str, processor: &str) -> String {
        format!(
            "[   0.9] vmcs trial 7: {what}: the checker {checker} (x is 1, but y: z); the processor {processor} (error 7)"
        )
    }

    #[test]
    fn two_hundred_agreements_of_both_kinds_convince() {
        let mut lines = vec![line("PAE, guest CR3 = 0x1", "accepts", "accepts"); 50];
        lines.extend(vec![
            line("PAE, guest CR3 = 0x2", "rejects", "rejects");
            150
        ]);
        assert_eq!(agree(&evidence(lines.clone())), Ok(()));
        assert!(agree(&evidence(lines[1..].to_vec())).is_err(), "too few");
        let known = line("PAE, guest IA32_DEBUGCTL = 0x4", "rejects", "accepts");
        assert_eq!(agree(&evidence([&lines[..], &[known]].concat())), Ok(()));
        let wrong = line("PAE, guest CR3 = 0x3", "accepts", "rejects");
        let why = agree(&evidence([&lines[..], &[wrong]].concat())).expect_err("a difference");
        assert!(why.contains("guest CR3 = 0x3: the checker accepts it, the processor rejects it"));
    }
}
