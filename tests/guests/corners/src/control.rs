#![expect(
    unsafe_code,
    reason = "a test of instructions is written in instructions"
)]
//! Control registers read as they were written, whatever the processor has in their place; XSETBV is there only with
//! CR4.OSXSAVE.

use core::arch::asm;

use kit::{Test, Verdict, attempt, cpu, ensure};

pub const TESTS: &[Test] = &[
    Test::new("caches-off-is-seen", caches_off),
    Test::new("caches-off-is-about-cr0-only", others_stay),
    // QEMU lets no hypervisor see a read of CR4.
    Test::new("mce-cleared-is-seen", mce_cleared).unless(kit::lenient_processor),
    Test::new("xsetbv-needs-osxsave", xsetbv).unless(no_xsave),
];

const SOMETHING: u64 = 0x5a5a_1234_5000;
const CD: u64 = 1 << 30;
const NW: u64 = 1 << 29;
const MCE: u64 = 1 << 6;
const PGE: u64 = 1 << 7;
const OSXSAVE: u64 = 1 << 18;
const UNDEFINED: u8 = 6;
const PROTECTION: u8 = 13;

/// MOV from CR0 and every form of SMSW (APM 3, SMSW) agree, with caches on, off, and on again; the other
/// registers stay what they are.
fn caches_off() -> Verdict {
    let cr0 = cpu::cr0();
    let states = [cr0, cr0 | CD, cr0 | CD | NW, cr0];
    cpu::set_cr2(SOMETHING);
    // MCE has a test of its own.
    let others = || [cpu::cr2(), cpu::cr3(), cpu::cr4() | MCE, cpu::cr8()];
    let before = others();
    let seen = states.map(|wanted| {
        cpu::set_cr0(wanted);
        (wanted, cpu::cr0(), smsw(), others())
    });
    cpu::set_cr0(cr0);
    for (wanted, moved, stored, others) in seen {
        ensure!(moved == wanted, "CR0 is {moved:#x} after {wanted:#x}");
        let expected = [
            wanted,
            wanted & 0xffff_ffff,
            !0xffff | wanted & 0xffff,
            !0xffff | wanted & 0xffff,
        ];
        ensure!(
            stored == expected,
            "SMSW says {stored:x?} instead of {expected:x?}"
        );
        ensure!(
            others == before,
            "with CR0 {wanted:#x} CR2, 3, 4, 8 are {others:x?} instead of {before:x?}"
        );
    }
    Ok(())
}

/// While caches are off, as they are while memory types change, the other registers are read and written as ever.
fn others_stay() -> Verdict {
    let (cr0, cr3, cr4) = (cpu::cr0(), cpu::cr3(), cpu::cr4());
    cpu::set_cr0(cr0 | CD);
    cpu::set_cr4(cr4 ^ PGE);
    let read = (cpu::cr3(), cpu::cr4());
    cpu::set_cr4(cr4);
    cpu::set_cr3(cr3);
    cpu::set_cr0(cr0);
    ensure!(
        read == (cr3, cr4 ^ PGE),
        "CR3 and CR4 are {read:x?} instead of {:x?}",
        (cr3, cr4 ^ PGE)
    );
    ensure!(cpu::cr4() == cr4, "CR4 is {:#x} again", cpu::cr4());
    Ok(())
}

/// SMSW to a register of 64, 32 and 16 bits, and to memory; what it does not write is ones.
fn smsw() -> [u64; 4] {
    let (mut quad, mut long, mut word, mut memory) = (u64::MAX, u64::MAX, u64::MAX, u64::MAX);
    // SAFETY: stores a register's bits.
    unsafe {
        asm!(
            "smsw {quad}", "smsw {long:e}", "smsw {word:x}", "smsw word ptr [{memory}]",
            quad = inout(reg) quad, long = inout(reg) long, word = inout(reg) word,
            memory = in(reg) &raw mut memory, options(nostack),
        );
    }
    [quad, long, word, memory]
}

/// The processor keeps CR4.MCE for its host; the guest sees its own.
fn mce_cleared() -> Verdict {
    let cr4 = cpu::cr4();
    let seen = [cr4 | MCE, cr4 & !MCE, cr4 | MCE, cr4].map(|wanted| {
        cpu::set_cr4(wanted);
        (wanted, cpu::cr4())
    });
    ensure!(
        seen.iter().all(|(wanted, read)| read == wanted),
        "CR4 as written and read: {seen:x?}"
    );
    Ok(())
}

fn no_xsave() -> Option<&'static str> {
    (cpu::cpuid(1, 0).ecx >> 26 & 1 == 0).then_some("CPUID has no XSAVE")
}

/// APM 4, XSETBV: without OSXSAVE there is no such instruction, whatever its operands.
fn xsetbv() -> Verdict {
    let cr4 = cpu::cr4();
    let vector = |register: u32, value: u32| {
        attempt!("xsetbv"; in("ecx") register, in("eax") value, in("edx") 0).map(|c| c.vector)
    };
    cpu::set_cr4(cr4 & !OSXSAVE);
    let without = [vector(0, 1), vector(0, 0), vector(1, 1)];
    cpu::set_cr4(cr4 | OSXSAVE);
    let with = [vector(0, 1), vector(0, 0), vector(1, 1)];
    cpu::set_cr4(cr4);
    ensure!(
        without == [Some(UNDEFINED); 3],
        "without OSXSAVE vectors {without:?}"
    );
    ensure!(
        with == [None, Some(PROTECTION), Some(PROTECTION)],
        "with OSXSAVE vectors {with:?}"
    );
    Ok(())
}
