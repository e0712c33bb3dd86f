//! The self-test guest judges the machine that Perigee gives it, alone and in a crowd.

use std::time::Duration;

use crate::{Evidence, Machine, Outcome, Scenario, Vm, selftest};

/// Self-tests that the processors which the laboratories emulate cannot be asked for: they leave a check out, or
/// the feature.
const MAY_SKIP: [&str; 5] = [
    "user-alignment",
    "user-wbinvd",
    "user-umip",
    "page-sm",
    "state-avx",
];

/// The trials of this file.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::quick(
            "selftests",
            "every self-test passes in one VM with two vCPUs",
            |e| believed(e, &["tests"]),
        )
        .on(Machine::row(2, 1, 256))
        .vm(selftests("tests", 2, ""))
        .within(Duration::from_secs(400)),
        Scenario::full(
            "selftests-crowded",
            "every self-test passes in three VMs with two to four vCPUs each that share two CPUs",
            |e| believed(e, &["two", "three", "four"]),
        )
        .on(Machine::row(2, 1, 256))
        .vm(selftests("two", 2, ""))
        .vm(selftests("three", 3, ""))
        .vm(selftests("four", 4, ""))
        .within(Duration::from_secs(1500)),
        Scenario::full(
            "selftests-under-moves",
            "self-tests pass while every page of their VM, gates, stacks and tables among them, moves to and fro",
            |e| {
                believed(e, &["tests"])?;
                let moves = e.console.iter().filter(|l| l.what.contains("moved from node")).count();
                if moves < 4 {
                    return Err(format!("the memory moved {moves} times only"));
                }
                Ok(())
            },
        )
        .on(Machine::row(2, 1, 256))
        // A TSC that one processor has written is behind the others in the next round.
        .vm(selftests("tests", 2, "rounds=6 only=fault,page,code,shadow,nmi,mode,user,state,clock not=tsc-written"))
        .type_after("ROUND 1", "migrate tests 1\r")
        .type_after("ROUND 2", "migrate tests 0\r")
        .type_after("ROUND 3", "migrate tests 1\r")
        .type_after("ROUND 4", "migrate tests 0\r")
        .within(Duration::from_secs(1500)),
        Scenario::full(
            "selftests-absent-gates",
            "self-tests pass while gate, descriptor and stack of every event are absent in turn when it is delivered",
            |e| {
                believed(e, &["tests"])?;
                ["Gate", "Descriptor", "Stack", "Return"].iter().try_for_each(|what| {
                    let line = format!("sabotage: missed {what} 64 times");
                    match e.line(&line) {
                        Some(_) => Ok(()),
                        None => Err(format!("{what} was hardly ever missed, so nothing was shown")),
                    }
                })
            },
        )
        .on(Machine::row(1, 1, 256))
        .vm(selftests("tests", 1, "only=delivery,nmi,fault,shadow,user,debug not=wakes-hlt,ipi-nmi"))
        .sabotaged("absent-gates")
        .quick_in_bochs()
        .within(Duration::from_secs(900))
        .within_in_bochs(Duration::from_secs(300)),
        broken(
            "lost-eoi",
            "ioapic-level",
            "an I/O APIC that never hears of the end of an interrupt",
        ),
        broken(
            "nested-nmi",
            "nmi-blocking",
            "a hypervisor that delivers an NMI into the handler of another",
        ),
        broken(
            "stale-fpu",
            "state-fpu-sse",
            "a hypervisor that loses floating-point registers",
        ),
    ]
}

/// One feature is broken on purpose, and the self-test of it, and no other reason, says so.
fn broken(sabotage: &str, test: &'static str, about: &str) -> Scenario {
    Scenario::full(
        &format!("selftests-notice-{sabotage}"),
        &format!("the self-test {test} notices {about}"),
        move |e| {
            let lines: Vec<_> = e.guest_lines("tests").map(|line| line.what).collect();
            match selftest::judge(lines.iter().copied(), &MAY_SKIP) {
                Err(why) if why.starts_with(&format!("{test}: ")) => Ok(()),
                other => Err(format!("{test} did not fail: {other:?}")),
            }
        },
    )
    .on(Machine::row(1, 1, 512))
    .vm(selftests("tests", 2, &format!("only={test}")))
    .sabotaged(sabotage)
    .within(Duration::from_secs(400))
}

/// A VM that runs the self-tests.
fn selftests(name: &str, cpus: u32, words: &str) -> Vm {
    Vm::micro(name, "selftest", words).set("cpus", &cpus.to_string())
}

/// All tests of these VMs passed, and the run ended well.
fn believed(e: &Evidence, vms: &[&str]) -> Result<(), String> {
    for vm in vms {
        let lines: Vec<_> = e.guest_lines(vm).map(|line| line.what).collect();
        selftest::judge(lines.iter().copied(), &MAY_SKIP).map_err(|why| format!("{vm}: {why}"))?;
    }
    match &e.outcome {
        Outcome::Clean => Ok(()),
        other => Err(format!("the run ended otherwise than cleanly: {other}")),
    }
}
