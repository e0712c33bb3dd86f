//! What a stopped guest is about to touch, read from its own memory.

use crate::Input;
use crate::emulator::{register, segment};
use crate::memory::SmallMemory;
use crate::walk::paging;
use guest::GuestMemory;
use guest::mmio::{CodeSize, CpuState};
use guest::operands::{MOST_INSTRUCTIONS, MOST_PAGES, ONE, Reader};
use guest::walk::PagingState;

/// Bytes of memory: code, tables and operands refer to each other.
const MEMORY: usize = 4 * 4096;

/// Registers, then the pattern that fills memory: it is code, tables and data at once.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let paging = PagingState {
        // Half of all guests have no paging: their code is reached more often.
        cr0: u64::from(input.u8() & 1) << 31 | 1,
        ..paging(&mut input)
    };
    let cpu = CpuState {
        gpr: std::array::from_fn(|_| register(&mut input)),
        rip: u64::from(input.u16()) % MEMORY as u64,
        rflags: 2 | u64::from(input.u32() & 0x0025_0FD5),
        segments: std::array::from_fn(|_| segment(&mut input)),
        code: input.choice(&[CodeSize::Bits64, CodeSize::Bits32, CodeSize::Bits16]),
        cpl: input.choice(&[0, 3]),
        cr0: paging.cr0,
        cr4: paging.cr4,
        xcr0: 7,
    };
    let memory = SmallMemory::filled(MEMORY, input.rest());
    let before = memory.0.borrow().clone();
    let mut reader = Reader::within(1 << 14);
    let mut operands = Vec::new();
    let touched = &mut |_, gpa| operands.push(gpa);
    let instructions = reader.follow(&memory, &paging, &cpu, MOST_INSTRUCTIONS, touched);
    assert!(instructions <= MOST_INSTRUCTIONS);
    assert!(operands.iter().all(|gpa| memory.holds(*gpa)));
    let pages: Vec<_> = reader.look(&memory, &paging, &cpu, 0).pages().collect();
    assert!(pages.len() <= MOST_PAGES.min(operands.len()));
    assert_eq!(pages.is_empty(), operands.is_empty());
    let weight: u32 = pages.iter().map(|(_, weight)| weight).sum();
    let most = operands.len() as u32 * (ONE / instructions.max(1));
    assert!(weight <= most);
    let later = reader.look(&memory, &paging, &cpu, instructions / 2);
    assert!(later.pages().count() <= MOST_PAGES);
    assert_eq!(before, *memory.0.borrow(), "a look writes nothing");
}
