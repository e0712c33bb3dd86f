//! Devices and nothing, accessed as no driver would.

use core::arch::asm;

use kit::page::{self, PRESENT, WRITE};
use kit::{attempt, cpu, print, trap};

const LAPIC: u64 = kit::apic::BASE;
const IOAPIC: u64 = 0xfec0_0000;

/// Executes one instruction with RDI at a register of the I/O APIC.
macro_rules! on_device {
    ($code:literal) => {{
        let at = IOAPIC + 0x10;
        core::hint::black_box(attempt!(
            $code; in("rdi") at, inout("rax") 1_u64 => _, inout("rdx") 0_u64 => _
        ));
    }};
}

/// Every kind of instruction on registers in memory. Whether it is executed, refused or ignored is the hypervisor's
/// choice, as long as this guest or its end is all that it touches.
pub fn odd() {
    static SCRATCH: page::Page = page::Page::new();
    let scratch = SCRATCH.address();
    for at in [
        LAPIC + 0x80,
        LAPIC + 0x84,
        LAPIC + 0xffe,
        IOAPIC,
        IOAPIC + 0x10,
        IOAPIC + 0xffd,
        0xfd00_0000,
    ] {
        macro_rules! each {
            ($($code:literal),* $(,)?) => {$(
                core::hint::black_box(attempt!(
                    "mov r8, rbx", "xor ebx, ebx", $code, "mov rbx, r8";
                    inout("rdi") at => _, inout("rsi") scratch => _, inout("rcx") 4_u64 => _, inout("rax") 0_u64 => _,
                    inout("rdx") 0_u64 => _, out("r8") _,
                ));
            )*};
        }
        each!(
            "lock or dword ptr [rdi], eax",
            "lock xadd dword ptr [rdi], eax",
            "lock cmpxchg dword ptr [rdi], edx",
            "lock cmpxchg8b [rdi]",
            "xchg qword ptr [rdi], rax",
            "xchg byte ptr [rdi], al",
            "rep movsb",
            "cld; rep stosq",
            "rep movsq",
            "std; movsd; cld",
            "xchg rdi, rsi; rep movsd",
            "repne scasb",
            "repe cmpsd",
            "lodsd",
            "push qword ptr [rdi]; pop rax",
            "push rax; pop qword ptr [rdi]",
            "movups xmm0, [rdi]",
            "movups [rdi], xmm0",
            "movntdq [rdi], xmm0",
            "movq qword ptr [rdi], xmm0",
            "maskmovdqu xmm0, xmm1",
            "inc dword ptr [rdi]",
            "neg word ptr [rdi]",
            "not byte ptr [rdi]",
            "shl dword ptr [rdi], 3",
            "bts dword ptr [rdi], 5",
            "bt dword ptr [rdi], eax",
            "imul eax, dword ptr [rdi]",
            "movzx eax, byte ptr [rdi]",
            "movsx rax, word ptr [rdi]",
            "movbe eax, dword ptr [rdi]",
            "test dword ptr [rdi], eax",
            "cmp qword ptr [rdi], rax",
            "adc dword ptr [rdi], 0",
            "clflush [rdi]",
            "prefetcht0 [rdi]",
            "setz byte ptr [rdi]",
            "cmovz rax, qword ptr [rdi]",
            "xlatb",
            "enter 16, 0; leave",
            "smsw [rdi]",
            "idiv dword ptr [rdi]",
            "mov ds, [rdi]",
            "ltr [rdi]",
            "jmp fword ptr [rdi]",
            "movq mm0, [rdi]; movq [rdi], mm0; emms",
        );
    }
    kit::apic::switch_on();
}

/// Instructions that no driver uses on a device, and that nobody executes there for it: they end the VM.
pub const REFUSED: &[(&str, fn())] = &[
    ("fld", || on_device!("fld qword ptr [rdi]")),
    ("fistp", || on_device!("fistp qword ptr [rdi]")),
    ("fxsave", || on_device!("fxsave [rdi]")),
    ("ldmxcsr", || on_device!("ldmxcsr [rdi]")),
    ("sgdt", || on_device!("sgdt [rdi]")),
];

/// The one of them that `instruction=` names.
pub fn refused() {
    let name = kit::word("instruction").unwrap_or("fld");
    if let Some((_, execute)) = REFUSED.iter().find(|(known, _)| *known == name) {
        execute();
    }
    print!("alive behind {name}");
}

/// Loads and stores where no memory is.
pub fn beyond() {
    let end = kit::memory_bytes().next_multiple_of(1 << 21);
    for at in (end..0xfe00_0000).step_by(64 << 20) {
        core::hint::black_box(attempt!("mov rax, [{at}]"; at = in(reg) at, out("rax") _));
        core::hint::black_box(attempt!("mov [{at}], rax"; at = in(reg) at + 8));
    }
    for bit in 32..52 {
        page::set(40, 1 << bit, PRESENT | WRITE);
        core::hint::black_box(attempt!("mov rax, [{at}]"; at = in(reg) page::at(40), out("rax") _));
        core::hint::black_box(attempt!("mov [{at}], rax"; at = in(reg) page::at(40)));
    }
    page::set(40, 0, 0);
}

/// Jumps to a device.
pub fn execute() {
    // SAFETY: nothing is expected to come back.
    unsafe { asm!("jmp {}", in(reg) LAPIC + 0x80, options(noreturn)) }
}

/// Makes a device the root of its page tables.
pub fn tables() {
    cpu::set_cr3(IOAPIC);
    print!("alive with page tables in a device");
}

/// Takes a fault with its stack in a device.
pub fn stack() {
    // SAFETY: nothing is expected to come back.
    unsafe { asm!("mov rsp, {}", "push rax", "ud2", in(reg) LAPIC + 0x800, options(noreturn)) }
}

/// Takes a fault with its gates in a device.
pub fn descriptors() {
    trap::load_idt(&trap::TablePointer {
        limit: 0xfff,
        base: LAPIC,
    });
    // SAFETY: nothing is expected to come back.
    unsafe { asm!("ud2", options(noreturn)) }
}
