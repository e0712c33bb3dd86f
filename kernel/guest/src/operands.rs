//! What a guest that was interrupted is about to touch: its next instructions, followed but not executed.
//!
//! Accessed bits say which pages were touched in an interval, not how often; a timer's few words weigh as much as an
//! inner loop's. Processors with PEBS or IBS name the operands of an instruction now and then. Where there is neither,
//! the same is found in software: whenever a guest is stopped at a moment that it did not choose, the instructions
//! from there on say what it does just then, and the registers say where. Many such moments together are a profile of
//! its accesses over time, with the processor that made them.
//!
//! * Nothing is written, neither to memory nor to accessed bits of the guest's tables. Results are kept on the side
//!   ([`follow`]); what depends on something that is not computed there is left out, never guessed. Other processors
//!   may write meanwhile: a look is a sample, not a proof.
//! * A run goes on through branches until one is not known, up to [`MOST_INSTRUCTIONS`].
//! * It begins some instructions later, up to [`MOST_SKIPPED`], as chance will have it: some processors, emulators above all,
//!   take interrupts at some instructions rather than others, and the beginnings of blocks would be all that is seen.
//! * A moment right behind a repeated string instruction counts for that ([`repeated`]).
//! * One moment weighs by density: each operand counts [`ONE`] over the number of instructions in the run, so a long
//!   run with one access does not count as much as a short one.

mod follow;
mod known;
mod meaning;
mod pages;
mod repeated;

use units::{Gpa, PAGE_BYTES, PageSize};

use crate::memory::GuestMemory;
use crate::mmio::{CodeSize, CpuState};
use crate::walk::{AccessKind, PagingState};
use follow::{Follow, Next};
use known::{Known, LONGEST};
use pages::Pages;

/// Instructions that a run has at most: some rounds of a loop. Looks are rationed by the time they take, and many short ones
/// know more than few long ones.
pub const MOST_INSTRUCTIONS: u32 = 8;
/// Instructions that are passed over before a run begins, at most.
pub const MOST_SKIPPED: u32 = 32;
/// Pages that a run is told to touch at most.
pub const MOST_PAGES: usize = 32;
/// Bytes of code that are read at once: as many behind the instruction pointer, where loops begin, and before it.
const CODE_BEHIND: usize = 48;
const CODE_BEFORE: usize = 96;
/// The weight of an operand in a run of one instruction.
pub const ONE: u32 = 1024;

/// What a run of instructions touches, by page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pages: [(Gpa, u32); MOST_PAGES],
    count: usize,
    instructions: u32,
}

impl Run {
    const EMPTY: Self = Self {
        pages: [(Gpa(0), 0); MOST_PAGES],
        count: 0,
        instructions: 0,
    };

    /// Each page of 4 KiB with operands, as far as they could be followed, and what they weigh together.
    pub fn pages(&self) -> impl Iterator<Item = (Gpa, u32)> {
        let one = ONE / self.instructions.max(1);
        let pages = self.pages.iter().take(self.count);
        pages.map(move |(page, operands)| (*page, operands.saturating_mul(one)))
    }

    /// Whether nothing could be followed.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn add(&mut self, operand: Gpa) {
        let page = operand.align_down(PageSize::Size4K);
        let known = self.pages.iter_mut().take(self.count);
        if let Some((_, operands)) = known.into_iter().find(|(p, _)| *p == page) {
            *operands += 1;
        } else if let Some(place) = self.pages.get_mut(self.count) {
            *place = (page, 1);
            self.count += 1;
        }
    }
}

/// Reads runs of instructions, and remembers them: one for each virtual CPU.
#[derive(Debug)]
pub struct Reader(Known);

impl Reader {
    /// One that remembers as many instructions as that many bytes have room for, up to some hundred, but at least a few.
    pub fn within(bytes: usize) -> Self {
        Self(Known::within(bytes))
    }

    /// Bytes of memory that what it remembers takes of these.
    pub fn bytes_within(bytes: usize) -> usize {
        known::bytes_within(bytes)
    }

