//! A run that is recorded here as the kernel does it repeats; a changed one does not.

use replay::replay;
use sched::trace::{Input, Outcome, Step};
use sched::*;
use telemetry::{Record, to_line};
use units::*;

/// A recorder, as the kernel's `drive::schedule` is one.
struct Recorder {
    sched: Scheduler,
    lines: Vec<String>,
}

impl Recorder {
    fn new(tunables: Tunables) -> Self {
        let mut recorder = Self {
            sched: Scheduler::new(tunables),
            lines: Vec::new(),
        };
        recorder.note(Nanos::ZERO, Input::Begin(tunables), Outcome::default());
        recorder
    }

    fn note(&mut self, at: Nanos, input: Input, outcome: Outcome) {
        let seq = self.lines.len() as u64;
        let step = Step {
            step: seq,
            at,
            input,
            outcome,
        };
        let step = serde_json::to_string(&step).expect("our own types");
        let event = telemetry::Event::Schedule { step };
        self.lines.push(to_line(&Record {
            at_ns: at,
            seq,
            event,
        }));
    }

    fn tell(&mut self, at: Nanos, event: Event) {
        let mut out = Commands::new();
        let refused = self.sched.handle(at, event.clone(), &mut out).is_err();
        let outcome = Outcome::of_event(&out, 0, refused);
        self.note(at, Input::Event(event), outcome);
    }

    fn pick(&mut self, at: Nanos, cpu: CpuId) -> Option<(VcpuId, Nanos)> {
        let mut out = Commands::new();
        let next = self.sched.pick(cpu, at, &mut out);
        self.note(at, Input::Pick(cpu), Outcome::of_pick(&out, &next));
        match next {
            Next::Run { vcpu, slice, .. } => Some((vcpu, slice)),
            Next::Idle { .. } => None,
        }
    }
}

/// Two nodes of two CPUs, five vCPUs of two machines that run, sleep and spin in turn.
fn recorded() -> Vec<String> {
    let mut r = Recorder::new(Tunables::default());
    let mut at = Nanos(1);
    for cpu in 0..4 {
        let place = CpuPlace {
            node: NodeId(cpu as u16 / 2),
            llc: cpu / 2,
            core: cpu,
        };
        r.tell(
            at,
            Event::CpuOnline {
                cpu: CpuId(cpu),
                place,
            },
        );
    }
    let vcpu = |i: u16| VcpuId {
        vm: VmId(i % 2),
        index: i / 2,
    };
    for i in 0..5 {
        let spec = VcpuSpec {
            weight: 128 << (i % 3),
            home: Some(NodeId(i % 2)),
            ..VcpuSpec::default()
        };
        r.tell(
            at,
            Event::VcpuAdded {
                vcpu: vcpu(i),
                spec,
            },
        );
        r.tell(at, Event::Wake { vcpu: vcpu(i) });
    }
    let scores = vec![Score::ONE, Score(1000)];
    r.tell(
        at,
        Event::ProximityUpdated {
            vm: VmId(0),
            scores,
        },
    );
    let scores = vec![Score(1000), Score::ONE];
    r.tell(
        at,
        Event::VcpuProximity {
            vcpu: vcpu(0),
            scores,
        },
    );
    let mut running = [None; 4];
    for turn in 0..400u64 {
        at += Nanos::from_micros(700);
        let cpu = (turn % 4) as usize;
        let id = CpuId(cpu as u32);
        if let Some(vcpu) = Option::take(&mut running[cpu]) {
            let ran = Nanos::from_micros(2800);
            r.tell(at, Event::Charge { cpu: id, vcpu, ran });
            match turn % 7 {
                0 => r.tell(at, Event::Block { vcpu }),
                1 => r.tell(at, Event::Spin { vcpu }),
                _ => {}
            }
        }
        if turn % 5 == 0 {
            r.tell(
                at,
                Event::Wake {
                    vcpu: vcpu((turn % 5) as u16 + (turn / 5 % 5) as u16),
                },
            );
        }
        running[cpu] = r.pick(at, id).map(|(v, _)| v);
    }
    r.lines
}

#[test]
fn a_recorded_run_repeats_to_the_identical_commands() {
    let lines = recorded();
    let all = replay(lines.iter().map(String::as_str)).expect("the same crate");
    assert_eq!(all.picks, 400);
    assert!(all.commands > 20, "{all:?}");
    // Neighbouring lines that changed places, other records, and a torn last line do not matter.
    let mut other = lines.clone();
    other.swap(50, 51);
    other.push(r#"{"at_ns":1,"seq":9,"event":{"kind":"boot_phase","name":"smp"}}"#.into());
    other.push(lines[3][..30].into());
    assert_eq!(replay(other.iter().map(String::as_str)), Ok(all));
}

#[test]
fn a_missing_step_and_a_changed_decision_are_named() {
    let lines = recorded();
    let mut gap = lines.clone();
    gap.remove(40);
    let why = replay(gap.iter().map(String::as_str)).expect_err("a gap");
    assert!(why.contains("step 40 was expected"), "{why}");

    let run = lines
        .iter()
        .position(|l| l.contains(r#"\"run\":[{\"vm\":0,\"index\":0}"#))
        .expect("a pick that ran something");
    let mut changed = lines.clone();
    // Another vCPU than the one that was chosen.
    changed[run] = changed[run].replace(r#"\"index\":0"#, r#"\"index\":9"#);
    assert_ne!(changed[run], lines[run], "the line was changed");
    let why = replay(changed.iter().map(String::as_str)).expect_err("changed");
    assert!(why.contains(&format!("step {run}: ")), "{why}");
    assert!(replay([]).is_err());
}
