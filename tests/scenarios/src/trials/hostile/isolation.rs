//! One VM keeps a secret, another looks everywhere for it.

use std::time::Duration;

use super::{COUNTED, counted, machine, mallory, neighbour, pace, survived, well};
use crate::{Evidence, Scenario, Tier, Vm};

/// When there is nothing more to look for, the operator stops the keeper.
const FOUND: &str = "[mallory] GUEST-RESULT";
const STOP: &str = "vm keeper stop\r";

/// The trials of this file.
pub(super) fn scenarios() -> [Scenario; 3] {
    [isolation(), paced(), isolation_broken()]
}

/// A VM that keeps a secret, and one that looks everywhere for it.
fn isolated(name: &str, about: &str, judge: fn(&Evidence) -> Result<(), String>) -> Scenario {
    Scenario::full(name, about, judge)
        .on(machine())
        .vm(Vm::micro("keeper", "hostile", "attack=keep seconds=400")
            .set("cpu_affinity", "{ cpus = [0] }"))
        .vm(mallory("attack=scan gib=32"))
        .within(Duration::from_secs(900))
}

fn isolation() -> Scenario {
    let mut trial = isolated(
        "isolation",
        "a guest looks at every page of its memory and one of each 2 MiB elsewhere, and finds neither another VM's \
         secret nor the kernel's words nor a page that is not zero",
        |e| {
            finds_nothing(e)?;
            well(e, &[])
        },
    )
    .type_after(FOUND, STOP);
    trial.tier = Tier::Quick;
    trial
}

/// Not in the quick set: on a host with twice as much to do as it has cores the neighbour was seen at 87 %.
fn paced() -> Scenario {
    isolated(
        "isolation-beside-a-neighbour",
        "the same guest costs a neighbour on another CPU at most a tenth of its pace",
        |e| {
            finds_nothing(e)?;
            pace::meanwhile(e, "mallory", "neighbour")?;
            counted(e, "neighbour", 20)?;
            pace::kept(e, "neighbour")?;
            well(e, &[])
        },
    )
    .observed(pace::OBSERVER)
    .vm(neighbour(8))
    .type_after(COUNTED, "vm\r")
    .type_after(FOUND, STOP)
}

fn finds_nothing(e: &Evidence) -> Result<(), String> {
    survived(e, "mallory")?;
    let scanned = |words: &str| e.guest_lines("mallory").any(|l| l.what.contains(words));
    if !scanned("SCAN 8192 pages of memory, 0 of them not zero") || !scanned(", 0 of them answered")
    {
        return Err("mallory did not look everywhere".into());
    }
    if !e
        .guest_lines("keeper")
        .any(|l| l.what.starts_with("KEEPS "))
    {
        return Err("there was no secret".into());
    }
    Ok(())
}

/// The same with a kernel that shows a page of the keeper's to everybody: the guest must find it.
fn isolation_broken() -> Scenario {
    isolated(
        "isolation-broken",
        "the same guest finds the secret when the kernel is made to map one page of it elsewhere",
        |e| match survived(e, "mallory") {
            Err(why) if why.contains("secrets found") && !why.contains(": 0 secrets") => Ok(()),
            other => Err(format!("the mapped page was not found: {other:?}")),
        },
    )
    .sabotaged("foreign-frame")
    .type_after(FOUND, STOP)
}
