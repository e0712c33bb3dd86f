//! What a processor holds stays its own: across exits, and while others of the same VM and other VMs take its place on
//! the machine. Each processor fills its registers with what no other has, lives a while, and looks.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use kit::{Test, Verdict, apic, clock, cpu, ensure, smp, this};

pub const TESTS: &[Test] = &[
    Test::new("state-fpu-sse", fpu),
    Test::new("state-avx", avx).unless(no_avx),
    Test::new("state-xcr0", xcr0).unless(no_xsave),
    Test::new("state-msr", msrs),
    Test::new("state-control", control),
    Test::new("state-debug", debug),
    Test::new("state-general", general),
];

/// Rounds of living, each with exits of several kinds.
const ROUNDS: u64 = 150;
const VECTOR: u8 = 0x53;

/// A word that only this processor has, in place `n`.
fn own(n: u64) -> u64 {
    let index = this().index as u64 + 1;
    (index << 56 | n << 48 | 0x5a5a) ^ index.wrapping_mul(0x0101_0101_0101)
}

/// A little of everything that a processor does, so that others get their turn.
fn live(round: u64) {
    match round % 5 {
        0 => {
            cpu::cpuid(0, 0);
        }
        1 => {
            clock::pm_timer();
        }
        2 => (0..50).for_each(|_| cpu::pause()),
        3 => clock::delay_us(200),
        _ => {
            apic::write(apic::reg::DIVIDE, 0b1011);
            apic::write(apic::reg::TIMER, u32::from(VECTOR));
            apic::write(apic::reg::INITIAL, 300_000);
            cpu::sti_hlt();
            cpu::cli();
            apic::write(apic::reg::TIMER, apic::MASKED);
        }
    }
}

static WRONG: AtomicU64 = AtomicU64::new(0);
static WHERE: AtomicU32 = AtomicU32::new(0);

/// Notes that register `n` of this processor changed.
fn wrong(n: u32, seen: u64) {
    WHERE.store((this().index as u32) << 16 | n, SeqCst);
    WRONG.store(seen | 1 << 63, SeqCst);
}

/// Runs `job` on all processors; fails if one of them complained.
fn all(what: &str, job: fn()) -> Verdict {
    WRONG.store(0, SeqCst);
    let done = smp::everywhere(120_000, job);
    cpu::cli();
    let (seen, place) = (WRONG.load(SeqCst), WHERE.load(SeqCst));
    ensure!(done, "a processor does not come to an end");
    ensure!(
        seen == 0,
        "{what} {} of processor {} changed to {seen:#x} (bit 63 aside)",
        place & 0xffff,
        place >> 16
    );
    Ok(())
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Image([u64; 128]);

struct Images(UnsafeCell<[[Image; 2]; kit::MAX_CPUS]>);
// SAFETY: each processor uses its own.
unsafe impl Sync for Images {}
static IMAGES: Images = Images(UnsafeCell::new([[Image([0; 128]); 2]; kit::MAX_CPUS]));

fn images() -> &'static mut [Image; 2] {
    // SAFETY: this processor's own, and no caller holds two of them.
    unsafe { &mut (*IMAGES.0.get())[this().index] }
}

/// x87 and SSE by FXSAVE (SDM 1 10.5.1): words 4 to 19 are ST and 20 to 51 XMM registers.
fn fpu() -> Verdict {
    all("word of the FXSAVE image", || {
        cpu::cli();
        let [wanted, seen] = images();
        // FXSAVE need not write what is reserved.
        *wanted = Image([0; 128]);
        *seen = Image([0; 128]);
        // SAFETY: a valid image to begin with.
        unsafe { core::arch::asm!("fninit", "fxsave64 [{}]", in(reg) &raw mut wanted.0) };
        // Control word and tags: extended precision, all exceptions masked, rounding by processor.
        let rounding = (this().index as u64 % 4) << 10;
        wanted.0[0] = 0x037f | rounding | 0xff << 32;
        wanted.0[3] = 0x1f80 | rounding << 3 | wanted.0[3] & !0xffff_ffff;
        for n in 0..8 {
            wanted.0[4 + 2 * n] = own(n as u64) | 1 << 63;
            wanted.0[5 + 2 * n] = 0x4000 + n as u64;
        }
        for n in 20..52 {
            wanted.0[n] = own(n as u64);
        }
        // SAFETY: the image is what FXSAVE made, with other contents of registers.
        unsafe { core::arch::asm!("fxrstor64 [{}]", in(reg) &raw const wanted.0) };
        for round in 0..ROUNDS {
            live(round);
            // SAFETY: stores only.
            unsafe { core::arch::asm!("fxsave64 [{}]", in(reg) &raw mut seen.0) };
            let compared = [0, 3].into_iter().chain(4..52);
            for n in compared {
                let mask = if (4..20).contains(&n) && n % 2 == 1 {
                    0xffff
                } else {
                    u64::MAX
                };
                if seen.0[n] & mask != wanted.0[n] & mask {
                    wrong(n as u32, seen.0[n]);
                }
            }
        }
        // SAFETY: as after reset.
        unsafe { core::arch::asm!("fninit") };
    })
}

