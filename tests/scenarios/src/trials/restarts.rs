//! VMs that start, end and start again: nothing leaks, nothing is left behind for the next one.
//!
//! The guest looks whether its memory is zero, fills it with a pattern and asks for a reset, so the next life of the
//! VM, in the same frames, sees whatever was not wiped. After each life the kernel says how many frames of each
//! node are free.

use std::time::Duration;

use crate::{Evidence, FileChange, Machine, Outcome, Scenario, Vm, tiny};

const MEMORY_MIB: u32 = 64;
const IMAGE: &str = "guests/remembers";

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        lives(
            5,
            Scenario::quick(
                "restarts",
                "a VM resets itself and is started by the operator: memory arrives zeroed and no frame is lost",
                |e| lived_well(e, 5),
            ),
        ),
        lives(
            100,
            Scenario::full(
                "restarts-100",
                "a hundred lives of a VM, and each node has as many free frames as after the first",
                |e| lived_well(e, 100),
            ),
        )
        .within(Duration::from_secs(1200)),
        lives(
            3,
            Scenario::full(
                "restarts-leak-is-noticed",
                "a kernel that loses one frame of each life fails the trial above",
                |e| fails(lived_well(e, 3), "free frames"),
            ),
        )
        .sabotaged("leak-frame"),
        lives(
            3,
            Scenario::full(
                "restarts-dirt-is-noticed",
                "a kernel that does not wipe memory fails the trial above",
                |e| fails(lived_well(e, 3), "not zero"),
            ),
        )
        .sabotaged("dirty-frames"),
        looked_at_anew(),
    ]
}

/// What a VM did in its last life is not told of the next.
fn looked_at_anew() -> Scenario {
    let scenario = Scenario::quick(
        "restarts-begin-footprints-anew",
        "a VM that starts again has been looked at in this life only",
        |e| forgot(e).and_then(|()| ended_well(e)),
    );
    scenario
        .on(Machine::row(2, 1, 256))
        .host("poweroff", "false")
        .vm(Vm::probe("probe", "touch layout=hot mib=32 seconds=2").set("mode", "\"off\""))
        .type_after("PROBE window closed", "footprint probe\r")
        .type_after("at what a stopped virtual CPU", "vm probe stop\r")
        .type_after("probe: its memory is free", "vm probe start\r")
        .type_after("GUEST-UP", "footprint probe\r")
        .type_after("at what a stopped virtual CPU", "shutdown\r")
}

/// Fewer looks are told right after the second start than there were in the first life.
fn forgot(e: &Evidence) -> Result<(), String> {
    let told: Vec<u64> = e
        .console
        .iter()
        .filter_map(|line| looks(&line.what))
        .collect();
    match told.as_slice() {
        [first, second, ..] if *first >= 100 && *second < *first / 2 => Ok(()),
        other => Err(format!("looks that were told of two lives: {other:?}")),
    }
}

/// How many a line of `footprint` tells.
fn looks(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" times at what a stopped virtual CPU")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// So many lives by the guest's own resets, and one more by the operator.
fn lives(count: usize, scenario: Scenario) -> Scenario {
    let alpha = Vm::of_file("alpha", IMAGE, MEMORY_MIB)
        .set("on_reset", "\"restart\"")
        .set("mode", "\"off\"");
    let scenario = scenario
        .on(Machine::row(2, 1, 256))
        .host("poweroff", "false")
        .file(
            &format!("perigee/{IMAGE}"),
            FileChange::Put(tiny::remembers(MEMORY_MIB)),
        )
        .vm(alpha);
    let scenario = (0..count).fold(scenario, |s, _| {
        s.type_after("alpha: its memory is free", "")
    });
    scenario
        .type_after("[alpha] ", "vm alpha stop\r")
        .type_after("alpha: its memory is free", "vm alpha start\r")
        .type_after("[alpha] ", "shutdown\r")
}

/// The free frames of all nodes, as the kernel said them after each life.
fn free_frames(e: &Evidence) -> Vec<&str> {
    let lines = e.console.iter().filter_map(|line| {
        let (_, rest) = line.what.split_once("alpha: its memory is free again")?;
        Some(rest)
    });
    lines.collect()
}

fn lived_well(e: &Evidence, count: usize) -> Result<(), String> {
    let words: Vec<&str> = e.guest_lines("alpha").map(|line| line.what).collect();
    if words.len() < count + 2 {
        return Err(format!("the guest lived {} times only", words.len()));
    }
    if let Some(life) = words.iter().position(|word| *word != "Z") {
        return Err(format!(
            "memory was not zero in life {}: {:?}",
            life + 1,
            words[life]
        ));
    }
    let free = free_frames(e);
    if free.len() < count + 1 {
        return Err(format!("memory came back {} times only", free.len()));
    }
    // The kernel's heap may have taken a block in the first life; it keeps it.
    let settled = free.get(1).ok_or("there was one life only")?;
    if !settled.contains("node0 ") || !settled.contains("node1 ") {
        return Err(format!("free frames are not told by node: {settled}"));
    }
    if let Some(other) = free.iter().skip(1).find(|line| line != &settled) {
        return Err(format!("free frames changed from {settled} to {other}"));
    }
    if !e
        .console
        .iter()
        .any(|line| line.what == "alpha is starting")
    {
        return Err("the operator's start was not answered".into());
    }
    ended_well(e)
}

fn ended_well(e: &Evidence) -> Result<(), String> {
    match &e.outcome {
        Outcome::Clean => Ok(()),
        other => Err(format!("the run ended otherwise than cleanly: {other}")),
    }
}

/// Whether a trial fails for this reason.
fn fails(result: Result<(), String>, why: &str) -> Result<(), String> {
    match result {
        Ok(()) => Err("the broken kernel passes".into()),
        Err(reason) if reason.contains(why) => Ok(()),
        Err(reason) => Err(format!(
            "it failed for another reason than {why:?}: {reason}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guest says of memory that is zero.
    const ZERO: &str = "[alpha] Z";

    fn evidence(lines: &[&str]) -> Evidence {
        Evidence::clean(&["alpha"], lines)
    }

    #[test]
    fn a_life_that_remembers_the_last_one_is_noticed() {
        let told = |looks: u64| {
            format!("looked {looks} times at what a stopped virtual CPU was about to touch")
        };
        let judged = |first, second| forgot(&evidence(&[&told(first), "else", &told(second)]));
        assert_eq!(judged(900, 12), Ok(()));
        assert!(judged(900, 905).is_err() && judged(3, 0).is_err());
        assert!(forgot(&evidence(&[&told(900)])).is_err());
    }

    #[test]
    fn one_lost_frame_and_one_dirty_byte_are_enough() {
        let life = |frames: &str| format!("[ 1.0] alpha: its memory is free again: {frames}");
        let (first, same, lost) = (
            life("node0 90, node1 50"),
            life("node0 88, node1 50"),
            life("node0 87, node1 50"),
        );
        let run = |third: &str, word: &str| {
            let lines = [
                ZERO,
                &first,
                ZERO,
                &same,
                word,
                third,
                ZERO,
                "alpha is starting",
            ];
            lived_well(&evidence(&lines), 2)
        };
        assert_eq!(run(&same, ZERO), Ok(()));
        assert!(run(&lost, ZERO).is_err_and(|why| why.contains("free frames")));
        assert!(run(&same, "[alpha] D").is_err_and(|why| why.contains("not zero")));
        assert!(fails(run(&same, ZERO), "free frames").is_err());
    }
}
