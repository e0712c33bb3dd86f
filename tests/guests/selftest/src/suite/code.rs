//! Code that changes itself, or that another processor changes (SDM 3A 9.1.3, 12.6).

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use kit::page::Page;
use kit::{Test, Verdict, cpu, ensure, smp};

pub const TESTS: &[Test] = &[
    Test::new("code-modified", modified),
    Test::new("code-modified-ahead", modified_ahead),
    Test::new("code-modified-elsewhere", modified_elsewhere).with_two(),
];

static CODE: Page = Page::new();
static SEEN: AtomicU32 = AtomicU32::new(0);

/// Calls `page`, whose code returns a number.
fn call(page: &Page) -> u32 {
    let value;
    // SAFETY: the page holds `mov eax, imm32; ret`.
    unsafe { core::arch::asm!("call {}", in(reg) page.address(), out("eax") value) };
    value
}

fn write_code(page: &Page, value: u32) {
    cpu::poke(page.address() + 1, value);
    cpu::poke(page.address() + 5, 0xc3_u8);
    cpu::poke(page.address(), 0xb8_u8);
}

fn modified() -> Verdict {
    for value in 0..500 {
        write_code(&CODE, value);
        let seen = call(&CODE);
        ensure!(seen == value, "code that says {value} says {seen}");
    }
    // Code that changes what it jumps to: the first way that the manual promises (SDM 3A 9.1.3).
    let seen: u32;
    // SAFETY: the byte that changes is the operand of the MOV below, in memory that may be written.
    unsafe {
        core::arch::asm!("mov byte ptr [rip + 2f + 1], 0x5a", "jmp 2f", "2:", "mov eax, 0x11", out("eax") seen);
    }
    ensure!(
        seen == 0x5a,
        "an instruction changed before the jump to it says {seen:#x}"
    );
    Ok(())
}

core::arch::global_asm!(
    ".section .text.ahead, \"ax\"",
    ".balign 4096",
    ".global ahead",
    "ahead:",
    "mov byte ptr [rip + 3f], 1",
    "mov byte ptr [rip + ahead_operand], 0x5a",
    ".byte 0xb8", // mov eax, imm32
    ".global ahead_operand",
    "ahead_operand:",
    ".long 0x11",
    "ret",
    ".balign 2048",
    "3: .byte 0",
    ".balign 4096",
    ".text"
);

unsafe extern "C" {
    safe fn ahead() -> u32;
    static ahead_operand: u8;
}

/// Code that changes the instruction right behind the one that changes it, with no jump between: more than the
/// manual promises, but processors compare what is stored with what they have fetched (SDM 3A 12.6).
///
/// The first store, to another line of the same page, is for QEMU (10.0 at least), which leaves the code that it
/// executes when a store hits it, but not if that store is the first to its page in the nested tables: to set
/// their dirty bit it probes them for a store without saying where it stands (`mmu_translate` calls
/// `probe_access_full_mmu`, that `notdirty_write` with a return address of 0). The code is thrown away by that, but
/// not left; and the store itself finds nothing more to throw away, hence nothing to leave.
fn modified_ahead() -> Verdict {
    let operand = (&raw const ahead_operand) as u64;
    for round in 0..20 {
        cpu::poke(operand, 0x11_u8);
        let seen = ahead();
        ensure!(
            seen == 0x5a,
            "an instruction changed by the one before it says {seen:#x} in round {round}"
        );
    }
    Ok(())
}

fn modified_elsewhere() -> Verdict {
    for value in 0..100 {
        write_code(&CODE, value);
        SEEN.store(u32::MAX, SeqCst);
        smp::give(1, || {
            cpu::cpuid(0, 0); // serializes
            SEEN.store(call(&CODE), SeqCst);
        });
        ensure!(
            smp::done_within_ms(1, 20_000),
            "the other processor does not answer"
        );
        let seen = SEEN.load(SeqCst);
        ensure!(
            seen == value,
            "code that says {value} says {seen} on the other processor"
        );
    }
    Ok(())
}
