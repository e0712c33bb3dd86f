//! What interrupts a CPU, and what becomes of it.
//!
//! * Timer and kick set a bit in the deferred-work word.
//! * An exception at an instruction of the fix-up table continues where the table says.
//! * An NMI is a question from another CPU (stop, or show where you are), or a cry of the hardware.
//! * Everything else is a bug or a broken machine, and ends in a [`report`].
//!
//! NMI, double fault and machine check may arrive while GS base is a guest's (around a world
//! switch), and so may a fault of the switch itself: their CPU is found through GDTR.
#![expect(
    unsafe_code,
    reason = "restores GS base, and reads CR2 and machine-check banks"
)]

use core::arch::asm;
use core::fmt;
use core::sync::atomic::Ordering;

use x86_64::instructions::port::Port;
use x86_64::registers::control::Cr2;

use super::idt::{self, TrapFrame};
use super::percpu::{self, PerCpu};
use super::{apic, entry, fixup, gdt, msr, report, stack, stop, timer};

const DEBUG: u8 = 1;
const NMI: u8 = 2;
const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
const MACHINE_CHECK: u8 = 18;

/// Called by the common entry with interrupts off, once for each interrupt and exception.
pub(super) extern "C" fn dispatch(frame: &mut TrapFrame) {
    let vector = frame.vector as u8;
    match vector {
        idt::TIMER => {
            timer::fired();
            percpu::current().defer(percpu::DEFER_TIMER);
            apic::end_of_interrupt();
        }
        idt::KICK => {
            percpu::current().defer(percpu::DEFER_KICK);
            apic::end_of_interrupt();
        }
        idt::APIC_ERROR => {
            let errors = apic::take_errors();
            percpu::current()
                .apic_errors
                .fetch_or(errors, Ordering::Relaxed);
            apic::end_of_interrupt();
        }
        // A spurious interrupt is not in service: no EOI (SDM 3A 11.9).
        idt::SPURIOUS => {}
        DEBUG | NMI | DOUBLE_FAULT | MACHINE_CHECK => {
            with_own_gs(|cpu| any_time(cpu, vector, frame))
        }
        0..32 => match fixup::lookup(frame.rip) {
            Some(resume) => frame.rip = resume,
            // Around a world switch GS is a guest's: a report that trusted it would fault in turn, and so on
            // to the end of the stack and a reset without a word.
            None => with_own_gs(|_| report::exception(&Cause { vector, frame }, frame)),
        },
        _ => {
            percpu::current().unexpected.fetch_add(1, Ordering::Relaxed);
            apic::end_of_interrupt();
        }
    }
}

/// Takes a machine check that ended a guest's run and so never reached this CPU's handler: calls its
/// vector as the processor would have done (APM 2 15.12.16), which reports the banks and ends the machine.
pub fn take_machine_check() -> ! {
    // SAFETY: the gate switches to its own stack and pushes no error code, for the processor as for
    // INT; `any_time` never returns from this vector.
    unsafe { asm!("int {vector}", vector = const MACHINE_CHECK, options(noreturn)) }
}

