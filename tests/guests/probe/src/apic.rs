//! Local APIC in x2APIC mode, and the interrupts that this guest knows.
#![expect(unsafe_code, reason = "descriptor tables and interrupt handlers")]

use crate::cpu;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

const APIC_BASE: u32 = 0x1b;
const ENABLE_X2APIC: u64 = 1 << 11 | 1 << 10;
const SPURIOUS: u32 = 0x80f;
const EOI: u32 = 0x80b;
const ICR: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const INITIAL_COUNT: u32 = 0x838;
const DIVIDE: u32 = 0x83e;
const SELF: u64 = 1 << 18;

const IPI_VECTOR: u64 = 0x40;
const TIMER_VECTOR: u64 = 0x41;
const SPURIOUS_VECTOR: u64 = 0xff;

/// Interrupts seen, on whatever processor.
pub static IPIS: AtomicU64 = AtomicU64::new(0);
/// Timers that fired.
pub static TIMERS: AtomicU64 = AtomicU64::new(0);

/// An interrupt gate (APM 2 4.8.4).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Gate {
    low: u64,
    high: u64,
}

static mut GATES: [Gate; 256] = [Gate { low: 0, high: 0 }; 256];

impl Gate {
    fn to(handler: unsafe extern "C" fn(), selector: u16) -> Self {
        const PRESENT_INTERRUPT_GATE: u64 = 0x8e << 40;
        let at = handler as usize as u64;
        Self {
            low: at & 0xffff
                | u64::from(selector) << 16
                | PRESENT_INTERRUPT_GATE
                | (at >> 16 & 0xffff) << 48,
            high: at >> 32,
        }
    }
}

macro_rules! handler {
    ($name:ident, $counter:path) => {
        /// Counts, after the end of interrupt: whoever sees the count knows that all is over.
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                "push rax",
                "push rcx",
                "push rdx",
                "mov ecx, {eoi}",
                "xor eax, eax",
                "xor edx, edx",
                "wrmsr",
                "lock inc qword ptr [rip + {counter}]",
                "pop rdx",
                "pop rcx",
                "pop rax",
                "iretq",
                eoi = const EOI,
                counter = sym $counter,
            )
        }
    };
}
handler!(ipi, IPIS);
handler!(timer, TIMERS);

#[unsafe(naked)]
unsafe extern "C" fn nothing() {
    naked_asm!("iretq")
}

/// Fills the table and takes this processor's APIC.
pub fn start() {
    let selector: u16;
    // SAFETY: nobody else runs yet, and interrupts are off; the handlers keep every register.
    unsafe {
        asm!("mov {0:x}, cs", out(reg) selector, options(nomem, nostack, preserves_flags));
        let gates = &raw mut GATES;
        (*gates)[IPI_VECTOR as usize] = Gate::to(ipi, selector);
        (*gates)[TIMER_VECTOR as usize] = Gate::to(timer, selector);
        (*gates)[SPURIOUS_VECTOR as usize] = Gate::to(nothing, selector);
    }
    take_processor();
}

/// The part of [`start`] that each processor does for itself.
pub fn take_processor() {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let pointer = Pointer {
        limit: 4095,
        base: (&raw const GATES).addr() as u64,
    };
    // SAFETY: the table lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack, readonly, preserves_flags)) };
    cpu::wrmsr(APIC_BASE, cpu::rdmsr(APIC_BASE) | ENABLE_X2APIC);
    cpu::wrmsr(SPURIOUS, 1 << 8 | SPURIOUS_VECTOR);
    cpu::wrmsr(DIVIDE, 0b1011); // by 1
}

/// An interrupt to this processor.
#[inline(always)]
pub fn ipi_to_self() {
    cpu::wrmsr(ICR, SELF | IPI_VECTOR);
}

/// An interrupt to the processor with this APIC number.
#[inline(always)]
pub fn ipi_to(apic: u32) {
    cpu::wrmsr(ICR, u64::from(apic) << 32 | IPI_VECTOR);
}

/// INIT, or SIPI with a vector, to a processor.
pub fn start_up(apic: u32, vector: Option<u8>) {
    let message = vector.map_or(0x4500, |vector| 0x4600 | u64::from(vector));
    cpu::wrmsr(ICR, u64::from(apic) << 32 | message);
}

/// The timer fires once, after `ticks` of the bus clock.
#[inline(always)]
pub fn arm(ticks: u32) {
    cpu::wrmsr(LVT_TIMER, TIMER_VECTOR);
    cpu::wrmsr(INITIAL_COUNT, ticks.into());
}

/// The timer fires after so many milliseconds.
pub fn arm_ms(ms: u64) {
    let ticks = crate::board::APIC_BUS_HZ / 1000 * ms;
    arm(u32::try_from(ticks).unwrap_or(u32::MAX));
}

/// Waits, with interrupts on, until a counter changes.
#[inline(always)]
pub fn wait(counter: &AtomicU64, seen: u64) {
    while counter.load(SeqCst) == seen {
        cpu::relax();
    }
}
