//! What a transcript means: how the run ended, and how long each phase took.

use std::time::Duration;

use scenarios::{Evidence, Outcome};
use serde_json::{Value, json};
use telemetry::{Event, OffReason, TestVerdict, VmEvent, test_status};

use crate::control::Off;
use crate::plan::{Judge, PlannedVm};
use crate::session::{Ended, KERNEL_ENTERED, LOADER_GIVES_UP, PANIC_BEGINS, Transcript};

/// How the run ended, from the kernel's records and from what each guest says about itself.
pub fn outcome(transcript: &Transcript, vms: &[PlannedVm], evidence: &Evidence) -> Outcome {
    match transcript.ended {
        Ended::Interrupted => return Outcome::Interrupted,
        Ended::TimedOut(limit) => return Outcome::TimedOut(limit),
        Ended::Panicked => return Outcome::HypervisorPanic(panic_message(evidence)),
        Ended::LoaderGaveUp => {
            let sentence = evidence
                .line(LOADER_GIVES_UP)
                .map_or("", |line| line.what.as_str());
            return Outcome::HypervisorPanic(sentence.trim().into());
        }
        Ended::ByItself {
            status,
            well: false,
        } => {
            return Outcome::EmulatorFailed(format!("{status}: {}", transcript.complaints.trim()));
        }
        Ended::ByItself { well: true, .. } => {}
    }
    let end = evidence.events().find_map(|event| match event {
        Event::RunEnd(outcome) => Some(outcome),
        _ => None,
    });
    match end {
        None => return Outcome::HypervisorPanic(no_word(transcript.off.as_ref(), evidence)),
        Some(telemetry::Outcome::Panicked) => {
            return Outcome::HypervisorPanic(panic_message(evidence));
        }
        Some(telemetry::Outcome::GuestFailed { .. } | telemetry::Outcome::Clean) => {}
    }
    let mut failures: Vec<String> = vms.iter().filter_map(|vm| failure(vm, evidence)).collect();
    // What the kernel calls a failure is one, even if nothing here says why.
    if let Some(telemetry::Outcome::GuestFailed { vms }) = end
        && failures.is_empty()
    {
        failures.clone_from(vms);
    }
    if failures.is_empty() {
        Outcome::Clean
    } else {
        Outcome::GuestFailed(failures.join("; "))
    }
}

fn panic_message(evidence: &Evidence) -> String {
    let message = evidence.events().find_map(|event| match event {
        Event::Panic { message, .. } => Some(message.clone()),
        _ => None,
    });
    let mut report = evidence.console.iter().map(|line| line.what.trim());
    message
        .or_else(|| {
            report.find(|line| *line == PANIC_BEGINS)?;
            report.next().map(str::to_string)
        })
        .unwrap_or_else(|| "without a message".into())
}

fn no_word(off: Option<&Off>, evidence: &Evidence) -> String {
    let how = match off {
        Some(Off::Reset) => "the machine reset itself",
        Some(Off::Switched) => "the machine was switched off",
        Some(Off::Otherwise(reason)) => &format!("the machine ended ({reason})"),
        None => "the machine went off",
    };
    match (evidence.records.last(), evidence.console.last()) {
        (Some(record), _) => format!(
            "{how} without word; the last record was: {}",
            record.what.event
        ),
        (None, Some(line)) => format!(
            "{how} without word; the last line was: {}",
            line.what.trim()
        ),
        (None, None) => format!("{how} and said nothing at all"),
    }
}

/// Why this VM's end is not what it should be.
fn failure(vm: &PlannedVm, evidence: &Evidence) -> Option<String> {
    let name = &vm.name;
    match off_reason(evidence, name) {
        None => return Some(format!("{name} never went off")),
        Some(OffReason::Stopped) => return None,
        // A run may end between two lives of a VM that is to start again.
        Some(OffReason::Reset) if vm.resets => {}
        Some(OffReason::Reset) => return Some(format!("{name} reset itself")),
        Some(OffReason::Fault { what }) => return Some(format!("{name}: {what}")),
        Some(OffReason::TestExit { value }) => {
            return match TestVerdict::of(*value) {
                TestVerdict::Passed => None,
                verdict => Some(format!(
                    "{name} {} its test (exit value {value}, status {})",
                    verdict.word(),
                    test_status(*value)
                )),
            };
        }
        Some(OffReason::PowerOff) => {}
    }
    match vm.judged {
        Judge::PowerOff => return None,
        Judge::ExitPort => {
            return Some(format!(
                "{name} powered off without a verdict at its exit port"
            ));
        }
        Judge::Workload => {}
    }
    let guest = evidence.guest(name);
    match guest.ok {
        Some(true) => None,
        Some(false) => Some(format!("{name} reports: {}", guest.details)),
        None => Some(format!("{name} powered off without a result")),
    }
}

fn off_reason<'a>(evidence: &'a Evidence, vm: &str) -> Option<&'a OffReason> {
    // A VM may have several lives; the last one counts.
    let ends = evidence.events().filter_map(|event| match event {
        Event::Vm {
            name,
            what: VmEvent::Off(reason),
            ..
        } if name == vm => Some(reason),
        _ => None,
    });
    ends.last()
}

