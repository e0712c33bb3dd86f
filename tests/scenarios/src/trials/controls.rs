//! What VT-x can be told to do besides running guests, and that it is told so.

use std::time::Duration;

use crate::{Evidence, Machine, Scenario, Vm};

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let busy = |name: &str| Vm::probe(name, "count seconds=4").set("memory", "\"34M\"");
    vec![
        Scenario::full(
            "preemption-timer",
            "two guests that never exit share a CPU by the preemption timer, without an interrupt",
            shared_without_interrupts,
        )
        .in_bochs_only()
        .quick_in_bochs()
        .on(Machine::row(1, 1, 256))
        .vm(busy("one"))
        .vm(busy("two"))
        .type_after("COUNT ms=3", "cpu\rvm one\rvm two\r")
        .within_in_bochs(Duration::from_secs(400)),
        Scenario::full(
            "small-pages-for-code",
            "a processor that does not bear changes of an executed page's size maps a guest's code by small pages only",
            code_is_small,
        )
        .in_bochs_only()
        .quick_in_bochs()
        .on(Machine::row(1, 1, 256))
        .vm(Vm::probe("alpha", "count seconds=4"))
        .type_after("COUNT ms=2", "vm alpha\rwhere alpha 0x200000\rwhere alpha 0x4000000\r")
        .within_in_bochs(Duration::from_secs(400)),
    ]
}

/// Where code is fetched leaves are small, elsewhere they are large.
fn code_is_small(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    if e.line("guests execute by pages of 4 KiB").is_none() {
        return Err("nobody was told that code is mapped by small pages".into());
    }
    if e.line("pages of 2 MiB became small ones to be executed")
        .is_none()
    {
        return Err("no large page was split by a fetch".into());
    }
    for (at, leaf) in [
        ("0x200000", "leaf of 4 KiB"),
        ("0x4000000", "leaf of 2048 KiB"),
    ] {
        let line = e
            .line(&format!("{at} is on node"))
            .ok_or_else(|| format!("the operator was not told of {at}"))?;
        if !line.what.contains(leaf) {
            return Err(format!("{at} should be in a {leaf}: {}", line.what));
        }
    }
    Ok(())
}

/// Times that a guest's time was ended, at least, until the operator asks: two seconds shared by two, in slices of some
/// milliseconds, with looks at what the guest does in between.
const ENDED: u64 = 200;

fn shared_without_interrupts(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    if e.line("the preemption timer ends guests' time").is_none() {
        return Err("the kernel does not say that it uses the preemption timer".into());
    }
    let interrupts = number(e, "cpu0 ", -1)?;
    for vm in ["one", "two"] {
        let ended = number(e, &format!("{vm}.0 "), -3)?;
        if ended < ENDED {
            return Err(format!(
                "the preemption timer stopped {vm} {ended} times, less than {ENDED}"
            ));
        }
        if interrupts * 10 > ended {
            return Err(format!(
                "the local APIC's timer interrupted {interrupts} times beside {ended} stops of {vm}"
            ));
        }
    }
    let [one, two] = ["one", "two"].map(|vm| last_count(e, vm));
    let (one, two) = (one?, two?);
    if one.abs_diff(two) * 4 > one.max(two) {
        return Err(format!(
            "equal guests progressed by {one} and {two}, which is not an equal share"
        ));
    }
    Ok(())
}

/// How far a guest had counted when it last reported.
fn last_count(e: &Evidence, vm: &str) -> Result<u64, String> {
    e.guest_lines(vm)
        .filter_map(|line| line.what.rsplit_once(" n=")?.1.trim().parse().ok())
        .last()
        .ok_or_else(|| format!("{vm} reported no progress"))
}

/// The number in a column, from the end if it is negative, of the last row of the operator's tables that begins so.
fn number(e: &Evidence, row: &str, column: isize) -> Result<u64, String> {
    let missing = || format!("the operator was shown no number for {row:?}");
    let line = e
        .console
        .iter()
        .rfind(|l| l.what.trim_start().starts_with(row))
        .ok_or_else(missing)?;
    let words: Vec<&str> = line.what.split_whitespace().collect();
    let index = column.rem_euclid(words.len() as isize) as usize;
    words[index].parse().map_err(|_| missing())
}
