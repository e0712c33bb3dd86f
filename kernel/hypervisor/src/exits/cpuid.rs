//! CPUID: the VM's policy answers.

use super::{After, Context, complete};
use crate::virt::{Backend, ControlRegister, Gpr, VcpuState};
use guest::cpuid::VcpuDynamic;

/// IA32_APIC_BASE.
const MSR_APIC_BASE: u32 = 0x1b;

/// Answers and goes on.
pub fn handle<B: Backend>(ctx: &mut Context<'_, B>) -> After {
    let hw = &ctx.core.hw;
    let (leaf, subleaf) = (hw.regs().get32(Gpr::RAX), hw.regs().get32(Gpr::RCX));
    let apic_base = {
        let now = crate::vm::apic_now(ctx.vm, ctx.core.tsc_offset);
        ctx.vcpu
            .apic
            .lock()
            .msr_read(MSR_APIC_BASE, now)
            .unwrap_or(0)
    };
    let dynamic = VcpuDynamic {
        apic_id: ctx.vm.shape.apic_id(ctx.vcpu.id.index),
        apic_base,
        cr4: hw.cr(ControlRegister::Cr4),
        xcr0: hw.xcr0(),
        xss: ctx.core.xss,
    };
    let answer = ctx.vm.cpuid.lookup(leaf, subleaf, &dynamic);
    let regs = ctx.core.hw.regs_mut();
    regs.set32(Gpr::RAX, answer.eax);
    regs.set32(Gpr::RBX, answer.ebx);
    regs.set32(Gpr::RCX, answer.ecx);
    regs.set32(Gpr::RDX, answer.edx);
    complete(ctx, After::Resume)
}
