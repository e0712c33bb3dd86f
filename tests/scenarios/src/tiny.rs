//! Guest kernels of a few dozen bytes, put together by hand: for trials that need to know every instruction.
//!
//! They are bzImages of one setup sector that the 64-bit boot protocol starts: flat segments, the first
//! 4 GiB mapped to themselves, no stack worth using, interrupts off.

/// First byte of memory that [`remembers`] looks at: behind the kernel, which lies at 16 MiB.
const FROM: u32 = 18 << 20;
/// What [`remembers`] leaves behind.
const PATTERN: u64 = 0x5045_5249_4745_4521;

/// A kernel that looks whether all memory from 18 MiB to `memory_mib` is zero, says `Z` if so and `D` (dirty) if not,
/// fills it with a pattern and asks for a reset.
pub fn remembers(memory_mib: u32) -> Vec<u8> {
    let words = ((memory_mib << 20) - FROM) / 8;
    let mut code = Vec::new();
    let mut put = |bytes: &[u8]| code.extend_from_slice(bytes);
    put(&[0xbf]); // mov edi, FROM
    put(&FROM.to_le_bytes());
    put(&[0xb9]); // mov ecx, words
    put(&words.to_le_bytes());
    put(&[0x31, 0xc0]); // xor eax, eax
    put(&[0xfc]); // cld
    put(&[0xf3, 0x48, 0xaf]); // repe scasq
    put(&[0xb3, b'Z']); // mov bl, 'Z'
    put(&[0x74, 0x02]); // je +2
    put(&[0xb3, b'D']); // mov bl, 'D'
    put(&[0xba, 0xf8, 0x03, 0x00, 0x00]); // mov edx, 0x3f8
    put(&[0x88, 0xd8]); // mov al, bl
    put(&[0xee]); // out dx, al
    put(&[0xb0, b'\n']); // mov al, '\n'
    put(&[0xee]); // out dx, al
    put(&[0xbf]); // mov edi, FROM
    put(&FROM.to_le_bytes());
    put(&[0xb9]); // mov ecx, words
    put(&words.to_le_bytes());
    put(&[0x48, 0xb8]); // mov rax, PATTERN
    put(&PATTERN.to_le_bytes());
    put(&[0xf3, 0x48, 0xab]); // rep stosq
    put(&[0xba, 0xf9, 0x0c, 0x00, 0x00]); // mov edx, 0xcf9
    put(&[0xb0, 0x06]); // mov al, 6: hard reset
    put(&[0xee]); // out dx, al
    put(&[0xf4]); // hlt
    put(&[0xeb, 0xfd]); // jmp to the hlt
    bz_image(&code)
}

/// A kernel that writes the letters `a` to `z` to its serial port for ever, without ever looking whether it is ready.
pub fn babbles() -> Vec<u8> {
    let code = [
        &[0xba, 0xf8, 0x03, 0x00, 0x00][..], // mov edx, 0x3f8
        &[0xb0, b'a'],                       // mov al, 'a'
        &[0xee],                             // out dx, al
        &[0xfe, 0xc0],                       // inc al
        &[0x3c, b'z' + 1],                   // cmp al, 'z' + 1
        &[0x75, 0xf9],                       // jne to the out
        &[0xb0, b'\n'],                      // mov al, '\n'
        &[0xee],                             // out dx, al
        &[0xeb, 0xf2],                       // jmp to the mov al, 'a'
    ];
    bz_image(&code.concat())
}

/// A kernel that reads beyond its memory by an instruction fetch: it jumps to where nothing is.
pub fn leaps() -> Vec<u8> {
    let code = [
        &[0xb8][..], // mov eax, 0xb0000000
        &[0x00, 0x00, 0x00, 0xb0],
        &[0xff, 0xe0], // jmp rax
    ];
    bz_image(&code.concat())
}

/// A kernel that triple-faults: its interrupt descriptor table is empty, and it executes UD2.
pub fn triple_faults() -> Vec<u8> {
    bz_image(&[0x0f, 0x0b])
}

/// The code as a bzImage (boot.rst, "The Real-Mode Kernel Header"): boot protocol 2.15, loaded at 16 MiB, 64-bit
/// entry.
fn bz_image(code: &[u8]) -> Vec<u8> {
    /// The 64-bit entry is there in the payload.
    const ENTRY: usize = 0x200;
    let payload = (ENTRY + code.len()).next_multiple_of(16);
    let mut image = vec![0_u8; 0x400 + payload];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &((payload / 16) as u32).to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x62]); // jump over the header
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1]); // relocatable_kernel
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x20_0000_u32.to_le_bytes()); // init_size
    put(0x400 + ENTRY, code);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the short jump whose first byte is at `at` lands.
    fn target(code: &[u8], at: usize) -> usize {
        (at + 2).wrapping_add_signed(isize::from(code[at + 1] as i8))
    }

    #[test]
    fn jumps_land_where_the_comments_say() {
        let image = remembers(64);
        let code = &image[0x600..];
        let find = |needle: &[u8]| {
            let at = code.windows(needle.len()).position(|w| w == needle);
            at.expect("the instruction is there")
        };
        let je = find(&[0x74, 0x02, 0xb3, b'D']);
        assert_eq!(code[target(code, je)], 0xba);
        let hlt = find(&[0xf4, 0xeb]);
        assert_eq!(target(code, hlt + 1), hlt);

        let image = babbles();
        let code = &image[0x600..];
        assert_eq!((code[12], target(code, 12)), (0x75, 7));
        assert_eq!((code[7], code[17], target(code, 17)), (0xee, 0xeb, 5));
    }
}
