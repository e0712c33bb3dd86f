//! One run of the emulator, from its start to its end: everything that arrives is kept with the
//! time of its arrival, what a person or a scenario types goes in, and nothing survives the end.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scenarios::{Action, Stamped, Step};
use telemetry::{Event, Record};

use crate::console::{Lines, Plain, RawTerminal};
use crate::control::{Control, Off};
use crate::launch::Invocation;

/// Ctrl-C on a raw terminal.
const CTRL_C: u8 = 3;
/// How often records, signals and the clock are looked at while the console is silent.
const TICK: Duration = Duration::from_millis(20);
/// After a panic was seen, the rest of its report may take this long.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How the loader's last sentence begins.
pub const LOADER_GIVES_UP: &str = "cannot boot: ";

/// The loader's last line before it jumps.
pub const KERNEL_ENTERED: &str = "entering the kernel";
/// The line that begins the kernel's report of its own failure; the next line says what failed.
pub const PANIC_BEGINS: &str = "==== PERIGEE PANIC ====";
/// The line that ends it.
const PANIC_ENDS: &str = "==== end of report ====";

/// Why the emulator is no longer running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It ended by itself; whether in good order.
    ByItself {
        /// Its status.
        status: ExitStatus,
        /// It says that its machine switched itself off.
        well: bool,
    },
    /// The hypervisor panicked; we ended it after the report.
    Panicked,
    /// The loader gave up and said why.
    LoaderGaveUp,
    /// Time ran out.
    TimedOut(Duration),
    /// A signal, or Ctrl-C.
    Interrupted,
}

/// All that a run said.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// Console lines without escape sequences.
    pub console: Vec<Stamped<String>>,
    /// The kernel's records.
    pub records: Vec<Stamped<Record>>,
    /// Lines on the records' port that are none.
    pub torn_records: usize,
    /// How it ended.
    pub ended: Ended,
    /// How long it ran.
    pub took: Duration,
    /// How the machine went off, where the emulator says it.
    pub off: Option<Off>,
    /// What the emulator complained about.
    pub complaints: String,
}

/// How to run.
#[derive(Debug)]
pub struct Manner<'a> {
    /// End the run after this long.
    pub timeout: Option<Duration>,
    /// Show the console to the person and take their keys.
    pub attended: bool,
    /// What happens from outside, in this order.
    pub steps: &'a [Step],
    /// The emulator's control socket, if it has one.
    pub control: Option<&'a Path>,
    /// Folder for `console.log`, `records.jsonl` and `emulator.log`; `processors.log` when the machine ended without word
    /// or its watchdog barked.
    pub folder: &'a Path,
}

/// Set by SIGINT, SIGTERM and SIGHUP, from the first call on.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    static FLAG: std::sync::OnceLock<Arc<AtomicBool>> = std::sync::OnceLock::new();
    let flag = FLAG.get_or_init(Arc::default);
    static ONCE: std::sync::Once = std::sync::Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        for signal in [
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ] {
            if let Err(error) = signal_hook::flag::register(signal, Arc::clone(flag)) {
                result = Err(error);
            }
        }
    });
    result.context("cannot catch signals")?;
    Ok(Arc::clone(flag))
}

/// The file that the kernel's records go to.
pub fn records_file(folder: &Path) -> PathBuf {
    folder.join("records.jsonl")
}

