//! Paging, translations that must go, string I/O (SDM 3A 4).

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use kit::page::{self, ACCESSED, DIRTY, NO_EXECUTE, PRESENT, Page, USER, WRITE};
use kit::{Caught, Test, Verdict, attempt, clock, cpu, ensure, smp};

pub const TESTS: &[Test] = &[
    Test::new("page-fault-codes", fault_codes),
    Test::new("page-write-protect", write_protect),
    Test::new("page-smep", smep).unless(no_smep),
    Test::new("page-smap", smap).unless(no_smap),
    Test::new("page-accessed-dirty", accessed_dirty),
    Test::new("page-invlpg", invlpg),
    Test::new("page-shootdown", shootdown).with_two(),
    Test::new("string-io", string_io),
    Test::new("mmio-instructions", mmio_instructions),
];

const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR0_WP: u64 = 1 << 16;
const SCRATCH: u16 = 0x3ff;

static A: Page = Page::new();
static B: Page = Page::new();

fn no_smep() -> Option<&'static str> {
    (cpu::cpuid_if_any(7, 0).ebx >> 7 & 1 == 0).then_some("CPUID has no SMEP")
}

fn no_smap() -> Option<&'static str> {
    (cpu::cpuid_if_any(7, 0).ebx >> 20 & 1 == 0).then_some("CPUID has no SMAP")
}

fn read(at: u64) -> Option<Caught> {
    attempt!("mov {at:r}, [{at:r}]"; at = inout(reg) at => _)
}

fn write(at: u64) -> Option<Caught> {
    attempt!("mov byte ptr [{at:r}], 7"; at = in(reg) at)
}

fn execute(at: u64) -> Option<Caught> {
    // What is called is a RET; a fault on the way leaves its return address on the stack.
    attempt!("mov {kept}, rsp", "call {at:r}", "jmp 78f", "78:", "nop"; at = in(reg) at, kept = out(reg) _)
}

/// Fails unless a page fault at `at` has this code.
fn fault(caught: Option<Caught>, what: &str, at: u64, code: u32) -> Verdict {
    ensure!(
        caught.is_some_and(|c| c.vector == 14 && c.error == code && c.cr2 == at),
        "{what} gives {caught:x?}, not a page fault with code {code:#x} at {at:#x}"
    );
    Ok(())
}

fn fault_codes() -> Verdict {
    let at = page::at(8);
    page::set(8, 0, 0);
    fault(read(at), "reading an absent page", at, 0)?;
    fault(write(at), "writing an absent page", at, 2)?;
    page::set(8, A.address(), PRESENT);
    ensure!(read(at).is_none(), "reading a page that may be read faults");
    fault(write(at), "writing a page that may be read", at, 3)?;
    page::set(8, A.address(), PRESENT | WRITE | NO_EXECUTE);
    let slot = kit::trap::fixup();
    // SAFETY: the fault on the way into the page goes on at 77, where the stack is as it was.
    unsafe {
        core::arch::asm!(
            "lea {next}, [rip + 77f]", "mov [{slot}], {next}", "jmp {at}", "77:", "mov qword ptr [{slot}], 0",
            next = out(reg) _, slot = in(reg) slot, at = in(reg) at
        );
    }
    fault(
        kit::trap::caught(),
        "executing a page that may not",
        at,
        0x11,
    )?;
    // Bit 51 lies above every address width of today: reserved.
    page::set(8, A.address() | 1 << 51, PRESENT | WRITE);
    let reserved = read(at);
    page::set(8, 0, 0);
    let wide = cpu::cpuid_if_any(0x8000_0008, 0).eax & 0xff >= 52;
    if !wide {
        // Whether the code calls the page present as well is not agreed upon between processors.
        let reserved = reserved.map(|c| Caught {
            error: c.error | 1,
            ..c
        });
        fault(reserved, "a reserved bit of an entry", at, 9)?;
    }
    Ok(())
}

fn write_protect() -> Verdict {
    let at = page::at(8);
    page::set(8, A.address(), PRESENT);
    cpu::set_cr0(cpu::cr0() & !CR0_WP);
    let open = write(at);
    cpu::set_cr0(cpu::cr0() | CR0_WP);
    let shut = write(at);
    page::set(8, 0, 0);
    ensure!(open.is_none(), "without CR0.WP a write gives {open:x?}");
    fault(shut, "with CR0.WP again a write", at, 3)
}

/// A page whose code returns at once.
fn returning(page: &Page) {
    cpu::poke(page.address(), 0xc3_u8);
}

