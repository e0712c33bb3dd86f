//! What the plugin does with the emulator's calls.

use crate::abi::{self, Block, Emulator, Handler};
use crate::args;
use crate::counts::{Access, Counts};
use crate::report::Report;
use crate::tag::{Mark, mark};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

/// Time between two reports while tagged code runs.
const REPORT_EVERY_MS: u64 = 1000;

/// The plugin's state; one emulator, one plugin.
static WITNESS: OnceLock<Witness> = OnceLock::new();

#[derive(Debug)]
struct Witness {
    counts: Counts,
    out: PathBuf,
    loaded: Instant,
    /// Held while a report is written, so that two do not mix.
    writing: Mutex<()>,
    reported_ms: AtomicU64,
    /// The host thread of each vCPU.
    threads: Mutex<Vec<(usize, ThreadId)>>,
    shared_thread: AtomicBool,
}

/// Sets the plugin up and asks the emulator for its calls.
///
/// # Errors
/// A sentence about the arguments.
pub(crate) fn install(id: u64, emulator: &Emulator, arguments: &[&str]) -> Result<(), String> {
    let args = args::parse(arguments.iter().copied(), emulator.vcpus)?;
    let witness = Witness {
        counts: Counts::new(&args),
        out: args.out,
        loaded: Instant::now(),
        writing: Mutex::new(()),
        reported_ms: AtomicU64::new(0),
        threads: Mutex::new(Vec::new()),
        shared_thread: AtomicBool::new(false),
    };
    WITNESS
        .set(witness)
        .map_err(|_| "the plugin is loaded twice")?;
    abi::register::<Calls>(id);
    Ok(())
}

impl Witness {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.loaded.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn report(&self, complete: bool) {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let report = Report::new(
            &self.counts,
            self.elapsed_ms(),
            complete,
            self.shared_thread.load(Relaxed),
        );
        if let Err(error) = report.write(&self.out) {
            eprintln!("lab plugin: cannot write {}: {error}", self.out.display());
        }
    }

    /// Whether the next report is due; true for one caller only.
    fn due(&self) -> bool {
        let (now, last) = (self.elapsed_ms(), self.reported_ms.load(Relaxed));
        now >= last.saturating_add(REPORT_EVERY_MS)
            && self
                .reported_ms
                .compare_exchange(last, now, Relaxed, Relaxed)
                .is_ok()
    }
}

/// The emulator's calls.
#[derive(Debug)]
pub(crate) struct Calls;

impl Handler for Calls {
    fn started(vcpu: usize) {
        let Some(witness) = WITNESS.get() else { return };
        let thread = std::thread::current().id();
        let mut threads = witness
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if threads
            .iter()
            .any(|(other, seen)| *other != vcpu && *seen == thread)
            && !witness.shared_thread.swap(true, Relaxed)
        {
            eprintln!(
                "lab plugin: vCPUs share a host thread, so CPU nodes will be wrong; use -accel tcg,thread=multi"
            );
        }
        threads.push((vcpu, thread));
    }

    fn translated(block: &Block<'_>) {
        let mut tag = None;
        for instruction in block.instructions() {
            match instruction.bytes(mark) {
                Some(Mark::Tag(number)) => tag = Some(number),
                Some(Mark::Flush) => instruction.watch_execution::<Self>(),
                None => {
                    if let Some(tag) = tag {
                        instruction.watch_memory::<Self>(tag);
                    }
                }
            }
        }
    }

    fn accessed(vcpu: usize, watch: usize, access: Access) {
        let Some(witness) = WITNESS.get() else { return };
        if witness
            .counts
            .record(vcpu, watch, access, || witness.elapsed_ms())
            && witness.due()
        {
            witness.report(false);
        }
    }

    fn executed(_vcpu: usize) {
        if let Some(witness) = WITNESS.get() {
            witness.report(false);
        }
    }

    fn ended() {
        if let Some(witness) = WITNESS.get() {
            witness.report(true);
        }
    }
}
