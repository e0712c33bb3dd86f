#![expect(
    unsafe_code,
    reason = "a test of instructions is written in instructions"
)]
//! Instructions on a device's memory that no driver uses there, but the manual knows: the machine status word,
//! selectors with their descriptors, the far jump, quotients, frames, MMX registers.
//!
//! The device is the test device's memory, which keeps what is stored.

use core::arch::asm;

use kit::page::{self, PRESENT, WRITE};
use kit::{Test, Verdict, attempt, cpu, ensure};

pub const TESTS: &[Test] = &[
    Test::new("smsw-to-a-device", status_word),
    Test::new("selectors-from-a-device", selectors),
    Test::new("far-jump-through-a-device", far_jump),
    Test::new("quotients-of-a-device", quotients),
    Test::new("frames-on-a-device", frames),
    Test::new("mmx-and-a-device", mmx),
];

/// The test device's memory.
const MEMORY: u64 = 0xff00_0000;
/// A page of the window that shows it.
const PAGE: u64 = 60;
const DIVIDE: u8 = 0;
const PROTECTION: u8 = 13;

/// The device, at an address of this kernel's.
fn device() -> u64 {
    page::set(PAGE, MEMORY, PRESENT | WRITE);
    page::at(PAGE)
}

fn status_word() -> Verdict {
    let at = device();
    cpu::poke(at, u64::MAX);
    // SAFETY: stores two bytes in the device.
    unsafe { asm!("smsw word ptr [{}]", in(reg) at, options(nostack)) };
    let (stored, expected) = (cpu::peek::<u64>(at), !0xffff | cpu::cr0() & 0xffff);
    ensure!(stored == expected, "{stored:#x} instead of {expected:#x}");
    Ok(())
}

/// MOV SS takes the null selector and its own; of another level it is #GP. LTR marks the task busy again.
fn selectors() -> Verdict {
    let at = device();
    let (old, null): (u16, u16);
    // SAFETY: 64-bit code needs no stack segment, and the old one is back at once.
    unsafe {
        cpu::poke(at, 0_u16);
        asm!(
            "mov {old:x}, ss", "mov ss, word ptr [{at}]", "mov {null:x}, ss", "mov word ptr [{at}], {old:x}",
            "mov ss, word ptr [{at}]", old = out(reg) old, null = out(reg) null, at = in(reg) at, options(nostack),
        );
    }
    let back: u16;
    // SAFETY: reads a selector.
    unsafe { asm!("mov {:x}, ss", out(reg) back, options(nomem, nostack)) };
    ensure!(
        null == 0 && back == old,
        "SS became {null:#x}, and {back:#x} instead of {old:#x}"
    );
    for wrong in [3, old | 3] {
        cpu::poke(at, wrong);
        let caught = attempt!("mov ss, word ptr [{at}]"; at = in(reg) at);
        let told = caught.map(|c| (c.vector, c.error));
        let expected = Some((PROTECTION, u32::from(wrong & !3)));
        ensure!(
            told == expected,
            "selector {wrong:#x}: {told:x?} instead of {expected:x?}"
        );
    }
    Ok(())
}

/// JMP FAR [RDI] with eight bytes of offset, as the SDM's REX.W has it.
fn far_jump() -> Verdict {
    let at = device();
    let arrived: u64;
    // SAFETY: the jump goes to the label behind it, in the same code segment.
    unsafe {
        asm!(
            "lea {x}, [rip + 2f]", "mov [rdi], {x}", "mov word ptr [rdi + 8], cs", "xor {x:e}, {x:e}",
            ".byte 0x48, 0xff, 0x2f", "jmp 3f", "2:", "mov {x:e}, 7", "3:",
            in("rdi") at, x = out(reg) arrived, options(nostack),
        );
    }
    ensure!(arrived == 7, "the jump fell through");
    Ok(())
}

fn quotients() -> Verdict {
    let at = device();
    let divide = |divisor: u64, low: u64, high: u64| {
        cpu::poke(at, divisor);
        let (mut quotient, mut remainder) = (low, high);
        let caught = attempt!(
            "div qword ptr [rdi]"; in("rdi") at, inout("rax") quotient, inout("rdx") remainder
        );
        (caught.map(|c| c.vector), quotient, remainder)
    };
    let done = divide(10, 3, 1);
    ensure!(
        done == (None, 0x1999_9999_9999_9999, 9),
        "2^64 + 3 by 10 is {done:x?}"
    );
    for (divisor, why) in [(0, "by zero"), (1, "without room")] {
        let failed = divide(divisor, 3, 1);
        ensure!(
            failed == (Some(DIVIDE), 3, 1),
            "a quotient {why}: {failed:x?}"
        );
    }
    Ok(())
}

/// ENTER and LEAVE with the stack in the device. Nothing may interrupt that.
fn frames() -> Verdict {
    let at = device();
    let (mut stack, mut base) = (at + 0x800, 0x1122_3344_5566_7788_u64);
    // SAFETY: without interrupts, and nothing here faults; the stack pointer is back at the end.
    unsafe {
        asm!(
            "pushfq", "cli", "xchg rsp, {stack}", "xchg rbp, {base}", "enter 0x120, 0", "mov {x}, rsp",
            "mov {y}, rbp", "leave", "xchg rbp, {base}", "xchg rsp, {stack}", "popfq",
            stack = inout(reg) stack, base = inout(reg) base, x = out(reg) _, y = out(reg) _,
        );
    }
    let saved = cpu::peek::<u64>(at + 0x7f8);
    ensure!(
        (stack, base, saved) == (at + 0x800, 0x1122_3344_5566_7788, base),
        "the stack is at {stack:#x}, the frame {base:#x}, saved was {saved:#x}"
    );
    Ok(())
}

fn mmx() -> Verdict {
    let at = device();
    cpu::poke(at, 0x0102_0304_0506_0708_u64);
    // SAFETY: eight bytes to and from the device; EMMS leaves the x87 registers free.
    unsafe {
        asm!(
            "movq mm3, qword ptr [{at}]", "movq qword ptr [{at} + 8], mm3", "emms", at = in(reg) at,
            options(nostack),
        );
    }
    let stored = cpu::peek::<u64>(at + 8);
    ensure!(stored == 0x0102_0304_0506_0708, "{stored:#x} came back");
    Ok(())
}