fn smep() -> Verdict {
    let at = page::at(9);
    returning(&A);
    page::set(9, A.address(), PRESENT | WRITE | USER);
    let before = execute(at);
    cpu::set_cr4(cpu::cr4() | CR4_SMEP);
    let slot = kit::trap::fixup();
    // SAFETY: the fault on the way into the page goes on at 77, where the stack is as it was.
    unsafe {
        core::arch::asm!(
            "lea {next}, [rip + 77f]", "mov [{slot}], {next}", "jmp {at}", "77:", "mov qword ptr [{slot}], 0",
            next = out(reg) _, slot = in(reg) slot, at = in(reg) at
        );
    }
    let caught = kit::trap::caught();
    cpu::set_cr4(cpu::cr4() & !CR4_SMEP);
    let after = execute(at);
    page::set(9, 0, 0);
    ensure!(
        before.is_none() && after.is_none(),
        "without SMEP a user's page cannot be executed: {before:x?} {after:x?}"
    );
    fault(caught, "SMEP", at, 0x11)
}

fn smap() -> Verdict {
    let at = page::at(9);
    page::set(9, A.address(), PRESENT | WRITE | USER);
    ensure!(
        read(at).is_none(),
        "without SMAP a user's page cannot be read"
    );
    cpu::set_cr4(cpu::cr4() | CR4_SMAP);
    let closed = read(at);
    let open = attempt!("stac", "mov {at}, [{at}]", "clac"; at = inout(reg) at => _);
    cpu::set_cr4(cpu::cr4() & !CR4_SMAP);
    page::set(9, 0, 0);
    ensure!(open.is_none(), "STAC does not open: {open:x?}");
    fault(closed, "SMAP", at, 1)
}

fn accessed_dirty() -> Verdict {
    page::set(10, A.address(), PRESENT | WRITE);
    let fresh = page::entry(10);
    let _: u8 = cpu::peek(page::at(10));
    let read = page::entry(10);
    cpu::poke(page::at(10), 1_u8);
    let written = page::entry(10);
    page::set(10, 0, 0);
    ensure!(
        fresh & (ACCESSED | DIRTY) == 0,
        "a new entry reads {fresh:#x}"
    );
    ensure!(
        read & (ACCESSED | DIRTY) == ACCESSED,
        "after a load it reads {read:#x}"
    );
    ensure!(
        written & (ACCESSED | DIRTY) == ACCESSED | DIRTY,
        "after a store it reads {written:#x}"
    );
    Ok(())
}

fn invlpg() -> Verdict {
    cpu::poke(A.address(), 0xa_u32);
    cpu::poke(B.address(), 0xb_u32);
    let at = page::at(11);
    page::set(11, A.address(), PRESENT | WRITE);
    let first: u32 = cpu::peek(at);
    page::set_entry(11, B.address() | PRESENT | WRITE);
    cpu::invlpg(at);
    let second: u32 = cpu::peek(at);
    page::set_entry(11, A.address() | PRESENT | WRITE);
    cpu::set_cr3(cpu::cr3());
    let third: u32 = cpu::peek(at);
    page::set_entry(11, 0);
    cpu::invlpg(at);
    let gone = read(at);
    ensure!(
        (first, second, third) == (0xa, 0xb, 0xa),
        "pages read {first:x} {second:x} {third:x}"
    );
    fault(gone, "a page taken away", at, 0)
}

static STEP: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);

/// Another processor reads through the window, then again after this one changed it and both flushed.
fn shootdown() -> Verdict {
    cpu::poke(A.address(), 0xa_u32);
    cpu::poke(B.address(), 0xb_u32);
    for round in 0..50 {
        page::set(12, A.address(), PRESENT | WRITE);
        STEP.store(0, SeqCst);
        smp::give(1, || {
            cpu::invlpg(page::at(12));
            let first: u32 = cpu::peek(page::at(12));
            STEP.store(1, SeqCst);
            clock::within_ms(10_000, || STEP.load(SeqCst) == 2);
            cpu::invlpg(page::at(12));
            let second: u32 = cpu::peek(page::at(12));
            SEEN.store(first << 4 | second, SeqCst);
        });
        clock::within_ms(10_000, || STEP.load(SeqCst) == 1);
        page::set(12, B.address(), PRESENT | WRITE);
        STEP.store(2, SeqCst);
        ensure!(
            smp::done_within_ms(1, 20_000),
            "the other processor does not answer in round {round}"
        );
        ensure!(
            SEEN.load(SeqCst) == 0xab,
            "it saw {:x} in round {round}",
            SEEN.load(SeqCst)
        );
    }
    page::set(12, 0, 0);
    Ok(())
}

