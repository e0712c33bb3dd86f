//! What page moves cost: pauses, pages a second, and how often the guest wrote meanwhile.
//!
//! A guest of four CPUs writes all its pages all the time while they go from node to node, first by large leaves, then
//! by small ones. The hypervisor measures itself, with its own clock; on an emulator this compares one build with
//! another, and says nothing about hardware.

use anyhow::{Context, Result};
use scenarios::{Action, Emulator, Evidence, Machine, Step, Vm};

use super::boot::Measured;

/// Nodes that all pages are brought to, by large leaves and by small ones.
const STOPS: (u32, u32) = (24, 6);
/// The guest's memory in MiB.
const MEMORY: u32 = 32;

/// Boots, moves, and gives the hypervisor's own table.
///
/// # Errors
/// What cannot be built or started; a run that shows nothing.
pub fn table(emulator: Emulator) -> Result<String> {
    let vm = Vm::micro("stamps", "stamps", "turns=1");
    let type_after = |after: &str, keys: String| Step {
        after: after.into(),
        what: Action::Type(keys),
    };
    let around = |stops: u32| format!("migrate stamps around {stops}\r");
    let over = "have been around";
    let small = format!("moves\rsplit stamps 0 {MEMORY}\r{}", around(STOPS.1));
    let steps = [
        type_after("[stamps] STAMPS ", around(STOPS.0)),
        type_after(over, small),
        // Input goes to the guest, a key for it, and input goes to Perigee again.
        type_after(over, "moves\r\u{1}1q\u{1}0".into()),
    ];
    let measured = Measured {
        emulator,
        machine: &Machine::row(3, 2, 256),
        vm: vm
            .set("cpus", "4")
            .set("memory", &format!("\"{MEMORY}M\""))
            .set("mode", "\"off\""),
        steps: &steps,
        observer: None,
    };
    shown(&measured.run()?).context("the hypervisor did not show what moves cost")
}

/// The last table that was shown, with its heading.
fn shown(evidence: &Evidence) -> Option<String> {
    let lines: Vec<&str> = evidence.console.iter().map(|l| l.what.as_str()).collect();
    let heading = lines
        .iter()
        .rposition(|line| line.trim_start().starts_with("leaf "))?;
    let table = lines.get(heading..heading + 3)?;
    // "4 KiB", then how many moved.
    let moved = |line: &&str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    let all = table.iter().skip(1).all(|line| moved(line) > Some(0));
    all.then(|| table.join("\n"))
}
