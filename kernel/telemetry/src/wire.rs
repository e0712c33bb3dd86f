//! The line format between the kernel and the tools: one JSON object a line.
//!
//! `{"at_ns":1234,"seq":7,"event":{"kind":"boot_phase","name":"smp"}}`
//!
//! JSON and not something denser, because a line that a person can read in a serial log is worth
//! more here than bytes: the kernel sends dozens of records a second, not millions.

use alloc::string::{String, ToString};
use core::fmt;
use serde::{Deserialize, Serialize};
use units::Nanos;

use crate::event::Event;

/// An event with its time and number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, on the kernel's clock.
    pub at_ns: Nanos,
    /// Number in the run, without gaps.
    pub seq: u64,
    /// What.
    pub event: Event,
}

/// Why a line is not a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The parser's complaint, with its column.
    pub what: String,
    /// Beginning of the line.
    pub line: String,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "telemetry line is not a record and was skipped: {} in {:?}",
            self.what, self.line
        )
    }
}

impl core::error::Error for WireError {}

/// The record as one line of JSON, without the line break.
///
/// Serialising our own types into memory cannot fail; should a change make it possible, the line
/// says so instead of vanishing.
pub fn to_line(record: &Record) -> String {
    serde_json::to_string(record).unwrap_or_else(|e| {
        alloc::format!("{{\"unserialisable\":\"{}\",\"seq\":{}}}", e, record.seq)
    })
}

/// Writes the record and a line break.
///
/// # Errors
/// Those of `out`.
pub fn write_line(record: &Record, out: &mut impl fmt::Write) -> fmt::Result {
    out.write_str(&to_line(record))?;
    out.write_char('\n')
}

/// Reads a line that [`write_line`] wrote; white space around it is ignored.
///
/// # Errors
/// [`WireError`] when the line is torn or of another version.
pub fn from_line(line: &str) -> Result<Record, WireError> {
    serde_json::from_str(line.trim()).map_err(|e| WireError {
        what: e.to_string(),
        line: line.chars().take(80).collect(),
    })
}