/// Runs the emulator to its end.
///
/// # Errors
/// It cannot be started, or the folder cannot be written.
pub fn run(invocation: &Invocation, manner: &Manner) -> Result<Transcript> {
    let stop = stop_flag()?;
    let records = records_file(manner.folder);
    File::create(&records).with_context(|| format!("cannot write {}", records.display()))?;
    let complaints = manner.folder.join("emulator.log");
    let said = || std::fs::read_to_string(&complaints).unwrap_or_default();
    let mut emulator = invocation
        .spawn(File::create(&complaints)?)
        .with_context(|| format!("the emulator said: {}", said().trim()))?;
    let mut session = Session::new(manner, &records)?;
    let mut control = Control::new(manner.control);

    let (to_us, from_machine) = channel();
    let (console_out, mut console_in) = emulator.console()?;
    read_in_thread(console_out, to_us);
    let terminal = if manner.attended {
        RawTerminal::enter()
    } else {
        None
    };
    session.plain_output = terminal.is_none();
    let keys = if manner.attended {
        keys(terminal.is_some())
    } else {
        None
    };

    let ended = loop {
        let quiet = match from_machine.recv_timeout(TICK) {
            Ok(bytes) => {
                session.console(&bytes)?;
                false
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(TICK);
                true
            }
        };
        session.read_records()?;
        let mut interrupted = stop.load(Ordering::Relaxed);
        if session.kernel_is_up {
            for bytes in keys.iter().flat_map(Receiver::try_iter) {
                let end = bytes
                    .iter()
                    .position(|b| *b == CTRL_C && terminal.is_some());
                interrupted |= end.is_some();
                let _ = console_in.write_all(&bytes[..end.unwrap_or(bytes.len())]);
            }
        } else if terminal.is_some() {
            // Keys that firmware would take for a wish to enter its setup; only Ctrl-C is heard so early.
            interrupted |= keys
                .iter()
                .flat_map(Receiver::try_iter)
                .any(|bytes| bytes.contains(&CTRL_C));
        }
        for action in session.due() {
            match action {
                Action::Type(keys) => console_in
                    .write_all(keys.as_bytes())
                    .context("the console takes no keys")?,
                Action::Nmi => control.inject_nmi()?,
                Action::MachineCheck => control.inject_machine_check()?,
                Action::Stops(times) => control.stop_and_go_on(*times)?,
            }
        }
        let _ = console_in.flush();
        if interrupted {
            break Ended::Interrupted;
        }
        if quiet && control.went_off().is_some() {
            // What is on its way comes before the end.
            while let Ok(bytes) = from_machine.recv_timeout(TICK) {
                session.console(&bytes)?;
            }
            session.read_records()?;
            if !session.ended_with_word() {
                write_processors(&mut control, manner.folder);
            }
            control.quit();
        } else if std::mem::take(&mut session.processor_is_stuck) {
            write_processors(&mut control, manner.folder);
        }
        if quiet && let Some(status) = emulator.child.try_wait()? {
            while let Ok(bytes) = from_machine.recv_timeout(TICK) {
                session.console(&bytes)?;
            }
            emulator.settle();
            session.read_records()?;
            break if session.panicked.is_some() {
                Ended::Panicked
            } else {
                let well = invocation.ended_well(status, &said());
                Ended::ByItself { status, well }
            };
        }
        if session.reported || session.panicked.is_some_and(|at| at.elapsed() > LAST_WORDS) {
            break Ended::Panicked;
        }
        if session.loader_gave_up {
            break Ended::LoaderGaveUp;
        }
        if let Some(limit) = manner
            .timeout
            .filter(|limit| session.start.elapsed() > *limit)
        {
            break Ended::TimedOut(limit);
        }
    };
    let took = session.start.elapsed();
    let off = control.went_off().cloned();
    emulator.end();
    drop(terminal);
    session.finish()?;
    Ok(Transcript {
        console: session.lines,
        records: session.records,
        torn_records: session.torn_records,
        ended,
        took,
        off,
        complaints: said(),
    })
}

/// Writes every processor's registers, for whoever wants to know what it was doing; an emulator that cannot
/// say it is no reason to end the run.
fn write_processors(control: &mut Control, folder: &Path) {
    if let Ok(registers) = control.registers() {
        let _ = std::fs::write(folder.join("processors.log"), registers);
    }
}

/// Passes on what arrives until the source ends or nobody listens.
fn read_in_thread(mut from: impl Read + Send + 'static, to: Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if to.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
}

/// The person's keys, or what is piped in. A terminal that is not ours is left alone: reading it
/// from the background would stop us.
fn keys(raw: bool) -> Option<Receiver<Vec<u8>>> {
    let stdin = std::io::stdin();
    if !raw && stdin.is_terminal() {
        return None;
    }
    let (to_us, keys) = channel();
    read_in_thread(stdin, to_us);
    Some(keys)
}

struct Session<'a> {
    start: Instant,
    attended: bool,
    plain_output: bool,
    plain: Plain,
    cutter: Lines,
    lines: Vec<Stamped<String>>,
    log: File,
    record_file: File,
    record_cutter: Lines,
    records: Vec<Stamped<Record>>,
    torn_records: usize,
    kernel_is_up: bool,
    loader_gave_up: bool,
    panicked: Option<Instant>,
    /// The panic's report is whole.
    reported: bool,
    /// The watchdog has found a processor that does not answer, and nobody has looked at it yet.
    processor_is_stuck: bool,
    steps: &'a [Step],
    /// Lines already searched for the next step.
    searched: usize,
}

