//! Nested faults: device registers in memory, pages on the move, and addresses where nothing is.

use super::{After, Context, decode};
use crate::virt::{Backend, Gpr, NestedFault, SegmentName, VcpuState};
use crate::vm::{self, apic_now};
use alloc::format;
use devices::AccessSize;
use guest::GuestMemory;
use guest::mmio::{self, CodeSize, Completion, CpuState, MmioBus, SegmentRegister};
use guest::walk::{self, Access, AccessKind, WalkError};
use units::{Gpa, PAGE_BYTES};

/// A guest access was stopped by the nested table.
pub fn handle<B: Backend>(ctx: &mut Context<'_, B>, fault: NestedFault) -> After {
    if ctx.vm.shape.memory.region_of(fault.gpa).is_some() {
        // RAM is mapped from the start, so the page is on the move: wait until it has arrived.
        return match ctx.vm.ram.wait_until_mapped(fault.gpa) {
            Ok(()) => After::Resume,
            Err(why) => After::Fault(format!(
                "its memory at {} cannot be reached: {why}",
                fault.gpa
            )),
        };
    }
    if fault.fetch {
        return After::Fault(format!(
            "the guest executes at {}, which is not its memory",
            fault.gpa
        ));
    }
    if fault.walk {
        return After::Fault(format!(
            "the guest's page tables lie at {}, which is not its memory",
            fault.gpa
        ));
    }
    emulate(ctx, fault)
}

/// Executes the instruction with its operand in a device.
fn emulate<B: Backend>(ctx: &mut Context<'_, B>, fault: NestedFault) -> After {
    let code = match decode::fetch(ctx) {
        Ok(code) => code,
        Err(after) => return after,
    };
    let instruction = match mmio::decode(code.bytes(), decode::code_size(ctx)) {
        Ok(instruction) => instruction,
        Err(error) => {
            return After::Fault(format!(
                "it {} {} by an instruction that is not emulated: {error}",
                if fault.write { "wrote to" } else { "read" },
                fault.gpa
            ));
        }
    };
    let mut registers = Registers::of(ctx);
    let mut bus = Bus {
        ctx,
        gpa: fault.gpa,
    };
    let completion = mmio::execute(&instruction, &mut registers, &mut bus);
    match completion {
        Ok(done) => {
            registers.put_back(ctx);
            match done {
                Completion::Advance => decode::advance_by(ctx, instruction.length),
                Completion::Repeat => decode::single_step(ctx),
            }
            After::Resume
        }
        Err(error) => decode::walk_failed(ctx, error),
    }
}

/// A copy of the registers, so that an instruction that faults midway leaves none of its effects.
struct Registers {
    gpr: [u64; 16],
    rflags: u64,
    bases: [u64; 6],
}

impl Registers {
    fn of<B: Backend>(ctx: &Context<'_, B>) -> Self {
        let hw = &ctx.core.hw;
        let names = [
            SegmentName::Es,
            SegmentName::Cs,
            SegmentName::Ss,
            SegmentName::Ds,
            SegmentName::Fs,
            SegmentName::Gs,
        ];
        Self {
            gpr: hw.regs().0,
            rflags: hw.rflags(),
            bases: names.map(|name| hw.segment(name).base),
        }
    }
    fn put_back<B: Backend>(&self, ctx: &mut Context<'_, B>) {
        ctx.core.hw.regs_mut().0 = self.gpr;
        ctx.core.hw.set_rflags(self.rflags);
    }
}

impl CpuState for Registers {
    fn reg(&self, index: u8) -> u64 {
        self.gpr[usize::from(index & 15)]
    }
    fn set_reg(&mut self, index: u8, value: u64) {
        self.gpr[usize::from(Gpr(index & 15).0)] = value;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment_base(&self, segment: SegmentRegister) -> u64 {
        let index = match segment {
            SegmentRegister::Es => 0,
            SegmentRegister::Cs => 1,
            SegmentRegister::Ss => 2,
            SegmentRegister::Ds => 3,
            SegmentRegister::Fs => 4,
            SegmentRegister::Gs => 5,
        };
        self.bases[index]
    }
}

/// Devices and memory as the instruction sees them.
struct Bus<'c, 'a, B: Backend> {
    ctx: &'c mut Context<'a, B>,
    gpa: Gpa,
}

impl<B: Backend> Bus<'_, '_, B> {
    fn device_read(&mut self, gpa: Gpa, size: u8) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        if let Some(offset) = self.apic_offset(gpa) {
            let now = apic_now(self.ctx.vm, self.ctx.core.tsc_offset);
            // Registers are 32 bits wide on 16-byte boundaries; parts of one are read from the whole.
            let word = self.ctx.vcpu.apic.lock().mmio_read(offset & !3, now);
            return (u64::from(word) >> (8 * u32::from(offset & 3))) & ones;
        }
        let Some(size) = AccessSize::from_bytes(u64::from(size)) else {
            return ones;
        };
        vm::with_board(self.ctx.hv, self.ctx.vm, |board, now| {
            if board.mmio_claims(gpa) {
                board.mmio_read(gpa, size, now)
            } else {
                size.ones()
            }
        })
    }

