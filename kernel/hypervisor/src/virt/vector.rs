#![expect(unsafe_code, reason = "vector registers exist on the processor only")]
//! The guest's vector registers, which stay in the processor while its exits are handled (see `fpu.rs`).

use core::arch::asm;
use guest::mmio::{VectorEncoding, Vectors};

/// XCR0.AVX.
const XCR0_AVX: u64 = 1 << 2;

/// x87 status word: an exception that is not masked waits.
const X87_ERROR: u16 = 1 << 7;

/// The vector registers of the virtual CPU that is loaded on this CPU.
#[derive(Debug)]
pub struct VectorRegisters {
    /// Its XCR0, which the processor holds.
    pub xcr0: u64,
}

/// One instruction for each register, since its number is part of the instruction.
macro_rules! each_register {
    ($index:expr, $pointer:expr, $before:literal, $after:literal) => {
        match $index {
            0 => asm!(concat!($before, "0", $after), in(reg) $pointer, options(nostack)),
            1 => asm!(concat!($before, "1", $after), in(reg) $pointer, options(nostack)),
            2 => asm!(concat!($before, "2", $after), in(reg) $pointer, options(nostack)),
            3 => asm!(concat!($before, "3", $after), in(reg) $pointer, options(nostack)),
            4 => asm!(concat!($before, "4", $after), in(reg) $pointer, options(nostack)),
            5 => asm!(concat!($before, "5", $after), in(reg) $pointer, options(nostack)),
            6 => asm!(concat!($before, "6", $after), in(reg) $pointer, options(nostack)),
            7 => asm!(concat!($before, "7", $after), in(reg) $pointer, options(nostack)),
            8 => asm!(concat!($before, "8", $after), in(reg) $pointer, options(nostack)),
            9 => asm!(concat!($before, "9", $after), in(reg) $pointer, options(nostack)),
            10 => asm!(concat!($before, "10", $after), in(reg) $pointer, options(nostack)),
            11 => asm!(concat!($before, "11", $after), in(reg) $pointer, options(nostack)),
            12 => asm!(concat!($before, "12", $after), in(reg) $pointer, options(nostack)),
            13 => asm!(concat!($before, "13", $after), in(reg) $pointer, options(nostack)),
            14 => asm!(concat!($before, "14", $after), in(reg) $pointer, options(nostack)),
            _ => asm!(concat!($before, "15", $after), in(reg) $pointer, options(nostack)),
        }
    };
}

/// The same for the eight MMX registers.
macro_rules! each_mmx_register {
    ($index:expr, $pointer:expr, $before:literal, $after:literal) => {
        match $index {
            0 => asm!(concat!($before, "0", $after), in(reg) $pointer, options(nostack)),
            1 => asm!(concat!($before, "1", $after), in(reg) $pointer, options(nostack)),
            2 => asm!(concat!($before, "2", $after), in(reg) $pointer, options(nostack)),
            3 => asm!(concat!($before, "3", $after), in(reg) $pointer, options(nostack)),
            4 => asm!(concat!($before, "4", $after), in(reg) $pointer, options(nostack)),
            5 => asm!(concat!($before, "5", $after), in(reg) $pointer, options(nostack)),
            6 => asm!(concat!($before, "6", $after), in(reg) $pointer, options(nostack)),
            _ => asm!(concat!($before, "7", $after), in(reg) $pointer, options(nostack)),
        }
    };
}

impl Vectors for VectorRegisters {
    fn get(&self, index: u8) -> [u8; 32] {
        let mut value = [0_u8; 32];
        let to = value.as_mut_ptr();
        // SAFETY: the host permits SSE (`Xfeatures::enable`), and AVX is on in XCR0 where it is used. The stores go to
        // the 16 or 32 bytes of `value`.
        unsafe {
            if self.xcr0 & XCR0_AVX != 0 {
                each_register!(index, to, "vmovdqu [{}], ymm", "");
            } else {
                each_register!(index, to, "movdqu [{}], xmm", "");
            }
        }
        value
    }

    fn set(&mut self, index: u8, value: &[u8; 32], encoding: VectorEncoding) {
        let from = value.as_ptr();
        // SAFETY: as in `get`; a VEX-encoded instruction is executed only where XCR0 permits it. The kernel itself
        // keeps nothing in vector registers, so no compiler's value is lost. The loads read 16 or 32 bytes of `value`;
        // 256 bits by VEX are right for 128 as well, since the upper half is zero then.
        unsafe {
            match encoding {
                VectorEncoding::Vex => each_register!(index, from, "vmovdqu ymm", ", [{}]"),
                VectorEncoding::Legacy => each_register!(index, from, "movdqu xmm", ", [{}]"),
            }
        }
    }

    fn x87_error(&self) -> bool {
        let status: u16;
        // SAFETY: reads the status word, and raises nothing (SDM 2A, FNSTSW).
        unsafe { asm!("fnstsw ax", out("ax") status, options(nomem, nostack)) };
        status & X87_ERROR != 0
    }

    fn get_mmx(&mut self, index: u8) -> u64 {
        let mut value = 0_u64;
        if !self.x87_error() {
            let to = &raw mut value;
            // SAFETY: the host permits MMX as it does SSE, and no exception waits that this would raise. It stores the
            // 8 bytes of `value`. The x87 registers are the guest's, who executes this.
            unsafe { each_mmx_register!(index, to, "movq [{}], mm", "") };
        }
        value
    }

    fn set_mmx(&mut self, index: u8, value: u64) {
        if !self.x87_error() {
            let from = &raw const value;
            // SAFETY: as in `get_mmx`; it loads the 8 bytes of `value`.
            unsafe { each_mmx_register!(index, from, "movq mm", ", [{}]") };
        }
    }
}
