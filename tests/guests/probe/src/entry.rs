//! The image's header and its first instructions.
//!
//! Linux: Documentation/arch/x86/boot.rst. The loader enters at 0x200 of the protected-mode kernel in long
//! mode, interrupts off, everything below 4 GiB mapped one to one, RSI pointing to `boot_params`.
#![expect(
    unsafe_code,
    reason = "the first instructions, and what the loader left in memory"
)]

use crate::words::Words;
use core::arch::global_asm;

global_asm!(
    ".pushsection .header, \"a\"",
    ".org 0x1f1",
    ".byte 1", // setup_sects
    ".word 0",
    ".long __probe_sysize",
    ".word 0, 0, 0",
    ".word 0xaa55",
    ".byte 0xeb, 0x66", // the header ends at 0x268
    ".ascii \"HdrS\"",
    ".word 0x020c", // protocol 2.12
    ".long 0",
    ".word 0, 0",
    ".byte 0",
    ".byte 1", // LOADED_HIGH
    ".org 0x230",
    ".long 0x200000", // kernel_alignment
    ".byte 0, 0",     // not relocatable
    ".word 1",        // XLF_KERNEL_64
    ".long 2047",     // cmdline_size
    ".org 0x258",
    ".quad 0x200000", // pref_address
    ".long __probe_init_size",
    ".org 0x400",
    ".popsection",
    ".pushsection .text.entry, \"ax\"",
    ".global _start",
    "_start:",
    "lea rsp, [rip + probe_stack_top]",
    "xor ebp, ebp",
    "mov rdi, rsi",
    "call {main}",
    "ud2",
    ".popsection",
    ".pushsection .bss.stack, \"aw\", @nobits",
    ".balign 4096",
    ".skip 65536",
    "probe_stack_top:",
    ".popsection",
    main = sym rust_entry,
);

/// `boot_params.hdr.cmd_line_ptr`.
const CMD_LINE_PTR: usize = 0x228;
const CMD_LINE_MAX: usize = 2048;

extern "sysv64" fn rust_entry(boot_params: *const u8) -> ! {
    // SAFETY: the boot protocol's promise: `boot_params` is a page, its field a 32-bit pointer to a string that ends
    // with a zero, all of it mapped and left alone by everybody.
    let line = unsafe {
        let at = boot_params.add(CMD_LINE_PTR).cast::<u32>().read_unaligned();
        let start = core::ptr::with_exposed_provenance::<u8>(at as usize);
        let length = (0..CMD_LINE_MAX).find(|i| start.add(*i).read() == 0);
        core::slice::from_raw_parts(start, length.unwrap_or(0))
    };
    crate::guest(&Words::new(core::str::from_utf8(line).unwrap_or("")))
}
