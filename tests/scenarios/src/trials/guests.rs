//! Which guests run, what they see, and what becomes of those that cannot be started.

use telemetry::{Event, OffReason, VmEvent};

use crate::{Emulator, Evidence, GuestKernel, Machine, Outcome, Scenario, Vm};

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::quick(
            "linux-6-12",
            "Debian's newer kernel boots with two CPUs, and its log has no line worth showing",
            |e| {
                e.every_guest_is_well(2)?;
                said(e, "alpha", "kernel=6.12")?;
                quiet(e, "alpha")
            },
        )
        .on(Machine::row(1, 2, 512))
        .vm(Vm::linux("alpha").kernel(GuestKernel::Debian612).workload("--mib 16 --seconds 2")),
        Scenario::quick(
            "virtual-nodes",
            "a guest on two nodes with four CPUs sees both, with their CPUs, memory and distances",
            |e| {
                e.every_guest_is_well(4)?;
                quiet(e, "alpha")?;
                said(e, "alpha", "GUEST-NODE 0 cpus=0-1 ")?;
                said(e, "alpha", "GUEST-NODE 1 cpus=2-3 ")?;
                // As far apart as nodes 1 and 3 of the machine are.
                let far = e.machine.distances.get(1).and_then(|row| row.get(3)).ok_or("the machine has no distances")?;
                said(e, "alpha", &format!("distance=10 {far}"))?;
                said(e, "alpha", &format!("distance={far} 10"))
            },
        )
        .vm(Vm::linux("alpha")
            .set("cpus", "4")
            .set("memory", "\"256M\"")
            .set("memory_nodes", "[1, 3]")
            .set("vnuma", "true")
            .workload("--mib 32 --seconds 2")),
        Scenario::quick(
            "refused-vms-leave-others-alone",
            "three VMs that cannot be started are refused with a sentence each; the fourth runs, the exit status is 1",
            |e| {
                refused(e, "giant", &["65536 MiB", "not free on any node"])?;
                refused(e, "headless", &["guests/absent", "not on the boot medium"])?;
                refused(e, "crammed", &["initrd", "does not fit", "more memory"])?;
                if e.guest("well").ok != Some(true) {
                    return Err("the VM that could be started did not do its work".into());
                }
                match &e.outcome {
                    Outcome::GuestFailed(_) if e.outcome.exit_status() == 1 => Ok(()),
                    other => Err(format!("it ended as: {other}")),
                }
            },
        )
        .on(Machine::row(2, 1, 512))
        .vm(Vm::linux("giant").set("memory", "\"64G\""))
        .vm(Vm::linux("headless").kernel(GuestKernel::Absent))
        .vm(Vm::linux("crammed").set("memory", "\"72M\"").kernel_as_initrd())
        .vm(Vm::linux("well").set("cpus", "1").set("memory", "\"128M\"").workload("--mib 8 --seconds 1")),
        Scenario::full(
            "overcommitted",
            "three VMs with two CPUs each share two processors and all come to their end",
            |e| e.every_guest_is_well(2),
        )
        .on(Machine::row(2, 1, 512))
        .vm(Vm::linux("alpha").workload("--mib 32 --seconds 6"))
        .vm(Vm::linux("beta").workload("--mib 32 --seconds 6"))
        .vm(Vm::linux("gamma").workload("--mib 32 --seconds 6")),
        Scenario::full(
            "placed-apart",
            "VMs without wishes start on different nodes, away from one whose place is given",
            placed_apart,
        )
        .host("mode", "\"off\"")
        .vm(Vm::linux("alpha").workload("--mib 8 --seconds 1"))
        .vm(Vm::linux("beta").workload("--mib 8 --seconds 1"))
        .vm(Vm::linux("gamma").set("start_node", "0").workload("--mib 8 --seconds 1")),
    ]
}

fn said(e: &Evidence, vm: &str, text: &str) -> Result<(), String> {
    match e.guest_lines(vm).any(|line| line.what.contains(text)) {
        true => Ok(()),
        false => Err(format!("{vm} never said {text:?}")),
    }
}

/// With `quiet` on its command line Linux shows errors and worse only; there are to be none before it
/// says that it switches off.
fn quiet(e: &Evidence, vm: &str) -> Result<(), String> {
    let mut life = e
        .guest_lines(vm)
        .take_while(|line| !line.what.starts_with("GUEST-RESULT"));
    let worth = |line: &str| is_kernel_line(line) && !is_about_processor(e.emulator, line);
    match life.find(|line| worth(line.what)) {
        None => Ok(()),
        Some(line) => Err(format!(
            "{vm}'s kernel found this worth showing: {}",
            line.what
        )),
    }
}

/// What Linux says of the processor that Bochs emulates: one that leaks, without the microcode (IBRS) that would help.
fn is_about_processor(emulator: Emulator, line: &str) -> bool {
    emulator == Emulator::Bochs && line.contains("RETBleed: WARNING: Spectre v2 mitigation leaves")
}

/// `[    1.234567] text`.
fn is_kernel_line(line: &str) -> bool {
    let stamp = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    stamp.is_some_and(|(stamp, _)| stamp.trim().parse::<f64>().is_ok())
}

fn refused(e: &Evidence, vm: &str, words: &[&str]) -> Result<(), String> {
    let mut started = false;
    let mut why = None;
    for event in e.events() {
        match event {
            Event::Vm {
                name,
                what: VmEvent::Started,
                ..
            } if name == vm => started = true,
            Event::Vm {
                name,
                what: VmEvent::Off(OffReason::Fault { what }),
                ..
            } if name == vm => why = Some(what),
            _ => {}
        }
    }
    let why = why.ok_or_else(|| format!("{vm} was not refused"))?;
    if started {
        return Err(format!("{vm} was refused and started"));
    }
    match words.iter().find(|word| !why.contains(**word)) {
        None if why.contains("not started") => Ok(()),
        None => Err(format!(
            "{vm} was refused without saying that it was not started: {why}"
        )),
        Some(word) => Err(format!("the sentence for {vm} lacks {word:?}: {why}")),
    }
}

fn placed_apart(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(2)?;
    let mut homes: Vec<_> = e
        .events()
        .filter_map(|event| match event {
            Event::Vm {
                what: VmEvent::Created { home, .. },
                ..
            } => Some(*home),
            _ => None,
        })
        .collect();
    let placed = homes.len();
    homes.sort_unstable();
    homes.dedup();
    match (placed, homes.len()) {
        (3, 3) => Ok(()),
        _ => Err(format!("{placed} VMs were placed on {homes:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lines_are_known_by_their_stamp() {
        assert!(is_kernel_line(
            "[    1.234567] PCI: Fatal: No config space access function found"
        ));
        assert!(!is_kernel_line("[alpha] hello"));
        assert!(!is_kernel_line("WORKLOAD t=1 ops=[3]"));
        assert!(!is_kernel_line("[*] 1.0"));
    }

    #[test]
    fn a_leaking_processor_is_bochs_alone() {
        let line = "[    1.291848] RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks";
        assert!(is_about_processor(Emulator::Bochs, line));
        assert!(!is_about_processor(Emulator::Qemu, line));
        let other = "[    1.2] clocksource: Marking clocksource 'tsc' as unstable";
        assert!(!is_about_processor(Emulator::Bochs, other));
    }
}
