//! Instructions that stopped a guest, read from its own memory.
//!
//! Processors with decode assists say how long the instruction was and what bytes it had. Where
//! they do not, its bytes are fetched as the processor did, through the guest's own page tables.

use super::mmio::Machine;
use super::{After, Context};
use crate::virt::{Backend, ControlRegister, SegmentName, VcpuState};
use alloc::format;
use core::fmt;
use guest::entry::Segment;
use guest::mmio::{self, Bus, CodeSize, CpuState, GuestBus, Refusal, SegmentRegister};
use guest::walk::{self, AccessKind, PagingState, Privilege, WalkError};
use iced_x86::{Decoder, DecoderOptions, Instruction};

/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;
const CR0_PE: u64 = 1;
const CR4_PKE: u64 = 1 << 22;
const RFLAGS_VM: u64 = 1 << 17;
const RFLAGS_RF: u64 = 1 << 16;
/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// DR6: a single step.
const DR6_BS: u64 = 1 << 14;
/// Segment attributes (packed): L and D/B.
const ATTRIBUTE_LONG: u16 = 1 << 9;
const ATTRIBUTE_BIG: u16 = 1 << 10;

/// In the order of [`CpuState::segments`].
const SEGMENTS: [SegmentName; 6] = [
    SegmentName::Es,
    SegmentName::Cs,
    SegmentName::Ss,
    SegmentName::Ds,
    SegmentName::Fs,
    SegmentName::Gs,
];

/// The hardware's name of a segment register.
pub const fn segment_name(segment: SegmentRegister) -> SegmentName {
    match segment {
        SegmentRegister::Es => SegmentName::Es,
        SegmentRegister::Cs => SegmentName::Cs,
        SegmentRegister::Ss => SegmentName::Ss,
        SegmentRegister::Ds => SegmentName::Ds,
        SegmentRegister::Fs => SegmentName::Fs,
        SegmentRegister::Gs => SegmentName::Gs,
    }
}

/// How the guest's linear addresses translate now.
pub fn paging<B: Backend>(ctx: &Context<'_, B>) -> PagingState {
    let hw = &ctx.core.hw;
    PagingState {
        cr0: hw.cr(ControlRegister::Cr0),
        cr3: hw.cr(ControlRegister::Cr3),
        cr4: hw.cr(ControlRegister::Cr4),
        efer: hw.efer(),
        rflags: hw.rflags(),
        pkru: if hw.cr(ControlRegister::Cr4) & CR4_PKE != 0 {
            hw.pkru()
        } else {
            0
        },
        physical_bits: ctx.vm.cpuid.physical_bits(),
    }
}

/// On whose behalf the guest acts.
pub fn privilege<B: Backend>(ctx: &Context<'_, B>) -> Privilege {
    if ctx.core.hw.cpl() == 3 {
        Privilege::User
    } else {
        Privilege::Supervisor
    }
}

/// The registers that instructions on memory work with, copied. Asking the hardware for a segment costs, and
/// addresses of 64-bit code need two only; [`all_segments`] brings the others.
pub fn cpu_state<B: Backend>(ctx: &Context<'_, B>) -> CpuState {
    let hw = &ctx.core.hw;
    let code = code_size(ctx);
    CpuState {
        gpr: hw.regs().0,
        rip: hw.rip(),
        rflags: hw.rflags(),
        segments: SEGMENTS.map(|name| match (code, name) {
            (CodeSize::Bits32 | CodeSize::Bits16, _)
            | (CodeSize::Bits64, SegmentName::Fs | SegmentName::Gs) => hw.segment(name),
            (CodeSize::Bits64, _) => Segment::NULL,
        }),
        code,
        cpl: hw.cpl(),
        cr0: hw.cr(ControlRegister::Cr0),
        cr4: hw.cr(ControlRegister::Cr4),
        xcr0: hw.xcr0(),
    }
}