fn string_io() -> Verdict {
    let out: [u8; 200] = core::array::from_fn(|i| i as u8);
    let (left, end): (u64, u64);
    // SAFETY: OUTS reads the array.
    unsafe {
        core::arch::asm!("cld", "rep outsb", in("dx") SCRATCH, inout("rcx") out.len() => left,
            inout("rsi") out.as_ptr() => end);
    }
    ensure!(
        left == 0 && end == out.as_ptr() as u64 + 200,
        "REP OUTSB left {left}"
    );
    ensure!(
        cpu::inb(SCRATCH) == 199,
        "the port holds {}",
        cpu::inb(SCRATCH)
    );
    // Across the end of a page into one that is absent: what fits is stored, the rest faults, and the
    // registers say where.
    page::set(13, A.address(), PRESENT | WRITE);
    page::set(14, 0, 0);
    let start = page::at(14) - 100;
    let (left, end): (u64, u64);
    let caught = attempt!("rep insb"; in("dx") SCRATCH, inout("rcx") 200_u64 => left, inout("rdi") start => end);
    let last: u8 = cpu::peek(A.address() + 4095);
    page::set(13, 0, 0);
    fault(caught, "REP INSB into an absent page", page::at(14), 2)?;
    ensure!(
        left == 100 && end == page::at(14),
        "REP INSB left {left} and stands at {end:#x}"
    );
    ensure!(last == 199, "the last byte that fits is {last}");
    // SAFETY: OUTS of one element downwards.
    unsafe {
        core::arch::asm!("std", "outsb", "cld", in("dx") SCRATCH, inout("rsi") out.as_ptr().wrapping_add(7) => _);
    }
    ensure!(cpu::inb(SCRATCH) == 7, "OUTSB wrote {}", cpu::inb(SCRATCH));
    Ok(())
}

/// A device register by other instructions than MOV: the task priority of the local APIC.
fn mmio_instructions() -> Verdict {
    const TPR: u64 = kit::apic::BASE + 0x80;
    let read = || cpu::peek::<u32>(TPR);
    cpu::poke(TPR, 0x20_u32);
    // SAFETY: all of these access the register, whose only effect is on interrupts, which are off.
    unsafe {
        core::arch::asm!("or dword ptr [{}], 0x10", in(reg) TPR);
        ensure!(read() == 0x30, "OR makes 20h {:#x}", read());
        core::arch::asm!("and dword ptr [{}], 0x10", in(reg) TPR);
        ensure!(read() == 0x10, "AND makes 30h {:#x}", read());
        core::arch::asm!("add dword ptr [{}], {:e}", in(reg) TPR, in(reg) 0x40);
        ensure!(read() == 0x50, "ADD makes 10h {:#x}", read());
        let mut value = 0x70_u32;
        core::arch::asm!("xchg [{}], {:e}", in(reg) TPR, inout(reg) value);
        ensure!(
            value == 0x50 && read() == 0x70,
            "XCHG gives {value:#x} and leaves {:#x}",
            read()
        );
        let flags: u64;
        core::arch::asm!("test dword ptr [{}], 0x70", "pushfq", "pop {}", in(reg) TPR, out(reg) flags);
        ensure!(flags & 0x40 == 0, "TEST of 70h with 70h says zero");
        let flags: u64;
        core::arch::asm!("cmp dword ptr [{}], 0x70", "pushfq", "pop {}", in(reg) TPR, out(reg) flags);
        ensure!(flags & 0x40 != 0, "CMP of 70h with 70h says different");
        let source = 0x30_u32;
        core::arch::asm!("cld", "movsd", inout("rsi") &raw const source => _, inout("rdi") TPR => _);
        ensure!(read() == 0x30, "MOVSD stores {:#x}", read());
        let mut back = 0_u32;
        core::arch::asm!("movsd", inout("rsi") TPR => _, inout("rdi") &raw mut back => _);
        ensure!(back == 0x30, "MOVSD loads {back:#x}");
        core::arch::asm!("stosd", inout("rdi") TPR => _, in("eax") 0x40);
        ensure!(read() == 0x40, "STOSD stores {:#x}", read());
        core::arch::asm!("mov dword ptr [{}], 0", in(reg) TPR);
    }
    ensure!(read() == 0, "MOV of an immediate leaves {:#x}", read());
    Ok(())
}
