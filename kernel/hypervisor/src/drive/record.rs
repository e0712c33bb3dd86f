//! Events, told twice: as a sentence in the log, as a line of JSON on the telemetry port.

use crate::console;
use crate::arch::time;
use core::sync::atomic::{AtomicU64, Ordering};
use telemetry::{wire, Event, Record};

static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Records an event.
pub fn record(event: Event) {
    match &event {
        Event::Footprint { .. } | Event::Proximity { .. } | Event::Counters { .. } | Event::Pick(_) => log::debug!("{event}"),
        Event::BootPhase { .. } => log::debug!("{event}"),
        _ => log::info!("{event}"),
    }
    let record = Record { at_ns: time::now(), seq: SEQUENCE.fetch_add(1, Ordering::Relaxed), event };
    let mut line = wire::to_line(&record);
    line.push('\n');
    console::record(line.as_bytes());
}