/// Runs `f` with GS base pointing to this CPU's data, whatever it pointed to before.
fn with_own_gs(f: impl FnOnce(&'static PerCpu)) {
    // SAFETY: an IDT is loaded only after the CPU's GDT. GS base exists in long mode, and what it
    // was before is put back before the interrupted code goes on.
    unsafe {
        let cpu = gdt::owner();
        let before = msr::read(msr::GS_BASE);
        let own = core::ptr::from_ref(cpu) as u64;
        if before != own {
            msr::write(msr::GS_BASE, own);
        }
        f(cpu);
        if before != own {
            msr::write(msr::GS_BASE, before);
        }
    }
}

/// Exceptions that may arrive between any two instructions: no lock, no allocation.
fn any_time(cpu: &PerCpu, vector: u8, frame: &TrapFrame) {
    if vector == NMI {
        if stop::is_requested() {
            cpu.snapshot.take(frame);
            stop::stop_here();
        }
        if cpu.snapshot.is_requested() {
            cpu.snapshot.take(frame);
            return;
        }
    }
    report::exception(&Cause { vector, frame }, frame);
}

/// An exception, explained.
struct Cause<'a> {
    vector: u8,
    frame: &'a TrapFrame,
}

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vector {
            NMI => {
                // SAFETY: port 0x61 (system control port B) reads without side effect.
                let status = unsafe { Port::<u8>::new(0x61).read() };
                f.write_str("non-maskable interrupt that no CPU sent")?;
                if status & 0x80 != 0 {
                    f.write_str(": memory or PCI system error (SERR#)")?;
                }
                if status & 0x40 != 0 {
                    f.write_str(": I/O channel check (IOCHK#)")?;
                }
                Ok(())
            }
            MACHINE_CHECK => machine_check(f),
            PAGE_FAULT => page_fault(f, self.frame),
            DOUBLE_FAULT => {
                f.write_str("double fault")?;
                overflow(f, Cr2::read_raw())
            }
            vector => {
                write!(f, "{} (vector {vector})", name(vector))?;
                match self.frame.error {
                    0 => Ok(()),
                    error => write!(f, ", error code {error:#x}"),
                }
            }
        }
    }
}

/// The exceptions' names (SDM 3A table 6-1, APM 2 table 8-1).
fn name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack-segment fault",
        13 => "general protection fault",
        16 => "x87 floating-point error",
        17 => "alignment check",
        19 => "SIMD floating-point error",
        20 => "virtualization exception",
        21 => "control protection exception",
        28 => "hypervisor injection exception",
        29 => "VMM communication exception",
        30 => "security exception",
        _ => "exception",
    }
}

/// Error code bits of SDM 3A 4.7.
fn page_fault(f: &mut fmt::Formatter<'_>, frame: &TrapFrame) -> fmt::Result {
    let address = Cr2::read_raw();
    let has = |bit: u64| frame.error & bit != 0;
    let access = match (has(1 << 4), has(1 << 1)) {
        (true, _) => "instruction fetch from",
        (_, true) => "write to",
        _ => "read of",
    };
    let why = match (has(1 << 3), has(1 << 0)) {
        (true, _) => "a reserved bit is set in its page tables",
        (_, true) => "the page does not permit it",
        _ => "nothing is mapped there",
    };
    write!(f, "page fault: {access} {address:#x}: {why}")?;
    overflow(f, address)
}

/// Adds a sentence if `address` is a stack's guard page.
fn overflow(f: &mut fmt::Formatter<'_>, address: u64) -> fmt::Result {
    if let Some(place) = stack::describe(address).filter(|p| p.in_guard) {
        return write!(f, "; {}'s {} stack has overflowed", place.cpu, place.kind);
    }
    if entry::boot_stack_guards().contains(&(address & !0xfff)) {
        return f.write_str("; the boot stack has overflowed");
    }
    Ok(())
}

/// Lists the banks with a valid error (SDM 3B 16.3.2.2: STATUS bit 63 valid, 61 uncorrected, 59 and 58
/// say whether MISC and ADDR hold something, 57 context corrupt).
fn machine_check(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("machine check: the hardware reports an error")?;
    if let Some(status) = msr::read_checked(msr::MCG_STATUS) {
        write!(f, " (MCG_STATUS {status:#x})")?;
    }
    let banks = msr::read_checked(msr::MCG_CAP).unwrap_or(0) as u32 & 0xff;
    for bank in 0..banks {
        let control = msr::MC0_CTL + 4 * bank;
        let status = msr::read_checked(control + 1).unwrap_or(0);
        if status >> 63 == 0 {
            continue;
        }
        write!(f, "; bank {bank} status {status:#018x}")?;
        if status & 1 << 61 != 0 {
            f.write_str(" uncorrected")?;
        }
        if status & 1 << 57 != 0 {
            f.write_str(" context corrupt")?;
        }
        if status & 1 << 58 != 0 {
            write!(
                f,
                " address {:#x}",
                msr::read_checked(control + 2).unwrap_or(0)
            )?;
        }
        if status & 1 << 59 != 0 {
            write!(
                f,
                " misc {:#x}",
                msr::read_checked(control + 3).unwrap_or(0)
            )?;
        }
    }
    Ok(())
}
