//! Work that the boot processor gives to others before they run guests.

use crate::arch::{apic, percpu, time};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Mutex;
use units::{CpuId, Frame, Nanos};

/// A processor that has not finished by then never will.
const PATIENCE: Nanos = Nanos::from_secs(5);
/// How long those that are to begin together wait for each other.
const GATHER: Nanos = Nanos::from_millis(1);

/// What one processor does.
#[derive(Clone, Debug)]
pub(super) struct Part {
    cpu: CpuId,
    how: fn(Frame) -> u64,
    blocks: Vec<Frame>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Waiting,
    Begun,
    /// The ticks of each block.
    Done(Vec<u64>),
}

impl Part {
    /// `cpu` is to read these blocks in this way, one after the other.
    pub(super) const fn new(cpu: CpuId, how: fn(Frame) -> u64, blocks: Vec<Frame>) -> Self {
        Self {
            cpu,
            how,
            blocks,
            state: State::Waiting,
        }
    }
}

static PARTS: Mutex<Vec<Part>> = Mutex::new(Vec::new());
/// Processors that have still to come before all begin.
static AWAITED: AtomicU32 = AtomicU32::new(0);

/// Has all parts done at once, and gives the ticks of each one's blocks; `None` if a processor did not come back.
pub(super) fn send(parts: Vec<Part>) -> Option<Vec<Vec<u64>>> {
    let me = percpu::current();
    let cpus: Vec<CpuId> = parts.iter().map(|part| part.cpu).collect();
    AWAITED.store(
        u32::try_from(parts.len()).unwrap_or(u32::MAX),
        Ordering::Release,
    );
    *PARTS.lock() = parts;
    for cpu in cpus.into_iter().filter(|cpu| *cpu != me.cpu) {
        apic::kick(cpu);
    }
    serve(me);
    let sent = time::now();
    loop {
        if let Some(ticks) = results() {
            return Some(ticks);
        }
        if time::now().since(sent) > PATIENCE {
            return None;
        }
        core::hint::spin_loop();
    }
}

fn results() -> Option<Vec<Vec<u64>>> {
    let parts = PARTS.lock();
    let ticks = parts.iter().map(|part| match &part.state {
        State::Done(ticks) => Some(ticks.clone()),
        _ => None,
    });
    ticks.collect()
}

/// Does this processor's part, if it has one that waits.
pub fn serve(me: &percpu::PerCpu) {
    let mine =
        || move |part: &&mut Part| part.cpu == me.cpu && matches!(part.state, State::Waiting);
    let taken = PARTS.lock().iter_mut().find(mine()).map(|part| {
        part.state = State::Begun;
        part.clone()
    });
    let Some(part) = taken else { return };
    begin_together();
    let ticks = part.blocks.iter().map(|block| (part.how)(*block));
    let ticks = ticks.collect();
    let mut parts = PARTS.lock();
    let begun = parts
        .iter_mut()
        .find(|other| other.cpu == part.cpu && matches!(other.state, State::Begun));
    if let Some(part) = begun {
        part.state = State::Done(ticks);
    }
}

fn begin_together() {
    AWAITED.fetch_sub(1, Ordering::AcqRel);
    let came = time::now();
    while AWAITED.load(Ordering::Acquire) != 0 && time::now().since(came) < GATHER {
        core::hint::spin_loop();
    }
}
