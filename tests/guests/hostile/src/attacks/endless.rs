//! What never comes to an end by itself.

use core::arch::asm;

use kit::{cpu, print, smp, trap};

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
    loop {
        // SAFETY: as above.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop") };
    }
}

/// No gates, and a breakpoint.
pub fn triple_fault() {
    trap::load_idt(&trap::TablePointer { limit: 0, base: 0 });
    // SAFETY: the machine ends here.
    unsafe { asm!("int3", options(noreturn)) }
}
