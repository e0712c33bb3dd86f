//! What the plugin does with the emulator's calls.

use crate::abi::{self, Block, Emulator, Handler, Instruction};
use crate::args::{self, Scope};
use crate::clock::Clock;
use crate::counts::{Access, Counts};
use crate::hook::{self, Emulated};
use crate::host::{Host, UPPER_HALF};
use crate::pages::Pages;
use crate::report::{Report, State};
use crate::side::{Sides, Switch};
use crate::tag::{Mark, mark};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

/// Time between two reports while tagged code runs.
const REPORT_EVERY_MS: u64 = 1000;

/// What an instruction whose accesses are watched without a tag has for one.
const UNTAGGED: usize = 0;
/// What an instruction whose execution is watched does, unless the number is its address: enters the guest,
const LEAVES: usize = 1;
/// is the first one after it,
const RETURNS: usize = 2;
/// asks for a report,
const FLUSH: usize = 3;
/// opens a window,
const OPEN: usize = 4;
/// closes it,
const CLOSE: usize = 5;
/// ends an operation; the class of the next one is added.
const LAP: usize = 0x100;

/// The plugin's state; one emulator, one plugin.
static WITNESS: OnceLock<Witness> = OnceLock::new();

#[derive(Debug)]
struct Witness {
    counts: Counts,
    sides: Sides,
    scope: Scope,
    pages: Pages,
    /// Where the hypervisor's instructions are counted, if they are.
    host: Option<Host>,
    /// The machine's clock, if it is ours.
    clock: Option<(Clock, Emulated)>,
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
    let memory_end = args.map.last().map_or(0, |range| range.end);
    let clock = match args.clock {
        Some(ps) => Some((Clock::new(emulator.vcpus, ps), hook::timers()?)),
        None => None,
    };
    let witness = Witness {
        clock,
        counts: Counts::new(&args),
        sides: Sides::new(emulator.vcpus),
        scope: args.pages,
        pages: Pages::new(emulator.vcpus, memory_end, args.linear_end),
        host: args.host.then(|| Host::new(emulator.vcpus, args.profile)),
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
        let report = Report::new(&State {
            counts: &self.counts,
            pages: &self.pages,
            host: self.host.as_ref(),
            elapsed_ms: self.elapsed_ms(),
            complete,
            shared_thread: self.shared_thread.load(Relaxed),
        });
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

/// Whether an instruction is a repeated one on strings, which is executed once and accesses memory many times.
fn repeats(bytes: &[u8]) -> bool {
    let mut behind = bytes
        .iter()
        .skip_while(|byte| matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67));
    let repeated = matches!(behind.next(), Some(0xF2 | 0xF3));
    let opcode = behind.find(|byte| !matches!(byte, 0x40..=0x4F | 0x66 | 0x67));
    repeated && matches!(opcode, Some(0xA4..=0xA7 | 0xAA..=0xAF))
}

/// The machine's time, as the emulator asks for it.
extern "C" fn time() -> i64 {
    let clock = WITNESS.get().and_then(|w| w.clock.as_ref());
    clock.map_or(0, |(clock, _)| clock.now_ns())
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
        if let Some((clock, _)) = &witness.clock {
            if let Err(problem) = hook::install(time) {
                eprintln!("lab plugin: {problem}");
                std::process::exit(1);
            }
            clock.resumes(vcpu);
        }
    }

