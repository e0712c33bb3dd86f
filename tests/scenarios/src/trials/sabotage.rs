//! Kernels that are broken on purpose: what is meant to notice, notices; and an ordinary kernel refuses.

use telemetry::Event;

use crate::{Evidence, Machine, Outcome, Scenario, Vm};

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::quick(
            "watchdog-finds-a-hung-cpu",
            "a CPU that hangs with interrupts off is reported with the place where it hangs; the others go on",
            hung_cpu_is_found,
        )
        .on(Machine::row(2, 1, 256))
        .sabotaged("hang-cpu")
        .host("poweroff", "false")
        .type_after("watchdog: cpu1 is at", "cpu\rshutdown\r"),
        Scenario::quick(
            "sabotage-is-refused",
            "a kernel that was not built for tests refuses to be broken, and starts nothing",
            |e| {
                said(e, "`sabotage` is obeyed only by kernels that were built for tests")?;
                match e.line("alpha") {
                    Some(line) => Err(format!("a VM was started nevertheless: {}", line.what)),
                    None => Ok(()),
                }
            },
        )
        .on(Machine::row(1, 1, 256))
        .host("sabotage", "[\"foreign-frame\"]")
        .vm(Vm::linux("alpha")),
    ]
}

fn said(e: &Evidence, text: &str) -> Result<(), String> {
    match e.line(text) {
        Some(_) => Ok(()),
        None => Err(format!("the kernel never said {text:?}")),
    }
}

fn hung_cpu_is_found(e: &Evidence) -> Result<(), String> {
    said(e, "THIS KERNEL IS SABOTAGED: hang-cpu")?;
    let recorded = e
        .events()
        .any(|event| matches!(event, Event::Watchdog { cpu, .. } if cpu.0 == 1));
    if !recorded {
        return Err("the watchdog recorded nothing of cpu1".into());
    }
    let at = e
        .line("watchdog: cpu1 is at")
        .ok_or("the hung CPU's place was not reported")?;
    for word in ["hang_if_last", "interrupts off"] {
        if !at.what.contains(word) {
            return Err(format!("the report lacks {word:?}: {}", at.what));
        }
    }
    said(e, "cpu_main")?;
    match &e.outcome {
        Outcome::Clean => Ok(()),
        other => Err(format!(
            "the other CPU did not end the run cleanly: {other}"
        )),
    }
}
