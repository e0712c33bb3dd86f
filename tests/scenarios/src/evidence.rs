//! What a run leaves behind, and reading it.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use telemetry::{Event, OffReason, TestVerdict, Topology, VmEvent, test_status};

use crate::{Emulator, Machine};

/// How a run ended, as its exit status tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every guest did what it should and the machine powered off.
    Clean,
    /// A guest failed, or found its memory changed; the sentence names it.
    GuestFailed(String),
    /// The hypervisor panicked, or the machine reset without being asked.
    HypervisorPanic(String),
    /// Time ran out.
    TimedOut(Duration),
    /// The operator stopped the run.
    Interrupted,
    /// The emulator itself could not run.
    EmulatorFailed(String),
}

impl Outcome {
    /// The exit status of `cargo xtask run`.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::GuestFailed(_) => 1,
            Self::HypervisorPanic(_) => 3,
            Self::TimedOut(_) => 4,
            Self::EmulatorFailed(_) => 5,
            Self::Interrupted => 130,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("clean"),
            Self::GuestFailed(why) => write!(f, "guest failure: {why}"),
            Self::HypervisorPanic(why) => write!(f, "hypervisor panic: {why}"),
            Self::TimedOut(limit) => write!(f, "not finished within {} s", limit.as_secs()),
            Self::Interrupted => f.write_str("interrupted"),
            Self::EmulatorFailed(why) => write!(f, "the emulator failed: {why}"),
        }
    }
}

/// A line or a record, with the time it arrived at, counted from the emulator's start.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamped<T> {
    /// When it arrived.
    pub at: Duration,
    /// The thing itself.
    pub what: T,
}

/// What one guest said about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestResult {
    /// Its name.
    pub name: String,
    /// When its `GUEST-UP` line arrived.
    pub userspace: Option<Duration>,
    /// The CPUs its Linux had online there.
    pub cpus_online: Option<u32>,
    /// `Some(true)` for `GUEST-RESULT ok`, `Some(false)` for any other result.
    pub ok: Option<bool>,
    /// The rest of the result's line.
    pub details: String,
    /// The value that a test kernel wrote to its exit port.
    pub test_exit: Option<u32>,
}

impl GuestResult {
    /// What became of it in one word; nothing for one that never said.
    pub fn result(&self) -> Option<&'static str> {
        if let Some(value) = self.test_exit {
            return Some(match TestVerdict::of(value) {
                TestVerdict::Passed => "ok",
                verdict => verdict.word(),
            });
        }
        self.ok.map(|ok| if ok { "ok" } else { "mismatch" })
    }
}

/// Everything that a run leaves behind.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What emulated the machine.
    pub emulator: Emulator,
    /// The machine that was asked for.
    pub machine: Machine,
    /// The names of the VMs that were asked for.
    pub vms: Vec<String>,
    /// How the run ended.
    pub outcome: Outcome,
    /// The console's lines, without escape sequences.
    pub console: Vec<Stamped<String>>,
    /// The kernel's records.
    pub records: Vec<Stamped<telemetry::Record>>,
    /// Lines on the records' port that are no record.
    pub torn_records: usize,
    /// What the observer plugin wrote.
    pub plugin: Option<Value>,
    /// The seed of the run, if it has one.
    pub seed: Option<u64>,
}

/// For tests of what judges evidence.
#[cfg(test)]
impl Evidence {
    /// A run of these VMs that came to a clean end and left these lines on the console.
    pub(crate) fn clean(vms: &[&str], lines: &[&str]) -> Self {
        let stamped = |line: &&str| Stamped {
            at: Duration::ZERO,
            what: (*line).to_string(),
        };
        Self {
            emulator: Emulator::Qemu,
            machine: Machine::row(1, 2, 512),
            vms: vms.iter().map(|name| (*name).to_string()).collect(),
            outcome: Outcome::Clean,
            console: lines.iter().map(stamped).collect(),
            records: Vec::new(),
            torn_records: 0,
            plugin: None,
            seed: None,
        }
    }

    /// The same with this record.
    pub(crate) fn with(mut self, at_ns: units::Nanos, event: Event) -> Self {
        let what = telemetry::Record {
            at_ns,
            seq: self.records.len() as u64,
            event,
        };
        let at = Duration::ZERO;
        self.records.push(Stamped { at, what });
        self
    }
}

impl Evidence {
    /// That the kernel's frame allocators were never told something wrong, whatever the trial is about: a frame
    /// that is named wrongly is lost, or worse.
    ///
    /// # Errors
    /// The first such line.
    pub fn keeps_its_frames(&self) -> Result<(), String> {
        let wrong = |line: &&Stamped<String>| {
            line.what.starts_with('[') && line.what.contains("] ERROR: frame allocator")
        };
        match self.console.iter().find(wrong) {
            Some(line) => Err(line.what.trim().into()),
            None => Ok(()),
        }
    }

    /// The first console line that contains `text`.
    pub fn line(&self, text: &str) -> Option<&Stamped<String>> {
        self.console.iter().find(|line| line.what.contains(text))
    }

    /// The lines that a guest wrote, without its prefix.
    pub fn guest_lines(&self, vm: &str) -> impl Iterator<Item = Stamped<&str>> {
        self.console.iter().filter_map(move |line| {
            let (name, what) = guest_line(&line.what)?;
            (name == vm).then_some(Stamped { at: line.at, what })
        })
    }

