//! What a guest prints: collected to lines, each shown with the VM's name.
//!
//! A shell edits its line with backspaces and a few control sequences (ECMA-48, 8.3). They are carried out
//! on the line kept here, so that no guest can move the operator's cursor.

use super::Vm;
use crate::virt::Backend;
use alloc::vec::Vec;

/// Longest line kept together; a longer one is shown in pieces.
const LINE_BYTES: usize = 512;
const BACKSPACE: u8 = 0x08;
const ESCAPE: u8 = 0x1b;

/// One VM's unfinished line.
#[derive(Debug, Default)]
pub struct GuestConsole {
    line: Vec<u8>,
    /// Where the next byte goes in it.
    cursor: usize,
    escape: Escape,
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
    pub fn write<B: Backend>(&mut self, vm: &Vm<B>, bytes: &[u8]) {
        for &byte in bytes {
            self.escape = match (self.escape, byte) {
                (Escape::None, ESCAPE) => Escape::Begun,
                (Escape::None, b'\n') => {
                    self.flush(vm);
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
                self.flush(vm);
            }
        }
        self.show(vm);
    }

    /// Shows the unfinished line, if this VM's console has the operator's input.
    pub fn show<B: Backend>(&self, vm: &Vm<B>) {
        crate::monitor::show_partial(vm.id, &vm.name, &self.line);
    }

    /// Shows an unfinished line as a whole one: nothing follows.
    pub fn finish<B: Backend>(&mut self, vm: &Vm<B>) {
        if !self.line.is_empty() {
            self.flush(vm);
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

    fn flush<B: Backend>(&mut self, vm: &Vm<B>) {
        crate::monitor::show_line(vm.id, &vm.name, &self.line);
        self.line.clear();
        self.cursor = 0;
    }
}