    /// What a guest with these registers touches after so many instructions, or before, where no more than those can be followed;
    /// empty where its code or its operands cannot be read.
    pub fn look(
        &mut self,
        memory: &impl GuestMemory,
        paging: &PagingState,
        cpu: &CpuState,
        skip: u32,
    ) -> Run {
        let skip = skip.min(MOST_SKIPPED);
        let (mut first, mut later) = (Run::EMPTY, Run::EMPTY);
        let most = skip + MOST_INSTRUCTIONS;
        let followed = self.follow(memory, paging, cpu, most, &mut |number, operand| {
            let run = if number < skip {
                &mut first
            } else {
                &mut later
            };
            run.add(operand);
        });
        let (run, instructions) = match followed.checked_sub(skip).filter(|rest| *rest > 0) {
            Some(rest) => (later, rest),
            None => (first, followed),
        };
        Run {
            instructions,
            ..run
        }
    }

    /// Calls `touched` with the address of each operand of the next `most` instructions, and the number of its instruction;
    /// returns how many instructions there were.
    pub fn follow(
        &mut self,
        memory: &impl GuestMemory,
        paging: &PagingState,
        cpu: &CpuState,
        most: u32,
        touched: &mut impl FnMut(u32, Gpa),
    ) -> u32 {
        let mut instructions = 0;
        let bits = match cpu.code {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let pages = Pages::new(memory, paging, cpu.cpl);
        if let Some(operands) = repeated::just_ended(&pages, cpu) {
            operands.for_each(|gpa| touched(0, gpa));
            return 1;
        }
        let mut code = Code::default();
        let mut follow = Follow::new(&pages, cpu.clone());
        while instructions < most {
            let at = follow.cpu.rip;
            let bytes = code.at(&pages, &follow.cpu);
            let Some(decoded) = self.0.decode(bits, at, bytes) else {
                break;
            };
            // A repeated string instruction is where it is until it is done: what stands behind it is another run.
            let repeats = decoded.meaning.repeats;
            if repeats && instructions > 0 {
                break;
            }
            follow.reach(decoded, |gpa| touched(instructions, gpa));
            instructions += 1;
            if repeats || follow.step(decoded) == Next::Unknown {
                break;
            }
        }
        instructions
    }
}

/// A piece of code.
struct Code {
    bytes: [u8; CODE_BEHIND + CODE_BEFORE],
    first: u64,
    length: usize,
}

impl Default for Code {
    fn default() -> Self {
        Self {
            bytes: [0; CODE_BEHIND + CODE_BEFORE],
            first: 0,
            length: 0,
        }
    }
}

impl Code {
    /// The bytes at the instruction pointer, as far as there are any.
    fn at<M: GuestMemory>(&mut self, pages: &Pages<'_, M>, cpu: &CpuState) -> &[u8] {
        let linear = match cpu.code {
            CodeSize::Bits64 => cpu.rip,
            CodeSize::Bits32 | CodeSize::Bits16 => {
                let [_, cs, ..] = cpu.segments;
                cs.base.wrapping_add(cpu.rip) & 0xFFFF_FFFF
            }
        };
        let inside = |first| usize::try_from(linear.wrapping_sub(first)).unwrap_or(usize::MAX);
        if inside(self.first).saturating_add(LONGEST) > self.length {
            // Not from another page, which may lead nowhere.
            self.first = linear - (linear % PAGE_BYTES).min(CODE_BEHIND as u64);
            self.length = 0;
            self.read(pages);
        }
        self.bytes
            .get(inside(self.first)..self.length)
            .unwrap_or(&[])
    }

    fn read<M: GuestMemory>(&mut self, pages: &Pages<'_, M>) {
        while self.length < self.bytes.len() {
            let at = self.first.wrapping_add(self.length as u64);
            let Some(gpa) = pages.find(at, AccessKind::Fetch) else {
                return;
            };
            let room = (PAGE_BYTES - at % PAGE_BYTES) as usize;
            let end = self.length.saturating_add(room).min(self.bytes.len());
            let Some(part) = self.bytes.get_mut(self.length..end) else {
                return;
            };
            if pages.memory().read(gpa, part).is_err() {
                return;
            }
            self.length = end;
        }
    }
}

#[cfg(test)]
mod tests;