    /// What a guest said about itself; empty for one that said nothing.
    pub fn guest(&self, vm: &str) -> GuestResult {
        let mut result = GuestResult {
            name: vm.into(),
            ..GuestResult::default()
        };
        for line in self.guest_lines(vm) {
            if let Some(rest) = line.what.split_once("GUEST-UP ").map(|(_, rest)| rest) {
                result.userspace.get_or_insert(line.at);
                result.cpus_online = word_after(rest, "cpus=").and_then(|n| n.parse().ok());
            }
            if let Some((_, rest)) = line.what.split_once("GUEST-RESULT ") {
                let (verdict, details) = rest.split_once(' ').unwrap_or((rest, ""));
                // A mismatch stays one, whatever a later line claims.
                result.ok = Some(verdict == "ok" && result.ok != Some(false));
                result.details = details.trim().into();
            }
        }
        // A test kernel's verdict is not a line but a value.
        let exit = self.events().find_map(|event| match event {
            Event::Vm {
                name,
                what: VmEvent::Off(OffReason::TestExit { value }),
                ..
            } if name == vm => Some(*value),
            _ => None,
        });
        if let Some(value) = exit {
            result.test_exit = exit;
            result.ok = Some(TestVerdict::of(value) == TestVerdict::Passed);
            result.details = format!("exit value {value}, status {}", test_status(value));
        }
        result
    }

    /// The kernel's events, in their order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.records.iter().map(|r| &r.what.event)
    }

    /// The machine as the kernel understood it.
    pub fn topology(&self) -> Option<&Topology> {
        self.events().find_map(|event| match event {
            Event::Topology(topology) => Some(topology),
            _ => None,
        })
    }

    /// Checks that the run ended cleanly and that every guest says that it had `cpus` CPUs online and
    /// found its memory unchanged.
    ///
    /// # Errors
    /// The first of these that is not so.
    pub fn every_guest_is_well(&self, cpus: u32) -> Result<(), String> {
        for name in &self.vms {
            let guest = self.guest(name);
            if guest.userspace.is_none() {
                return Err(format!("{name} never reached userspace"));
            }
            if guest.cpus_online != Some(cpus) {
                return Err(format!(
                    "{name} had {:?} CPUs online, not {cpus}",
                    guest.cpus_online
                ));
            }
            match guest.ok {
                Some(true) => {}
                Some(false) => return Err(format!("{name} reports a failure: {}", guest.details)),
                None => return Err(format!("{name} reported no result")),
            }
        }
        if self.outcome != Outcome::Clean {
            return Err(format!(
                "the run ended otherwise than cleanly: {}",
                self.outcome
            ));
        }
        Ok(())
    }
}

/// The guest's name and its text when this console line comes from a guest: `[alpha] text`.
pub(crate) fn guest_line(line: &str) -> Option<(&str, &str)> {
    let (name, text) = line.strip_prefix('[')?.split_once(']')?;
    let named = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    named.then_some((name, text.strip_prefix(' ').unwrap_or(text)))
}

/// The word behind `key` in `text`.
fn word_after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(lines: &[&str]) -> Evidence {
        let console = lines
            .iter()
            .map(|l| Stamped {
                at: Duration::from_secs(1),
                what: (*l).into(),
            })
            .collect();
        Evidence {
            emulator: Emulator::Qemu,
            machine: Machine::row(1, 1, 256),
            vms: vec!["alpha".into()],
            outcome: Outcome::Clean,
            console,
            records: Vec::new(),
            torn_records: 0,
            plugin: None,
            seed: None,
        }
    }

    const UP: &str = "[alpha] GUEST-UP cpus=2 kernel=6.1";
    const OK: &str = "[alpha] GUEST-RESULT ok 64 MiB checked";

    #[test]
    fn a_guest_is_believed_only_with_both_lines() {
        assert_eq!(evidence(&[UP, OK]).every_guest_is_well(2), Ok(()));
        let why = |lines: &[&str]| {
            evidence(lines)
                .every_guest_is_well(2)
                .expect_err("not convincing")
        };
        assert!(why(&[OK]).contains("userspace"));
        assert!(why(&[UP]).contains("no result"));
        assert!(why(&["[alpha] GUEST-UP cpus=1", OK]).contains("CPUs online"));
        assert!(why(&["[beta] GUEST-UP cpus=2", "[beta] GUEST-RESULT ok"]).contains("userspace"));
    }

    #[test]
    fn a_mismatch_is_not_forgotten() {
        let e = evidence(&[UP, "[alpha] GUEST-RESULT mismatch at 0x1000", OK]);
        assert!(
            e.every_guest_is_well(2)
                .is_err_and(|why| why.contains("failure"))
        );
    }

    #[test]
    fn a_test_kernel_s_value_is_its_verdict() {
        let of = |value| {
            let mut e = evidence(&[]);
            e.records.push(Stamped {
                at: Duration::ZERO,
                what: telemetry::Record {
                    at_ns: units::Nanos(0),
                    seq: 0,
                    event: Event::Vm {
                        vm: units::VmId(0),
                        name: "alpha".into(),
                        what: VmEvent::Off(OffReason::TestExit { value }),
                    },
                },
            });
            e.guest("alpha")
        };
        assert_eq!((of(0).ok, of(0).result()), (Some(true), Some("ok")));
        assert_eq!((of(1).ok, of(1).result()), (Some(false), Some("failed")));
        assert_eq!((of(38).ok, of(38).result()), (Some(false), Some("skipped")));
        assert_eq!(of(38).details, "exit value 38, status 77");
    }

    #[test]
    fn an_unclean_end_is_no_success() {
        let mut e = evidence(&[UP, OK]);
        e.outcome = Outcome::HypervisorPanic("x".into());
        assert!(e.every_guest_is_well(2).is_err());
    }

    #[test]
    fn kernel_lines_are_not_taken_for_guests() {
        assert_eq!(guest_line("[alpha] hello"), Some(("alpha", "hello")));
        assert_eq!(guest_line("[    1.204] smpboot: up"), None);
        assert_eq!(guest_line("perigee: [x]"), None);
    }
}