    fn device_write(&mut self, gpa: Gpa, size: u8, value: u64) {
        if let Some(offset) = self.apic_offset(gpa) {
            if offset & 3 != 0 || size < 4 {
                return; // undefined by the manual (SDM 3A 11.4.1); ignored
            }
            let now = apic_now(self.ctx.vm, self.ctx.core.tsc_offset);
            let effect = self
                .ctx
                .vcpu
                .apic
                .lock()
                .mmio_write(offset, value as u32, now);
            super::msr::apic_effect(self.ctx, effect);
            return;
        }
        let Some(size) = AccessSize::from_bytes(u64::from(size)) else {
            return;
        };
        vm::with_board(self.ctx.hv, self.ctx.vm, |board, now| {
            if board.mmio_claims(gpa) {
                board.mmio_write(gpa, size, value, now);
            }
        });
    }

    fn apic_offset(&self, gpa: Gpa) -> Option<u16> {
        let base = self.ctx.vcpu.apic.lock().mmio_base()?;
        let offset = gpa.0.checked_sub(base.0)?;
        (offset < PAGE_BYTES).then_some(offset as u16)
    }

    /// Where `size` bytes at a linear address lie: in one piece, or, at the end of a page, in two. Both are
    /// translated before either is touched, so that a fault leaves nothing done by halves.
    fn pieces(
        &mut self,
        address: u64,
        size: u8,
        kind: AccessKind,
    ) -> Result<[(Gpa, u8); 2], WalkError> {
        let (first, second) = mmio::split_at_page(address, size);
        let at = self.translate(address, kind)?;
        if second == 0 {
            return Ok([(at, first), (at, 0)]);
        }
        let next = address.wrapping_add(u64::from(first));
        // Below 64-bit code linear addresses end at 4 GiB and begin again.
        let next = match decode::code_size(self.ctx) {
            CodeSize::Bits64 => next,
            CodeSize::Bits32 | CodeSize::Bits16 => next & u64::from(u32::MAX),
        };
        Ok([(at, first), (self.translate(next, kind)?, second)])
    }

    fn read_at(&mut self, gpa: Gpa, size: u8) -> u64 {
        let mut bytes = [0_u8; 8];
        if let Some(buffer) = bytes.get_mut(..usize::from(size))
            && self.ctx.vm.ram.read(gpa, buffer).is_ok()
        {
            return u64::from_le_bytes(bytes);
        }
        self.device_read(gpa, size)
    }

    fn write_at(&mut self, gpa: Gpa, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..usize::from(size)).unwrap_or(&bytes);
        if self.ctx.vm.ram.write(gpa, bytes).is_err() {
            self.device_write(gpa, size, value);
        }
    }

    fn translate(&mut self, address: u64, kind: AccessKind) -> Result<Gpa, WalkError> {
        let access = Access {
            kind,
            privilege: decode::privilege(self.ctx),
        };
        walk::translate(&self.ctx.vm.ram, &decode::paging(self.ctx), address, access).map(|t| t.gpa)
    }
}

impl<B: Backend> MmioBus for Bus<'_, '_, B> {
    type Error = WalkError;

    fn read(&mut self, size: u8) -> Result<u64, WalkError> {
        Ok(self.device_read(self.gpa, size))
    }
    fn write(&mut self, size: u8, value: u64) -> Result<(), WalkError> {
        self.device_write(self.gpa, size, value);
        Ok(())
    }
    fn read_linear(&mut self, address: u64, size: u8) -> Result<u64, WalkError> {
        let [low, high] = self.pieces(address, size, AccessKind::Read)?;
        let value = self.read_at(low.0, low.1);
        if high.1 == 0 {
            return Ok(value);
        }
        Ok(value | self.read_at(high.0, high.1) << (8 * u32::from(low.1)))
    }
    fn write_linear(&mut self, address: u64, size: u8, value: u64) -> Result<(), WalkError> {
        let [low, high] = self.pieces(address, size, AccessKind::Write)?;
        self.write_at(low.0, low.1, value);
        if high.1 != 0 {
            self.write_at(high.0, high.1, value >> (8 * u32::from(low.1)));
        }
        Ok(())
    }
}
