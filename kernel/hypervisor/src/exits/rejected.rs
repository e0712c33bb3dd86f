//! Guest state that the processor rejects.
//!
//! A processor says so at the entry, and the VM cannot go on. QEMU (10.0) says the same of a guest that runs and loads CR3 with
//! reserved bits, where a processor raises #GP(0) in the guest (APM 2 5.3.2, SDM 2B MOV to control registers).

use super::{After, Context, decode, general_protection};
use crate::virt::{Backend, Culprit, Gpr, VcpuState};
use crate::vm::history::What;
use alloc::format;
use iced_x86::{Code, Register};

/// Gives the guest what a processor would, or says why the VM stops.
pub fn handle<B: Backend>(
    ctx: &mut Context<'_, B>,
    detail: u64,
    culprit: Option<Culprit>,
) -> After {
    match culprit {
        Some(culprit) => After::Fault(format!(
            "the processor rejected the guest's state (code {detail:#x}): {culprit}"
        )),
        // Whatever else is wrong: a second rejection of the same state, with the #GP on its way, is final.
        None if !was_given_an_event(ctx) && loads_reserved_cr3(ctx) => general_protection(ctx),
        None => After::Fault(format!(
            "the processor rejected the guest's state (code {detail:#x})"
        )),
    }
}

/// Whether this entry was to bring the guest an event, and the guest is still where it was.
fn was_given_an_event<B: Backend>(ctx: &Context<'_, B>) -> bool {
    let rip = ctx.core.hw.rip();
    let before = ctx.core.history.entries().rev().nth(1);
    before.is_some_and(|entry| matches!(entry.what, What::Event(_)) && entry.rip == rip)
}

/// Whether the guest is at a MOV to CR3 of a value that has bits beyond its physical addresses.
fn loads_reserved_cr3<B: Backend>(ctx: &mut Context<'_, B>) -> bool {
    let Ok(instruction) = decode::instruction(ctx) else {
        return false;
    };
    if instruction.code() != Code::Mov_cr_r64 || instruction.op0_register() != Register::CR3 {
        return false;
    }
    let beyond = u64::MAX
        .checked_shl(ctx.vm.cpuid.physical_bits().into())
        .unwrap_or(0);
    let source = Gpr((instruction.op1_register() as u32 - Register::RAX as u32) as u8);
    ctx.core.hw.regs().get(source) & beyond != 0
}
