//! The instruction behind an access to a device's memory: decoded, then executed.
//!
//! A device has no memory for the nested page tables to map, so the processor exits instead, with
//! the guest-physical address but not with what the instruction wanted. [`decode`] reads its
//! bytes into a small [`Operation`]; [`execute`] carries it out on a copy of the registers. Memory is reached as
//! the processor does it: offset to linear address by the segment (`address.rs`), linear to guest-physical
//! by the guest's own page tables, then RAM or a device, each byte where it belongs (`bus.rs`).
//!
//! Invariants:
//! * Every operand is reached before the first one is touched. So an instruction that faults has changed
//!   nothing, not even a device; only the elements of a repeated string instruction that are done stay done.
//! * Work is bounded: [`ELEMENTS`] of a repeated string instruction, then [`Completion::Repeat`] leaves the
//!   instruction pointer where it is, and the guest, which can take an interrupt there, comes back.
//! * The processor does better what has no operand in a device: [`Refusal::Ordinary`] hands it back. That
//!   happens when another processor rewrote the instruction or a page table meanwhile.
//!
//! The set is what compilers, drivers and memory functions use, and what else costs little: moves with
//! extension, byte order, condition and from vector registers; arithmetic, logic, shifts, bits, exchanges,
//! products, quotients; strings; pushes, pops, calls, frames; selectors with their descriptors. What is not in it is named by [`DecodeError`]. Each form is
//! compared with a real processor by `tests/native`.

mod address;
pub(crate) mod alu;
mod bus;
mod cpu;
pub(crate) mod decode;
mod execute;
mod instruction;
mod stack;
mod string;
mod system;
mod vector;

pub use address::{is_canonical, linear, reach};
pub use bus::{Bus, Devices, GuestBus, Known, Place, split_at_page};
pub use cpu::{CpuState, Vectors};
pub use decode::{DecodeError, decode, memory_address, memory_segment};
pub use execute::execute;
pub use instruction::{
    Address, Alu, BitOp, CodeSize, Condition, Convert, Fill, MmioInstruction, Operation, Part, Reg,
    Rep, Scan, SegmentRegister, SelectorRegister, Shift, Source, StackOperand, StringOp, Unary,
    VectorEncoding,
};
pub use string::ELEMENTS;
pub use system::{Loaded, SystemLoad, Tables, load_descriptor};

use crate::inject::Exception;
use crate::walk::WalkError;

/// Why an instruction was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It raises this.
    Exception(Exception),
    /// Its operand's address does not translate.
    Walk(WalkError),
    /// None of its operands is in a device: the processor can execute it.
    Ordinary,
}

impl From<Exception> for Refusal {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl From<WalkError> for Refusal {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The instruction is done: RIP moves on by its length.
    Advance,
    /// The instruction is done: RIP becomes this.
    Jump(u64),
    /// A selector has been read, and nothing is changed yet: [`load_descriptor`] does the rest.
    System(SystemLoad),
    /// Some elements of a repeated string instruction are done and more remain: RIP stays.
    Repeat,
}

#[cfg(test)]
mod tests;