    fn translated(block: &Block<'_>) {
        let Some(witness) = WITNESS.get() else { return };
        let instructions: Vec<(Instruction<'_>, Vec<u8>)> = block
            .instructions()
            .map(|instruction| {
                let bytes = instruction.bytes(<[u8]>::to_vec);
                (instruction, bytes)
            })
            .collect();
        let Some((first, _)) = instructions.first() else {
            return;
        };
        if witness.clock.is_some() {
            block.time::<Self>(instructions.len());
        }
        let high = first.address() >= UPPER_HALF;
        if witness.host.is_some() && !high {
            block.watch_entry::<Self>(instructions.len());
        }
        let (mut tag, mut behind) = (None, instructions.iter().skip(1));
        for (index, (instruction, bytes)) in instructions.iter().enumerate() {
            if witness.clock.is_some() && repeats(bytes) {
                instruction.time_accesses::<Self>();
            }
            let next = behind.next().map_or(&[][..], |(_, bytes)| bytes);
            let switch = witness
                .sides
                .look(index, instruction.address(), bytes, next);
            let plain = witness.host.is_some() && high;
            match (switch, mark(bytes)) {
                (Some(Switch::Leaves), _) => instruction.watch_execution::<Self>(LEAVES),
                (Some(Switch::Returns), _) => instruction.watch_execution::<Self>(RETURNS),
                (None, Some(Mark::Flush)) => instruction.watch_execution::<Self>(FLUSH),
                (None, Some(Mark::Open)) => instruction.watch_execution::<Self>(OPEN),
                (None, Some(Mark::Close)) => instruction.watch_execution::<Self>(CLOSE),
                (None, Some(Mark::Lap(class))) => instruction.watch_execution::<Self>(LAP + class),
                (None, Some(Mark::Tag(number))) => {
                    tag = Some(number);
                    continue;
                }
                // Addresses of the upper half are larger than anything else that is watched for.
                (None, None) if plain => {
                    instruction.watch_execution::<Self>(instruction.address() as usize);
                }
                (None, None) => {}
            }
            match tag {
                Some(tag) => instruction.watch_memory::<Self>(tag),
                None if witness.scope == Scope::Guests => {
                    instruction.watch_memory::<Self>(UNTAGGED)
                }
                None => {}
            }
        }
    }

    fn wants(vcpu: usize, watch: usize) -> bool {
        let counted = |witness: &Witness| witness.pages.is_open() && witness.sides.in_guest(vcpu);
        watch != UNTAGGED || WITNESS.get().is_some_and(counted)
    }

    fn accessed(vcpu: usize, watch: usize, linear: u64, access: Access) {
        let Some(witness) = WITNESS.get() else { return };
        if watch != UNTAGGED
            && witness
                .counts
                .record(vcpu, watch, access, || witness.elapsed_ms())
            && witness.due()
        {
            witness.report(false);
        }
        let wanted = match witness.scope {
            Scope::Nobody => false,
            Scope::Tagged => watch != UNTAGGED,
            Scope::Guests => witness.sides.in_guest(vcpu),
        };
        if !wanted || !witness.pages.is_open() {
            return;
        }
        match access {
            Access::Load(physical) => witness.pages.record(vcpu, physical, linear, false),
            Access::Store(physical) => witness.pages.record(vcpu, physical, linear, true),
            Access::Device => {}
        }
    }

    fn executed(vcpu: usize, watch: usize) {
        let Some(witness) = WITNESS.get() else { return };
        let host = witness.host.as_ref();
        match watch {
            address if address as u64 >= UPPER_HALF => {
                if let Some(host) = host.filter(|_| !witness.sides.in_guest(vcpu)) {
                    host.high(vcpu, address as u64);
                }
            }
            LEAVES => {
                if let Some(host) = host {
                    host.high(vcpu, 0);
                    host.leaves(vcpu);
                }
                witness.sides.switch(vcpu, Switch::Leaves);
            }
            RETURNS => {
                witness.sides.switch(vcpu, Switch::Returns);
                if let Some(host) = host {
                    host.returns(vcpu);
                    host.high(vcpu, 0);
                }
            }
            FLUSH => witness.report(false),
            OPEN => witness.pages.open(witness.elapsed_ms()),
            CLOSE => witness.pages.close(witness.elapsed_ms()),
            lap => {
                if let Some(host) = host {
                    host.lap(vcpu, lap - LAP);
                }
            }
        }
    }

    fn entered(vcpu: usize, watch: usize) {
        if let Some(witness) = WITNESS.get()
            && let Some(host) = witness.host.as_ref()
            && !witness.sides.in_guest(vcpu)
        {
            host.low(vcpu, watch as u64);
        }
    }

    fn timed(vcpu: usize, instructions: usize) {
        if let Some((clock, timers)) = WITNESS.get().and_then(|w| w.clock.as_ref()) {
            clock.executes(vcpu, instructions, timers);
        }
    }

    fn idles(vcpu: usize) {
        if let Some((clock, _)) = WITNESS.get().and_then(|w| w.clock.as_ref()) {
            clock.idles(vcpu);
        }
    }

    fn resumes(vcpu: usize) {
        if let Some((clock, _)) = WITNESS.get().and_then(|w| w.clock.as_ref()) {
            clock.resumes(vcpu);
        }
    }

    fn ended() {
        if let Some(witness) = WITNESS.get() {
            witness.report(true);
        }
    }
}