/// One phase of a run, by arrival on the host's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How long it took; nothing if it was not reached.
    pub took: Option<Duration>,
}

/// Where each phase begins and ends.
pub fn phases(build: Option<Duration>, evidence: &Evidence, took: Duration) -> Vec<Phase> {
    let vm_at = |vm: &str, is: fn(&VmEvent) -> bool| {
        evidence.records.iter().find_map(|r| match &r.what.event {
            Event::Vm { name, what, .. } if name == vm && is(what) => Some(r.at),
            _ => None,
        })
    };
    let boot_phase = |phase: &str| {
        evidence.records.iter().find_map(|r| match &r.what.event {
            Event::BootPhase { name } if name == phase => Some(r.at),
            _ => None,
        })
    };
    let loader = evidence.line(LOADER_SPEAKS).map(|l| l.at);
    let kernel = evidence.line(KERNEL_ENTERED).map(|l| l.at);
    let cpus_up = boot_phase(CPUS_UP).or_else(|| evidence.line(CPUS_UP_LINE).map(|l| l.at));
    let span = |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
    let phase = |name: &str, took| Phase {
        name: name.into(),
        took,
    };

    let mut phases = vec![
        phase("build", build),
        phase("firmware", loader),
        phase("loader", span(loader, kernel)),
        phase("kernel to all CPUs up", span(kernel, cpus_up)),
    ];
    for vm in &evidence.vms {
        let started = vm_at(vm, |e| matches!(e, VmEvent::Started));
        let userspace = evidence.guest(vm).userspace;
        let off = vm_at(vm, |e| matches!(e, VmEvent::Off(_)));
        phases.push(phase(
            &format!("{vm}: start to userspace"),
            span(started, userspace),
        ));
        phases.push(phase(
            &format!("{vm}: userspace to power-off"),
            span(userspace, off),
        ));
    }
    phases.push(phase("total without build", Some(took)));
    phases
}

/// A part of the loader's first line.
const LOADER_SPEAKS: &str = "loader";
/// The kernel's boot phase that is reached when all CPUs run.
const CPUS_UP: &str = "smp";
/// What it says on the console then.
const CPUS_UP_LINE: &str = " CPUs are up";

/// The run as JSON.
pub fn report(evidence: &Evidence, phases: &[Phase], emulator: &str, line: &str) -> Value {
    let seconds = |d: Option<Duration>| d.map(|d| d.as_millis() as f64 / 1000.0);
    let vms: Vec<Value> = evidence
        .vms
        .iter()
        .map(|name| {
            let guest = evidence.guest(name);
            json!({
                "name": name,
                "off": off_reason(evidence, name),
                "cpus_online": guest.cpus_online,
                "result": guest.result(),
                "test_exit": guest.test_exit.map(|value| json!({ "value": value, "status": test_status(value) })),
                "details": guest.details,
                "userspace_s": seconds(guest.userspace),
            })
        })
        .collect();
    let is_move =
        |event: &Event| matches!(event, Event::VcpuMoved { .. } | Event::PagesMoved { .. });
    let moves: Vec<Value> = evidence
        .records
        .iter()
        .filter(|r| is_move(&r.what.event))
        .map(|r| json!({ "at_ns": r.what.at_ns, "event": r.what.event, "sentence": r.what.event.to_string() }))
        .collect();
    let phases: Vec<Value> = phases
        .iter()
        .map(|p| json!({ "name": p.name, "seconds": seconds(p.took) }))
        .collect();
    json!({
        "outcome": evidence.outcome.to_string(),
        "exit_status": evidence.outcome.exit_status(),
        "topology": evidence.topology(),
        "vms": vms,
        "moves": moves,
        "phases": phases,
        "records": evidence.records.len(),
        "torn_records": evidence.torn_records,
        "seed": evidence.seed,
        "emulator": { "version": emulator, "line": line },
        "perigee": env!("CARGO_PKG_VERSION"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use scenarios::{Emulator, Machine, Stamped};
    use telemetry::Record;
    use units::{Nanos, VmId};

    /// Evidence of one VM that ended once.
    fn ended(reason: OffReason) -> Evidence {
        let off = Event::Vm {
            vm: VmId(0),
            name: "alpha".into(),
            what: VmEvent::Off(reason),
        };
        let record = Record {
            at_ns: Nanos(0),
            seq: 0,
            event: off,
        };
        Evidence {
            emulator: Emulator::Qemu,
            machine: Machine::row(2, 1, 256),
            vms: vec!["alpha".into()],
            outcome: Outcome::Clean,
            console: Vec::new(),
            records: vec![Stamped {
                at: Duration::ZERO,
                what: record,
            }],
            torn_records: 0,
            plugin: None,
            seed: None,
        }
    }

    #[test]
    fn a_reset_is_a_failure_only_of_a_vm_that_should_not_start_again() {
        let vm = |resets| PlannedVm {
            name: "alpha".into(),
            judged: Judge::PowerOff,
            resets,
        };
        let reset = ended(OffReason::Reset);
        assert_eq!(failure(&vm(true), &reset), None);
        assert!(failure(&vm(false), &reset).is_some());
        let fault = ended(OffReason::Fault {
            what: "a triple fault".into(),
        });
        assert!(failure(&vm(true), &fault).is_some());
    }
}
