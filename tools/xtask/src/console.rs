//! The person's terminal: raw mode that is always undone, and what of the machine's output it sees.

use std::io::{IsTerminal, stdin, stdout};

use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

/// Puts the terminal into raw mode until dropped, also while unwinding.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Raw mode, if a person sits at a terminal and we are in its foreground. Output processing stays
    /// on, so that line ends are right whoever writes them.
    pub fn enter() -> Option<Self> {
        if !stdin().is_terminal() || !stdout().is_terminal() {
            return None;
        }
        if termios::tcgetpgrp(stdin()).ok()? != rustix::process::getpgrp() {
            return None;
        }
        let before = termios::tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.local_modes &=
            !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN);
        raw.input_modes &=
            !(termios::InputModes::ICRNL | termios::InputModes::IXON | termios::InputModes::BRKINT);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        termios::tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &self.before);
        // Colours and a hidden cursor that a guest left behind.
        let _ = rustix::io::write(stdout(), b"\x1b[0m\x1b[?25h");
    }
}

/// Removes terminal escape sequences (ECMA-48, 5.4) and carriage returns from a stream of bytes that
/// arrives in pieces. What a terminal would write over the beginning of a line becomes a line of its own.
#[derive(Debug, Default)]
pub struct Plain {
    state: State,
    /// A carriage return came last: what follows would go over the line, unless it is a line feed.
    returned: bool,
    /// Something stands in the line.
    in_line: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    /// Inside a control sequence, until its final byte.
    Control,
    /// Inside an operating system command, until BEL or ESC \.
    Command,
}

impl Plain {
    /// What remains of the next piece.
    pub fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.state = match (self.state, byte) {
                (State::Command, 0x07) => State::Text,
                (State::Command, 0x1b) | (State::Text, 0x1b) => State::Escape,
                (State::Command, _) => State::Command,
                (State::Escape, b'[') => State::Control,
                (State::Escape, b']') => State::Command,
                (State::Escape, _) => State::Text,
                (State::Control, 0x40..=0x7e) => State::Text,
                (State::Control, _) => State::Control,
                (State::Text, b'\r') => {
                    self.returned = true;
                    State::Text
                }
                (State::Text, _) => {
                    if std::mem::take(&mut self.returned) && self.in_line && *byte != b'\n' {
                        plain.push(b'\n');
                    }
                    self.in_line = *byte != b'\n';
                    plain.push(*byte);
                    State::Text
                }
            };
        }
        plain
    }
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

/// A line longer than this is cut, so that a guest cannot fill our memory with one.
const LONGEST_LINE: usize = 64 * 1024;

impl Lines {
    /// The lines that are whole with the next piece.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        for byte in bytes {
            if *byte == b'\n' || self.partial.len() >= LONGEST_LINE {
                whole.extend(self.rest());
            }
            if *byte != b'\n' {
                self.partial.push(*byte);
            }
        }
        whole
    }

    /// The line that has no end yet.
    pub fn rest(&mut self) -> Option<String> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned();
        (!line.trim().is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_s_screen_control_disappears_wherever_it_is_cut() {
        let text = b"\x1b[2J\x1b[01;01H\x1b[=3hBds\x1b[0m: ok\r\n\x1b]0;title\x07end\n";
        for cut in 0..text.len() {
            let mut plain = Plain::default();
            let mut out = plain.filter(&text[..cut]);
            out.extend(plain.filter(&text[cut..]));
            assert_eq!(
                String::from_utf8_lossy(&out),
                "Bds: ok\nend\n",
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_line_drawn_over_another_stands_by_itself() {
        let mut plain = Plain::default();
        let mut out = plain.filter(b"perigee> v\r\x1b[K[alpha] hi\r\nperigee> v\r");
        out.extend(plain.filter(b"\n\r\rend\n"));
        assert_eq!(
            String::from_utf8_lossy(&out),
            "perigee> v\n[alpha] hi\nperigee> v\nend\n"
        );
    }

    #[test]
    fn lines_come_whole() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\n\nthree"), ["two"]);
        assert_eq!(lines.rest().as_deref(), Some("three"));
        assert_eq!(lines.rest(), None);
        assert!(lines.push(&vec![b'x'; LONGEST_LINE + 1]).len() == 1);
    }
}
