//! Device registers by odd instructions and across the ends of pages, on the task priority of the local
//! APIC, whose only effect is on interrupts, which are off.

use kit::page::{self, ACCESSED, DIRTY, PRESENT, Page, WRITE};
use kit::{Test, Verdict, attempt, cpu, ensure};

pub const TESTS: &[Test] = &[
    Test::new("mmio-read-modify-write", read_modify_write),
    Test::new("mmio-bits-and-shifts", bits_and_shifts),
    Test::new("mmio-vector", vector),
    Test::new("mmio-strings", strings),
    Test::new("mmio-page-end", page_end),
    Test::new("mmio-page-tables", page_tables),
];

const APIC: u64 = kit::apic::BASE;
const TPR: u64 = APIC + 0x80;
const ZF: u64 = 1 << 6;
const CF: u64 = 1;

static RAM: Page = Page::new();

fn tpr() -> u32 {
    cpu::peek(TPR)
}

fn set(value: u32) {
    cpu::poke(TPR, value);
}

/// Fails unless the register holds `value`; clears it.
fn leaves(what: &str, value: u32) -> Verdict {
    let held = tpr();
    set(0);
    ensure!(held == value, "{what} leaves {held:#x}, not {value:#x}");
    Ok(())
}

fn read_modify_write() -> Verdict {
    set(0x20);
    let (mut old, mut accumulator, mut flags) = (0x30_u32, 0x50_u32, 0_u64);
    // SAFETY: the instructions change the register only.
    unsafe {
        core::arch::asm!("lock xadd [{}], {:e}", in(reg) TPR, inout(reg) old);
        ensure!(old == 0x20, "XADD gives {old:#x}");
        core::arch::asm!("lock cmpxchg [{}], {:e}", "pushfq", "pop {}", in(reg) TPR, in(reg) 0x70,
            out(reg) flags, inout("eax") accumulator);
        ensure!(
            flags & ZF != 0 && accumulator == 0x50,
            "CMPXCHG of equals gives {accumulator:#x}"
        );
        accumulator = 0x10;
        core::arch::asm!("lock cmpxchg [{}], {:e}", "pushfq", "pop {}", in(reg) TPR, in(reg) 0,
            out(reg) flags, inout("eax") accumulator);
        ensure!(
            flags & ZF == 0 && accumulator == 0x70,
            "CMPXCHG of others gives {accumulator:#x}"
        );
        core::arch::asm!("lock sub dword ptr [{}], 0x30", in(reg) TPR);
        core::arch::asm!("stc", "adc dword ptr [{}], 0xf", in(reg) TPR);
        core::arch::asm!("inc dword ptr [{0}]", "dec dword ptr [{0}]", in(reg) TPR);
    }
    leaves("a row of operations", 0x50)?;
    set(0x40);
    let (mut taken, mut kept) = (7_u64, 7_u64);
    // SAFETY: loads.
    unsafe {
        core::arch::asm!("test {0:e}, {0:e}", "cmovnz {1:e}, [{0}]", in(reg) TPR, inout(reg) taken);
        core::arch::asm!("test {0:e}, {0:e}", "cmovz {1:e}, [{0}]", in(reg) TPR, inout(reg) kept);
    }
    ensure!(
        taken == 0x40 && kept == 7,
        "CMOV gives {taken:#x} and {kept:#x}"
    );
    leaves("CMOV", 0x40)
}

fn bits_and_shifts() -> Verdict {
    set(0x10);
    let flags: u64;
    // SAFETY: the instructions change the register only.
    unsafe {
        core::arch::asm!("lock bts dword ptr [{}], 5", in(reg) TPR);
        ensure!(tpr() == 0x30, "BTS makes 10h {:#x}", tpr());
        // A bit number that leads to the register from 80h before it.
        core::arch::asm!("btr dword ptr [{}], {:e}", "pushfq", "pop {}", in(reg) APIC, in(reg) 0x80 * 8 + 4,
            out(reg) flags);
        ensure!(
            flags & CF != 0 && tpr() == 0x20,
            "BTR makes 30h {:#x}",
            tpr()
        );
        core::arch::asm!("shl dword ptr [{}], 1", in(reg) TPR);
        ensure!(tpr() == 0x40, "SHL makes 20h {:#x}", tpr());
        core::arch::asm!("ror dword ptr [{}], cl", in(reg) TPR, in("cl") 2_u8);
        ensure!(tpr() == 0x10, "ROR makes 40h {:#x}", tpr());
        core::arch::asm!("neg dword ptr [{0}]", "not dword ptr [{0}]", in(reg) TPR);
    }
    leaves("NEG and NOT", 0x0f)
}

