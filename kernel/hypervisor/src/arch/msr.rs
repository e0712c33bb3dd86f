//! Model-specific registers.
//!
//! [`read`] and [`write`] are for registers whose presence CPUID (or the architecture) promises:
//! a fault there is a bug and ends in a report. [`read_checked`] and [`write_checked`] are for probing.
#![expect(unsafe_code, reason = "RDMSR and WRMSR exist only as instructions")]

use core::arch::asm;

/// IA32_APIC_BASE (SDM 3A 11.4.4).
pub const APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE (SDM 3A 11.5.4.1).
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_MCG_CAP (SDM 3B 16.3.1.1).
pub const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS (SDM 3B 16.3.1.2).
pub const MCG_STATUS: u32 = 0x17a;
/// IA32_MCG_CTL (SDM 3B 16.3.1.3).
pub const MCG_CTL: u32 = 0x17b;
/// IA32_MC0_CTL; STATUS, ADDR and MISC follow, then the next bank (SDM 3B 16.3.2).
pub const MC0_CTL: u32 = 0x400;
/// IA32_PAT (SDM 3A 12.12).
pub const PAT: u32 = 0x277;
/// IA32_GS_BASE (SDM 3A 3.4.4).
pub const GS_BASE: u32 = 0xc000_0101;

/// The register behind a fault-free RDMSR.
///
/// # Safety
/// The register exists on this processor and reading it has no side effect that anyone relies on.
pub unsafe fn read(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller promises that the register exists.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
            options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes the register.
///
/// # Safety
/// The register exists, accepts `value`, and the new value keeps every promise that running code
/// relies on.
pub unsafe fn write(register: u32, value: u64) {
    // SAFETY: the caller promises as much. A write may change how memory is seen, so the compiler
    // must not move accesses across it: no `nomem`.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// The register, or `None` where RDMSR faults.
pub fn read_checked(register: u32) -> Option<u64> {
    let (low, high, ok): (u32, u32, u32);
    // SAFETY: RDMSR only reads; a fault continues at `3:` with `ok` still 0 (see `fixup`).
    unsafe {
        asm!(
            "xor {ok:e}, {ok:e}",
            "2: rdmsr",
            "mov {ok:e}, 1",
            "3:",
            ".pushsection .fixup, \"a\"",
            ".balign 8",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            ok = out(reg) ok,
            in("ecx") register,
            inout("eax") 0_u32 => low,
            inout("edx") 0_u32 => high,
            options(nomem, nostack),
        );
    }
    (ok == 1).then_some(u64::from(high) << 32 | u64::from(low))
}

/// Writes the register; `false` where WRMSR faults.
///
/// # Safety
/// If the register exists and accepts `value`, the new value keeps every promise that running
/// code relies on.
#[must_use]
pub unsafe fn write_checked(register: u32, value: u64) -> bool {
    let ok: u32;
    // SAFETY: the caller answers for the effect; a fault continues at `3:` with `ok` still 0.
    unsafe {
        asm!(
            "xor {ok:e}, {ok:e}",
            "2: wrmsr",
            "mov {ok:e}, 1",
            "3:",
            ".pushsection .fixup, \"a\"",
            ".balign 8",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            ok = out(reg) ok,
            in("ecx") register,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack),
        );
    }
    ok == 1
}
