//! Every event survives the wire and reads as one sentence.

use proptest::prelude::*;
use telemetry::*;
use units::*;

fn terms() -> Terms {
    Terms {
        class: Class::Normal,
        weight: 256,
        credit: Credits(-1_500_000),
        remaining: Nanos::from_millis(5),
        deadline: Credits(6_500_000),
        bonus: Credits(720_000),
        penalty: Credits(0),
        key: Credits(5_780_000),
    }
}

fn vcpu(index: u16) -> VcpuId {
    VcpuId { vm: VmId(1), index }
}

/// One of each kind, with awkward strings.
fn one_of_each() -> Vec<Event> {
    let name = || String::from("beta \"2\"\n\u{1}");
    let choice = Choice::MoveVcpus {
        to: NodeId(3),
        vcpus: 2,
    };
    let mut events = vec![
        Event::BootPhase { name: "smp".into() },
        Event::Topology(Topology {
            nodes: vec![NodeReport {
                node: NodeId(0),
                pxm: ProximityDomain(7),
                memory_bytes: 1 << 30,
            }],
            cpus: vec![CpuReport {
                cpu: CpuId(0),
                node: NodeId(0),
                apic: ApicId(4),
            }],
            distances: vec![vec![10]],
            latency_ns: vec![vec![80]],
            latency_source: "HMAT".into(),
            measured: "measured latencies are not used".into(),
            quirks: vec!["SLIT has a bad checksum and was ignored".into()],
        }),
        Event::VcpuMoved {
            vcpu: vcpu(0),
            from: CpuId(0),
            from_node: NodeId(0),
            to: CpuId(6),
            to_node: NodeId(3),
            reason: MoveReason::Preferred {
                from: Score(0),
                to: Score::ONE,
            },
        },
        Event::PagesMoved {
            vm: VmId(1),
            name: name(),
            from: NodeId(3),
            to: NodeId(0),
            leaves: 48,
            leaf: PageSize::Size2M,
            bytes: 96 << 20,
            failed: 1,
            written: 7,
            copied_again: 80 << 10,
            pause_p50: Nanos(40_000),
            pause_max: Nanos(90_000),
            reason: "gain 0.720".into(),
        },
        Event::Plan {
            vm: VmId(1),
            name: name(),
            chosen: choice,
            alternatives: vec![Alternative {
                choice,
                gain: Score(47_186),
                benefit_ns_per_s: 360_000_000,
                cost: Nanos::from_millis(1),
                pays_back: Nanos::from_millis(3),
                refused: String::new(),
            }],
            sentence: "beta runs on node0 but its memory is on node3".into(),
        },
        Event::Held {
            vm: VmId(1),
            name: name(),
            why: Hold::Idle,
            sentence: "beta stays: it is idle".into(),
        },
        Event::Footprint {
            vm: VmId(1),
            name: name(),
            pass: 3,
            matrix: vec![vec![0, u64::MAX], vec![5, 6]],
            shares: vec![PerMille(30), PerMille(970)],
            resident: vec![1 << 28, 0],
            confidence: PerMille(950),
            groups: vec![GroupReport {
                vcpus: vec![0, 2],
                primary: vec![(NodeId(1), PerMille(900))],
                confidence: PerMille(970),
            }],
        },
        Event::HotPages {
            vm: VmId(1),
            name: "beta".into(),
            pass: 7,
            ranges: vec![telemetry::touched::HotRange {
                first: 512,
                frame: 70_000,
                pages: 512,
                heat: 9,
            }],
            hot: 700,
            left_out: 3,
            left_out_heat: 4,
            last: false,
        },
        Event::Touched {
            vm: VmId(1),
            name: "beta".into(),
            accessed: vec![(8192, 3), (9000, 1)],
            dirty: vec![(8193, 1)],
            last: true,
        },
        Event::Proximity {
            vm: VmId(1),
            name: name(),
            scores: vec![Score(0), Score::ONE],
        },
        Event::Pick(Pick {
            cpu: CpuId(1),
            vcpu: vcpu(0),
            slice: Nanos::from_millis(5),
            terms: terms(),
            runnable: 2,
            alternative: Some(Rival {
                vcpu: vcpu(1),
                terms: terms(),
            }),
        }),
        Event::Schedule {
            step: "{\"step\":7}".into(),
        },
        Event::Counters {
            cpu: CpuId(0),
            values: vec![CounterValue {
                name: "entries".into(),
                value: u64::MAX,
            }],
        },
        Event::GuestFault {
            vcpu: vcpu(1),
            name: name(),
            what: "triple fault".into(),
            exit: "SHUTDOWN".into(),
            registers: vec![("rip".into(), u64::MAX)],
            last_events: vec!["cpu0 runs vm1.1".into()],
        },
        Event::Panic {
            cpu: CpuId(2),
            message: name(),
        },
        Event::Watchdog {
            cpu: CpuId(2),
            running: None,
            silent_for: Nanos::from_secs(5),
        },
        Event::Watchdog {
            cpu: CpuId(2),
            running: Some(vcpu(1)),
            silent_for: Nanos::from_secs(5),
        },
    ];
    let steps = [
        VmEvent::Created {
            vcpus: 2,
            memory_bytes: 256 << 20,
            home: NodeId(3),
            memory_by_node: vec![0, 0, 0, 256 << 20],
        },
        VmEvent::Started,
        VmEvent::Paused,
        VmEvent::Resumed,
        VmEvent::Off(OffReason::PowerOff),
        VmEvent::Off(OffReason::Reset),
        VmEvent::Off(OffReason::Fault {
            what: "triple fault".into(),
        }),
        VmEvent::Off(OffReason::Stopped),
        VmEvent::Off(OffReason::TestExit { value: 38 }),
    ];
    events.extend(steps.map(|what| Event::Vm {
        vm: VmId(1),
        name: name(),
        what,
    }));
    let outcomes = [
        Outcome::Clean,
        Outcome::GuestFailed {
            vms: vec!["beta".into()],
        },
        Outcome::Panicked,
    ];
    events.extend(outcomes.map(Event::RunEnd));
    let holds = [
        Hold::Near {
            proximity: Score::ONE,
            gain: Score(1),
        },
        Hold::Waiting { seen: 1, needed: 2 },
        Hold::Unprofitable {
            benefit: Nanos(1),
            threshold: Nanos(2),
        },
        Hold::NoRoom { node: NodeId(3) },
        Hold::Settling { until: Nanos(9) },
    ];
    events.extend(holds.map(|why| Event::Held {
        vm: VmId(0),
        name: name(),
        why,
        sentence: why.to_string(),
    }));
    events
}