const OSXSAVE: u64 = 1 << 18;

fn no_xsave() -> Option<&'static str> {
    (cpu::cpuid(1, 0).ecx >> 26 & 1 == 0).then_some("CPUID has no XSAVE")
}

fn no_avx() -> Option<&'static str> {
    let avx = cpu::cpuid(1, 0).ecx >> 28 & 1 != 0;
    (!avx || no_xsave().is_some()).then_some("CPUID has no AVX")
}

fn avx() -> Verdict {
    all("quarter of a YMM register", || {
        cpu::cli();
        cpu::set_cr4(cpu::cr4() | OSXSAVE);
        cpu::set_xcr0(7);
        let [wanted, seen] = images();
        (0..64).for_each(|n| wanted.0[n] = own(n as u64));
        macro_rules! each {
            ($($n:literal),*) => {
                // SAFETY: 16 registers of 32 bytes are loaded from 512 of our own.
                unsafe { core::arch::asm!($(concat!("vmovdqu ymm", $n, ", [{0} + 32 * ", $n, "]"),)* in(reg) &raw const wanted.0) };
                for round in 0..ROUNDS {
                    live(round);
                    // SAFETY: and stored.
                    unsafe { core::arch::asm!($(concat!("vmovdqu [{0} + 32 * ", $n, "], ymm", $n),)* in(reg) &raw mut seen.0) };
                    for n in 0..64 {
                        if seen.0[n] != wanted.0[n] {
                            wrong(n as u32, seen.0[n]);
                        }
                    }
                }
            };
        }
        each!(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        // SAFETY: the upper halves are as after reset.
        unsafe { core::arch::asm!("vzeroall") };
        cpu::set_cr4(cpu::cr4() & !OSXSAVE);
    })
}

fn xcr0() -> Verdict {
    all("XCR0 or CPUID's view of it, ", || {
        cpu::cli();
        cpu::set_cr4(cpu::cr4() | OSXSAVE);
        let avx = no_avx().is_none();
        let mine = if this().index % 2 == 1 || !avx { 3 } else { 7 };
        cpu::set_xcr0(mine);
        let size = cpu::cpuid(0xd, 0).ebx;
        let wanted = if mine == 7 { 832 } else { 576 };
        if size != wanted {
            wrong(1, size.into());
        }
        for round in 0..ROUNDS {
            live(round);
            if cpu::xcr0() != mine {
                wrong(0, cpu::xcr0());
            }
        }
        if cpu::cpuid(1, 0).ecx >> 27 & 1 == 0 {
            wrong(2, 0);
        }
        cpu::set_xcr0(1);
        cpu::set_cr4(cpu::cr4() & !OSXSAVE);
        if cpu::cpuid(1, 0).ecx >> 27 & 1 == 1 {
            wrong(3, 0);
        }
    })
}

/// Registers that hold an address or a number of the guest's choice: SYSENTER, SYSCALL, bases, PAT.
const MSRS: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0x277,
];

fn msrs() -> Verdict {
    all("model-specific register", || {
        cpu::cli();
        let own_msr = |n: usize| match MSRS[n] {
            0x174 => own(1) & 0xfff8,
            0x277 => 0x0007_0406_0007_0406 ^ (this().index as u64 & 1) << 48,
            0xc000_0081 => own(2) & !0xffff_ffff,
            0xc000_0084 => own(3) & 0xffff_ffff,
            _ => own(n as u64) & 0x7fff_ffff_ffff,
        };
        let kept: [u64; MSRS.len()] = core::array::from_fn(|n| cpu::rdmsr(MSRS[n]));
        (0..MSRS.len()).for_each(|n| cpu::wrmsr(MSRS[n], own_msr(n)));
        for round in 0..ROUNDS {
            live(round);
            for (n, msr) in MSRS.iter().enumerate() {
                let seen = cpu::rdmsr(*msr);
                if seen != own_msr(n) {
                    wrong(n as u32, seen);
                }
            }
        }
        (0..MSRS.len()).for_each(|n| cpu::wrmsr(MSRS[n], kept[n]));
    })
}

