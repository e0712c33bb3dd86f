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
    ]
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
