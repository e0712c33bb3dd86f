//! Ports: the board's devices, by IN, OUT, INS and OUTS.

use super::mmio::Machine;
use super::{After, Context, complete, decode};
use crate::virt::{Backend, Direction, Gpr, IoAccess, VcpuState};
use crate::vm;
use devices::AccessSize;
use guest::mmio::{self, Bus, CpuState, ELEMENTS, GuestBus, Part, Refusal, Reg, SegmentRegister};
use guest::walk::AccessKind;
use iced_x86::{Instruction, OpKind};

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

/// INS and OUTS.
fn string<B: Backend>(ctx: &mut Context<'_, B>, access: IoAccess, size: AccessSize) -> After {
    let instruction = match decode::instruction(ctx) {
        Ok(instruction) => instruction,
        Err(after) => return after,
    };
    // Another CPU may have rewritten it: then the processor looks again.
    let Some((address, segment)) = string_operand(&instruction) else {
        return After::Resume;
    };
    let string = PortString {
        access,
        size,
        address,
        segment,
    };
    let mut cpu = decode::cpu_state(ctx);
    let end = string.elements(ctx, &mut cpu);
    ctx.core.hw.regs_mut().0 = cpu.gpr;
    match end {
        Ok(End::Done) => complete(ctx, After::Resume),
        Ok(End::More) => After::Resume,
        Ok(End::Step) => {
            decode::single_step(ctx);
            After::Resume
        }
        Err(refusal) => decode::refused(ctx, refusal),
    }
}

/// How a string instruction leaves off.
enum End {
    /// It is complete.
    Done,
    /// It runs again for the elements that are left.
    More,
    /// The same, and a single step ended the iteration.
    Step,
}

/// INS or OUTS.
struct PortString {
    access: IoAccess,
    size: AccessSize,
    /// The width of its pointer and counter.
    address: Part,
    segment: SegmentRegister,
}

impl PortString {
    fn register(&self, gpr: Gpr) -> Reg {
        Reg {
            index: gpr.0,
            part: self.address,
        }
    }

    /// One element after the other, each complete (memory and registers) before the next, so that a page fault in
    /// the middle leaves the state that hardware leaves. The way to memory is one for all of them: as a processor,
    /// it walks the guest's page tables once per page.
    fn elements<B: Backend>(
        &self,
        ctx: &Context<'_, B>,
        cpu: &mut CpuState,
    ) -> Result<End, Refusal> {
        let paging = decode::paging(ctx);
        let mut bus = GuestBus::new(&ctx.vm.ram, Machine { ctx }, paging, cpu, None);
        let pointer = self.register(match self.access.direction {
            Direction::Read => Gpr::RDI,
            Direction::Write => Gpr::RSI,
        });
        let counter = self.register(Gpr::RCX);
        let step = u64::from(self.access.size);
        let step = if cpu.rflags & RFLAGS_DF != 0 {
            step.wrapping_neg()
        } else {
            step
        };
        for _ in 0..ELEMENTS {
            let count = cpu.get(counter);
            if self.access.repeated && count == 0 {
                return Ok(End::Done);
            }
            self.element(ctx, &mut bus, cpu, cpu.get(pointer))?;
            cpu.set(pointer, cpu.get(pointer).wrapping_add(step));
            if !self.access.repeated {
                return Ok(End::Done);
            }
            cpu.set(counter, count - 1);
            if cpu.rflags & RFLAGS_TF != 0 && count > 1 {
                return Ok(End::Step);
            }
        }
        Ok(End::More)
    }

    /// Moves one element between memory and the port. Memory is reached first: nothing may be done by halves.
    fn element<B: Backend>(
        &self,
        ctx: &Context<'_, B>,
        bus: &mut impl Bus,
        cpu: &CpuState,
        offset: u64,
    ) -> Result<(), Refusal> {
        let IoAccess { port, size, .. } = self.access;
        let kind = match self.access.direction {
            Direction::Read => AccessKind::Write,
            Direction::Write => AccessKind::Read,
        };
        let place = mmio::reach(cpu, bus, self.segment, offset, size, kind)?;
        let mut word = [0_u8; 4];
        let Some(bytes) = word.get_mut(..usize::from(size)) else {
            return Ok(());
        };
        match self.access.direction {
            Direction::Read => {
                let value = vm::with_board(ctx.hv, ctx.vm, |board, now| {
                    board.port_read(port, self.size, now)
                });
                for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
                    *to = from;
                }
                bus.write(&place, bytes);
            }
            Direction::Write => {
                bus.read(&place, bytes);
                let value = u32::from_le_bytes(word);
                vm::with_board(ctx.hv, ctx.vm, |board, now| {
                    board.port_write(port, self.size, value, now)
                });
            }
        }
        Ok(())
    }
}

/// Width of the address and segment of the memory operand of INS or OUTS.
fn string_operand(instruction: &Instruction) -> Option<(Part, SegmentRegister)> {
    let kinds = [instruction.op0_kind(), instruction.op1_kind()];
    let part = kinds.into_iter().find_map(|kind| match kind {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(Part::Word),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(Part::Dword),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(Part::Qword),
        _ => None,
    })?;
    Some((part, mmio::memory_segment(instruction)?))
}
