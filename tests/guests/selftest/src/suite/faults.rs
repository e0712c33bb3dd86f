//! Exceptions, and exceptions on the way to an exception (SDM 3A 6.15, table 6-5; APM 2 8.2.9).

use core::sync::atomic::Ordering::SeqCst;

use kit::page::{self, PRESENT, Page, WRITE};
use kit::trap::{self, TablePointer};
use kit::{Caught, Test, Verdict, apic, attempt, cpu, ensure, this};

pub const TESTS: &[Test] = &[
    Test::new("fault-vectors", vectors),
    Test::new("fault-control-registers", control_registers).unless(kit::plain_emulator),
    Test::new("fault-fpu", fpu),
    Test::new("fault-gate-absent", gate_absent),
    Test::new("fault-double", double),
    Test::new("fault-idt-page-absent", idt_page_absent),
    Test::new("fault-idt-page-absent-interrupt", idt_page_absent_interrupt),
    Test::new("fault-stack-page-absent", stack_page_absent),
    Test::new("fault-storm", storm),
];

const DIVIDE: u8 = 0;
const BREAKPOINT: u8 = 3;
const UNDEFINED: u8 = 6;
const NO_DEVICE: u8 = 7;
const DOUBLE: u8 = 8;
const NOT_PRESENT: u8 = 11;
const PROTECTION: u8 = 13;
const PAGE: u8 = 14;
const X87: u8 = 16;
const EFER: u32 = 0xc000_0080;

/// Fails unless `caught` is `vector` with `error`.
fn expect(caught: Option<Caught>, what: &str, vector: u8, error: u32) -> Verdict {
    let Some(caught) = caught else {
        ensure!(false, "{what} raises nothing, {vector} was expected");
        return Ok(());
    };
    ensure!(
        caught.vector == vector && caught.error == error,
        "{what} raises {} with error {:#x}, not {vector} with {error:#x}",
        caught.vector,
        caught.error
    );
    Ok(())
}

fn divide_by_zero() -> Option<Caught> {
    attempt!("div ecx"; in("ecx") 0, inout("eax") 1 => _, inout("edx") 0 => _)
}

fn vectors() -> Verdict {
    expect(divide_by_zero(), "DIV by zero", DIVIDE, 0)?;
    expect(attempt!("int3"), "INT3", BREAKPOINT, 0)?;
    expect(attempt!("ud2"), "UD2", UNDEFINED, 0)?;
    let high = attempt!("mov {at}, [{at}]"; at = inout(reg) 1_u64 << 62 => _);
    expect(high, "an address that is not canonical", PROTECTION, 0)?;
    let beyond = attempt!("mov ds, {s:x}"; s = in(reg) 0xfff8);
    expect(beyond, "a selector beyond the table", PROTECTION, 0xfff8)?;
    cpu::poke(0x3000, 0_u8);
    let fine = attempt!("mov byte ptr [{at}], 1"; at = in(reg) 0x3000_u64);
    ensure!(fine.is_none(), "an ordinary store raises {fine:?}");
    Ok(())
}

fn control_registers() -> Verdict {
    let reserved = attempt!("mov cr4, {v}"; v = in(reg) 1_u64 << 62);
    expect(reserved, "a reserved bit of CR4", PROTECTION, 0)?;
    let paging = attempt!("mov cr0, {v}"; v = in(reg) cpu::cr0() & !1);
    expect(paging, "CR0.PG without CR0.PE", PROTECTION, 0)?;
    let cache = attempt!("mov cr0, {v}"; v = in(reg) cpu::cr0() & !(1 << 30) | 1 << 29);
    expect(cache, "CR0.NW without CR0.CD", PROTECTION, 0)?;
    let width = attempt!("mov cr4, {v}"; v = in(reg) cpu::cr4() & !(1 << 5));
    expect(width, "CR4 without PAE in long mode", PROTECTION, 0)?;
    let table = attempt!("mov cr3, {v}"; v = in(reg) cpu::cr3() | 1 << 60);
    expect(table, "a reserved bit of CR3", PROTECTION, 0)?;
    let priority = attempt!("mov cr8, {v}"; v = in(reg) 16_u64);
    expect(priority, "CR8 of 16", PROTECTION, 0)?;
    let long = cpu::rdmsr(EFER);
    let off = attempt!("wrmsr"; in("ecx") EFER, in("eax") long as u32 & !0x100, in("edx") 0);
    expect(off, "EFER without LME while paging", PROTECTION, 0)?;
    let reserved = attempt!("wrmsr"; in("ecx") EFER, in("eax") long as u32 | 2, in("edx") 0);
    expect(reserved, "a reserved bit of EFER", PROTECTION, 0)
}

