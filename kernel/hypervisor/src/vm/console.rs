//! What a guest prints: collected to lines, each shown with the VM's name.

use super::Vm;
use crate::virt::Backend;
use alloc::vec::Vec;

/// Longest line kept together; a longer one is shown in pieces.
const LINE_BYTES: usize = 512;

/// One VM's unfinished line.
#[derive(Debug, Default)]
pub struct GuestConsole {
    line: Vec<u8>,
}

impl GuestConsole {
    /// Takes bytes that the guest wrote to its serial port.
    pub fn write<B: Backend>(&mut self, vm: &Vm<B>, bytes: &[u8]) {
        let raw = crate::monitor::has_focus(vm.id);
        for &byte in bytes {
            match byte {
                b'\n' => self.flush(vm),
                b'\r' => {}
                _ => self.line.push(byte),
            }
            if self.line.len() >= LINE_BYTES {
                self.flush(vm);
            }
        }
        // A prompt has no line end: whoever types into this console must see it.
        if raw && !self.line.is_empty() {
            crate::monitor::show_partial(vm.id, &vm.name, &self.line);
            self.line.clear();
        }
    }

    /// Shows what has been collected.
    pub fn flush<B: Backend>(&mut self, vm: &Vm<B>) {
        crate::monitor::show_line(vm.id, &vm.name, &self.line);
        self.line.clear();
    }
}
