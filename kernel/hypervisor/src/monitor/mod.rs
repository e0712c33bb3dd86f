//! The operator's console: one serial line for Perigee and all guests.
//!
//! What the operator types goes to the console in focus: Perigee's own, where a line is a
//! command, or a guest's. Ctrl-A and a digit switch. What guests print comes with the VM's name in
//! front, whoever has the focus.
//!
//! Only the boot CPU reads the line; it looks every [`POLL`], between entries.

mod commands;
mod mux;
mod report;

pub use mux::{has_focus, show_line, show_partial};

use crate::console;
use crate::arch::time;
use crate::virt::Backend;
use crate::vm::{self, Hypervisor};
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::Mutex;
use units::{CpuId, Nanos};

/// How often the boot CPU looks for input.
const POLL: Nanos = Nanos::from_millis(20);
/// Longest command line; what is longer is cut.
const LINE_MAX: usize = 200;
/// Bytes taken in one look, so that a flood of input cannot stop the guests.
const BYTES_PER_LOOK: usize = 64;
const CTRL_A: u8 = 1;
const BACKSPACE: u8 = 8;
const DELETE: u8 = 0x7f;

static NEXT_LOOK_NS: AtomicU64 = AtomicU64::new(0);
static INPUT: Mutex<Input> = Mutex::new(Input { line: String::new(), prefix: false });

/// What has been typed.
struct Input {
    line: String,
    /// The last byte was Ctrl-A.
    prefix: bool,
}

/// When this CPU must look at the latest.
pub fn next_poll(cpu: CpuId) -> Option<Nanos> {
    (cpu == CpuId(0)).then(|| Nanos(NEXT_LOOK_NS.load(Relaxed)))
}

/// Looks for input if it is time and this CPU's task.
pub fn poll<B: Backend>(hv: &Hypervisor<B>, cpu: CpuId) {
    let now = time::now();
    if cpu != CpuId(0) || now.0 < NEXT_LOOK_NS.load(Relaxed) {
        return;
    }
    NEXT_LOOK_NS.store((now + POLL).0, Relaxed);
    for _ in 0..BYTES_PER_LOOK {
        let Some(byte) = console::read_byte() else { return };
        if let Some(command) = take(hv, byte) {
            commands::execute(hv, &command);
        }
    }
}

/// Takes one byte; a finished line for Perigee is returned.
fn take<B: Backend>(hv: &Hypervisor<B>, byte: u8) -> Option<String> {
    let mut input = INPUT.lock();
    if core::mem::take(&mut input.prefix) {
        switch(hv, byte);
        return None;
    }
    if byte == CTRL_A {
        input.prefix = true;
        return None;
    }
    if let Some(id) = mux::focus() {
        if let Some(vm) = hv.vm(id) {
            vm::with_board(hv, vm, |board, _| board.serial_input(&[byte]));
        }
        return None;
    }
    match byte {
        b'\r' | b'\n' => {
            console::print(format_args!("\n"));
            return Some(core::mem::take(&mut input.line));
        }
        BACKSPACE | DELETE => {
            if input.line.pop().is_some() {
                console::print(format_args!("\u{8} \u{8}"));
            }
        }
        b' '..=b'~' if input.line.len() < LINE_MAX => {
            input.line.push(char::from(byte));
            console::print(format_args!("{}", char::from(byte)));
        }
        _ => {}
    }
    None
}

/// The key after Ctrl-A.
fn switch<B: Backend>(hv: &Hypervisor<B>, key: u8) {
    match key {
        b'0' => mux::set_focus(None),
        b'1'..=b'9' => match hv.vms.get(usize::from(key - b'1')) {
            Some(vm) => mux::set_focus(Some(vm.id)),
            None => {
                console::print(format_args!("perigee: there is no VM {}; the focus stays\n", key - b'0'));
                return;
            }
        },
        b'n' => {
            let next = match mux::focus() {
                None => hv.vms.first(),
                Some(id) => hv.vms.iter().skip_while(|vm| vm.id != id).nth(1),
            };
            mux::set_focus(next.map(|vm| vm.id));
        }
        _ => {
            console::print(format_args!("Ctrl-A 0: Perigee, Ctrl-A 1 to 9: that VM, Ctrl-A n: the next\n"));
            return;
        }
    }
    match mux::focus().and_then(|id| hv.vm(id)) {
        Some(vm) => console::print(format_args!("-- input goes to {} --\n", vm.name)),
        None => console::print(format_args!("-- input goes to Perigee --\n")),
    }
}