/// Brings the segments that [`cpu_state`] left out.
pub fn all_segments<B: Backend>(ctx: &Context<'_, B>, cpu: &mut CpuState) {
    cpu.segments = SEGMENTS.map(|name| ctx.core.hw.segment(name));
}

/// How code is encoded now.
pub fn code_size<B: Backend>(ctx: &Context<'_, B>) -> CodeSize {
    let hw = &ctx.core.hw;
    let cs = hw.segment(SegmentName::Cs);
    if hw.efer() & EFER_LMA != 0 && cs.attributes & ATTRIBUTE_LONG != 0 {
        CodeSize::Bits64
    } else if hw.cr(ControlRegister::Cr0) & CR0_PE == 0 || hw.rflags() & RFLAGS_VM != 0 {
        CodeSize::Bits16
    } else if cs.attributes & ATTRIBUTE_BIG != 0 {
        CodeSize::Bits32
    } else {
        CodeSize::Bits16
    }
}

/// Bytes at the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    bytes: [u8; 15],
    length: usize,
}

impl Code {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

/// The instruction's bytes, from the processor or from memory. `Err` says how to go on without them.
pub fn fetch<B: Backend>(ctx: &mut Context<'_, B>) -> Result<Code, After> {
    let assisted = ctx.core.hw.instruction_bytes();
    if !assisted.is_empty() {
        let mut code = Code {
            bytes: [0; 15],
            length: assisted.len().min(15),
        };
        for (to, from) in code.bytes.iter_mut().zip(assisted) {
            *to = *from;
        }
        return Ok(code);
    }
    let linear = match code_size(ctx) {
        CodeSize::Bits64 => ctx.core.hw.rip(),
        CodeSize::Bits32 | CodeSize::Bits16 => u64::from(
            (ctx.core
                .hw
                .segment(SegmentName::Cs)
                .base
                .wrapping_add(ctx.core.hw.rip())) as u32,
        ),
    };
    match walk::fetch(&ctx.vm.ram, &paging(ctx), linear, privilege(ctx)) {
        Ok(fetched) => {
            let mut code = Code {
                bytes: [0; 15],
                length: fetched.bytes().len().min(15),
            };
            for (to, from) in code.bytes.iter_mut().zip(fetched.bytes()) {
                *to = *from;
            }
            Ok(code)
        }
        Err(error) => Err(walk_failed(ctx, error)),
    }
}

/// What the processor would do where the walk failed.
pub fn walk_failed<B: Backend>(ctx: &mut Context<'_, B>, error: WalkError) -> After {
    match error {
        WalkError::PageFault {
            address,
            error_code,
        } => {
            ctx.core.hw.set_cr(ControlRegister::Cr2, address);
            super::event::raise(ctx, super::PAGE_FAULT, Some(error_code))
        }
        WalkError::NonCanonical { .. } => super::general_protection(ctx),
        WalkError::Unstable { .. } => After::Resume, // the processor walks again when the guest runs again
        WalkError::TableOutsideMemory { gpa } => After::Fault(format!(
            "the guest's page tables lead to {gpa}, which is not its memory"
        )),
    }
}

/// The instruction, decoded.
pub fn instruction<B: Backend>(ctx: &mut Context<'_, B>) -> Result<Instruction, After> {
    let code = fetch(ctx)?;
    let bits = match code_size(ctx) {
        CodeSize::Bits64 => 64,
        CodeSize::Bits32 => 32,
        CodeSize::Bits16 => 16,
    };
    let instruction =
        Decoder::with_ip(bits, code.bytes(), ctx.core.hw.rip(), DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        // The processor executed something that is not there any more: another CPU rewrote it. Its own rules
        // leave open which version it sees, so it is asked to look again.
        return Err(After::Resume);
    }
    Ok(instruction)
}

/// Goes past the instruction that exited.
pub fn advance<B: Backend>(ctx: &mut Context<'_, B>) -> Result<(), After> {
    let length = match ctx.core.hw.instruction_length() {
        Some(length) => length,
        None => instruction(ctx)?.len() as u8,
    };
    advance_by(ctx, length);
    Ok(())
}

/// Goes past an instruction of known length.
pub fn advance_by<B: Backend>(ctx: &mut Context<'_, B>, length: u8) {
    let next = ctx.core.hw.rip().wrapping_add(u64::from(length));
    let next = if code_size(ctx) == CodeSize::Bits64 {
        next
    } else {
        next & u64::from(u32::MAX)
    };
    finish_at(ctx, next);
}

/// An instruction was completed by software, and `rip` is the next: the interrupt shadow and RF end, and a
/// single step is told.
pub fn finish_at<B: Backend>(ctx: &mut Context<'_, B>, rip: u64) {
    let hw = &mut ctx.core.hw;
    hw.set_rip(rip);
    hw.set_rflags(hw.rflags() & !RFLAGS_RF);
    hw.clear_interrupt_shadow();
    single_step(ctx);
}

/// The trap of RFLAGS.TF behind an instruction, or an iteration of one, that software has completed (APM 2 13.1.4).
pub fn single_step<B: Backend>(ctx: &mut Context<'_, B>) {
    let hw = &mut ctx.core.hw;
    if hw.rflags() & RFLAGS_TF == 0 {
        return;
    }
    hw.set_dr6(hw.dr6() | DR6_BS);
    // The instruction is complete, so there is nothing that the trap could meet on its way.
    let _resumes = super::event::raise(ctx, super::event::VECTOR_DEBUG, None);
}

/// The two bytes of an instruction's memory operand. `Err` says how to go on without them.
pub fn word_operand<B: Backend>(
    ctx: &mut Context<'_, B>,
    instruction: &Instruction,
) -> Result<u16, After> {
    let mut bytes = [0; 2];
    on_word(ctx, instruction, AccessKind::Read, |bus, place| {
        bus.read(place, &mut bytes);
    })?;
    Ok(u16::from_le_bytes(bytes))
}

/// Stores the two bytes of an instruction's memory operand. `Err` says how to go on if that cannot be.
pub fn store_word<B: Backend>(
    ctx: &mut Context<'_, B>,
    instruction: &Instruction,
    word: u16,
) -> Result<(), After> {
    on_word(ctx, instruction, AccessKind::Write, |bus, place| {
        bus.write(place, &word.to_le_bytes());
    })
}

/// Reaches an instruction's memory operand of two bytes, and does something with it.
fn on_word<B: Backend>(
    ctx: &mut Context<'_, B>,
    instruction: &Instruction,
    kind: AccessKind,
    access: impl FnOnce(&mut dyn Bus, &mmio::Place),
) -> Result<(), After> {
    let cpu = cpu_state(ctx);
    let paging = paging(ctx);
    let outcome = mmio::memory_address(instruction)
        .ok_or(Refusal::Ordinary)
        .and_then(|address| {
            let mut bus = GuestBus::new(&ctx.vm.ram, Machine { ctx }, paging, &cpu, None);
            let offset = address.offset(&cpu);
            let place = mmio::reach(&cpu, &mut bus, address.segment, offset, 2, kind)?;
            access(&mut bus, &place);
            Ok(())
        });
    outcome.map_err(|refusal| refused(ctx, refusal))
}

/// What the processor would do where an operand cannot be reached.
pub fn refused<B: Backend>(ctx: &mut Context<'_, B>, refusal: Refusal) -> After {
    match refusal {
        Refusal::Exception(e) => super::event::raise(ctx, e.vector, e.error_code),
        Refusal::Walk(error) => walk_failed(ctx, error),
        Refusal::Ordinary => After::Resume,
    }
}

/// Instruction bytes as a person reads them.
#[derive(Debug)]
pub struct Bytes<'b>(pub &'b [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}
