//! What never comes to an end by itself.

use core::arch::{asm, global_asm};

use kit::{CODE32, USER_CODE32, USER_DATA, cpu, print, smp, trap};

/// `cli; jmp $`.
pub fn spin() {
    // SAFETY: nothing is touched any more.
    unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) }
}

/// All processors compute, with interrupts off, and never do anything that a hypervisor must see.
pub fn never_exits() {
    smp::everywhere(1, || {
        cpu::cli();
        let mut n = 1_u64;
        loop {
            n = core::hint::black_box(n.rotate_left(7) ^ 0x5a5a);
        }
    });
}

/// A debug exception whose delivery meets a breakpoint, which raises a debug exception whose delivery ... : without the
/// hypervisor's help the processor never comes out of it (CVE-2015-8104).
pub fn debug_loop() {
    trap::on(1, |_| {});
    trap::set_gate(1, 2);
    // The top of its stack: the first word that every delivery writes.
    let top = trap::spare_stack(0);
    cpu::set_dr0(top - 8);
    cpu::set_dr1(top - 40);
    cpu::set_dr7(0x400 | 0b1010 | 0b1001 << 16 | 0b1001 << 20);
    print!("the loop begins");
    // SAFETY: a debug exception; what follows is the point.
    unsafe { asm!(".byte 0xf1") };
    // On processors that leave the loop, it is entered again, for ever.
    step_for_ever()
}

/// A debug exception behind every instruction, for ever.
pub fn debug_storm() {
    trap::on(1, |_| {});
    print!("the storm begins");
    step_for_ever()
}

fn step_for_ever() -> ! {
    loop {
        // SAFETY: single steps, whose handler does nothing.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop") };
    }
}

global_asm!(
    ".section .text.crooked, \"ax\"",
    ".code32",
    ".global crooked",
    // Here in a 32-bit code segment of long mode. Paging goes, and long mode with it: its gates would straighten
    // the stack. CR0.AM comes.
    "crooked: mov $0x10, %ax",
    "mov %ax, %ds",
    "mov %ax, %es",
    "mov %ax, %ss",
    "mov %cr0, %eax",
    "and $0x7fffffff, %eax",
    "or $0x40000, %eax",
    "mov %eax, %cr0",
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "and $0xfffffeff, %eax",
    "wrmsr",
    "lidtl 9f",
    // To ring 3 with EFLAGS.AC and an odd stack.
    "pushl ${data}",
    "pushl $crooked_stack",
    "pushl $0x40002",
    "pushl ${code}",
    "pushl $3f",
    "iretl",
    // The access, and the handler of what it raises, which is in ring 3 as well and pushes to the same stack.
    "3: mov (%esp), %eax",
    "jmp 3b",
    ".balign 8",
    "8: .skip 17 * 8",
    ".word 0, {code}, 0xee00, 0", // its offset is filled in
    "9: .word 18 * 8 - 1",
    ".long 8b",
    ".global crooked_gate, crooked_handler",
    ".set crooked_gate, 8b + 17 * 8",
    ".set crooked_handler, 3b",
    ".skip 256",
    ".balign 16",
    ".set crooked_stack, . + 1",
    ".code64",
    ".text",
    code = const USER_CODE32,
    data = const USER_DATA,
    options(att_syntax)
);

/// An alignment check whose delivery pushes to a stack that is not aligned, which raises an alignment check whose
/// delivery ... (CVE-2015-5307). On a processor that checks no alignment it is a loop like any other.
pub fn alignment_loop() {
    unsafe extern "C" {
        static crooked_gate: u8;
        static crooked_handler: u8;
    }
    let (gate, handler) = (
        &raw const crooked_gate as u64,
        &raw const crooked_handler as u64,
    );
    cpu::poke(gate, handler as u16);
    cpu::poke(gate + 6, (handler >> 16) as u16);
    print!("the loop begins");
    // SAFETY: nothing comes back.
    unsafe {
        asm!("push {code32}", "lea rax, [rip + crooked]", "push rax", "retfq",
            code32 = const CODE32, options(noreturn))
    }
}

/// No gates, and a breakpoint.
pub fn triple_fault() {
    trap::load_idt(&trap::TablePointer { limit: 0, base: 0 });
    // SAFETY: the machine ends here.
    unsafe { asm!("int3", options(noreturn)) }
}
