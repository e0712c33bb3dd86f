//! The older modes: real, 16-bit protected, 32-bit inside long mode, and the way between them (SDM 3A 9.9).

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use kit::{CODE32, Frame, Test, Verdict, apic, cpu, ensure, trap};

pub const TESTS: &[Test] = &[
    Test::new("mode-real", real),
    Test::new("mode-real-again", || (0..50).try_for_each(|_| real())),
    Test::new("mode-compatibility", compatibility),
    Test::new("mode-compatibility-interrupt", compatibility_interrupt),
];

/// Where the code goes that runs in real mode, with its results in the same page and its stack in the next.
const PLACE: u64 = 0x9000;
const RESULTS: u64 = PLACE + 0xe00;
const PENDING: u8 = 0x61;
const SOFTWARE: u8 = 0x62;

global_asm!(
    ".section .rodata.real, \"a\"",
    ".global real_start, real_software, real_pending, real_end",
    ".set at, {place}",
    "real_start:",
    // Here in a 32-bit code segment of long mode; paging goes, and long mode with it.
    ".code32",
    "mov $0x10, %ax",
    "mov %ax, %ds",
    "mov %ax, %ss",
    "mov %cr0, %eax",
    "and $0x7fffffff, %eax",
    "mov %eax, %cr0",
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "mov %eax, {results} + 0x20", // EFER without LMA
    "and $0xfffffeff, %eax",
    "wrmsr",
    "ljmp $0x20, $at + (2f - real_start)",
    ".code16",
    "2: mov $0x28, %ax",
    "mov %ax, %ds",
    "mov %ax, %es",
    "mov %ax, %ss",
    "mov $0x10, %ax", // keeps its limit of 4 GiB in real mode
    "mov %ax, %gs",
    "mov %cr0, %eax",
    "and $0xfffffffe, %eax",
    "mov %eax, %cr0",
    "ljmp $0, $at + (3f - real_start)",
    "3: xor %ax, %ax",
    "mov %ax, %ds",
    "mov %ax, %es",
    "mov %ax, %ss",
    "mov $0xaff0, %sp",
    "lidtl at + (7f - real_start)",
    "int $0x62",
    "mov $0x1234, %ax",
    "mov %ax, %fs",
    "movb $0x5a, %fs:0x10",
    "mov %fs, {results} + 0x24",
    "mov $0x3ff, %dx",
    "mov $0x6b, %al",
    "out %al, %dx",
    "xor %ax, %ax",
    "in %dx, %al",
    "mov %ax, {results} + 0x08",
    "xor %eax, %eax",
    "cpuid",
    "mov %ebx, {results} + 0x0c",
    "mov $0x100000, %ebx",
    "movl %gs:(%ebx), %eax",
    "mov %eax, {results} + 0x10",
    "sti",
    "nop",
    "nop",
    "cli",
    "call 4f",
    "mov $0xffff, %ax",
    "add $2, %ax",
    "pushf",
    "pop %bx",
    "mov %ax, {results} + 0x14",
    "mov %bx, {results} + 0x16",
    "smsw %ax",
    "mov %ax, {results} + 0x28",
    // And back.
    "mov %cr0, %eax",
    "or $1, %eax",
    "mov %eax, %cr0",
    "ljmpl $0x18, $at + (5f - real_start)",
    "4: incw {results} + 0x18",
    "ret",
    "real_software: incw {results} + 0x00",
    "iret",
    "real_pending: incw {results} + 0x04",
    "iret",
    ".code32",
    "5: mov $0x10, %ax",
    "mov %ax, %ds",
    "mov %ax, %es",
    "mov %ax, %ss",
    "mov %ax, %fs",
    "mov %ax, %gs",
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "or $0x100, %eax",
    "wrmsr",
    "mov %cr0, %eax",
    "or $0x80000000, %eax",
    "mov %eax, %cr0",
    "ljmp $0x08, $at + (6f - real_start)",
    ".code64",
    "6: mov {results} + 0x30, %rsp",
    "ret",
    ".balign 8",
    "7: .word 0x3ff",
    ".long 0",
    "real_end:",
    ".text",
    place = const PLACE,
    results = const RESULTS,
    options(att_syntax)
);

unsafe extern "C" {
    static real_start: u8;
    static real_software: u8;
    static real_pending: u8;
    static real_end: u8;
}

