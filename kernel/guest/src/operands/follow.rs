//! Registers as they will be after the next instructions, as far as that is known.
//!
//! What compilers compute addresses and branches with is computed: moves, sums, logic, shifts, products, quotients,
//! conditions, the stack. Any other instruction makes the registers and flags that it writes unknown.
//! Stores are kept in a short list, and a load that overlaps one of them gives its value or is unknown.

use iced_x86::{Instruction, Register, UsedMemory};
use units::Gpa;

use super::known::Decoded;
use super::meaning::{Flow, Meaning, Pushed, Source, Work};
use super::pages::Pages;
use crate::memory::GuestMemory;
use crate::mmio::alu::{self, sign_extend};
use crate::mmio::{Alu, BitOp, CodeSize, Condition, CpuState, Part, Reg, Unary, decode};
use crate::walk::AccessKind;

/// Stores that are remembered; older ones are forgotten.
const STORES: usize = 8;
const RAX: u8 = 0;
const RDX: u8 = 2;
const RSP: u8 = 4;
/// The stack pointer.
const STACK: Reg = Reg {
    index: RSP,
    part: Part::Qword,
};

/// Whether it is known what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The instruction at the instruction pointer.
    Known,
    /// It depends on something that is not.
    Unknown,
}

/// See the module.
pub(super) struct Follow<'p, 'm, M> {
    pages: &'p Pages<'m, M>,
    /// The registers; those that are not known hold anything.
    pub(super) cpu: CpuState,
    /// One bit for each general-purpose register whose value is known.
    known: u16,
    flags_known: bool,
    /// Where the instruction's own operand in memory is.
    place: Option<Gpa>,
    stores: [Option<Store>; STORES],
    next_store: usize,
}

/// A store that was not made.
#[derive(Clone, Copy)]
struct Store {
    gpa: Gpa,
    size: u8,
    value: Option<u64>,
}

impl<'p, 'm, M: GuestMemory> Follow<'p, 'm, M> {
    pub(super) fn new(pages: &'p Pages<'m, M>, cpu: CpuState) -> Self {
        Self {
            pages,
            cpu,
            known: u16::MAX,
            flags_known: true,
            place: None,
            stores: [None; STORES],
            next_store: 0,
        }
    }

    /// Calls `touched` with each operand in memory that is known and leads somewhere, of the instruction that [`Follow::step`] goes
    /// past next.
    pub(super) fn reach(&mut self, decoded: &Decoded, mut touched: impl FnMut(Gpa)) {
        let meaning = &decoded.meaning;
        let own = meaning.in_memory.filter(|_| meaning.work != Work::Lea);
        let linear = own.and_then(|n| match meaning.place {
            Some(place) => place.address(&self.cpu.gpr, self.known),
            None => self.address(&decoded.instruction, n.into()),
        });
        self.place = linear.and_then(|linear| self.translate(linear));
        if meaning.touches_it_only {
            self.place.into_iter().for_each(touched);
            return;
        }
        for operand in decoded.operands().filter_map(|o| self.operand(o)) {
            touched(operand);
        }
    }

    fn operand(&self, operand: &UsedMemory) -> Option<Gpa> {
        let linear = operand.virtual_address(0, |register, _, _| self.address_part(register))?;
        self.translate(linear)
    }

    /// Goes past an instruction.
    pub(super) fn step(&mut self, decoded: &Decoded) -> Next {
        let (i, meaning) = (&decoded.instruction, &decoded.meaning);
        if meaning.is_privileged {
            return Next::Unknown;
        }
        let next = self.target(i.next_ip(), meaning);
        let result = self.result(i, meaning);
        let pushed = match meaning.pushed {
            Pushed::Nothing => None,
            Pushed::Operand => Some(self.read(meaning, 0)),
            Pushed::Return => Some(Some(i.next_ip())),
        };
        let (stored, stack) = (self.stored(meaning), self.value(RSP));
        let known = self.known;
        self.known &= !meaning.written;
        self.flags_known &= !meaning.changes_flags;
        if let Some(value) = stored {
            self.store(self.place, meaning.size(0), value);
        }
        if let Some(done) = result {
            self.take(meaning, done, known);
        }
        if meaning.stack != 0 {
            self.move_stack(stack, meaning.stack, pushed);
        }
        match next {
            Some(next) => {
                self.cpu.rip = next;
                Next::Known
            }
            None => Next::Unknown,
        }
    }

