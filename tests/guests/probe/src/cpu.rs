//! Instructions that Rust has no words for.
#![expect(unsafe_code, reason = "privileged instructions")]

use core::arch::asm;

/// Writes a byte to a port.
#[inline(always)]
pub fn out8(port: u16, value: u8) {
    // SAFETY: the machine is this program's alone; ports change devices only.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Writes 16 bits to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as in `out8`.
    unsafe {
        asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags))
    };
}

/// Reads a byte from a port.
#[inline(always)]
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads 32 bits from a port.
#[inline(always)]
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `out8`.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Reads a model-specific register that exists.
#[inline(always)]
pub fn rdmsr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading has no effect on memory; one that does not exist ends this guest, as a test should.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes one.
#[inline(always)]
pub fn wrmsr(number: u32, value: u64) {
    // SAFETY: callers write APIC registers, and PAT with the value that it has; neither changes what memory means.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// CPUID: EAX, EBX, ECX, EDX.
#[inline(always)]
pub fn cpuid(leaf: u32) -> core::arch::x86_64::CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, 0)
}

/// VMMCALL with number 0, which nobody offers.
#[inline(always)]
pub fn hypercall() -> u64 {
    let answer;
    // SAFETY: under AMD-V the hypervisor answers in RAX; elsewhere it ends this guest.
    unsafe { asm!("vmmcall", inout("rax") 0_u64 => answer, options(nostack)) };
    answer
}

/// VMCALL, the same on VT-x.
#[inline(always)]
pub fn hypercall_vtx() -> u64 {
    let answer;
    // SAFETY: as in `hypercall`, for VT-x.
    unsafe { asm!("vmcall", inout("rax") 0_u64 => answer, options(nostack)) };
    answer
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC only reads.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// So many instructions that do nothing.
#[inline(always)]
pub fn nops<const COUNT: u64>() {
    // SAFETY: NOPs.
    unsafe {
        asm!(".rept {count}", "nop", ".endr", count = const COUNT, options(nomem, nostack, preserves_flags));
    }
}

/// Lets interrupts in and sleeps until one comes; then they are off again.
pub fn halt() {
    // SAFETY: handlers are installed before anybody calls this, and none touches what Rust code holds.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Lets interrupts in, or not.
pub fn interrupts(on: bool) {
    // SAFETY: as in `halt`.
    unsafe {
        if on {
            asm!("sti", options(nostack));
        } else {
            asm!("cli", options(nostack));
        }
    }
}

/// CR3.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reading has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// A busy moment.
pub fn relax() {
    core::hint::spin_loop();
}

/// Time since some moment, by the frequency that the hypervisor's timing leaf tells.
pub fn now_ms() -> u64 {
    static KHZ: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    let mut khz = KHZ.load(core::sync::atomic::Ordering::Relaxed);
    if khz == 0 {
        khz = u64::from(cpuid(0x4000_0010).eax).max(1);
        KHZ.store(khz, core::sync::atomic::Ordering::Relaxed);
    }
    tsc() / khz
}
