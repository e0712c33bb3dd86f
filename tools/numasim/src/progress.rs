//! A bar on the terminal, for runs that last.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A bar; nothing is shown where standard error is no terminal.
#[derive(Debug)]
pub struct Bar {
    what: &'static str,
    all: u64,
    done: AtomicU64,
    began: Instant,
    shown: bool,
}

impl Bar {
    /// At the beginning of `all` steps.
    pub fn new(what: &'static str, all: u64) -> Self {
        Self {
            what,
            all: all.max(1),
            done: AtomicU64::new(0),
            began: Instant::now(),
            shown: std::io::stderr().is_terminal(),
        }
    }

    /// One step is done.
    pub fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.shown {
            return;
        }
        let full = (done * 40 / self.all) as usize;
        let spent = self.began.elapsed().as_secs_f64();
        let left = spent / done as f64 * (self.all - done.min(self.all)) as f64;
        eprint!(
            "\r[{}{}] {done} of {} {}, {left:.0} s left ",
            "#".repeat(full),
            " ".repeat(40_usize.saturating_sub(full)),
            self.all,
            self.what
        );
        let _ = std::io::stderr().flush();
    }

    /// All steps are done.
    pub fn end(&self) {
        if self.shown {
            eprintln!();
        }
    }
}
