//! Runs one instruction natively, in this process, on registers and memory of one's choice.
//!
//! The processor that runs the tests is the best reference for the emulator's arithmetic. An
//! [`Arena`] is some pages below 4 GiB: code, registers, and a window of data between pages
//! that cannot be touched. [`Arena::run`] loads all general-purpose and vector registers and the flags, jumps
//! to the instruction, and takes everything back when it is done or has faulted.
//!
//! Faults arrive as signals, are handled on a stack of their own (the instruction may have any stack
//! pointer) and end the run like the instruction's end does; a fault anywhere else is none of
//! ours and ends the process. Only one arena exists at a time, since the handler must know it.
#![cfg(target_arch = "x86_64")]
#![expect(
    unsafe_code,
    reason = "makes pages executable, jumps to them and handles their faults"
)]

mod arena;
mod signal;
mod stub;

pub use arena::{Arena, Fault, State, WINDOW_BYTES};
