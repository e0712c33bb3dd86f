#![expect(unsafe_code, reason = "the world switch is machine code")]
//! The world switch (SDM 3C chapters 27 and 28).
//!
//! Interrupts are off before and after. An interrupt for the host ends the guest without being acknowledged; it stays
//! pending and is taken where the run loop opens its window. An NMI is used up by the exit, so its
//! handler is called here, before NMIs are unblocked by its IRET.

use super::cpu::VmxCpu;
use super::exit;
use super::vcpu::VmxVcpu;
use crate::virt::speculation::fill_return_stack;
use crate::virt::{Exit, Regs, TlbState};
use core::arch::{asm, naked_asm};
use vmcs::field;

/// What [`world_switch`] returns: an exit, no current VMCS, or an error in the VMCS's own field.
pub(super) const EXITED: u64 = 0;
const FAILED_VALID: u64 = 2;

/// Runs the guest until it stops.
pub fn enter(cpu: &mut VmxCpu, vcpu: &mut VmxVcpu, tlb: TlbState) -> Exit {
    let launched = vcpu.before_entry(cpu, tlb == TlbState::Stale);
    let regs = &raw mut vcpu.regs;
    let mut cr2 = vcpu.cr2;
    // SAFETY: this CPU is in VMX root operation, and `load` made the VMCS current, with controls that keep the host in charge
    // and a host state taken from this very CPU. CR2 means nothing to the host outside its page-fault handler.
    // Interrupts are off (the trait's contract); NMIs that arrive in the host find host state, since the
    // processor switches it at once.
    let outcome = unsafe {
        asm!("mov cr2, {}", in(reg) cr2, options(nomem, nostack, preserves_flags));
        let outcome = world_switch(regs, u64::from(launched));
        asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags));
        outcome
    };
    vcpu.cr2 = cr2;
    if outcome != EXITED {
        return refused(vcpu, outcome);
    }
    vcpu.after_exit();
    exit::classify(vcpu)
}

/// VMLAUNCH or VMRESUME itself failed: controls or host state (SDM 3C 27.2).
fn refused(vcpu: &VmxVcpu, outcome: u64) -> Exit {
    let error = match vcpu.vmcs() {
        Some(vmcs) if outcome == FAILED_VALID => {
            vmcs::Fields::read(&vmcs, field::INSTRUCTION_ERROR)
        }
        _ => 0,
    };
    exit::rejected(vcpu, u64::from(error))
}

/// Loads guest registers and enters. Returns when the guest has exited, through [`vm_exit`], with 0; or else at
/// once with 1 (no current VMCS) or 2 (the VMCS says why).
///
/// # Safety
/// The CPU is in VMX root operation with a current VMCS whose host state is this CPU's, with `vm_exit` for RIP. `regs` is
/// valid for reads and writes. `launched` says whether the VMCS has been launched.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn world_switch(regs: *mut Regs, launched: u64) -> u64 {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "push rdi", // registers
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "test esi, esi", // no MOV changes the flags
        "mov rax, [rdi]",
        "mov rcx, [rdi + 0x08]", "mov rdx, [rdi + 0x10]", "mov rbx, [rdi + 0x18]",
        "mov rbp, [rdi + 0x28]", "mov rsi, [rdi + 0x30]",
        "mov r8,  [rdi + 0x40]", "mov r9,  [rdi + 0x48]", "mov r10, [rdi + 0x50]", "mov r11, [rdi + 0x58]",
        "mov r12, [rdi + 0x60]", "mov r13, [rdi + 0x68]", "mov r14, [rdi + 0x70]", "mov r15, [rdi + 0x78]",
        "mov rdi, [rdi + 0x38]",
        "jnz 2f",
        "vmlaunch",
        "jmp 3f",
        "2:",
        "vmresume",
        "3:",
        "setz cl", // ZF: the VMCS says why
        "movzx eax, cl",
        "inc eax",
        "add rsp, 8",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        host_rsp = const field::HOST_RSP.encoding(),
    )
}

/// Where every exit arrives, on the stack as [`world_switch`] left it, in whose place it returns.
///
/// # Safety
/// Reached by a VM exit only.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn vm_exit() {
    naked_asm!(
        fill_return_stack!(),
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 0x08], rcx",
        "mov [rdi + 0x10], rdx",
        "mov [rdi + 0x18], rbx",
        "mov [rdi + 0x28], rbp",
        "mov [rdi + 0x30], rsi",
        "mov [rdi + 0x40], r8",
        "mov [rdi + 0x48], r9",
        "mov [rdi + 0x50], r10",
        "mov [rdi + 0x58], r11",
        "mov [rdi + 0x60], r12",
        "mov [rdi + 0x68], r13",
        "mov [rdi + 0x70], r14",
        "mov [rdi + 0x78], r15",
        "pop rcx",
        "mov [rdi + 0x38], rcx",
        "add rsp, 8",
        "xor eax, eax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Calls the host's handler of the NMI that ended the guest (SDM 3C 28.5.5: NMIs are blocked until its IRET).
pub fn take_nmi() {
    // SAFETY: vector 2 has a gate and a stack of its own, and its handler returns or stops the machine.
    unsafe { asm!("int 2") };
}