impl<'a> Session<'a> {
    fn new(manner: &Manner<'a>, records: &Path) -> Result<Self> {
        let log = manner.folder.join("console.log");
        Ok(Self {
            start: Instant::now(),
            attended: manner.attended,
            plain_output: true,
            plain: Plain::default(),
            cutter: Lines::default(),
            lines: Vec::new(),
            log: File::create(&log).with_context(|| format!("cannot write {}", log.display()))?,
            record_file: File::open(records)?,
            record_cutter: Lines::default(),
            records: Vec::new(),
            torn_records: 0,
            kernel_is_up: false,
            loader_gave_up: false,
            panicked: None,
            reported: false,
            processor_is_stuck: false,
            steps: manner.steps,
            searched: 0,
        })
    }

    fn console(&mut self, bytes: &[u8]) -> Result<()> {
        let plain = self.plain.filter(bytes);
        self.log.write_all(&plain)?;
        if self.attended {
            // Firmware's screen control would wipe the first line, which says how to stop this.
            let raw = !self.plain_output && self.kernel_is_up;
            let mut out = std::io::stdout().lock();
            // A closed pipe is no reason to stop: the report and the exit status remain.
            let _ = out
                .write_all(if raw { bytes } else { &plain })
                .and_then(|()| out.flush());
        }
        let at = self.start.elapsed();
        for what in self.cutter.push(&plain) {
            self.kernel_is_up |= what.contains(KERNEL_ENTERED);
            self.loader_gave_up |= !self.kernel_is_up && what.contains(LOADER_GIVES_UP);
            // Not within a line: guests print what they like, behind their name.
            if self.kernel_is_up && what.trim() == PANIC_BEGINS {
                self.panicked.get_or_insert_with(Instant::now);
            }
            self.reported |= self.panicked.is_some() && what.trim() == PANIC_ENDS;
            self.lines.push(Stamped { at, what });
        }
        Ok(())
    }

    fn read_records(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        // QEMU truncates the file when it starts; whoever is beyond its end begins anew.
        let here = self.record_file.stream_position()?;
        if self.record_file.metadata()?.len() < here {
            self.record_file.seek(SeekFrom::Start(0))?;
        }
        self.record_file.read_to_end(&mut bytes)?;
        let at = self.start.elapsed();
        for line in self.record_cutter.push(&bytes) {
            match telemetry::from_line(&line) {
                Ok(what) => {
                    if matches!(what.event, Event::Panic { .. }) {
                        self.panicked.get_or_insert_with(Instant::now);
                    }
                    self.processor_is_stuck |= matches!(what.event, Event::Watchdog { .. });
                    self.records.push(Stamped { at, what });
                }
                // Firmware takes every UART for a console of its own until the kernel owns it.
                Err(_) if self.records.is_empty() => {}
                Err(_) => self.torn_records += 1,
            }
        }
        Ok(())
    }

    /// Whether the kernel has said that the run is over, or why it cannot go on.
    fn ended_with_word(&self) -> bool {
        let said = |record: &Stamped<Record>| matches!(record.what.event, Event::RunEnd(_));
        self.loader_gave_up || self.panicked.is_some() || self.records.iter().any(said)
    }

    /// What is to happen now, because a line that it waits for has come.
    fn due(&mut self) -> Vec<&'a Action> {
        let mut due = Vec::new();
        while let Some((next, rest)) = self.steps.split_first() {
            let fresh = self.lines.get(self.searched..).unwrap_or_default();
            let Some(found) = fresh
                .iter()
                .position(|line| line.what.contains(&next.after))
            else {
                self.searched = self.lines.len();
                break;
            };
            self.searched += found + 1;
            due.push(&next.what);
            self.steps = rest;
        }
        due
    }

    fn finish(&mut self) -> Result<()> {
        let at = self.start.elapsed();
        self.lines
            .extend(self.cutter.rest().map(|what| Stamped { at, what }));
        if self.attended {
            let _ = writeln!(std::io::stdout());
        }
        Ok(())
    }
}
