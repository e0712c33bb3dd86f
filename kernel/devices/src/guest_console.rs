//! What a guest prints: collected to lines, each shown with the VM's name.
//!
//! A shell edits its line with backspaces and a few control sequences (ECMA-48, 8.3). They are carried out
//! on the line kept here, so that no guest can move the operator's cursor.
//!
//! A guest may print faster than any console shows. So its lines wait here, up to [`WAITING_BYTES`], until the monitor
//! comes for them ([`GuestConsole::next_line`]); what comes while they are full is dropped and counted. Whoever runs the guest
//! never waits for a wire.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;

/// Longest line kept together; a longer one is shown in pieces.
const LINE_BYTES: usize = 512;
/// Most bytes of finished lines that wait to be shown.
const WAITING_BYTES: usize = 64 << 10;
const BACKSPACE: u8 = 0x08;
const ESCAPE: u8 = 0x1b;

/// One VM's unfinished line.
#[derive(Debug, Default)]
pub struct GuestConsole {
    line: Vec<u8>,
    /// Where the next byte goes in it.
    cursor: usize,
    escape: Escape,
    /// The unfinished line is not what was shown of it.
    changed: bool,
    /// Finished lines.
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// Lines that found no room since the last that did.
    dropped: u64,
}

/// Where in a control sequence the output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Begun,
    Control,
}

impl GuestConsole {
    /// Takes bytes that the guest wrote to its serial port.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.escape = match (self.escape, byte) {
                (Escape::None, ESCAPE) => Escape::Begun,
                (Escape::None, b'\n') => {
                    self.end_line();
                    Escape::None
                }
                (Escape::None, byte) => {
                    self.put(byte);
                    Escape::None
                }
                (Escape::Begun, b'[') => Escape::Control,
                (Escape::Control, 0x20..=0x3f) => Escape::Control, // parameters
                (Escape::Control, b'J' | b'K') => {
                    self.line.truncate(self.cursor);
                    Escape::None
                }
                (Escape::Begun | Escape::Control, _) => Escape::None,
            };
            if self.line.len() >= LINE_BYTES {
                self.end_line();
            }
        }
        self.changed = true;
    }

    /// The oldest line that waits to be shown.
    pub fn next_line(&mut self) -> Option<Vec<u8>> {
        let Some(line) = self.waiting.pop_front() else {
            let dropped = core::mem::take(&mut self.dropped);
            return (dropped > 0).then(|| notice(dropped));
        };
        self.waiting_bytes -= line.len();
        Some(line)
    }

    /// The unfinished line, if it has changed since it was last asked for.
    pub fn changed_line(&mut self) -> Option<&[u8]> {
        core::mem::take(&mut self.changed).then_some(self.line.as_slice())
    }

    /// The unfinished line is to be shown again.
    pub fn show_again(&mut self) {
        self.changed = true;
    }

    /// Makes an unfinished line a whole one: nothing follows.
    pub fn finish(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }

    fn put(&mut self, byte: u8) {
        match byte {
            b'\r' => self.cursor = 0,
            BACKSPACE => self.cursor = self.cursor.saturating_sub(1),
            0x07 => {}
            _ => {
                match self.line.get_mut(self.cursor) {
                    Some(at) => *at = byte,
                    None => self.line.push(byte),
                }
                self.cursor += 1;
            }
        }
    }

    fn end_line(&mut self) {
        let line = core::mem::take(&mut self.line);
        self.cursor = 0;
        // Empty lines count as well, or they would be free.
        let room = WAITING_BYTES.saturating_sub(self.waiting_bytes + self.waiting.len());
        if line.len() >= room {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        if self.dropped > 0 {
            let notice = notice(core::mem::take(&mut self.dropped));
            self.wait(notice);
        }
        self.wait(line);
    }

    fn wait(&mut self, line: Vec<u8>) {
        self.waiting_bytes += line.len();
        self.waiting.push_back(line);
    }
}

/// What stands in the place of lines that found no room.
fn notice(dropped: u64) -> Vec<u8> {
    format!("({dropped} lines were dropped: the guest prints faster than the console shows)")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    fn lines(console: &mut GuestConsole) -> Vec<String> {
        let next = || console.next_line();
        core::iter::from_fn(next)
            .map(|line| String::from_utf8_lossy(&line).into_owned())
            .collect()
    }

    #[test]
    fn a_shell_edits_its_line() {
        let mut console = GuestConsole::default();
        console.write(b"# lss\x08 \x08\x08s\x1b[K\r\n");
        assert_eq!(lines(&mut console), ["# ls"]);
        console.write(b"abc\rX");
        assert_eq!(console.changed_line(), Some(&b"Xbc"[..]));
        assert_eq!(console.changed_line(), None, "it was shown");
        console.finish();
        assert_eq!(lines(&mut console), ["Xbc"]);
    }

    #[test]
    fn a_flood_is_dropped_counted_and_said() {
        let mut console = GuestConsole::default();
        let line = [b'x'; 99];
        let flood = 10_000;
        for _ in 0..flood {
            console.write(&line);
            console.write(b"\n");
        }
        assert!(console.waiting_bytes <= WAITING_BYTES);
        let kept = console.waiting.len();
        assert!(kept > 100 && kept < flood);
        let shown = lines(&mut console);
        assert_eq!(shown.len(), kept + 1);
        let notice = shown.last().map(String::as_str).unwrap_or_default();
        assert!(
            notice.starts_with(&std::format!("({} lines were dropped", flood - kept)),
            "{notice}"
        );
        // After that it goes on as before.
        console.write(b"calm\n");
        assert_eq!(lines(&mut console), ["calm"]);
    }

    #[test]
    fn the_notice_stands_where_the_lines_are_missing() {
        let mut console = GuestConsole::default();
        let fill = |console: &mut GuestConsole| {
            while console.dropped == 0 {
                console.write(&[b'x'; 400]);
                console.write(b"\n");
            }
        };
        fill(&mut console);
        for _ in 0..10 {
            assert!(console.next_line().is_some());
        }
        console.write(b"later\n");
        let shown = lines(&mut console);
        let at = shown
            .iter()
            .position(|line| line.starts_with("(1 lines were dropped"));
        assert_eq!(at, shown.len().checked_sub(2));
        assert_eq!(shown.last().map(String::as_str), Some("later"));
    }

    #[test]
    fn empty_lines_are_not_free() {
        let mut console = GuestConsole::default();
        console.write(&[b'\n'; 4 * WAITING_BYTES]);
        assert!(console.waiting.len() <= WAITING_BYTES);
    }
}
