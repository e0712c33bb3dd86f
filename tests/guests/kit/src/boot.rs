//! From a multiboot loader's 32-bit entry to Rust in long mode, and the same way for the other processors.
//!
//! The first processor arrives as Multiboot 1 (section 3.2) promises: 32-bit protected mode, paging
//! off, EBX with the information structure. It builds one identity map of the first 4 GiB in
//! leaves of 2 MiB (the last GiB uncached: devices live there), which all processors share. The others wake in
//! real mode at [`TRAMPOLINE`], take a number, and with it a stack.

use core::arch::global_asm;

/// Where the other processors wake: a page below 1 MiB that no loader uses.
pub const TRAMPOLINE: usize = 0x8000;
/// Most processors.
pub const MAX_CPUS: usize = 16;
/// Bytes of a processor's stack.
pub const STACK_BYTES: usize = 32 << 10;

/// The code segment of 64-bit code.
pub const CODE64: u16 = 0x08;
/// The flat data segment.
pub const DATA: u16 = 0x10;
/// The flat code segment of 32-bit code.
pub const CODE32: u16 = 0x18;
/// A 16-bit code segment with base 0 and a limit of 64 KiB, as real mode leaves it.
pub const CODE16: u16 = 0x20;
/// A 16-bit data segment of the same kind.
pub const DATA16: u16 = 0x28;
/// The user's 32-bit code segment; SYSRET counts from here.
pub const USER_CODE32: u16 = 0x30 | 3;
/// The user's data segment.
pub const USER_DATA: u16 = 0x38 | 3;
/// The user's 64-bit code segment.
pub const USER_CODE64: u16 = 0x40 | 3;
/// The task segment of processor 0; each takes 16 bytes.
pub const FIRST_TASK: u16 = 0x50;

global_asm!(
    ".section .multiboot, \"a\"",
    ".balign 4",
    ".long 0x1BADB002, 3, -(0x1BADB002 + 3)",
    // Descriptors that all processors share; Rust adds the task segments behind them.
    ".section .data.gdt, \"aw\"",
    ".balign 16",
    ".global kit_gdt",
    "kit_gdt:",
    ".quad 0",
    ".quad 0x00AF9B000000FFFF", // 08 code, 64 bits
    ".quad 0x00CF93000000FFFF", // 10 data
    ".quad 0x00CF9B000000FFFF", // 18 code, 32 bits
    ".quad 0x00009B000000FFFF", // 20 code, 16 bits
    ".quad 0x000093000000FFFF", // 28 data, 16 bits
    ".quad 0x00CFFB000000FFFF", // 30 user's code, 32 bits
    ".quad 0x00CFF3000000FFFF", // 38 user's data
    ".quad 0x00AFFB000000FFFF", // 40 user's code, 64 bits
    ".quad 0",
    ".fill {max_cpus} * 2, 8, 0",
    "kit_gdt_end:",
    ".global kit_gdtr",
    "kit_gdtr: .word kit_gdt_end - kit_gdt - 1",
    ".quad kit_gdt",
    ".global kit_started",
    ".balign 4",
    "kit_started: .long 1",
    ".section .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    ".global kit_pml4, kit_pdpt",
    "kit_pml4: .skip 4096",
    "kit_pdpt: .skip 4096",
    "kit_pd: .skip 4 * 4096",
    ".global kit_stacks",
    "kit_stacks: .skip {max_cpus} * {stack}",
    ".section .text.boot, \"ax\"",
    ".code32",
    ".global _start",
    "_start:",
    "cli",
    "cld",
    "mov $kit_stacks + {stack}, %esp",
    "mov %ebx, %ebp",
    "movl $kit_pdpt + 7, kit_pml4",
    "mov $kit_pd + 7, %eax",
    "mov $kit_pdpt, %edi",
    "2: mov %eax, (%edi)",
    "add $8, %edi",
    "add $4096, %eax",
    "cmp $kit_pd + 4 * 4096, %eax",
    "jb 2b",
    "mov $kit_pd, %edi",
    "mov $0x83, %eax", // present, writable, large; the kernel's alone
    "3: mov %eax, (%edi)",
    "cmp $0xC0000000, %eax",
    "jb 4f",
    "orb $0x18, (%edi)", // write-through and cache-disable: devices
    "4: add $8, %edi",
    "add $0x200000, %eax",
    "cmp $kit_pd + 4 * 4096, %edi",
    "jb 3b",
    "mov %ebp, %edi", // the information structure
    "xor %esi, %esi", // processor 0
    "jmp 5f",
    // The others come here from the trampoline, flat, in 32-bit protected mode.
    ".global kit_ap32",
    "kit_ap32:",
    "mov $0x10, %ax",
    "mov %ax, %ds",
    "mov %ax, %es",
    "mov %ax, %ss",
    "mov $1, %esi",
    "lock xadd %esi, kit_started",
    "cmp ${max_cpus}, %esi",
    "jae 7f",
    "mov %esi, %eax",
    "imul ${stack}, %eax",
    "lea kit_stacks + {stack}(%eax), %esp",
    "xor %edi, %edi",
    "5:",
    "lgdt kit_gdtr",
    "mov $0x620, %eax", // PAE, OSFXSR, OSXMMEXCPT
    "mov %eax, %cr4",
    "mov $kit_pml4, %eax",
    "mov %eax, %cr3",
    "mov $0xC0000080, %ecx",
    "mov $0x901, %eax", // SCE, LME, NXE
    "xor %edx, %edx",
    "wrmsr",
    "mov $0x80010033, %eax", // PG, WP, NE, ET, MP, PE
    "mov %eax, %cr0",
    "ljmp $0x08, $6f",
    "7: hlt",
    "jmp 7b",
    ".code64",
    "6:",
    "mov $0x10, %ax",
    "mov %ax, %ds",
    "mov %ax, %es",
    "mov %ax, %ss",
    "mov %ax, %fs",
    "mov %ax, %gs",
    "mov %edi, %edi",
    "mov %esi, %esi",
    "xor %ebp, %ebp",
    "call kit_entry",
    "8: hlt",
    "jmp 8b",
    // Copied to TRAMPOLINE.
    ".section .rodata.trampoline, \"a\"",
    ".global kit_trampoline, kit_trampoline_end",
    "kit_trampoline:",
    ".code16",
    "cli",
    "xor %ax, %ax",
    "mov %ax, %ds",
    "lgdtl {trampoline} + (9f - kit_trampoline)",
    "mov %cr0, %eax",
    "or $1, %eax",
    "mov %eax, %cr0",
    "ljmpl $0x18, $kit_ap32",
    ".balign 4",
    "9: .word kit_gdt_end - kit_gdt - 1",
    ".long kit_gdt",
    "kit_trampoline_end:",
    ".code64",
    ".text",
    max_cpus = const MAX_CPUS,
    stack = const STACK_BYTES,
    trampoline = const TRAMPOLINE,
    options(att_syntax)
);

/// Bytes of the code that the other processors wake in.
pub fn trampoline() -> &'static [u8] {
    unsafe extern "C" {
        static kit_trampoline: u8;
        static kit_trampoline_end: u8;
    }
    let (from, to) = (&raw const kit_trampoline, &raw const kit_trampoline_end);
    // SAFETY: the assembler placed both labels in this order around constant bytes.
    unsafe { core::slice::from_raw_parts(from, to as usize - from as usize) }
}
