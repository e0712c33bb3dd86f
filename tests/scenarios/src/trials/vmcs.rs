//! What VT-x thinks of a wrong VMCS, what Perigee's checker thinks of it, and what becomes of a VM that gets one.
//!
//! A kernel that was built for tests makes valid VMCSs with one random mistake each, asks the checker, enters, and prints
//! both answers. They must agree: accept or reject. Bochs 2.7 is not the manual, though; where it is known to leave
//! out a rule of the SDM, or to have one of its own, [`KNOWN`] names that rule, and such a trial counts for nothing.

use std::time::Duration;

use crate::{Evidence, Machine, Outcome, Scenario, Vm};

/// Trials on which checker and processor must agree.
const LEAST: usize = 200;

/// A rule of the manual that Bochs 2.7 leaves out, or one of its own (`VMenterLoadCheckGuestState`).
struct Known {
    /// Part of the trial's form and mistake.
    trial: &'static str,
    /// Part of the checker's sentence; none where the checker accepts and Bochs rejects.
    rule: Option<&'static str>,
}

/// What Bochs leaves out.
const fn left_out(trial: &'static str, rule: &'static str) -> Known {
    Known {
        trial,
        rule: Some(rule),
    }
}

/// Where Bochs 2.7 departs from the SDM; each names one rule, so that every other difference about the same field counts.
const KNOWN: [Known; 6] = [
    // 27.3.1.1. Bochs looks for PAE there and not for paging.
    left_out("64-bit, guest CR0 = ", "IA-32e mode needs paging (bit 31)"),
    // 27.3.1.2 compares the DPL of CS with the DPL of SS. Bochs compares it with the RPL of CS, ...
    left_out(
        "guest SS access rights = ",
        "DPL does not go with the type and the DPL of SS",
    ),
    // ... about which 27.3.1.2 says nothing: under an unrestricted guest, CS may have any RPL.
    Known {
        trial: "guest CS selector = ",
        rule: None,
    },
    // 27.3.1.4. Bochs looks at the upper half of RIP outside 64-bit mode only.
    left_out(
        "64-bit, guest RIP = ",
        "bits above the linear-address width must be equal",
    ),
    // 27.3.1.1. Bochs reads the field and checks nothing.
    left_out("guest IA32_DEBUGCTL = ", "a reserved bit is 1"),
    // 27.3.1.5. Bochs reads the field into 32 bits before it checks them.
    left_out("guest pending debug exceptions = ", "a reserved bit is 1"),
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
        .quick_in_bochs()
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

/// What one line says.
struct Trial<'a> {
    /// The valid form and the mistake in it.
    what: &'a str,
    /// The checker's words.
    checker: &'a str,
    /// The processor's words.
    processor: &'a str,
}

impl<'a> Trial<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let (_, rest) = line.split_once("vmcs trial ")?;
        let (_, rest) = rest.split_once(": ")?;
        let (what, rest) = rest.split_once(": the checker ")?;
        let (checker, processor) = rest.split_once("; the processor ")?;
        Some(Self {
            what,
            checker,
            processor,
        })
    }
    fn accepted(&self) -> bool {
        self.checker.starts_with("accepts")
    }
    fn agrees(&self) -> bool {
        self.accepted() == self.processor.starts_with("accepts")
    }
    /// The difference is one that is known.
    fn is_known(&self) -> bool {
        KNOWN.iter().any(|known| {
            self.what.contains(known.trial)
                && match known.rule {
                    Some(rule) => !self.accepted() && self.checker.contains(rule),
                    None => self.accepted(),
                }
        })
    }
    /// A rejection says which field broke which rule.
    fn names_a_culprit(&self) -> bool {
        self.accepted() || self.checker.contains(", but ") && self.checker.contains("(SDM 3C 27.")
    }
}

fn agree(e: &Evidence) -> Result<(), String> {
    if e.outcome != Outcome::Clean {
        return Err(format!("the host did not go on: {}", e.outcome));
    }
    let trials = e.console.iter().filter_map(|l| Trial::read(&l.what));
    let (same, other): (Vec<_>, Vec<_>) = trials.partition(Trial::agrees);
    if let Some(t) = other.iter().find(|t| !t.is_known()) {
        return Err(format!(
            "{}: the checker {}, the processor {}",
            t.what, t.checker, t.processor
        ));
    }
    if let Some(t) = same.iter().find(|t| !t.names_a_culprit()) {
        return Err(format!(
            "{}: the checker {} and says not why",
            t.what, t.checker
        ));
    }
    let accepted = same.iter().filter(|t| t.accepted()).count();
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
        format!("[   0.9] vmcs trial 7: {what}: the checker {checker}; the processor {processor}")
    }
    /// The checker's words about a rule.
    fn rejects(rule: &str) -> String {
        format!("rejects (guest thing is 0x1, but {rule} (SDM 3C 27.3.1.1))")
    }
    const REFUSED: &str = "rejects (error 7)";
    const ENTERED: &str = "accepts (exit 48)";

    #[test]
    fn two_hundred_agreements_of_both_kinds_convince() {
        let mut lines = vec![line("PAE, guest CR3 = 0x1", "accepts", ENTERED); 50];
        lines.extend(vec![
            line("PAE, guest CR3 = 0x2", &rejects("no"), REFUSED);
            150
        ]);
        let judged = |more: String| agree(&evidence([&lines[..], &[more]].concat()));
        assert_eq!(agree(&evidence(lines.clone())), Ok(()));
        assert!(agree(&evidence(lines[1..].to_vec())).is_err(), "too few");
        let wrong = line("PAE, guest CR3 = 0x3", "accepts", REFUSED);
        let why = judged(wrong).expect_err("a difference");
        assert!(why.contains("guest CR3 = 0x3: the checker accepts, the processor rejects"));
        let mute = line("PAE, guest CR3 = 0x3", "rejects", REFUSED);
        assert!(judged(mute).is_err_and(|why| why.contains("not why")));
    }

    #[test]
    fn what_is_known_excuses_one_rule_in_one_direction() {
        let lines: Vec<String> = (0..400)
            .map(|n| match n % 2 {
                0 => line("PAE, guest CR3 = 0x1", "accepts", ENTERED),
                _ => line("PAE, guest CR3 = 0x2", &rejects("no"), REFUSED),
            })
            .collect();
        let judged = |what, checker: &str, processor| {
            let more = line(what, checker, processor);
            agree(&evidence([&lines[..], &[more]].concat()))
        };
        let debug = "PAE, guest IA32_DEBUGCTL = 0x4";
        let reserved = rejects("a reserved bit is 1");
        assert_eq!(judged(debug, &reserved, ENTERED), Ok(()));
        assert!(judged(debug, &rejects("another rule"), ENTERED).is_err());
        assert!(judged(debug, "accepts", REFUSED).is_err());
        let code = "64-bit, guest CS selector = 0x13";
        assert_eq!(judged(code, "accepts", REFUSED), Ok(()));
        assert!(judged(code, &rejects("no"), ENTERED).is_err());
    }
}