fn real() -> Verdict {
    cpu::cli();
    let start = &raw const real_start as u64;
    for (offset, byte) in (start..&raw const real_end as u64).enumerate() {
        cpu::poke(PLACE + offset as u64, cpu::peek::<u8>(byte));
    }
    (0..0x30)
        .step_by(8)
        .for_each(|offset| cpu::poke(RESULTS + offset, 0_u64));
    cpu::poke(0x12350, 0_u8);
    for (vector, entry) in [
        (SOFTWARE, &raw const real_software),
        (PENDING, &raw const real_pending),
    ] {
        cpu::poke(
            u64::from(vector) * 4,
            (PLACE + (entry as u64 - start)) as u32,
        );
    }
    apic::send_self(PENDING);
    // SAFETY: the code comes back with the stack pointer that is left for it, and all segments as they were.
    unsafe {
        core::arch::asm!(
            "push rbx", "push rbp",
            "lea rax, [rip + 2f]", "push rax",
            "mov [{results} + 0x30], rsp",
            "push {code32}", "push {place}", "retfq",
            "2: pop rbp", "pop rbx",
            results = const RESULTS, code32 = const CODE32, place = const PLACE,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    trap::load_idt(&trap::idt_pointer());
    apic::end_of_interrupt();
    let word = |offset: u64| cpu::peek::<u16>(RESULTS + offset);
    let long = |offset: u64| cpu::peek::<u32>(RESULTS + offset);
    ensure!(word(0) == 1, "INT in real mode came {} times", word(0));
    ensure!(
        word(4) == 1,
        "an interrupt in real mode came {} times",
        word(4)
    );
    ensure!(
        cpu::peek::<u8>(0x12350) == 0x5a,
        "segment 1234h offset 10h is not 12350h"
    );
    ensure!(word(0x24) == 0x1234, "FS reads {:#x}", word(0x24));
    ensure!(word(8) == 0x6b, "a port gave {:#x} in real mode", word(8));
    ensure!(
        long(0xc) == cpu::cpuid(0, 0).ebx,
        "CPUID gave {:#x} in real mode",
        long(0xc)
    );
    ensure!(
        long(0x10) == cpu::peek(0x10_0000),
        "GS lost its limit of 4 GiB: {:#x}",
        long(0x10)
    );
    ensure!(
        word(0x14) == 1 && word(0x16) & 1 == 1,
        "FFFFh + 2 is {:#x}, flags {:#x}",
        word(0x14),
        word(0x16)
    );
    ensure!(word(0x18) == 1, "CALL and RET in real mode do not meet");
    ensure!(
        long(0x20) & 0x400 == 0,
        "EFER.LMA stays without paging: {:#x}",
        long(0x20)
    );
    ensure!(
        word(0x28) & 1 == 0,
        "the machine status word says protected: {:#x}",
        word(0x28)
    );
    ensure!(
        cpu::rdmsr(0xc000_0080) & 0x400 != 0,
        "EFER.LMA does not come back"
    );
    Ok(())
}

global_asm!(
    ".section .text.compat, \"ax\"",
    ".code32",
    ".global compat_code",
    "compat_code:",
    "mov $0x10, %ax",
    "mov %ax, %ds",
    "mov $0xffffffff, %eax",
    "add $3, %eax", // 2, if it is 32 bits wide
    "push %eax",
    "pop %edi",
    "int $0x63",
    "in $0x61, %al",
    "lret",
    ".code64",
    ".text",
    options(att_syntax)
);

static SEEN: AtomicU64 = AtomicU64::new(0);

fn note(frame: &mut Frame) {
    SEEN.store(frame.cs << 32 | frame.rdi, SeqCst);
}

/// Runs 32-bit code.
fn compatible() -> Verdict {
    SEEN.store(0, SeqCst);
    trap::on(0x63, note);
    // SAFETY: the 32-bit code returns by a far return to the frame of two 32-bit words left here.
    unsafe {
        core::arch::asm!(
            "mov r12, rsp",
            "sub rsp, 64", "and rsp, -16",
            "lea rax, [rip + 2f]",
            "mov dword ptr [rsp + 4], 0x08", "mov [rsp], eax",
            "push {code32}", "lea rax, [rip + compat_code]", "push rax", "retfq",
            "2: mov rsp, r12",
            code32 = const CODE32,
            out("rax") _, out("rcx") _, out("rdx") _, out("rdi") _, out("rsi") _, out("r12") _, out("r8") _,
            out("r9") _, out("r10") _, out("r11") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    trap::off(0x63);
    let seen = SEEN.load(SeqCst);
    ensure!(
        seen >> 32 == u64::from(CODE32),
        "INT came from code segment {:#x}",
        seen >> 32
    );
    ensure!(
        seen & 0xffff_ffff == 2,
        "FFFFFFFFh + 3 is {:#x} in 32-bit code",
        seen & 0xffff_ffff
    );
    Ok(())
}

fn compatibility() -> Verdict {
    compatible()
}

fn compatibility_interrupt() -> Verdict {
    cpu::sti();
    for _ in 0..200 {
        apic::send_self(0x64);
        compatible()?;
    }
    cpu::cli();
    Ok(())
}