    /// Where the instruction behind this one is; `behind` it is another.
    fn target(&self, behind: u64, meaning: &Meaning) -> Option<u64> {
        match meaning.flow {
            Flow::Next => Some(behind),
            Flow::To(target) => target,
            Flow::If(condition, target) => match self.holds(condition)? {
                true => target,
                false => Some(behind),
            },
            Flow::Through => self.read(meaning, 0),
            Flow::Return => self.load(self.value(RSP)?, self.stack_size()),
            Flow::Unknown => None,
        }
    }

    /// What an instruction stores in its first operand, if that is memory: `None` if it does not, `Some(None)` for an unknown value.
    fn stored(&self, meaning: &Meaning) -> Option<Option<u64>> {
        let stores = meaning.writes_first && meaning.in_memory == Some(0);
        let value = || self.read(meaning, 1).filter(|_| meaning.moves);
        stores.then(value)
    }

    fn store(&mut self, place: Option<Gpa>, size: u8, value: Option<u64>) {
        // A store to nobody knows where hits none of what is loaded soon: that is what programs do.
        let Some(gpa) = place else {
            return;
        };
        if let Some(slot) = self.stores.get_mut(self.next_store) {
            *slot = Some(Store { gpa, size, value });
        }
        self.next_store = (self.next_store + 1) % STORES;
    }

    /// The stack pointer was `stack` and moves by so many bytes; what was `pushed` is there then.
    fn move_stack(&mut self, stack: Option<u64>, moved: i32, pushed: Option<Option<u64>>) {
        if let Some(stack) = stack {
            self.set(STACK, stack.wrapping_add_signed(moved.into()), u16::MAX);
        }
        if let (Some(value), true) = (pushed, moved < 0) {
            let place = self.value(RSP).and_then(|at| self.translate(at));
            self.store(place, moved.unsigned_abs().min(8) as u8, value);
        }
    }

    /// Takes in what was computed; `known` were the known registers before.
    fn take(&mut self, meaning: &Meaning, done: Done, known: u16) {
        if let (Some(value), Some(register)) = (done.value, meaning.target()) {
            self.set(register, value, known);
        }
        if let Some((low, high)) = done.wide {
            self.set(low.0, low.1, known);
            self.set(high.0, high.1, known);
        }
        if let Some(flags) = done.flags {
            self.cpu.rflags = flags;
            self.flags_known = true;
        }
    }

