//! What an instruction means to a run: worked out once, when it is decoded, and looked up whenever it is met again.
//!
//! Runs go round in loops, so an instruction is decoded once and followed a hundred times. What following needs to know of it
//! (what it computes, from which registers, where its operand in memory is, what comes next) is the same each time.

use iced_x86::{FlowControl, Instruction, InstructionInfo, Mnemonic, OpKind, Register, UsedMemory};

use super::known::writes;
use crate::mmio::{Alu, Condition, Reg, Scan, Shift, Unary, decode};

/// Operands of an instruction that values come from.
const SOURCES: usize = 3;
/// No register.
const NONE: u8 = 16;

/// Where an operand's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In a general-purpose register.
    Register(Reg),
    /// In memory.
    Memory,
    /// In the instruction.
    Immediate(u64),
    /// In something else, or nowhere.
    Elsewhere,
}

/// What an instruction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Alu(Alu),
    Unary(Unary),
    Shift(Shift),
    /// BT of a register.
    TestBit,
    Move,
    MoveSigned,
    Pop,
    Lea,
    Scan(Scan),
    /// IMUL with two operands, or with three.
    Multiply(usize),
    /// Products and quotients of the accumulator.
    WideMultiply {
        signed: bool,
    },
    WideDivide,
    /// SETcc.
    Set(Condition),
    /// CMOVcc.
    MoveIf(Condition),
    /// Nothing that is followed.
    Other,
}

/// What comes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    /// A jump or a call; `None` for a far one.
    To(Option<u64>),
    If(Condition, Option<u64>),
    /// To where its operand says.
    Through,
    Return,
    /// Nobody knows.
    Unknown,
}

/// What goes on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Nothing,
    /// The first operand's value.
    Operand,
    /// The address of the next instruction.
    Return,
}

/// The address of an operand in memory, of 64-bit code without a segment, from 64-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    base: u8,
    index: u8,
    scale: u8,
    displacement: u64,
}

impl Place {
    fn of(i: &Instruction) -> Option<Self> {
        let flat = i.code_size() == iced_x86::CodeSize::Code64
            && !matches!(i.memory_segment(), Register::FS | Register::GS);
        let number = |r: Register| match r {
            Register::None => Some(NONE),
            r if r.is_gpr64() => u8::try_from(r.number()).ok(),
            _ => None,
        };
        let (base, index) = match (i.memory_base(), i.memory_index()) {
            // The displacement is the address.
            (Register::RIP, Register::None) => (NONE, NONE),
            // Without any register the displacement's size matters, too.
            (Register::None, Register::None) => return None,
            (base, index) => (number(base)?, number(index)?),
        };
        flat.then_some(Self {
            base,
            index,
            scale: u8::try_from(i.memory_index_scale()).ok()?,
            displacement: i.memory_displacement64(),
        })
    }

    /// The address, if `known` has a bit for each register that it takes.
    pub(super) fn address(&self, gpr: &[u64; 16], known: u16) -> Option<u64> {
        let part = |register: u8| match gpr.get(usize::from(register)) {
            Some(value) => (known >> register & 1 != 0).then_some(*value),
            None => Some(0),
        };
        let index = part(self.index)?.wrapping_mul(self.scale.into());
        let base = part(self.base)?;
        Some(self.displacement.wrapping_add(base).wrapping_add(index))
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    pub(super) work: Work,
    pub(super) flow: Flow,
    pub(super) pushed: Pushed,
    pub(super) sources: [Source; SOURCES],
    /// Bytes of the first two operands; of an immediate none.
    sizes: [u8; 2],
    /// Number of the operand that is in memory, if one is.
    pub(super) in_memory: Option<u8>,
    /// Its address, where that is simple.
    pub(super) place: Option<Place>,
    /// All that it touches is that operand.
    pub(super) touches_it_only: bool,
    /// One bit for each general-purpose register that is written, if only on a condition.
    pub(super) written: u16,
    /// It writes its first operand.
    pub(super) writes_first: bool,
    /// It is a MOV.
    pub(super) moves: bool,
    pub(super) changes_flags: bool,
    pub(super) is_privileged: bool,
    /// A repeated string instruction.
    pub(super) repeats: bool,
    /// By how much it moves the stack pointer.
    pub(super) stack: i32,
}

impl Meaning {
    /// Of an instruction; `only` is the memory that it touches, if that is one place.
    pub(super) fn of(i: &Instruction, info: &InstructionInfo, only: Option<&UsedMemory>) -> Self {
        let kinds = [i.op0_kind(), i.op1_kind(), i.op2_kind()];
        let in_memory = kinds.iter().position(|kind| *kind == OpKind::Memory);
        let written = info.used_registers().iter().filter(|r| writes(r.access()));
        let bit = |register: Register| match register.full_register() {
            full if full.is_gpr() => 1 << full.number(),
            _ => 0,
        };
        let base = match i.memory_base() {
            // The displacement is the address.
            Register::RIP | Register::EIP => Register::None,
            base => base,
        };
        let is_it = |m: &UsedMemory| {
            m.base() == base
                && m.index() == i.memory_index()
                && m.scale() == i.memory_index_scale()
                && m.displacement() == i.memory_displacement64()
                && m.segment() == i.memory_segment()
        };
        let stack = match i.is_stack_instruction() {
            true => i.stack_pointer_increment(),
            false => 0,
        };
        Self {
            work: work(i),
            flow: flow(i),
            pushed: match i.mnemonic() {
                Mnemonic::Push => Pushed::Operand,
                Mnemonic::Call => Pushed::Return,
                _ => Pushed::Nothing,
            },
            sources: [0, 1, 2].map(|n| source(i, n)),
            sizes: [0, 1].map(|n| size(i, n)),
            in_memory: in_memory.and_then(|n| u8::try_from(n).ok()),
            place: in_memory.and_then(|_| Place::of(i)),
            touches_it_only: in_memory.is_some() && only.is_some_and(is_it),
            written: written.fold(0, |all, r| all | bit(r.register())),
            writes_first: writes(info.op0_access()),
            moves: i.mnemonic() == Mnemonic::Mov,
            changes_flags: i.rflags_modified() != 0,
            is_privileged: i.is_privileged(),
            repeats: i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix()),
            stack,
        }
    }

