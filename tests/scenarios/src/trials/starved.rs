//! Processors that lack something that VT-x may have: one clear line, and an end or a documented lesser mode.
//!
//! The models are Bochs': what each offers stands in its own list of features, so these trials run there only.

use telemetry::Event;

use crate::{Evidence, Machine, Outcome, Scenario, Vm};

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    let refused = |name: &str, about: &str, model: &str, words: &'static [&'static str]| {
        Scenario::full(name, about, move |e| hosts_nothing(e, words))
            .in_bochs_only()
            .quick_in_bochs()
            .on(Machine::row(2, 1, 256).with_bochs_cpu(model))
            .vm(Vm::micro("alpha", "selftest", ""))
    };
    vec![
        refused(
            "starved-no-vmx",
            "a processor without VT-x hosts nothing, says so and switches off",
            "p4_prescott_celeron_336",
            &["no VT-x", "CPUID 1 ECX bit 5"],
        ),
        refused(
            "starved-no-ept",
            "the same with VT-x but without extended page tables",
            "core2_penryn_t9600",
            &["no extended page tables", "IA32_VMX_PROCBASED_CTLS2"],
        ),
        refused(
            "starved-no-unrestricted-guest",
            "the same where guests must use paging from the beginning",
            "corei5_lynnfield_750",
            &["without paging", "unrestricted guest"],
        ),
        Scenario::full(
            "starved-no-accessed-bits",
            "without accessed bits in its tables a processor runs guests, and nothing moves for their footprint",
            footprint_is_absent,
        )
        .in_bochs_only()
        .on(Machine::row(2, 1, 256).with_bochs_cpu("corei7_sandy_bridge_2600k"))
        .vm(small().set("memory_nodes", "[1]").set("start_node", "0")),
    ]
}

fn small() -> Vm {
    Vm::linux("alpha")
        .set("cpus", "1")
        .set("memory", "\"96M\"")
        .workload("--mib 8 --seconds 3")
}

/// One line says why, the VM counts as failed, and the machine switches itself off.
fn hosts_nothing(e: &Evidence, words: &[&str]) -> Result<(), String> {
    let lines: Vec<&str> = e
        .console
        .iter()
        .map(|l| l.what.as_str())
        .filter(|l| l.contains("no guests can be hosted"))
        .collect();
    let [line] = lines[..] else {
        return Err(format!(
            "one line should say why nothing is hosted: {lines:?}"
        ));
    };
    if let Some(word) = words.iter().find(|word| !line.contains(**word)) {
        return Err(format!("the line lacks {word:?}: {line}"));
    }
    if e.guest_lines("alpha").next().is_some() {
        return Err("a guest ran all the same".into());
    }
    match &e.outcome {
        Outcome::GuestFailed(why) if why.contains("alpha") => Ok(()),
        other => Err(format!("it ended as: {other}")),
    }
}

fn footprint_is_absent(e: &Evidence) -> Result<(), String> {
    e.every_guest_is_well(1)?;
    if e.line("no accessed bits here").is_none() {
        return Err("nobody was told that footprints stay empty".into());
    }
    let mut events = e.events();
    match events.find(|event| matches!(event, Event::Plan { .. } | Event::PagesMoved { .. })) {
        Some(event) => Err(format!("nothing is known of this guest, and yet: {event}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Emulator;

    fn evidence(lines: &[&str]) -> Evidence {
        Evidence {
            emulator: Emulator::Bochs,
            outcome: Outcome::GuestFailed("alpha".into()),
            ..Evidence::clean(&["alpha"], lines)
        }
    }

    #[test]
    fn only_one_line_with_the_reason_convinces() {
        let line = "no guests can be hosted: the processor has no VT-x";
        let judge = |lines: &[&str]| hosts_nothing(&evidence(lines), &["no VT-x"]);
        assert_eq!(judge(&[line]), Ok(()));
        assert!(judge(&[]).is_err() && judge(&[line, line]).is_err());
        assert!(judge(&["no guests can be hosted"]).is_err_and(|why| why.contains("lacks")));
        assert!(judge(&[line, "[alpha] hello"]).is_err_and(|why| why.contains("ran")));
    }
}