fn fpu() -> Verdict {
    const TASK_SWITCHED: u64 = 1 << 3;
    const MONITOR: u64 = 1 << 1;
    let cr0 = cpu::cr0();
    cpu::set_cr0(cr0 | TASK_SWITCHED);
    let x87 = attempt!("fld1");
    let wait = attempt!("fwait");
    let sse = attempt!("movaps xmm0, xmm1");
    cpu::set_cr0((cr0 | TASK_SWITCHED) & !MONITOR);
    let wait_alone = attempt!("fwait");
    cpu::set_cr0(cr0);
    expect(x87, "FLD1 with CR0.TS", NO_DEVICE, 0)?;
    expect(wait, "FWAIT with CR0.TS and MP", NO_DEVICE, 0)?;
    expect(sse, "MOVAPS with CR0.TS", NO_DEVICE, 0)?;
    ensure!(
        wait_alone.is_none(),
        "FWAIT without CR0.MP raises {wait_alone:?}"
    );
    let unmasked: [u16; 2] = [0x033b, 0x037f];
    let zero = attempt!(
        "fninit", "fldcw [{cw}]", "fld1", "fldz", "fdivp st(1), st", "fwait";
        cw = in(reg) unmasked.as_ptr()
    );
    // SAFETY: back to the state after reset.
    unsafe { core::arch::asm!("fnclex", "fninit") };
    expect(zero, "an unmasked x87 division by zero", X87, 0)
}

/// Takes the present bit of a vector's gate away while `work` runs.
fn without_gate(vector: u8, work: impl FnOnce() -> Option<Caught>) -> Option<Caught> {
    let gate = trap::gate(vector);
    // SAFETY: our own table; the other processors take no exceptions now.
    unsafe { (*gate)[0] &= !(1 << 47) };
    let caught = work();
    // SAFETY: as above.
    unsafe { (*gate)[0] |= 1 << 47 };
    caught
}

fn gate_absent() -> Verdict {
    let caught = without_gate(UNDEFINED, || attempt!("ud2"));
    // The EXT bit is not agreed upon between processors.
    let caught = caught.map(|c| Caught {
        error: c.error & !1,
        ..c
    });
    expect(
        caught,
        "UD2 with an absent gate",
        NOT_PRESENT,
        u32::from(UNDEFINED) * 8 + 2,
    )?;
    let caught = without_gate(0x45, || attempt!("int 0x45"));
    expect(
        caught,
        "INT 45h with an absent gate",
        NOT_PRESENT,
        0x45 * 8 + 2,
    )
}

fn double() -> Verdict {
    let caught = without_gate(DIVIDE, divide_by_zero);
    expect(caught, "DIV by zero with an absent gate", DOUBLE, 0)?;
    let caught = without_gate(PAGE, || {
        page::set(0, 0, 0);
        attempt!("mov {at}, [{at}]"; at = inout(reg) page::at(0) => _)
    });
    expect(caught, "a page fault with an absent gate", DOUBLE, 0)
}

static TABLE: [Page; 2] = [Page::new(), Page::new()];

/// The gates in the window's pages 0 and 1, so that those from `first_absent` on lie in page 1, which is absent.
fn split_table(first_absent: u8) -> TablePointer {
    let kept = 4096 - u64::from(first_absent) * 16;
    let gates = trap::gate(0).cast::<u8>();
    // SAFETY: 4096 bytes of gates go to 8192 bytes of our own that lie in one piece.
    unsafe { core::ptr::copy(gates, (TABLE[0].address() + kept) as *mut u8, 4096) };
    page::set(0, TABLE[0].address(), PRESENT | WRITE);
    page::set(1, 0, 0);
    TablePointer {
        limit: 4095,
        base: page::at(0) + kept,
    }
}