    /// Bytes of an operand; of an immediate, and of a third one, none.
    pub(super) fn size(&self, n: usize) -> u8 {
        self.sizes.get(n).copied().unwrap_or(0)
    }

    /// The register that the first operand is.
    pub(super) const fn target(&self) -> Option<Reg> {
        match self.sources {
            [Source::Register(register), ..] => Some(register),
            _ => None,
        }
    }
}

fn work(i: &Instruction) -> Work {
    let mnemonic = i.mnemonic();
    if let Some(op) = decode::alu(mnemonic) {
        return Work::Alu(op);
    }
    if let Some(op) = decode::unary(mnemonic) {
        return Work::Unary(op);
    }
    if let Some(op) = decode::shift(mnemonic) {
        return Work::Shift(op);
    }
    if i.op0_kind() != OpKind::Register {
        return Work::Other;
    }
    match mnemonic {
        Mnemonic::Bt => Work::TestBit,
        Mnemonic::Mov | Mnemonic::Movzx => Work::Move,
        Mnemonic::Movsx | Mnemonic::Movsxd => Work::MoveSigned,
        Mnemonic::Pop => Work::Pop,
        Mnemonic::Lea => Work::Lea,
        Mnemonic::Bsf => Work::Scan(Scan::Forward),
        Mnemonic::Bsr => Work::Scan(Scan::Reverse),
        Mnemonic::Popcnt => Work::Scan(Scan::Count),
        Mnemonic::Imul if i.op_count() == 3 => Work::Multiply(1),
        Mnemonic::Imul if i.op_count() == 2 => Work::Multiply(0),
        Mnemonic::Imul => Work::WideMultiply { signed: true },
        Mnemonic::Mul => Work::WideMultiply { signed: false },
        Mnemonic::Div => Work::WideDivide,
        _ => conditional(i),
    }
}

fn conditional(i: &Instruction) -> Work {
    match condition(i).filter(|_| i.flow_control() == FlowControl::Next) {
        Some(condition) if i.op_count() == 1 => Work::Set(condition),
        Some(condition) if i.op_count() == 2 => Work::MoveIf(condition),
        _ => Work::Other,
    }
}

fn flow(i: &Instruction) -> Flow {
    match i.flow_control() {
        FlowControl::Next => Flow::Next,
        FlowControl::UnconditionalBranch | FlowControl::Call => Flow::To(near(i)),
        FlowControl::ConditionalBranch if i.is_jcc_short_or_near() => match condition(i) {
            Some(condition) => Flow::If(condition, near(i)),
            None => Flow::Unknown,
        },
        FlowControl::IndirectBranch | FlowControl::IndirectCall => Flow::Through,
        FlowControl::Return if i.mnemonic() == Mnemonic::Ret => Flow::Return,
        _ => Flow::Unknown,
    }
}

/// The decoder numbers them as the encoding does, from 1.
fn condition(i: &Instruction) -> Option<Condition> {
    (i.condition_code() as u8).checked_sub(1).map(Condition)
}

/// The target of a near branch.
fn near(i: &Instruction) -> Option<u64> {
    matches!(
        i.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
    .then(|| i.near_branch_target())
}

fn source(i: &Instruction, n: u32) -> Source {
    let found = match i.try_op_kind(n) {
        Ok(OpKind::Register) => i
            .try_op_register(n)
            .ok()
            .and_then(decode::register)
            .map(Source::Register),
        Ok(OpKind::Memory) => Some(Source::Memory),
        _ => i.try_immediate(n).ok().map(Source::Immediate),
    };
    found.unwrap_or(Source::Elsewhere)
}

/// Bytes of an operand; of an immediate none.
fn size(i: &Instruction, n: u32) -> u8 {
    let bytes = match i.try_op_kind(n) {
        Ok(OpKind::Register) => i.try_op_register(n).map_or(0, Register::size),
        Ok(OpKind::Memory) => i.memory_size().size(),
        _ => 0,
    };
    u8::try_from(bytes).unwrap_or(u8::MAX)
}
