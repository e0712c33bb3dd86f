//! Registers as they will be after the next instructions, as far as that is known.
//!
//! What compilers compute addresses and branches with is computed: moves, sums, logic, shifts, products, quotients,
//! conditions, the stack. Any other instruction makes the registers and flags that it writes unknown.
//! Stores are kept in a short list, and a load that overlaps one of them gives its value or is unknown.

use iced_x86::{ConditionCode, FlowControl, Instruction, Mnemonic, OpKind, Register, UsedMemory};
use units::Gpa;

use super::known::Decoded;
use super::pages::Pages;
use crate::memory::GuestMemory;
use crate::mmio::alu::{self, sign_extend};
use crate::mmio::{Alu, BitOp, CodeSize, Condition, CpuState, Scan, Shift, Unary, decode};
use crate::walk::AccessKind;

/// Stores that are remembered; older ones are forgotten.
const STORES: usize = 8;
const RSP: usize = 4;

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
            stores: [None; STORES],
            next_store: 0,
        }
    }

    /// Where an operand is; `None` if its address is not known or leads nowhere.
    pub(super) fn operand(&self, operand: &UsedMemory) -> Option<Gpa> {
        let linear = operand.virtual_address(0, |register, _, _| self.address_part(register))?;
        self.translate(linear)
    }

    /// Goes past an instruction.
    pub(super) fn step(&mut self, decoded: &Decoded) -> Next {
        let i = &decoded.instruction;
        if i.is_privileged() {
            return Next::Unknown;
        }
        let next = self.target(i);
        let result = self.result(i);
        let stack = self.value(Register::RSP);
        let pushed = self.pushed(i);
        let stored = decoded.writes_first.then(|| self.stored(i)).flatten();
        let known = self.known;
        self.known &= !decoded.written;
        if i.rflags_modified() != 0 {
            self.flags_known = false;
        }
        if let Some((place, size, value)) = stored {
            self.store(place, size, value);
        }
        if let Some(done) = result {
            self.take(i, done, known);
        }
        let moved = i.stack_pointer_increment();
        if i.is_stack_instruction() && moved != 0 {
            if let (Some(stack), Some(register)) = (stack, self.cpu.gpr.get_mut(RSP)) {
                *register = stack.wrapping_add_signed(moved.into());
                self.known |= 1 << RSP;
            }
            if let (Some(value), true) = (pushed, moved < 0) {
                let place = self.value(Register::RSP).and_then(|at| self.translate(at));
                self.store(place, moved.unsigned_abs().min(8) as u8, value);
            }
        }
        match next {
            Some(next) => {
                self.cpu.rip = next;
                Next::Known
            }
            None => Next::Unknown,
        }
    }

    /// Where the instruction behind this one is.
    fn target(&self, i: &Instruction) -> Option<u64> {
        match i.flow_control() {
            FlowControl::Next => Some(i.next_ip()),
            FlowControl::UnconditionalBranch | FlowControl::Call => near(i),
            FlowControl::ConditionalBranch if i.is_jcc_short_or_near() => {
                let holds = self.condition(i.condition_code())?;
                if holds { near(i) } else { Some(i.next_ip()) }
            }
            FlowControl::IndirectBranch | FlowControl::IndirectCall => self.read(i, 0),
            FlowControl::Return if i.mnemonic() == Mnemonic::Ret => {
                self.load(self.value(Register::RSP)?, self.stack_size())
            }
            _ => None,
        }
    }

    /// What a push or a call puts on the stack: `None` for other instructions, `Some(None)` for an unknown value.
    fn pushed(&self, i: &Instruction) -> Option<Option<u64>> {
        match i.mnemonic() {
            Mnemonic::Push => Some(self.read(i, 0)),
            Mnemonic::Call => Some(Some(i.next_ip())),
            _ => None,
        }
    }

    /// What an instruction stores in its first operand, if that is memory: where, how many bytes, what.
    fn stored(&self, i: &Instruction) -> Option<(Option<Gpa>, u8, Option<u64>)> {
        if i.op0_kind() != OpKind::Memory {
            return None;
        }
        let place = self.address(i, 0).and_then(|at| self.translate(at));
        let size = u8::try_from(i.memory_size().size()).unwrap_or(u8::MAX);
        let value = match i.mnemonic() {
            Mnemonic::Mov => self.read(i, 1),
            _ => None,
        };
        Some((place, size, value))
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

    /// Takes in what was computed; `known` were the known registers before.
    fn take(&mut self, i: &Instruction, done: Done, known: u16) {
        if let Some(value) = done.value {
            self.set(i.op0_register(), value, known);
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
    fn result(&self, i: &Instruction) -> Option<Done> {
        let mnemonic = i.mnemonic();
        if let Some(op) = decode::alu(mnemonic) {
            return self.arithmetic(i, op);
        }
        if let Some(op) = decode::unary(mnemonic) {
            let flags = self.flags()?;
            let (value, flags) = alu::unary(op, self.read(i, 0)?, size(i, 0), flags);
            let flags = (op != Unary::Not).then_some(flags);
            return Some(Done::of(i, value, flags));
        }
        if let Some(op) = decode::shift(mnemonic) {
            return self.shifted(i, op);
        }
        if mnemonic == Mnemonic::Bt && i.op0_kind() == OpKind::Register {
            let (a, index) = (self.read(i, 0)?, self.read(i, 1)?);
            let (_, flags) = alu::bit(BitOp::Test, a, index, size(i, 0), self.flags()?);
            return Some(Done::flags(flags));
        }
        if i.op0_kind() != OpKind::Register {
            return None;
        }
        let plain = |value| Some(Done::of(i, value, None));
        match mnemonic {
            Mnemonic::Mov | Mnemonic::Movzx => plain(self.read(i, 1)?),
            Mnemonic::Movsx | Mnemonic::Movsxd => plain(sign_extend(self.read(i, 1)?, size(i, 1))),
            Mnemonic::Pop => plain(self.load(self.value(Register::RSP)?, size(i, 0))?),
            Mnemonic::Lea => plain(self.offset(i)?),
            Mnemonic::Bsf => self.scanned(i, Scan::Forward),
            Mnemonic::Bsr => self.scanned(i, Scan::Reverse),
            Mnemonic::Popcnt => self.scanned(i, Scan::Count),
            Mnemonic::Imul if i.op_count() > 1 => {
                let first = if i.op_count() == 3 { 1 } else { 0 };
                let (a, b) = (self.read(i, first)?, self.read(i, first + 1)?);
                let (low, _, flags) = alu::multiply(a, b, size(i, 0), true, self.cpu.rflags);
                Some(Done::of(i, low, Some(flags)))
            }
            Mnemonic::Imul | Mnemonic::Mul | Mnemonic::Div => self.wide(i),
            _ => self.conditional(i),
        }
    }

    fn arithmetic(&self, i: &Instruction, op: Alu) -> Option<Done> {
        let same = i.op0_kind() == OpKind::Register
            && i.op1_kind() == OpKind::Register
            && i.op0_register() == i.op1_register();
        let (a, b) = match op {
            // Whatever it was, it is zero now.
            Alu::Xor | Alu::Sub if same => (0, 0),
            _ => (self.read(i, 0)?, self.read(i, 1)?),
        };
        let carries = matches!(op, Alu::Adc | Alu::Sbb);
        let before = if carries {
            self.flags()?
        } else {
            self.cpu.rflags
        };
        let (value, flags) = alu::alu(op, a, b, size(i, 0), before);
        Some(if op.stores() {
            Done::of(i, value, Some(flags))
        } else {
            Done::flags(flags)
        })
    }

    fn shifted(&self, i: &Instruction, op: Shift) -> Option<Done> {
        let (a, count) = (self.read(i, 0)?, self.read(i, 1)?);
        let (value, flags) = alu::shift(op, a, count, size(i, 0), self.cpu.rflags);
        // Without their old value, and with a count of 0, flags stay unknown.
        Some(Done::of(i, value, self.flags_known.then_some(flags)))
    }

    fn scanned(&self, i: &Instruction, op: Scan) -> Option<Done> {
        let (found, flags) = alu::scan(op, self.read(i, 1)?, size(i, 0), self.flags()?);
        Some(Done::of(i, found?, Some(flags)))
    }

    /// Products and quotients of the accumulator, of four or eight bytes.
    fn wide(&self, i: &Instruction) -> Option<Done> {
        let (low, high) = match size(i, 0) {
            4 => (Register::EAX, Register::EDX),
            8 => (Register::RAX, Register::RDX),
            _ => return None,
        };
        let (a, with) = (self.value(low)?, self.read(i, 0)?);
        let bits = u32::from(size(i, 0)) * 8;
        if i.mnemonic() == Mnemonic::Div {
            let dividend = u128::from(self.value(high)?) << bits | u128::from(a);
            let quotient = dividend.checked_div(with.into())?;
            let rest = dividend.checked_rem(with.into())?;
            // A quotient that does not fit raises an exception.
            let quotient = u64::try_from(quotient)
                .ok()
                .filter(|q| bits == 64 || q >> 32 == 0)?;
            let rest = u64::try_from(rest).ok()?;
            return Some(Done::wide((low, quotient), (high, rest), None));
        }
        let signed = i.mnemonic() == Mnemonic::Imul;
        let (lower, upper, flags) = alu::multiply(a, with, size(i, 0), signed, self.cpu.rflags);
        Some(Done::wide((low, lower), (high, upper), Some(flags)))
    }

    /// CMOVcc and SETcc.
    fn conditional(&self, i: &Instruction) -> Option<Done> {
        let code = i.condition_code();
        if code == ConditionCode::None || i.op_count() > 2 || i.flow_control() != FlowControl::Next
        {
            return None;
        }
        let holds = self.condition(code)?;
        let value = match i.op_count() {
            1 => u64::from(holds),
            _ if holds => self.read(i, 1)?,
            _ => self.read(i, 0)?,
        };
        Some(Done::of(i, value, None))
    }

    fn condition(&self, code: ConditionCode) -> Option<bool> {
        self.flags()?;
        // The decoder numbers them as the encoding does, from 1.
        let code = (code as u8).checked_sub(1)?;
        Some(self.cpu.holds(Condition(code)))
    }

    fn flags(&self) -> Option<u64> {
        self.flags_known.then_some(self.cpu.rflags)
    }

    /// The value of an operand.
    fn read(&self, i: &Instruction, n: u32) -> Option<u64> {
        match i.try_op_kind(n).ok()? {
            OpKind::Register => self.value(i.try_op_register(n).ok()?),
            OpKind::Memory => self.load(self.address(i, n)?, size(i, n)),
            _ => i.try_immediate(n).ok(),
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
            register => self.value(register),
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
        if size > 8 {
            return None;
        }
        let gpa = self.translate(linear)?;
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
        let mut bytes = [0; 8];
        self.pages
            .memory()
            .read(gpa, bytes.get_mut(..usize::from(size))?)
            .ok()?;
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
            register => self.value(register),
        }
    }

    /// A general-purpose register's value.
    fn value(&self, register: Register) -> Option<u64> {
        let part = decode::register(register)?;
        (self.known & 1 << part.index != 0).then(|| self.cpu.get(part))
    }

    /// A register has this value now. Of one that was not known before, a part does not make it so.
    fn set(&mut self, register: Register, value: u64, known: u16) {
        let Some(part) = decode::register(register) else {
            return;
        };
        if part.part.size() >= 4 || known & 1 << part.index != 0 {
            self.known |= 1 << part.index;
        }
        self.cpu.set(part, value);
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
    wide: Option<((Register, u64), (Register, u64))>,
    flags: Option<u64>,
}

impl Done {
    fn of(i: &Instruction, value: u64, flags: Option<u64>) -> Self {
        Self {
            value: (i.op0_kind() == OpKind::Register).then_some(value),
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

    const fn wide(low: (Register, u64), high: (Register, u64), flags: Option<u64>) -> Self {
        Self {
            value: None,
            wide: Some((low, high)),
            flags,
        }
    }
}

/// The target of a near branch.
fn near(i: &Instruction) -> Option<u64> {
    matches!(
        i.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
    .then(|| i.near_branch_target())
}

/// Bytes of an operand; of an immediate, those of the first one.
fn size(i: &Instruction, n: u32) -> u8 {
    let bytes = match i.try_op_kind(n) {
        Ok(OpKind::Register) => i.try_op_register(n).map_or(0, Register::size),
        Ok(OpKind::Memory) => i.memory_size().size(),
        _ => 0,
    };
    u8::try_from(bytes).unwrap_or(u8::MAX)
}
