//! Which MSRs and ports a guest reaches without an exit (APM 2 15.10, 15.11).
//!
//! No port; and of the MSRs those that VMLOAD and VMSAVE switch, since each guest has its own.
//! The maps are the same for all guests, built at compile time.

/// MSRs that live in the VMCB's state-save area: SYSENTER, SYSCALL, FS, GS.
const SWITCHED_MSRS: [u32; 10] = [
    0x174,
    0x175,
    0x176, // SYSENTER_CS, ESP, EIP
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084, // STAR, LSTAR, CSTAR, SFMASK
    0xc000_0100,
    0xc000_0101,
    0xc000_0102, // FS.base, GS.base, KernelGSbase
];

const IOPM_BYTES: usize = 3 * 4096;
const MSRPM_BYTES: usize = 2 * 4096;

/// A map that hardware reads: page-aligned.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Map<const BYTES: usize>(pub [u8; BYTES]);

/// All ports intercepted.
pub static IO_PERMISSIONS: Map<IOPM_BYTES> = Map([0xff; IOPM_BYTES]);
/// All MSRs intercepted but [`SWITCHED_MSRS`].
pub static MSR_PERMISSIONS: Map<MSRPM_BYTES> = Map(msr_permissions());

const fn msr_permissions() -> [u8; MSRPM_BYTES] {
    let mut map = [0xff; MSRPM_BYTES];
    let mut i = 0;
    while i < SWITCHED_MSRS.len() {
        let (byte, bit) = position(SWITCHED_MSRS[i]);
        map[byte] &= !(0b11 << bit);
        i += 1;
    }
    map
}

/// Byte and bit of an MSR's read permission; the write permission is the next bit.
const fn position(msr: u32) -> (usize, u32) {
    let (base, index) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (0x800, msr - 0xc000_0000),
        _ => panic!("an MSR outside the permission map's ranges"),
    };
    (base + (index / 4) as usize, (index % 4) * 2)
}