fn idt_page_absent() -> Verdict {
    trap::load_idt(&split_table(32));
    let software = attempt!("int 0x40");
    trap::load_idt(&split_table(PAGE));
    let double = attempt!("mov {at}, [{at}]"; at = inout(reg) page::at(1) => _);
    trap::load_idt(&trap::idt_pointer());
    expect(software, "INT 40h with its gate on an absent page", PAGE, 0)?;
    let cr2 = software.map_or(0, |c| c.cr2);
    let gate = page::at(1) + u64::from(0x40_u8 - 32) * 16;
    ensure!(
        (gate..gate + 16).contains(&cr2),
        "CR2 is {cr2:#x}, the gate is at {gate:#x}"
    );
    expect(
        double,
        "a page fault with its gate on an absent page",
        DOUBLE,
        0,
    )
}

fn idt_page_absent_interrupt() -> Verdict {
    const VECTOR: u8 = 0x47;
    trap::load_idt(&split_table(32));
    apic::send_self(VECTOR);
    let caught = attempt!("sti", "nop", "nop", "cli");
    trap::load_idt(&trap::idt_pointer());
    let in_service = apic::bit(apic::reg::ISR, VECTOR);
    cpu::cli();
    apic::end_of_interrupt();
    expect(
        caught,
        "an interrupt with its gate on an absent page",
        PAGE,
        0,
    )?;
    ensure!(
        in_service,
        "the interrupt is not in service after its delivery faulted"
    );
    ensure!(
        this().hits(VECTOR) == 0,
        "the interrupt was delivered all the same"
    );
    Ok(())
}

fn stack_page_absent() -> Verdict {
    page::set(2, 0, 0);
    let slot = trap::fixup();
    // SAFETY: the stack that is not there is replaced by the real one before anything else uses it.
    unsafe {
        core::arch::asm!(
            "lea {next}, [rip + 77f]",
            "mov [{slot}], {next}",
            "mov {kept}, rsp",
            "mov rsp, {absent}",
            "ud2",
            "77:",
            "mov rsp, {kept}",
            "mov qword ptr [{slot}], 0",
            next = out(reg) _,
            kept = out(reg) _,
            slot = in(reg) slot,
            absent = in(reg) page::at(3) - 64,
        );
    }
    expect(
        trap::caught(),
        "UD2 with a stack that is not there",
        DOUBLE,
        0,
    )
}

/// Rounds of the storm.
const STORM: u32 = 2000;

/// Exceptions, software interrupts and interrupts one after the other, so that whatever the hypervisor does to this
/// VM's pages in the meantime hits a delivery.
fn storm() -> Verdict {
    const VECTOR: u8 = 0x48;
    const SOFTWARE: u8 = 0x49;
    page::set(4, 0, 0);
    trap::end_interrupts(true);
    for round in 0..STORM {
        expect(attempt!("ud2"), "UD2 in a storm", UNDEFINED, 0)?;
        let absent = attempt!("mov {at}, [{at}]"; at = inout(reg) page::at(4) => _);
        expect(absent, "an absent page in a storm", PAGE, 0)?;
        apic::send_self(VECTOR);
        cpu::sti();
        cpu::cli();
        ensure!(
            this().hits(VECTOR) == round + 1,
            "{} interrupts came of {}",
            this().hits(VECTOR),
            round + 1
        );
        trap::on(SOFTWARE, |frame| trap::count(this(), SOFTWARE, frame));
        // SAFETY: counted.
        unsafe { core::arch::asm!("int 0x49") };
    }
    trap::off(SOFTWARE);
    let software = this().hits[usize::from(SOFTWARE)].load(SeqCst);
    ensure!(
        software == STORM,
        "{software} software interrupts came of {STORM}"
    );
    Ok(())
}