#[test]
fn every_event_survives_the_wire_on_one_line() {
    for (seq, event) in one_of_each().into_iter().enumerate() {
        let record = Record {
            at_ns: Nanos(u64::MAX - seq as u64),
            seq: seq as u64,
            event,
        };
        let mut out = String::new();
        write_line(&record, &mut out).expect("a String takes everything");
        assert_eq!(out.matches('\n').count(), 1, "{out}");
        assert_eq!(from_line(&out).as_ref(), Ok(&record), "{out}");
    }
}

#[test]
fn every_event_reads_as_a_sentence() {
    let events = one_of_each();
    for event in &events {
        let sentence = event.to_string();
        assert!(sentence.len() > 5, "{event:?}");
        assert!(!sentence.contains(['{', '[']), "debug output in {sentence}");
    }
    assert_eq!(
        events[2].to_string(),
        "vm1.0 moves from cpu0 (node0) to cpu6 (node3): its memory is nearer there: proximity 0.000 -> 1.000"
    );
    assert!(
        events[3]
            .to_string()
            .contains("48 pages of 2 MiB (98304 KiB) moved from node3 to node0")
    );
}

#[test]
fn the_line_format_is_the_documented_one() {
    let record = Record {
        at_ns: Nanos(1234),
        seq: 7,
        event: Event::BootPhase { name: "smp".into() },
    };
    assert_eq!(
        to_line(&record),
        r#"{"at_ns":1234,"seq":7,"event":{"kind":"boot_phase","name":"smp"}}"#
    );
    let off = Event::Vm {
        vm: VmId(0),
        name: "a".into(),
        what: VmEvent::Off(OffReason::PowerOff),
    };
    assert_eq!(
        to_line(&Record {
            at_ns: Nanos(1),
            seq: 8,
            event: off
        }),
        r#"{"at_ns":1,"seq":8,"event":{"kind":"vm","vm":0,"name":"a","step":"off","reason":"power_off"}}"#
    );
}

#[test]
fn a_footprint_from_before_there_were_groups_is_read() {
    let line = r#"{"at_ns":1,"seq":2,"event":{"kind":"footprint","vm":0,"name":"a","pass":1,"matrix":[[1]],"shares":[1000],"resident":[4096],"confidence":900}}"#;
    let record = from_line(line).expect("it is whole");
    assert!(matches!(&record.event, Event::Footprint { groups, .. } if groups.is_empty()));
    assert_eq!(
        to_line(&record),
        line,
        "and written as before where there are none"
    );
}

#[test]
fn a_torn_line_is_an_error_with_its_beginning() {
    let error = from_line(r#"{"at_ns":1,"seq":2,"ev"#).expect_err("the line is torn");
    assert!(error.to_string().contains("not a record"), "{error}");
    assert!(error.line.starts_with("{\"at_ns\":1"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_line_makes_the_reader_panic(line in ".{0,200}") {
        let _ = from_line(&line);
    }

    #[test]
    fn any_string_stays_on_one_line(message in any::<String>(), cpu: u32) {
        let record = Record { at_ns: Nanos(0), seq: 0, event: Event::Panic { cpu: CpuId(cpu), message } };
        let line = to_line(&record);
        prop_assert!(!line.contains(['\n', '\r']));
        prop_assert_eq!(from_line(&line), Ok(record));
    }
}