/// Only halves that both the plain emulator's register and Perigee's have: 32 bits at a time.
fn vector() -> Verdict {
    set(0x60);
    let loaded: u64;
    // SAFETY: the vector register is nobody's here.
    unsafe {
        core::arch::asm!("pcmpeqd xmm0, xmm0", "movd xmm0, [{}]", "movq {}, xmm0", in(reg) TPR, out(reg) loaded,
            out("xmm0") _);
        core::arch::asm!("movd xmm0, {:e}", "movd [{}], xmm0", in(reg) 0x20, in(reg) TPR, out("xmm0") _);
    }
    ensure!(loaded == 0x60, "MOVD loads {loaded:#x}");
    leaves("MOVD", 0x20)
}

fn strings() -> Verdict {
    let source = [0x10_u32, 0x20, 0x30];
    let (left, end): (u64, u64);
    let flags: u64;
    // SAFETY: the register and the two reserved words behind it are written, the array is read.
    unsafe {
        core::arch::asm!("cld", "rep movsd", inout("rcx") 1_u64 => left, inout("rsi") source.as_ptr() => end,
            inout("rdi") TPR => _);
        ensure!(
            left == 0 && end == source.as_ptr() as u64 + 4 && tpr() == 0x10,
            "REP MOVSD leaves {left} and {:#x}",
            tpr()
        );
        core::arch::asm!("repe cmpsd", "pushfq", "pop {}", out(reg) flags, inout("rcx") 1_u64 => _,
            inout("rsi") source.as_ptr() => _, inout("rdi") TPR => _);
        ensure!(flags & ZF != 0, "CMPSD says that 10h is not 10h");
        core::arch::asm!("scasd", "pushfq", "pop {}", out(reg) _, in("eax") 0, inout("rdi") TPR => _);
    }
    leaves("comparing", 0x10)
}

/// A word with one half in memory and the other in the device: each goes where it belongs.
fn page_end() -> Verdict {
    page::set(20, RAM.address(), PRESENT | WRITE);
    page::set(21, APIC, PRESENT | WRITE);
    page::set(22, 0, 0);
    let straddling = page::at(21) - 2;
    cpu::poke(RAM.address() + 4094, 0x1111_u16);
    cpu::poke(straddling, 0xabcd_5678_u32);
    let half: u16 = cpu::peek(RAM.address() + 4094);
    ensure!(half == 0x5678, "the half in memory is {half:#x}");
    let whole: u32 = cpu::peek(straddling);
    ensure!(whole & 0xffff == 0x5678, "read back, it is {whole:#x}");
    // From the device into a page that is absent: a fault there, and nothing before.
    let at = page::at(22) - 2;
    let caught = attempt!("mov dword ptr [{at:r}], 7"; at = in(reg) at);
    ensure!(
        caught.is_some_and(|c| c.vector == 14 && c.error == 2 && c.cr2 == page::at(22)),
        "a store into an absent page behind the device gives {caught:x?}"
    );
    page::set(21, 0, 0);
    page::set(20, 0, 0);
    Ok(())
}

/// The guest's own tables get their bits, and forbid what they forbid, for device pages too.
fn page_tables() -> Verdict {
    page::set(21, APIC, PRESENT | WRITE);
    let at = page::at(21) + 0x80;
    let _: u32 = cpu::peek(at);
    let bits = page::entry(21) & (ACCESSED | DIRTY);
    ensure!(bits == ACCESSED, "a load sets {bits:#x}");
    cpu::poke(at, 0_u32);
    let bits = page::entry(21) & (ACCESSED | DIRTY);
    ensure!(bits == ACCESSED | DIRTY, "a store sets {bits:#x}");
    // CR0.WP is on: a string move whose destination may only be read.
    page::set(21, APIC, PRESENT);
    let source = [0x50_u32];
    let caught = attempt!("movsd"; inout("rsi") source.as_ptr() => _, inout("rdi") at => _);
    page::set(21, 0, 0);
    ensure!(
        caught.is_some_and(|c| c.vector == 14 && c.error == 3 && c.cr2 == at),
        "MOVSD to a page that may be read gives {caught:x?}"
    );
    Ok(())
}
