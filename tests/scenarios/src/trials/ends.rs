//! Every way in which a run can end is told apart, with the real machine.

use std::time::Duration;

use crate::{Evidence, Machine, Outcome, Scenario, Vm};

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::quick("exit-status-guest-failure", "a guest that panics and resets itself is a guest failure", |e| {
            guest_says(e, "alpha", "Kernel panic")?;
            ended(e, |outcome| matches!(outcome, Outcome::GuestFailed(why) if why.contains("alpha")))
        })
        .on(Machine::row(1, 2, 512))
        .vm(Vm::linux("alpha").without_initrd()),
        Scenario::quick("exit-status-timeout", "a guest that stays at its shell lets the time run out", |e| {
            guest_says(e, "alpha", "GUEST-SHELL")?;
            ended(e, |outcome| matches!(outcome, Outcome::TimedOut(_)))
        })
        .on(Machine::row(1, 2, 512))
        .vm(Vm::linux("alpha").append("console=ttyS0 quiet perigee.stay"))
        .within(Duration::from_secs(60))
        .within_in_bochs(Duration::from_secs(180)),
        Scenario::quick("exit-status-panic", "an NMI from a diagnostic button stops the hypervisor with a report", |e| {
            ended(e, |outcome| matches!(outcome, Outcome::HypervisorPanic(why) if why.contains("non-maskable interrupt")))
        })
        .on(Machine::row(2, 1, 512))
        .vm(Vm::linux("alpha"))
        .nmi_after("GUEST-UP"),
        Scenario::full("machine-check", "an uncorrected machine check stops the hypervisor with a report of the bank", |e| {
            ended(e, |outcome| {
                let words = ["machine check", "bank 4", "uncorrected", "context corrupt", "address 0x12345000"];
                matches!(outcome, Outcome::HypervisorPanic(why) if words.iter().all(|word| why.contains(word)))
            })
        })
        .on(Machine::row(2, 1, 512))
        .vm(Vm::linux("alpha"))
        .machine_check_after("GUEST-UP"),
    ]
}

fn guest_says(evidence: &Evidence, vm: &str, text: &str) -> Result<(), String> {
    match evidence
        .guest_lines(vm)
        .any(|line| line.what.contains(text))
    {
        true => Ok(()),
        false => Err(format!("{vm} never said {text:?}")),
    }
}

fn ended(evidence: &Evidence, so: impl Fn(&Outcome) -> bool) -> Result<(), String> {
    if so(&evidence.outcome) {
        Ok(())
    } else {
        Err(format!("it ended as: {}", evidence.outcome))
    }
}
