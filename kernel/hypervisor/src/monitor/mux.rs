//! Whose turn the one serial line is.

use crate::console;
use alloc::string::String;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use spin::Mutex;
use units::VmId;

/// Perigee's own console, in [`FOCUS`].
const PERIGEE: u32 = u32::MAX;
static FOCUS: AtomicU32 = AtomicU32::new(PERIGEE);
/// The VM whose unfinished line is on the screen.
static UNFINISHED: Mutex<Option<VmId>> = Mutex::new(None);

/// The VM that gets input, or Perigee.
pub fn focus() -> Option<VmId> {
    match FOCUS.load(Relaxed) {
        PERIGEE => None,
        vm => Some(VmId(vm as u16)),
    }
}

/// Gives the input to a VM, or to Perigee.
pub fn set_focus(vm: Option<VmId>) {
    FOCUS.store(vm.map_or(PERIGEE, |vm| u32::from(vm.0)), Relaxed);
}

/// Whether this VM gets input.
pub fn has_focus(vm: VmId) -> bool {
    focus() == Some(vm)
}

/// Shows a finished line of a guest.
pub fn show_line(vm: VmId, name: &str, line: &[u8]) {
    let mut unfinished = UNFINISHED.lock();
    let text = printable(line);
    match unfinished.take() {
        Some(id) if id == vm => console::print(format_args!("{text}\n")),
        Some(_) => console::print(format_args!("\n[{name}] {text}\n")),
        None => console::print(format_args!("[{name}] {text}\n")),
    }
}

/// Shows what a guest has printed without ending the line.
pub fn show_partial(vm: VmId, name: &str, line: &[u8]) {
    let mut unfinished = UNFINISHED.lock();
    let text = printable(line);
    match *unfinished {
        Some(id) if id == vm => console::print(format_args!("{text}")),
        Some(_) => console::print(format_args!("\n[{name}] {text}")),
        None => console::print(format_args!("[{name}] {text}")),
    }
    *unfinished = Some(vm);
}

/// Guests print what they like; control characters that would move the operator's cursor stay out.
fn printable(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        text.extend(chunk.valid().chars().map(|c| if c == '\t' || !c.is_control() { c } else { '?' }));
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}