    /// What an instruction computes; `None` if that is not known.
    fn result(&self, i: &Instruction, meaning: &Meaning) -> Option<Done> {
        let read = |n| self.read(meaning, n);
        let size = meaning.size(0);
        Some(match meaning.work {
            Work::Other => return None,
            Work::Alu(op) => self.arithmetic(meaning, op)?,
            Work::Unary(op) => {
                let (value, flags) = alu::unary(op, read(0)?, size, self.flags()?);
                Done::of(value, (op != Unary::Not).then_some(flags))
            }
            Work::Shift(op) => {
                let (value, flags) = alu::shift(op, read(0)?, read(1)?, size, self.cpu.rflags);
                // Without their old value, and with a count of 0, flags stay unknown.
                Done::of(value, self.flags_known.then_some(flags))
            }
            Work::TestBit => {
                let (a, index, before) = (read(0)?, read(1)?, self.flags()?);
                Done::flags(alu::bit(BitOp::Test, a, index, size, before).1)
            }
            Work::Move => Done::of(read(1)?, None),
            Work::MoveSigned => Done::of(sign_extend(read(1)?, meaning.size(1)), None),
            Work::Pop => Done::of(self.load(self.value(RSP)?, size)?, None),
            Work::Lea => Done::of(self.offset(i)?, None),
            Work::Scan(op) => {
                let (found, flags) = alu::scan(op, read(1)?, size, self.flags()?);
                Done::of(found?, Some(flags))
            }
            Work::Multiply(first) => {
                let (a, b) = (read(first)?, read(first + 1)?);
                let (low, _, flags) = alu::multiply(a, b, size, true, self.cpu.rflags);
                Done::of(low, Some(flags))
            }
            Work::WideMultiply { signed } => {
                let (low, with) = (self.register(wide(RAX, size)?)?, read(0)?);
                let (lower, upper, flags) = alu::multiply(low, with, size, signed, self.cpu.rflags);
                Done::wide(size, lower, upper, Some(flags))?
            }
            Work::WideDivide => self.quotient(size, read(0)?)?,
            Work::Set(condition) => Done::of(self.holds(condition)?.into(), None),
            Work::MoveIf(condition) => {
                let from = usize::from(self.holds(condition)?);
                Done::of(read(from)?, None)
            }
        })
    }

    fn arithmetic(&self, meaning: &Meaning, op: Alu) -> Option<Done> {
        let same =
            matches!(meaning.sources, [Source::Register(a), Source::Register(b), ..] if a == b);
        let (a, b) = match op {
            // Whatever it was, it is zero now.
            Alu::Xor | Alu::Sub if same => (0, 0),
            _ => (self.read(meaning, 0)?, self.read(meaning, 1)?),
        };
        let carries = matches!(op, Alu::Adc | Alu::Sbb);
        let before = match carries {
            true => self.flags()?,
            false => self.cpu.rflags,
        };
        let (value, flags) = alu::alu(op, a, b, meaning.size(0), before);
        Some(match op.stores() {
            true => Done::of(value, Some(flags)),
            false => Done::flags(flags),
        })
    }

    /// Of the accumulator, of four or eight bytes.
    fn quotient(&self, size: u8, by: u64) -> Option<Done> {
        let (low, high) = (
            self.register(wide(RAX, size)?)?,
            self.register(wide(RDX, size)?)?,
        );
        let bits = u32::from(size) * 8;
        let dividend = u128::from(high) << bits | u128::from(low);
        let quotient = u64::try_from(dividend.checked_div(by.into())?).ok();
        // One that does not fit raises an exception.
        let quotient = quotient.filter(|q| bits == 64 || q >> 32 == 0)?;
        let rest = u64::try_from(dividend.checked_rem(by.into())?).ok()?;
        Done::wide(size, quotient, rest, None)
    }

    fn holds(&self, condition: Condition) -> Option<bool> {
        self.flags()?;
        Some(self.cpu.holds(condition))
    }

    fn flags(&self) -> Option<u64> {
        self.flags_known.then_some(self.cpu.rflags)
    }

    /// The value of an operand.
    fn read(&self, meaning: &Meaning, n: usize) -> Option<u64> {
        match *meaning.sources.get(n)? {
            Source::Register(register) => self.register(register),
            Source::Memory => self.load_from(self.place?, meaning.size(n)),
            Source::Immediate(value) => Some(value),
            Source::Elsewhere => None,
        }
    }

    /// The linear address of a memory operand.
    fn address(&self, i: &Instruction, n: u32) -> Option<u64> {
        i.virtual_address(n, 0, |register, _, _| self.address_part(register))
    }

    /// What LEA gives: an address without its segment.
    fn offset(&self, i: &Instruction) -> Option<u64> {
        let part = |register: Register| match register {
            Register::None => Some(0),
            register => self.register(decode::register(register)?),
        };
        if i.is_ip_rel_memory_operand() {
            return Some(i.ip_rel_memory_address());
        }
        let index = part(i.memory_index())?;
        let scaled = index.wrapping_mul(i.memory_index_scale().into());
        let base = part(i.memory_base())?;
        Some(
            base.wrapping_add(scaled)
                .wrapping_add(i.memory_displacement64()),
        )
    }

