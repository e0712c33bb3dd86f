//! The interrupt descriptor table: 256 small entries in assembly, one dispatcher in Rust.
//!
//! `extern "x86-interrupt"` is not stable, so each vector gets 16 bytes of assembly that bring the
//! stack into one shape (error code or a zero, then the vector) and jump to [`common`], which saves
//! the registers as a [`TrapFrame`]. Nothing swaps GS: there is no user mode here.
#![expect(unsafe_code, reason = "interrupt entry is assembly")]

use core::arch::{global_asm, naked_asm};

use spin::Once;
use x86_64::VirtAddr;
use x86_64::structures::idt::{Entry, InterruptDescriptorTable};

use super::gdt::Ist;

/// The local APIC's timer.
pub const TIMER: u8 = 0xf0;
/// "Look at your deferred-work word", from another CPU.
pub const KICK: u8 = 0xf1;
/// The local APIC's error interrupt.
pub const APIC_ERROR: u8 = 0xfe;
/// The local APIC's spurious interrupt.
pub const SPURIOUS: u8 = 0xff;

/// Registers of what was interrupted, as [`common`] pushes them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const STUB_BYTES: u64 = 16;

// Vectors 8, 10 to 14, 17, 21, 29 and 30 push an error code themselves (SDM 3A 6.15, APM 2 8.2).
// The vector is pushed as a signed byte (2 bytes of code); `dispatch` takes its low 8 bits.
global_asm!(
    ".balign 16",
    ".global interrupt_stubs",
    "interrupt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (0x60227d00 >> (vector & 31)) & (vector < 32) & 1",
    ".else",
    ".byte 0x6a, 0",
    ".endif",
    ".byte 0x6a, vector",
    "jmp {common}",
    ".set vector, vector + 1",
    ".endr",
    common = sym common,
);

unsafe extern "C" {
    fn interrupt_stubs();
}

/// Saves the registers, calls [`super::trap::dispatch`] and returns from the interrupt. The processor
/// aligned the stack to 16 before its five words; with error code, vector and fifteen registers
/// that makes 176 bytes, so the call sees an aligned stack.
#[unsafe(naked)]
unsafe extern "C" fn common() {
    naked_asm!(
        "push rax",
        "push rbx",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push rbp",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "cld",
        "mov rdi, rsp",
        "call {dispatch}",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rbp",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rbx",
        "pop rax",
        "add rsp, 16",
        "iretq",
        dispatch = sym super::trap::dispatch,
    )
}

static IDT: Once<InterruptDescriptorTable> = Once::new();

/// Loads the one table that all CPUs share, building it at the first call. The kernel's code
/// segment must be loaded already.
pub fn load() {
    IDT.call_once(build).load();
}

fn build() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    set(&mut idt.divide_error, 0, None);
    set(&mut idt.debug, 1, Some(Ist::Debug));
    set(&mut idt.non_maskable_interrupt, 2, Some(Ist::Nmi));
    set(&mut idt.breakpoint, 3, None);
    set(&mut idt.overflow, 4, None);
    set(&mut idt.bound_range_exceeded, 5, None);
    set(&mut idt.invalid_opcode, 6, None);
    set(&mut idt.device_not_available, 7, None);
    set(&mut idt.double_fault, 8, Some(Ist::DoubleFault));
    set(&mut idt.invalid_tss, 10, None);
    set(&mut idt.segment_not_present, 11, None);
    set(&mut idt.stack_segment_fault, 12, None);
    set(&mut idt.general_protection_fault, 13, None);
    set(&mut idt.page_fault, 14, None);
    set(&mut idt.x87_floating_point, 16, None);
    set(&mut idt.alignment_check, 17, None);
    set(&mut idt.machine_check, 18, Some(Ist::MachineCheck));
    set(&mut idt.simd_floating_point, 19, None);
    set(&mut idt.virtualization, 20, None);
    set(&mut idt.cp_protection_exception, 21, None);
    set(&mut idt.hv_injection_exception, 28, None);
    set(&mut idt.vmm_communication_exception, 29, None);
    set(&mut idt.security_exception, 30, None);
    for vector in 32..=u8::MAX {
        set(&mut idt[vector], vector, None);
    }
    idt
}

fn set<F>(entry: &mut Entry<F>, vector: u8, ist: Option<Ist>) {
    let stub = interrupt_stubs as *const () as u64 + u64::from(vector) * STUB_BYTES;
    // SAFETY: the stub saves and restores everything and returns with IRET; `gdt::load` fills each
    // interrupt stack that is named here before this table is loaded.
    unsafe {
        let options = entry.set_handler_addr(VirtAddr::new_truncate(stub));
        if let Some(ist) = ist {
            options.set_stack_index(ist as u16);
        }
    }
}
