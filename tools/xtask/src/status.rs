//! How xtask ends: a promise to scripts.
//!
//! 0 clean, 1 guest failure or data mismatch (also: a trial failed), 2 usage, 3 hypervisor panic,
//! 4 timeout, 5 something that xtask needs could not be built, installed or started, 130 interrupted.

use std::fmt;

/// A mistake of the person's: told without a backtrace, ends with status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The person stopped xtask outside of a run, in which case nothing more needs to be told.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The usage error with this sentence.
pub fn usage(sentence: impl Into<String>) -> anyhow::Error {
    Usage(sentence.into()).into()
}

/// The exit status for a failure before or beside a run.
pub fn of_error(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() {
        2
    } else if error.is::<Interrupted>() {
        130
    } else {
        5
    }
}
