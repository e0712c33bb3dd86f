#![expect(unsafe_code, reason = "the world switch is machine code")]
//! The world switch (APM 2 15.5, 15.14).
//!
//! With V_INTR_MASKING the host's own RFLAGS.IF decides, while the guest runs, whether an
//! interrupt for the host ends the guest: so GIF is cleared, IF is set, and VMRUN follows, though not
//! at once: processors let STI's shadow pass into the guest's when event delivery exits. An
//! interrupt that arrives in between stays pending and ends the guest at its first instruction.
//! After the exit IF is cleared before GIF is set again: the interrupt is taken where the run loop opens its
//! window, on the run loop's stack.

use super::cpu::SvmCpu;
use super::vcpu::SvmVcpu;
use super::vmcb::{TLB_FLUSH_ALL, TLB_FLUSH_ASID, TLB_KEEP};
use super::{bitmap, exit};
use crate::mm;
use crate::virt::speculation::fill_return_stack;
use crate::virt::{Exit, Regs, TlbState};
use core::arch::{asm, naked_asm};
use units::Hpa;

/// Runs the guest until it stops.
pub fn enter(cpu: &mut SvmCpu, vcpu: &mut SvmVcpu, tlb: TlbState) -> Exit {
    let stale = tlb == TlbState::Stale || vcpu.stale;
    vcpu.stale = false;
    // With a new tag nothing needs to be flushed; one that is known here can be flushed alone.
    let keeps_tag = cpu.is_current(vcpu.asid) && (!stale || cpu.caps.flush_by_asid);
    if !keeps_tag {
        vcpu.asid = cpu.fresh_asid();
    }
    let tlb_control = match (cpu.take_flush_all(), keeps_tag && stale) {
        (true, _) => TLB_FLUSH_ALL,
        (false, true) => TLB_FLUSH_ASID,
        (false, false) => TLB_KEEP,
    };
    vcpu.before_entry();
    let control = &mut vcpu.vmcb_mut().control;
    control.iopm_base = image_address(&raw const bitmap::IO_PERMISSIONS);
    control.msrpm_base = image_address(&raw const bitmap::MSR_PERMISSIONS);
    control.tlb_control = tlb_control;
    // No clean bits: each entry reloads everything. What they save is small beside an exit's cost,
    // and a bit wrongly left set after a move between CPUs is silent corruption.
    control.clean = 0;
    vcpu.vmcb_mut().control.asid = vcpu.asid.number;

    let guest_vmcb = vcpu.vmcb_address();
    let host_vmcb = cpu.host_vmcb;
    // SAFETY: SVM is on (an `SvmCpu` exists only then). Both VMCBs are pages that this call owns for its
    // duration: the guest's through `&mut SvmVcpu`, the host's through `&mut SvmCpu`. The host page has
    // been filled by VMSAVE on this CPU just before. Interrupts are off (the trait's contract), and GIF
    // is cleared around the switch, so nothing runs on this CPU with guest FS, GS or TR loaded.
    unsafe {
        asm!("clgi", options(nostack));
        asm!("vmsave rax", in("rax") host_vmcb.0, options(nostack));
        world_switch(vcpu.regs_ptr(), guest_vmcb.0, host_vmcb.0);
        asm!("stgi", options(nostack));
    }
    vcpu.after_exit();
    exit::classify(cpu, vcpu)
}

/// Host-physical address of something in the kernel image.
fn image_address<T>(object: *const T) -> u64 {
    mm::hpa_of(object.cast()).unwrap_or(Hpa(0)).0
}

/// Loads guest registers, runs the guest, stores guest registers.
///
/// # Safety
/// GIF is 0; `guest` and `host` are physical addresses of valid VMCBs in this CPU's ownership; `regs` is
/// valid for reads and writes.
#[unsafe(naked)]
unsafe extern "sysv64" fn world_switch(regs: *mut Regs, guest: u64, host: u64) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx", // host VMCB
        "push rdi", // registers
        "sti",      // GIF is 0: nothing comes yet
        "mov rax, rsi",
        "vmload rax",
        "mov rcx, [rdi + 0x08]",
        "mov rdx, [rdi + 0x10]",
        "mov rbx, [rdi + 0x18]",
        "mov rbp, [rdi + 0x28]",
        "mov rsi, [rdi + 0x30]",
        "mov r8,  [rdi + 0x40]",
        "mov r9,  [rdi + 0x48]",
        "mov r10, [rdi + 0x50]",
        "mov r11, [rdi + 0x58]",
        "mov r12, [rdi + 0x60]",
        "mov r13, [rdi + 0x68]",
        "mov r14, [rdi + 0x70]",
        "mov r15, [rdi + 0x78]",
        "mov rdi, [rdi + 0x38]",
        "vmrun rax",
        "cli",
        "vmsave rax", // RAX is the host's again: the guest's VMCB
        fill_return_stack!(),
        "push rdi",
        "mov rdi, [rsp + 8]",
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
        "pop rax",
        "vmload rax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}
