//! The instructions that Rust has no word for, each as a function.
//!
//! They are safe to call here and would not be in a kernel: a micro-kernel is alone on its machine and has no
//! secrets from itself, and a test that ruins its own state fails, which is what tests are for.

use core::arch::asm;

/// Interrupt enable flag of RFLAGS.
pub const IF: u64 = 1 << 9;
/// Trap flag of RFLAGS.
pub const TF: u64 = 1 << 8;

/// The four registers that CPUID returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called what they are")]
pub struct Leaf {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Leaf {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

/// The same, or zeros past the highest leaf of its range.
pub fn cpuid_if_any(leaf: u32, subleaf: u32) -> Leaf {
    let highest = cpuid(leaf & 0xffff_0000, 0).eax;
    if leaf <= highest {
        cpuid(leaf, subleaf)
    } else {
        Leaf::default()
    }
}

/// RDTSC behind everything before it.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// RDMSR.
pub fn rdmsr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register; an unknown one faults, which fails the test.
    unsafe { asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR.
pub fn wrmsr(number: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: see the module.
    unsafe { asm!("wrmsr", in("ecx") number, in("eax") low, in("edx") high, options(nostack)) };
}

macro_rules! ports {
    ($in:ident, $out:ident, $type:ty, $register:tt, $words:literal) => {
        #[doc = concat!("IN of ", $words, ".")]
        pub fn $in(port: u16) -> $type {
            let value;
            // SAFETY: see the module.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack)) };
            value
        }
        #[doc = concat!("OUT of ", $words, ".")]
        pub fn $out(port: u16, value: $type) {
            // SAFETY: see the module.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack)) };
        }
    };
}
ports!(inb, outb, u8, "al", "a byte");
ports!(inw, outw, u16, "ax", "two bytes");
ports!(inl, outl, u32, "eax", "four bytes");

macro_rules! registers {
    ($($read:ident, $write:ident, $name:literal;)*) => {$(
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reads a register.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack)) };
            value
        }
        #[doc = concat!("Writes ", $name, ".")]
        pub fn $write(value: u64) {
            // SAFETY: see the module.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    )*};
}
registers! {
    cr0, set_cr0, "cr0";
    cr2, set_cr2, "cr2";
    cr3, set_cr3, "cr3";
    cr4, set_cr4, "cr4";
    cr8, set_cr8, "cr8";
    dr0, set_dr0, "dr0";
    dr1, set_dr1, "dr1";
    dr2, set_dr2, "dr2";
    dr3, set_dr3, "dr3";
    dr6, set_dr6, "dr6";
    dr7, set_dr7, "dr7";
}

/// RFLAGS.
pub fn rflags() -> u64 {
    let value;
    // SAFETY: reads flags through the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) value) };
    value
}

/// STI, with its shadow over.
pub fn sti() {
    // SAFETY: see the module.
    unsafe { asm!("sti", "nop", options(nostack)) };
}

/// CLI.
pub fn cli() {
    // SAFETY: see the module.
    unsafe { asm!("cli", options(nostack)) };
}

/// STI and HLT, with nothing between them.
pub fn sti_hlt() {
    // SAFETY: see the module.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}

/// HLT.
pub fn hlt() {
    // SAFETY: see the module.
    unsafe { asm!("hlt", options(nostack)) };
}

/// PAUSE.
pub fn pause() {
    core::hint::spin_loop();
}

/// INVLPG.
pub fn invlpg(at: u64) {
    // SAFETY: drops a translation.
    unsafe { asm!("invlpg [{}]", in(reg) at, options(nostack)) };
}

/// XGETBV of XCR0.
pub fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// XSETBV of XCR0.
pub fn set_xcr0(value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: see the module.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high, options(nostack)) };
}

/// The first bytes of memory at `at`, read as they stand.
pub fn peek<T: Copy>(at: u64) -> T {
    // SAFETY: all memory below 4 GiB is mapped, and a guest may read all of its own.
    unsafe { core::ptr::read_volatile(at as *const T) }
}

/// Writes memory at `at` as it stands.
pub fn poke<T: Copy>(at: u64, value: T) {
    // SAFETY: see the module.
    unsafe { core::ptr::write_volatile(at as *mut T, value) }
}
