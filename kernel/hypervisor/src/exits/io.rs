//! Ports: the board's devices, by IN, OUT, INS and OUTS.

use super::{After, Context, complete, decode};
use crate::virt::{Backend, Direction, Gpr, IoAccess, SegmentName, VcpuState};
use crate::vm;
use devices::AccessSize;
use guest::GuestMemory;
use guest::mmio::CodeSize;
use guest::walk::{self, Access, AccessKind};
use iced_x86::{Instruction, OpKind, Register};

/// Elements of a REP INS or OUTS that one exit completes; the instruction continues by another exit.
const ELEMENTS_PER_EXIT: u64 = 64;
const RFLAGS_DF: u64 = 1 << 10;
const RFLAGS_TF: u64 = 1 << 8;

/// A port was accessed.
pub fn handle<B: Backend>(ctx: &mut Context<'_, B>, access: IoAccess) -> After {
    let Some(size) = AccessSize::from_bytes(u64::from(access.size)) else {
        return complete(ctx, After::Resume);
    };
    if access.string {
        return string(ctx, access, size);
    }
    match access.direction {
        Direction::Read => {
            let value = vm::with_board(ctx.hv, ctx.vm, |board, now| {
                board.port_read(access.port, size, now)
            });
            let old = ctx.core.hw.regs().get(Gpr::RAX);
            let new = match size {
                AccessSize::Byte => old & !0xff | u64::from(value & 0xff),
                AccessSize::Word => old & !0xffff | u64::from(value & 0xffff),
                AccessSize::Dword | AccessSize::Qword => u64::from(value),
            };
            ctx.core.hw.regs_mut().set(Gpr::RAX, new);
        }
        Direction::Write => {
            let value = ctx.core.hw.regs().get32(Gpr::RAX);
            vm::with_board(ctx.hv, ctx.vm, |board, now| {
                board.port_write(access.port, size, value, now)
            });
        }
    }
    complete(ctx, After::Resume)
}

/// INS and OUTS: one element after the other, each complete (memory and registers) before the next, so that
/// a page fault in the middle leaves the state that hardware leaves.
fn string<B: Backend>(ctx: &mut Context<'_, B>, access: IoAccess, size: AccessSize) -> After {
    let instruction = match decode::instruction(ctx) {
        Ok(instruction) => instruction,
        Err(after) => return after,
    };
    let address_bytes = address_bytes(&instruction);
    let mask = u64::MAX >> (64 - 8 * address_bytes);
    let step = u64::from(access.size);
    let step = if ctx.core.hw.rflags() & RFLAGS_DF != 0 {
        step.wrapping_neg()
    } else {
        step
    };
    let (pointer, segment) = match access.direction {
        Direction::Read => (Gpr::RDI, SegmentName::Es),
        Direction::Write => (Gpr::RSI, segment(instruction.memory_segment())),
    };
    for _ in 0..ELEMENTS_PER_EXIT {
        let count = ctx.core.hw.regs().get(Gpr::RCX) & mask;
        if access.repeated && count == 0 {
            return complete(ctx, After::Resume);
        }
        let offset = ctx.core.hw.regs().get(pointer) & mask;
        if let Err(after) = element(ctx, access, size, segment, offset) {
            return after;
        }
        store(ctx, pointer, offset.wrapping_add(step), mask);
        if !access.repeated {
            return complete(ctx, After::Resume);
        }
        store(ctx, Gpr::RCX, count - 1, mask);
        if ctx.core.hw.rflags() & RFLAGS_TF != 0 && count > 1 {
            // A single step ends each iteration; the instruction runs again for the next.
            decode::single_step(ctx);
            return After::Resume;
        }
    }
    After::Resume
}

/// Moves one element between memory and the port.
fn element<B: Backend>(
    ctx: &mut Context<'_, B>,
    access: IoAccess,
    size: AccessSize,
    segment: SegmentName,
    offset: u64,
) -> Result<(), After> {
    let linear = linear(ctx, segment, offset);
    let kind = if access.direction == Direction::Read {
        AccessKind::Write
    } else {
        AccessKind::Read
    };
    let mut bytes = [0_u8; 4];
    let length = usize::from(access.size).min(4);
    // Translated byte for byte first: an element may straddle a page end, and nothing may be done by halves.
    let mut gpas = [units::Gpa(0); 4];
    for (i, gpa) in gpas.iter_mut().enumerate().take(length) {
        let at = linear.wrapping_add(i as u64);
        let request = Access {
            kind,
            privilege: decode::privilege(ctx),
        };
        match walk::translate(&ctx.vm.ram, &decode::paging(ctx), at, request) {
            Ok(translation) => *gpa = translation.gpa,
            Err(error) => return Err(decode::walk_failed(ctx, error)),
        }
    }
    match access.direction {
        Direction::Read => {
            let value = vm::with_board(ctx.hv, ctx.vm, |board, now| {
                board.port_read(access.port, size, now)
            });
            bytes = value.to_le_bytes();
            for (gpa, byte) in gpas.iter().zip(bytes).take(length) {
                // A store to where no memory is goes nowhere, as on a bus.
                let _ = ctx.vm.ram.write(*gpa, &[byte]);
            }
        }
        Direction::Write => {
            for (gpa, byte) in gpas.iter().zip(bytes.iter_mut()).take(length) {
                let mut one = [0xff_u8];
                let _ = ctx.vm.ram.read(*gpa, &mut one);
                *byte = one[0];
            }
            let value = u32::from_le_bytes(bytes);
            vm::with_board(ctx.hv, ctx.vm, |board, now| {
                board.port_write(access.port, size, value, now)
            });
        }
    }
    Ok(())
}

fn linear<B: Backend>(ctx: &Context<'_, B>, segment: SegmentName, offset: u64) -> u64 {
    let long = decode::code_size(ctx) == CodeSize::Bits64;
    let flat = long && !matches!(segment, SegmentName::Fs | SegmentName::Gs);
    let base = if flat {
        0
    } else {
        ctx.core.hw.segment(segment).base
    };
    let linear = base.wrapping_add(offset);
    if long {
        linear
    } else {
        linear & u64::from(u32::MAX)
    }
}

/// Writes a pointer or count back in the width of the address size.
fn store<B: Backend>(ctx: &mut Context<'_, B>, register: Gpr, value: u64, mask: u64) {
    let regs = ctx.core.hw.regs_mut();
    let kept = if mask == u64::from(u32::MAX) {
        0
    } else {
        regs.get(register) & !mask
    };
    regs.set(register, kept | value & mask);
}

/// Width of the address in SI or DI.
fn address_bytes(instruction: &Instruction) -> u32 {
    let kinds = [instruction.op0_kind(), instruction.op1_kind()];
    if kinds
        .iter()
        .any(|k| matches!(k, OpKind::MemorySegRSI | OpKind::MemoryESRDI))
    {
        8
    } else if kinds
        .iter()
        .any(|k| matches!(k, OpKind::MemorySegESI | OpKind::MemoryESEDI))
    {
        4
    } else {
        2
    }
}

fn segment(register: Register) -> SegmentName {
    match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => SegmentName::Ds,
    }
}
