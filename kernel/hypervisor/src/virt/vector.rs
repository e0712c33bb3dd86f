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

/// One instruction for each register, since its number is part of the instruction. Numbers beyond `$last` mean it.
macro_rules! each_register {
    ($index:expr, $pointer:expr, $before:literal, $after:literal, [$($number:literal)+], $last:literal) => {
        match $index {
            $($number => {
                asm!(concat!($before, $number, $after), in(reg) $pointer, options(nostack));
            })+
            _ => asm!(concat!($before, $last, $after), in(reg) $pointer, options(nostack)),
        }
    };
}

/// Of 16 vector registers.
macro_rules! each_vector_register {
    ($index:expr, $pointer:expr, $before:literal, $after:literal) => {
        each_register!($index, $pointer, $before, $after, [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14], 15)
    };
}

/// Of 8 MMX registers.
macro_rules! each_mmx_register {
    ($index:expr, $pointer:expr, $before:literal, $after:literal) => {
        each_register!($index, $pointer, $before, $after, [0 1 2 3 4 5 6], 7)
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
                each_vector_register!(index, to, "vmovdqu [{}], ymm", "");
            } else {
                each_vector_register!(index, to, "movdqu [{}], xmm", "");
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
                VectorEncoding::Vex => each_vector_register!(index, from, "vmovdqu ymm", ", [{}]"),
                VectorEncoding::Legacy => {
                    each_vector_register!(index, from, "movdqu xmm", ", [{}]")
                }
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
