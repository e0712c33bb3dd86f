//! A Multiboot kernel of 117 bytes: the smallest guest that can say whether it was loaded as it should be.
//!
//! It has no ELF header, only the address fields of its Multiboot header, so that both ways to load a kernel are
//! shown: the test micro-kernels of `tests/guests` are ELF files. It calls a subroutine before it has a stack of its
//! own, prints its command line and the string of its module, and ends with 0 at the exit port if
//! `fw_cfg` tells of three CPUs and its one module begins with a Multiboot header, with 1 otherwise.

/// Where it is loaded.
const LOAD: u32 = 0x20_0000;
const MAGIC: u32 = 0x1BAD_B002;
/// The address fields hold.
const FLAGS: u32 = 1 << 16;
/// Bytes of the header; the first instruction follows.
const HEADER_BYTES: u32 = 32;

/// 32-bit code.
const CODE: [u8; 85] = [
    0x3D, 0x02, 0xB0, 0xAD, 0x2B, // cmp eax, 0x2BADB002
    0x75, 0x37, // jne fail
    0x8B, 0x73, 0x10, // mov esi, [ebx + 16]     the command line
    0xE8, 0x36, 0x00, 0x00, 0x00, // call puts
    0x66, 0xBA, 0x10, 0x05, // mov dx, 0x510
    0x66, 0xB8, 0x05, 0x00, // mov ax, 5               FW_CFG_NB_CPUS
    0x66, 0xEF, // out dx, ax
    0x42, // inc edx
    0xEC, // in al, dx
    0x3C, 0x03, // cmp al, 3
    0x75, 0x1F, // jne fail
    0x83, 0x7B, 0x14, 0x01, // cmp dword [ebx + 20], 1  modules
    0x75, 0x19, // jne fail
    0x8B, 0x7B, 0x18, // mov edi, [ebx + 24]     their list
    0x8B, 0x77, 0x08, // mov esi, [edi + 8]      the string
    0xE8, 0x15, 0x00, 0x00, 0x00, // call puts
    0x8B, 0x37, // mov esi, [edi]          the first byte
    0x81, 0x3E, 0x02, 0xB0, 0xAD, 0x1B, // cmp dword [esi], 0x1BADB002
    0x75, 0x04, // jne fail
    0x30, 0xC0, // xor al, al
    0xEB, 0x02, // jmp end
    0xB0, 0x01, // fail: mov al, 1
    0xE6, 0xF4, // end: out 0xF4, al
    0xF4, // hlt
    0xEB, 0xFD, // jmp back to it
    0x66, 0xBA, 0xF8, 0x03, // puts: mov dx, 0x3F8
    0xAC, // lodsb
    0x84, 0xC0, // test al, al
    0x74, 0x03, // jz over the next two
    0xEE, // out dx, al
    0xEB, 0xF8, // jmp back to lodsb
    0xB0, 0x0A, // mov al, '\n'
    0xEE, // out dx, al
    0xC3, // ret
];

/// The file.
pub fn image() -> Vec<u8> {
    let header = [
        MAGIC,
        FLAGS,
        0_u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS),
        LOAD, // the header is the first thing there
        LOAD,
        0, // all of the file
        0, // nothing to clear
        LOAD + HEADER_BYTES,
    ];
    let header = header.into_iter().flat_map(u32::to_le_bytes);
    header.chain(CODE).collect()
}
