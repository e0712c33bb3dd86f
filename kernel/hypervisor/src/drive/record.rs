//! Events, told twice: as a sentence in the log, as a line of JSON on the telemetry port.

use crate::arch::time;
use crate::console;
use core::sync::atomic::{AtomicU64, Ordering};
use telemetry::{Event, MoveReason, OffReason, Record, VmEvent, wire};

static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Records an event.
pub fn record(event: Event) {
    let level = level(&event);
    // A step of a trace is for a program, thousands of them a second.
    if !matches!(event, Event::Schedule { .. }) {
        log::log!(level, "{event}");
    }
    // A wire that is too slow for what happens all the time loses that, and no VM's start or end.
    let may_be_lost = level == log::Level::Debug && !was_asked_for(&event);
    let record = Record {
        at_ns: time::now(),
        seq: SEQUENCE.fetch_add(1, Ordering::Relaxed),
        event,
    };
    let mut line = wire::to_line(&record);
    line.push('\n');
    console::record(line.as_bytes(), may_be_lost);
}

/// Somebody waits for it.
fn was_asked_for(event: &Event) -> bool {
    matches!(
        event,
        Event::HotPages { .. }
            | Event::Touched { .. }
            | Event::Schedule { .. }
            | Event::BootPhase { .. }
    )
}

/// What an operator follows is info; what happens many times a second is for those who ask.
fn level(event: &Event) -> log::Level {
    match event {
        Event::Footprint { .. }
        | Event::Proximity { .. }
        | Event::Counters { .. }
        | Event::HotPages { .. }
        | Event::Touched { .. }
        | Event::Pick(_)
        | Event::Schedule { .. }
        | Event::BootPhase { .. } => log::Level::Debug,
        // Within a node nothing changes for the memory; waking up and filling idle CPUs is daily bread.
        Event::VcpuMoved {
            from_node,
            to_node,
            reason,
            ..
        } => match reason {
            MoveReason::Preferred { .. } | MoveReason::Affinity => log::Level::Info,
            MoveReason::Balance { .. } | MoveReason::Fairness { .. } if from_node != to_node => {
                log::Level::Info
            }
            _ => log::Level::Debug,
        },
        Event::Vm {
            what: VmEvent::Off(OffReason::Fault { .. }),
            ..
        } => log::Level::Error,
        _ => log::Level::Info,
    }
}
