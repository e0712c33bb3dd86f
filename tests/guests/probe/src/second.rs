//! The second processor, from its start-up IPI to Rust.
#![expect(unsafe_code, reason = "real-mode code in low memory, and its data")]

use crate::{apic, cpu};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A page below 1 MiB, whose number is the start-up vector; the loader's stack was there.
const TRAMPOLINE: u64 = 0x8000;
/// The APIC number of the second processor.
pub const APIC: u32 = 1;

// Real mode to long mode in one step, as the hypervisor's own processors do it.
global_asm!(
    ".pushsection .rodata.second, \"a\"",
    ".balign 16",
    "second_begin:",
    ".code16",
    "cli",
    "mov ax, cs",
    "mov ds, ax",
    ".byte 0x0f, 0x01, 0x16", // lgdt [disp16]
    ".word second_gdt_pointer - second_begin",
    "mov eax, 0x620", // CR4.PAE, OSFXSR, OSXMMEXCPT
    "mov cr4, eax",
    ".byte 0x66, 0xa1", // mov eax, [disp16]
    ".word second_cr3 - second_begin",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100", // EFER.LME
    "wrmsr",
    "mov eax, 0x80010033",
    "mov cr0, eax",
    ".byte 0x66, 0xff, 0x2e", // jmp far dword ptr [disp16]
    ".word second_far - second_begin",
    ".code64",
    "second_long:",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov rsp, qword ptr [rip + second_stack]",
    "call qword ptr [rip + second_target]",
    "2: hlt",
    "jmp 2b",
    ".balign 8",
    "second_data:",
    "second_far: .quad 0",
    "second_cr3: .quad 0",
    "second_stack: .quad 0",
    "second_target: .quad 0",
    // The boot protocol's selector of 64-bit code is 0x10; the interrupt gates name it.
    "second_gdt: .quad 0, 0, 0x00af9b000000ffff",
    "second_gdt_pointer: .word 23",
    "second_gdt_base: .long 0, 0",
    "second_end:",
    ".popsection",
    ".pushsection .bss.second_stack, \"aw\", @nobits",
    ".balign 4096",
    ".skip 16384",
    "second_stack_top:",
    ".popsection",
);

unsafe extern "C" {
    static second_begin: [u8; 0];
    static second_long: [u8; 0];
    static second_far: [u8; 0];
    static second_cr3: [u8; 0];
    static second_stack: [u8; 0];
    static second_target: [u8; 0];
    static second_gdt: [u8; 0];
    static second_gdt_base: [u8; 0];
    static second_end: [u8; 0];
    static second_stack_top: [u8; 0];
}

/// What the second processor does, as a function's address; 0 for nothing.
static TASK: AtomicU64 = AtomicU64::new(0);
static READY: AtomicU64 = AtomicU64::new(0);

/// Copies the trampoline, starts the processor and waits for it.
pub fn start() -> bool {
    let begin = (&raw const second_begin).addr();
    let place = |symbol: *const [u8; 0]| TRAMPOLINE + (symbol.addr() - begin) as u64;
    // SAFETY: the page below 1 MiB is RAM that nobody uses any more, mapped one to one; the fields lie inside the copy.
    unsafe {
        let to = core::ptr::with_exposed_provenance_mut::<u8>(TRAMPOLINE as usize);
        let bytes = (&raw const second_end).addr() - begin;
        core::ptr::copy_nonoverlapping((&raw const second_begin).cast::<u8>(), to, bytes);
        let put = |symbol, value: u64| {
            core::ptr::with_exposed_provenance_mut::<u64>(place(symbol) as usize)
                .write_unaligned(value);
        };
        put(
            &raw const second_far,
            place(&raw const second_long) | 0x10 << 32,
        );
        put(&raw const second_cr3, cpu::cr3());
        put(
            &raw const second_stack,
            (&raw const second_stack_top).addr() as u64,
        );
        put(&raw const second_target, second_main as *const () as u64);
        put(&raw const second_gdt_base, place(&raw const second_gdt));
    }
    apic::start_up(APIC, None);
    apic::start_up(APIC, Some((TRAMPOLINE >> 12) as u8));
    let until = cpu::now_ms() + 10_000;
    while READY.load(SeqCst) == 0 {
        if cpu::now_ms() > until {
            return false;
        }
        cpu::relax();
    }
    true
}

extern "sysv64" fn second_main() -> ! {
    apic::take_processor();
    READY.store(1, SeqCst);
    loop {
        let task = TASK.load(SeqCst);
        if task == 0 {
            cpu::relax();
            continue;
        }
        // SAFETY: `give` stores the addresses of `fn()` only.
        let task: fn() = unsafe { core::mem::transmute::<u64, fn()>(task) };
        task();
        TASK.store(0, SeqCst);
    }
}

/// Lets the second processor do this.
pub fn give(task: fn()) {
    TASK.store(task as usize as u64, SeqCst);
}

/// Waits until it has done it.
pub fn finished() {
    while TASK.load(SeqCst) != 0 {
        cpu::relax();
    }
}