fn control() -> Verdict {
    all("control register", || {
        cpu::cli();
        let (cr0, cr4) = (cpu::cr0(), cpu::cr4());
        let odd = this().index as u64 & 1;
        // TS, AM; TSD, PGE, PCE: bits that change nothing here.
        let (mine0, mine4) = (
            cr0 ^ (odd << 3 | 1 << 18),
            cr4 ^ (odd << 2 | 1 << 7 | (1 - odd) << 8),
        );
        cpu::set_cr0(mine0);
        cpu::set_cr4(mine4);
        cpu::set_cr8(1 + odd);
        cpu::set_cr2(own(2));
        let cr3 = cpu::cr3();
        for round in 0..ROUNDS {
            live(round);
            let seen = [
                cpu::cr0(),
                mine0,
                cpu::cr2(),
                own(2),
                cpu::cr3(),
                cr3,
                cpu::cr4(),
                mine4,
                cpu::cr8(),
                1 + odd,
            ];
            for (n, pair) in seen.chunks(2).enumerate() {
                if pair[0] != pair[1] {
                    wrong(n as u32, pair[0]);
                }
            }
        }
        cpu::set_cr8(0);
        cpu::set_cr4(cr4);
        cpu::set_cr0(cr0);
    })
}

fn debug() -> Verdict {
    all("debug register", || {
        cpu::cli();
        cpu::set_dr0(own(0));
        cpu::set_dr1(own(1));
        cpu::set_dr2(own(2));
        cpu::set_dr3(own(3));
        // Breakpoints 0 and 1 on stores to where nothing is stored; LE on one processor only.
        let dr7 = 0x400 | 0x0011_0000 | 0b1010 | (this().index as u64 & 1) << 8;
        cpu::set_dr7(dr7);
        cpu::set_dr6(0xffff_0ff0 | 1 << 14);
        for round in 0..ROUNDS {
            live(round);
            let seen = [cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3()];
            for (n, value) in seen.into_iter().enumerate() {
                if value != own(n as u64) {
                    wrong(n as u32, value);
                }
            }
            if cpu::dr6() & 0x4000 == 0 {
                wrong(6, cpu::dr6());
            }
            if cpu::dr7() != dr7 {
                wrong(7, cpu::dr7());
            }
        }
        cpu::set_dr7(0x400);
        cpu::set_dr6(0xffff_0ff0);
    })
}

/// The general registers and the flags, across one exit after the other.
fn general() -> Verdict {
    all("general register", || {
        for _ in 0..ROUNDS * 4 {
            let mut seen = [0_u64; 12];
            let base = own(9) & 0xffff_ffff_0000;
            // SAFETY: fills registers, leaves the guest three times, stores them.
            unsafe {
                core::arch::asm!(
                    "push rbx", "push rbp",
                    "mov rbx, rcx", "lea rsi, [rcx + 1]", "lea rbp, [rcx + 2]",
                    "lea r8, [rcx + 3]", "lea r9, [rcx + 4]", "lea r10, [rcx + 5]", "lea r11, [rcx + 6]",
                    "lea r12, [rcx + 7]", "lea r13, [rcx + 8]", "lea r14, [rcx + 9]", "lea r15, [rcx + 10]",
                    "in al, 0x61", "out 0x80, al", "pause", "mov eax, [0xfee00030]", "in al, dx", "stc",
                    "in al, 0x61",
                    "mov [rdi], rbx", "mov [rdi + 8], rsi", "mov [rdi + 16], rbp",
                    "mov [rdi + 24], r8", "mov [rdi + 32], r9", "mov [rdi + 40], r10", "mov [rdi + 48], r11",
                    "mov [rdi + 56], r12", "mov [rdi + 64], r13", "mov [rdi + 72], r14", "mov [rdi + 80], r15",
                    "mov qword ptr [rdi + 88], 0", "adc qword ptr [rdi + 88], 0",
                    "pop rbp", "pop rbx",
                    in("rdi") seen.as_mut_ptr(), in("rcx") base, in("dx") 0x61_u16,
                    out("rax") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                    out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                );
            }
            for (n, value) in seen.iter().take(11).enumerate() {
                if *value != base + n as u64 {
                    wrong(n as u32, *value);
                }
            }
            if seen[11] != 1 {
                wrong(11, seen[11]);
            }
        }
    })
}
