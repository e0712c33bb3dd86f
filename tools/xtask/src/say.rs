//! What xtask itself tells the person: on stderr, so that stdout belongs to the machine's console.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// A line about what happens now.
pub fn step(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr(), "xtask: {}", text.as_ref());
}

/// A line of the run itself, on stdout. A reader that went away is no reason to stop: the exit status and
/// the report remain.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
}

/// A size as a person reads it.
pub fn megabytes(bytes: u64) -> String {
    if bytes < 1_000_000 {
        format!("{} kB", bytes.div_ceil(1000))
    } else {
        format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
    }
}

/// How long a download may take, told before it starts: at 2 MB/s, a slow line by today's measure.
pub fn expected(bytes: u64) -> String {
    match bytes.div_ceil(2_000_000).div_ceil(60) {
        0 | 1 => "about a minute or less".into(),
        minutes => format!("about {minutes} minutes or less"),
    }
}

/// Progress of a download: a line that rewrites itself on a terminal, else a line every ten seconds.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    last: Instant,
    terminal: bool,
    started: Instant,
}

impl Progress {
    /// Of `total` bytes.
    pub fn new(what: &'static str, total: u64) -> Self {
        let now = Instant::now();
        Self {
            what,
            total,
            last: now,
            terminal: std::io::stderr().is_terminal(),
            started: now,
        }
    }

    /// So many bytes are there.
    pub fn at(&mut self, bytes: u64) {
        let every = if self.terminal {
            Duration::from_millis(500)
        } else {
            Duration::from_secs(10)
        };
        if self.last.elapsed() < every {
            return;
        }
        self.last = Instant::now();
        let percent = (bytes.min(self.total) * 100)
            .checked_div(self.total)
            .unwrap_or(100);
        let line = format!(
            "xtask: {} {} of {}, {percent} %",
            self.what,
            megabytes(bytes),
            megabytes(self.total)
        );
        let _ = if self.terminal {
            write!(std::io::stderr(), "\r{line}  ")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
    }

    /// All of it is there.
    pub fn done(self) {
        let start = if self.terminal { "\r" } else { "" };
        let seconds = self.started.elapsed().as_secs();
        let _ = writeln!(
            std::io::stderr(),
            "{start}xtask: {} {} took {seconds} s      ",
            self.what,
            megabytes(self.total)
        );
    }
}