    fn load(&self, linear: u64, size: u8) -> Option<u64> {
        self.load_from(self.translate(linear)?, size)
    }

    fn load_from(&self, gpa: Gpa, size: u8) -> Option<u64> {
        let end = gpa.0.checked_add(size.into())?;
        let overlaps = |s: &&Store| s.gpa.0 < end && gpa.0 < s.gpa.0.saturating_add(s.size.into());
        let recent = (1..=STORES).filter_map(|back| {
            let slot = (self.next_store + STORES - back) % STORES;
            self.stores.get(slot)?.as_ref()
        });
        if let Some(store) = recent.into_iter().find(overlaps) {
            return store
                .value
                .filter(|_| store.gpa == gpa && store.size == size);
        }
        let memory = self.pages.memory();
        if size == 8 {
            return memory.read_u64(gpa).ok();
        }
        let mut bytes = [0; 8];
        memory.read(gpa, bytes.get_mut(..usize::from(size))?).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn translate(&self, linear: u64) -> Option<Gpa> {
        self.pages.find(linear, AccessKind::Read)
    }

    /// A general-purpose register's value or a segment's base.
    fn address_part(&self, register: Register) -> Option<u64> {
        let [es, cs, ss, ds, fs, gs] = self.cpu.segments;
        let flat = self.cpu.code == CodeSize::Bits64;
        match register {
            Register::ES | Register::CS | Register::SS | Register::DS if flat => Some(0),
            Register::ES => Some(es.base),
            Register::CS => Some(cs.base),
            Register::SS => Some(ss.base),
            Register::DS => Some(ds.base),
            Register::FS => Some(fs.base),
            Register::GS => Some(gs.base),
            register => self.register(decode::register(register)?),
        }
    }

    /// The value of a whole register.
    fn value(&self, index: u8) -> Option<u64> {
        let value = self.cpu.gpr.get(usize::from(index))?;
        (self.known >> index & 1 != 0).then_some(*value)
    }

    /// A general-purpose register's value.
    fn register(&self, register: Reg) -> Option<u64> {
        (self.known & 1 << register.index != 0).then(|| self.cpu.get(register))
    }

    /// A register has this value now. Of one that was not known before, a part does not make it so.
    fn set(&mut self, register: Reg, value: u64, known: u16) {
        if register.part.size() >= 4 || known & 1 << register.index != 0 {
            self.known |= 1 << register.index;
        }
        self.cpu.set(register, value);
    }

    fn stack_size(&self) -> u8 {
        match self.cpu.code {
            CodeSize::Bits64 => 8,
            CodeSize::Bits32 => 4,
            CodeSize::Bits16 => 2,
        }
    }
}

/// What an instruction computes.
struct Done {
    /// For its first operand, if that is a register.
    value: Option<u64>,
    /// For two other registers.
    wide: Option<((Reg, u64), (Reg, u64))>,
    flags: Option<u64>,
}

impl Done {
    const fn of(value: u64, flags: Option<u64>) -> Self {
        Self {
            value: Some(value),
            wide: None,
            flags,
        }
    }

    const fn flags(flags: u64) -> Self {
        Self {
            value: None,
            wide: None,
            flags: Some(flags),
        }
    }

    /// For the accumulator and its upper half.
    fn wide(size: u8, low: u64, high: u64, flags: Option<u64>) -> Option<Self> {
        Some(Self {
            value: None,
            wide: Some(((wide(RAX, size)?, low), (wide(RDX, size)?, high))),
            flags,
        })
    }
}

/// A register of so many bytes, where products and quotients of those are followed.
const fn wide(index: u8, size: u8) -> Option<Reg> {
    let part = match size {
        4 => Part::Dword,
        8 => Part::Qword,
        _ => return None,
    };
    Some(Reg { index, part })
}
