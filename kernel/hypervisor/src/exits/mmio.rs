//! Nested faults: device registers in memory, pages on the move, and addresses where nothing is.

use super::{After, Context, decode};
use crate::virt::{Backend, NestedFault, SegmentName, VcpuState, VectorRegisters};
use crate::vm::{self, HandedBack, apic_now};
use alloc::format;
use alloc::string::String;
use devices::AccessSize;
use guest::mmio::{
    self, Completion, CpuState, Devices, GuestBus, Known, Loaded, Refusal, SegmentRegister,
    SystemLoad, Tables,
};
use units::{Gpa, PAGE_BYTES};

/// How often in a row an instruction is handed back to the processor before the VM is given up.
const PATIENCE: u32 = 16;

/// A guest access was stopped by the nested table.
pub fn handle<B: Backend>(ctx: &mut Context<'_, B>, fault: NestedFault) -> After {
    if ctx.vm.shape.memory.region_of(fault.gpa).is_some() {
        // RAM is mapped from the start, so the page is on the move: wait until it has arrived.
        // A fetch may also have met a leaf that is too large to be executed.
        let reached = match fault.fetch {
            true => ctx.vm.ram.permit_fetch(fault.gpa),
            false => ctx.vm.ram.wait_until_mapped(fault.gpa),
        };
        return match reached {
            Ok(()) => After::Resume,
            Err(why) => After::Fault(format!(
                "its memory at {} cannot be reached: {why}",
                fault.gpa
            )),
        };
    }
    if let Some(event) = ctx.interrupted {
        // Not the instruction but the event's way through descriptor tables and stack met the device.
        return After::Fault(format!(
            "the delivery of vector {} reached {}, which is not its memory",
            event.vector, fault.gpa
        ));
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
    let mut cpu = decode::cpu_state(ctx);
    let instruction = match mmio::decode(code.bytes(), cpu.code, cpu.rip) {
        Ok(instruction) => instruction,
        Err(error) => {
            return hand_back(ctx, fault, || {
                format!("by an instruction that is not emulated: {error}")
            });
        }
    };
    if instruction.stores_a_selector() {
        decode::all_segments(ctx, &mut cpu);
    }
    let known = instruction.has_one_operand().then_some(Known {
        gpa: fault.gpa,
        linear: fault.linear,
        write: fault.write,
    });
    let mut vectors = VectorRegisters { xcr0: cpu.xcr0 };
    let outcome = {
        let paging = decode::paging(ctx);
        let mut bus = GuestBus::new(&ctx.vm.ram, Machine { ctx }, paging, &cpu, known);
        mmio::execute(&instruction, &mut cpu, &mut vectors, &mut bus)
    };
    // Of an instruction that was refused these are the elements that it had completed.
    ctx.core.hw.regs_mut().0 = cpu.gpr;
    ctx.core.hw.set_rflags(cpu.rflags);
    // What loads a descriptor is not done yet.
    if !matches!(outcome, Err(Refusal::Ordinary) | Ok(Completion::System(_))) {
        ctx.core.handed_back = None;
    }
    match outcome {
        Ok(Completion::Advance) => {
            decode::advance_by(ctx, instruction.length);
            After::Resume
        }
        Ok(Completion::Jump(rip)) => {
            decode::finish_at(ctx, rip);
            After::Resume
        }
        Ok(Completion::Repeat) => {
            decode::single_step(ctx);
            After::Resume
        }
        Ok(Completion::System(load)) => {
            system(ctx, &cpu, load, instruction.length).unwrap_or_else(|| {
                hand_back(ctx, fault, || {
                    format!(
                        "by a far jump to what is no code segment, which is not emulated on device memory:{}",
                        decode::Bytes(code.bytes())
                    )
                })
            })
        }
        Err(refusal @ (Refusal::Exception(_) | Refusal::Walk(_))) => decode::refused(ctx, refusal),
        Err(Refusal::Ordinary) => hand_back(ctx, fault, || {
            format!(
                "by something else than the operand of{}",
                decode::Bytes(code.bytes())
            )
        }),
    }
}

/// Loads the descriptor of a selector that came from a device, and the register with both. `None` if that is not done
/// here.
fn system<B: Backend>(
    ctx: &mut Context<'_, B>,
    cpu: &CpuState,
    load: SystemLoad,
    length: u8,
) -> Option<After> {
    let tables = Tables {
        gdtr: ctx.core.hw.gdtr(),
        ldtr: ctx.core.hw.segment(SegmentName::Ldtr),
        long_mode: ctx.core.hw.efer() & decode::EFER_LMA != 0,
    };
    let supervisor = CpuState {
        cpl: 0,
        ..cpu.clone()
    };
    let paging = decode::paging(ctx);
    let outcome = {
        let mut bus = GuestBus::new(&ctx.vm.ram, Machine { ctx }, paging, &supervisor, None);
        mmio::load_descriptor(cpu, &tables, load, &mut bus)
    };
    if outcome != Err(Refusal::Ordinary) {
        ctx.core.handed_back = None;
    }
    match outcome {
        Ok(Loaded::Segment(to, segment)) => {
            ctx.core.hw.set_segment(decode::segment_name(to), segment);
            decode::advance_by(ctx, length);
            // VT-x takes no shadow while a single step is due, which comes at once here (SDM 3C 27.3.1.5).
            if to == SegmentRegister::Ss && ctx.core.hw.rflags() & decode::RFLAGS_TF == 0 {
                ctx.core.hw.set_interrupt_shadow();
            }
        }
        Ok(Loaded::Task(segment)) => {
            ctx.core.hw.set_segment(SegmentName::Tr, segment);
            decode::advance_by(ctx, length);
        }
        Ok(Loaded::Jump { code, rip }) => {
            ctx.core.hw.set_segment(SegmentName::Cs, code);
            decode::finish_at(ctx, rip);
        }
        Err(Refusal::Ordinary) => return None,
        Err(refusal) => return Some(decode::refused(ctx, refusal)),
    }
    Some(After::Resume)
}

/// Software can make nothing of the instruction. The reason may be that another CPU has just rewritten it, or the
/// page tables: then the processor, which looks again, does not come back to the same place for long.
fn hand_back<B: Backend>(
    ctx: &mut Context<'_, B>,
    fault: NestedFault,
    how: impl FnOnce() -> String,
) -> After {
    let rip = ctx.core.hw.rip();
    let times = match ctx.core.handed_back {
        Some(last) if last.rip == rip && last.gpa == fault.gpa => last.times + 1,
        _ => 1,
    };
    ctx.core.handed_back = Some(HandedBack {
        rip,
        gpa: fault.gpa,
        times,
    });
    if times < PATIENCE {
        return After::Resume;
    }
    After::Fault(format!(
        "it {} {} at instruction pointer {rip:#x} {}",
        if fault.write { "wrote to" } else { "read" },
        fault.gpa,
        how()
    ))
}

/// A virtual CPU's local APIC and its VM's board, as they lie in memory.
pub struct Machine<'c, 'a, B: Backend> {
    /// The virtual CPU.
    pub ctx: &'c Context<'a, B>,
}

impl<B: Backend> Machine<'_, '_, B> {
    fn apic_offset(&self, gpa: Gpa) -> Option<u16> {
        let base = self.ctx.vcpu.apic.lock().mmio_base()?;
        let offset = gpa.0.checked_sub(base.0)?;
        (offset < PAGE_BYTES).then_some(offset as u16)
    }
}

impl<B: Backend> Devices for Machine<'_, '_, B> {
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) {
        let value = if let Some(offset) = self.apic_offset(gpa) {
            let now = apic_now(self.ctx.vm, self.ctx.core.tsc_offset);
            // Registers are 32 bits wide on 16-byte boundaries; parts of one are read from the whole.
            let word = self.ctx.vcpu.apic.lock().mmio_read(offset & !3, now);
            u64::from(word) >> (8 * u32::from(offset & 3))
        } else {
            let size = AccessSize::from_bytes(bytes.len() as u64).unwrap_or(AccessSize::Byte);
            vm::with_board(self.ctx.hv, self.ctx.vm, |board, now| {
                if board.mmio_claims(gpa) {
                    board.mmio_read(gpa, size, now)
                } else {
                    size.ones()
                }
            })
        };
        for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        let value = u64::from_le_bytes(word);
        if let Some(offset) = self.apic_offset(gpa) {
            if offset & 3 != 0 || bytes.len() < 4 {
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
        let Some(size) = AccessSize::from_bytes(bytes.len() as u64) else {
            return;
        };
        vm::with_board(self.ctx.hv, self.ctx.vm, |board, now| {
            if board.mmio_claims(gpa) {
                board.mmio_write(gpa, size, value, now);
            }
        });
    }
}
