//! Which MSRs and ports a guest reaches without an exit (SDM 3C 25.6.4, 25.6.9).
//!
//! No port; and of the MSRs those whose guest value is in the processor while the guest runs. The maps are the same
//! for all guests, built at compile time.

const PAGE: usize = 4096;

/// A map that hardware reads: page-aligned.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Map(pub [u8; PAGE]);

/// All ports of one half of the port space exit; both halves use the same page.
pub static IO: Map = Map([0xff; PAGE]);
/// All MSRs exit but those that are switched.
pub static MSR: Map = Map(msr_bitmap());

const fn msr_bitmap() -> [u8; PAGE] {
    let mut map = [0xff; PAGE];
    let mut i = 0;
    while i < guest::msr::PASSTHROUGH.len() {
        let (byte, bit) = position(guest::msr::PASSTHROUGH[i]);
        map[byte] &= !(1 << bit);
        // Writes have their own two maps behind those of reads.
        map[byte + PAGE / 2] &= !(1 << bit);
        i += 1;
    }
    map
}

/// Byte and bit of an MSR in the map of reads: 1 KiB for the low numbers, then 1 KiB for the high ones.
const fn position(msr: u32) -> (usize, u32) {
    let (base, index) = match msr {
        0..=0x1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (PAGE / 4, msr - 0xc000_0000),
        _ => panic!("an MSR outside the ranges of the bitmap"),
    };
    (base + (index / 8) as usize, index % 8)
}
