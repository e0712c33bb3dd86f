//! Whose turn the one serial line is.
//!
//! Whole lines of anybody go to the console as they come. The unfinished line at its end belongs to
//! the one who has the input: the guest's prompt, or Perigee's with what has been typed. The console
//! keeps it standing below everything else ([`console::stand`]).

use crate::console;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use spin::Mutex;
use units::VmId;

/// Perigee's own console, in [`FOCUS`].
const PERIGEE: u32 = u32::MAX;
static FOCUS: AtomicU32 = AtomicU32::new(PERIGEE);
/// Held while the focus and the standing line change together. Before the console's own lock.
static STANDING: Mutex<()> = Mutex::new(());

/// The VM that gets input, or Perigee.
pub fn focus() -> Option<VmId> {
    match FOCUS.load(Relaxed) {
        PERIGEE => None,
        vm => Some(VmId(vm as u16)),
    }
}

/// Gives the input to a VM, or to Perigee.
pub fn set_focus(vm: Option<VmId>) {
    let _standing = STANDING.lock();
    console::stand("");
    FOCUS.store(vm.map_or(PERIGEE, |vm| u32::from(vm.0)), Relaxed);
}

/// Whether this VM gets input.
fn has_focus(vm: VmId) -> bool {
    focus() == Some(vm)
}

/// Shows a finished line of a guest.
pub fn show_line(vm: VmId, name: &str, line: &[u8]) {
    let _standing = STANDING.lock();
    let text = format!("[{name}] {}", printable(line));
    if has_focus(vm) {
        console::stand(&text);
        console::settle();
    } else {
        console::print(format_args!("{text}\n"));
    }
}

/// Shows what a guest has printed without ending the line, if it is the one that gets input: whoever
/// types must see its prompt.
pub fn show_partial(vm: VmId, name: &str, line: &[u8]) {
    if !has_focus(vm) {
        return; // the usual case needs no lock
    }
    let _standing = STANDING.lock();
    if has_focus(vm) {
        console::stand(&format!("[{name}] {}", printable(line)));
    }
}

/// Shows Perigee's prompt and what has been typed.
pub fn show_prompt(text: &str) {
    let _standing = STANDING.lock();
    if focus().is_none() {
        console::stand(text);
    }
}

/// Guests print what they like; control characters that would move the operator's cursor stay out.
fn printable(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        text.extend(
            chunk
                .valid()
                .chars()
                .map(|c| if c == '\t' || !c.is_control() { c } else { '?' }),
        );
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}
