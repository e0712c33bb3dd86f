//! The operator's console: one serial line for Perigee and all guests.
//!
//! What the operator types goes to the console in focus: Perigee's own, where a line is a
//! command, or a guest's. Ctrl-A and another key switch ([`KEYS`]). What guests print comes with the VM's
//! name in front, whoever has the focus.
//!
//! Perigee's prompt appears with the first key and stays below whatever else is printed, so nobody who
//! only watches sees one.
//!
//! Only the boot CPU reads the line; it looks every [`POLL`], between entries.

mod commands;
mod counters;
mod groups;
mod latency;
mod load;
mod mux;
mod report;
mod table;
mod thresholds;
mod touched;

use crate::arch::time;
use crate::console;
use crate::virt::Backend;
use crate::vm::{self, Hypervisor};
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use mux::{show_line, show_partial};
use spin::Mutex;
use units::{CpuId, Nanos};

/// How often the boot CPU looks for input.
const POLL: Nanos = Nanos::from_millis(20);
/// The same while output waits for a wire: so long 16 bytes, what a UART holds, take at 115,200 baud.
const POLL_FOR_OUTPUT: Nanos = Nanos::from_micros(1_400);
/// Longest command line; what is longer is cut.
const LINE_MAX: usize = 200;
/// Room that the console must have for a line of a guest with its name: three bytes may stand for one that is no text.
const LINE_ROOM: usize = 2 << 10;
/// Bytes taken in one look, so that a flood of input cannot stop the guests.
const BYTES_PER_LOOK: usize = 64;
const CTRL_A: u8 = 1;
const CTRL_C: u8 = 3;
const BACKSPACE: u8 = 8;
const CTRL_U: u8 = 0x15;
const DELETE: u8 = 0x7f;
const PROMPT: &str = "perigee> ";
/// What the key after Ctrl-A does.
const KEYS: [(&str, &str); 4] = [
    ("Ctrl-A 0", "input goes to Perigee"),
    ("Ctrl-A 1 to 9", "input goes to that VM"),
    ("Ctrl-A n", "input goes to the next one"),
    ("Ctrl-A a", "sends Ctrl-A to the VM"),
];

static NEXT_LOOK_NS: AtomicU64 = AtomicU64::new(0);
static INPUT: Mutex<Input> = Mutex::new(Input {
    line: String::new(),
    prefix: false,
    was_return: false,
});

/// What has been typed.
struct Input {
    line: String,
    /// The last byte was Ctrl-A.
    prefix: bool,
    /// The last byte was a carriage return: a line feed behind it is none of its own.
    was_return: bool,
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
    show_guests(hv);
    let typed = core::iter::from_fn(console::read_byte);
    for byte in typed.take(BYTES_PER_LOOK) {
        if let Some(command) = take(hv, byte) {
            commands::execute(hv, &command);
            prompt("");
        }
    }
    if console::is_sending() {
        NEXT_LOOK_NS.store((now + POLL_FOR_OUTPUT).0, Relaxed);
    }
}

/// Shows what guests have printed, as much as the console takes without waiting, and one line of each in turn. Where the console
/// is slow the next look goes on with the VM whose turn it is, or who floods would leave no room for those behind him.
fn show_guests<B: Backend>(hv: &Hypervisor<B>) {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let mut silent = 0;
    while silent < hv.vms.len() {
        if console::room() < LINE_ROOM {
            return;
        }
        let turn = TURN.fetch_add(1, Relaxed) % hv.vms.len();
        let Some(vm) = hv.vms.get(turn) else { return };
        let line = vm.console.lock().next_line();
        match line {
            Some(line) => {
                show_line(vm.id, &vm.name, &line);
                silent = 0;
            }
            None => silent += 1,
        }
    }
    if let Some(vm) = mux::focus().and_then(|id| hv.vm(id)) {
        let line = vm.console.lock().changed_line().map(<[u8]>::to_vec);
        if let Some(line) = line {
            show_partial(vm.id, &vm.name, &line);
        }
    }
}

/// Shows everything that guests have printed, however long that takes: the machine is about to go off.
pub fn show_all_of_guests<B: Backend>(hv: &Hypervisor<B>) {
    for vm in &hv.vms {
        loop {
            let line = vm.console.lock().next_line();
            match line {
                Some(line) => show_line(vm.id, &vm.name, &line),
                None => break,
            }
        }
    }
}

/// Shows the prompt with what has been typed.
fn prompt(typed: &str) {
    mux::show_prompt(&format!("{PROMPT}{typed}"));
}

/// Takes one byte; a finished line for Perigee is returned.
fn take<B: Backend>(hv: &Hypervisor<B>, byte: u8) -> Option<String> {
    let mut input = INPUT.lock();
    let after_return = core::mem::replace(&mut input.was_return, byte == b'\r');
    if core::mem::take(&mut input.prefix) {
        switch(hv, byte, &input.line);
        return None;
    }
    if byte == CTRL_A {
        input.prefix = true;
        return None;
    }
    if let Some(id) = mux::focus() {
        send(hv, id, byte);
        return None;
    }
    match byte {
        b'\n' if after_return => return None,
        b'\r' | b'\n' => {
            prompt(&input.line);
            console::settle();
            return Some(core::mem::take(&mut input.line));
        }
        BACKSPACE | DELETE => drop(input.line.pop()),
        CTRL_U | CTRL_C => input.line.clear(),
        b' '..=b'~' if input.line.len() < LINE_MAX => input.line.push(char::from(byte)),
        _ => return None,
    }
    prompt(&input.line);
    None
}

/// Types a byte into a VM's serial port.
fn send<B: Backend>(hv: &Hypervisor<B>, to: units::VmId, byte: u8) {
    if let Some(vm) = hv.vm(to) {
        vm::with_board(hv, vm, |board, _| board.serial_input(&[byte]));
    }
}

/// The key after Ctrl-A; `typed` is what stands in Perigee's own line.
fn switch<B: Backend>(hv: &Hypervisor<B>, key: u8, typed: &str) {
    match key {
        b'0' => mux::set_focus(None),
        b'1'..=b'9' => match hv.vms.get(usize::from(key - b'1')) {
            Some(vm) => mux::set_focus(Some(vm.id)),
            None => {
                console::print(format_args!(
                    "there is no VM {}; input goes where it went\n",
                    key - b'0'
                ));
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
        b'a' | CTRL_A => {
            if let Some(id) = mux::focus() {
                send(hv, id, CTRL_A);
            }
            return;
        }
        _ => {
            for (key, about) in KEYS {
                console::print(format_args!("  {key:<16}{about}\n"));
            }
            return;
        }
    }
    match mux::focus().and_then(|id| hv.vm(id)) {
        Some(vm) => {
            console::print(format_args!(
                "-- input goes to {}; Ctrl-A 0 brings it back --\n",
                vm.name
            ));
            vm.console.lock().show_again();
        }
        None => {
            console::print(format_args!("-- input goes to Perigee --\n"));
            prompt(typed);
        }
    }
}
