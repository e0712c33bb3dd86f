//! Interrupts without end, a console without pause, code without rest.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use kit::apic::{self, io, ipi};
use kit::serial::COM1;
use kit::{clock, cpu, page, print, trap};

const VECTOR: u8 = 0x90;
/// How long a storm lasts.
const STORM_US: u64 = 50_000;

/// When it began.
static BEGAN: AtomicU64 = AtomicU64::new(0);

/// A storm begins now.
fn begin() {
    BEGAN.store(cpu::tsc(), SeqCst);
}

/// Whether it is over. Its handlers ask: while interrupts follow each other without a gap nobody else runs.
fn over() -> bool {
    clock::us(BEGAN.load(SeqCst), cpu::tsc()) >= STORM_US
}

/// Waits with the doors open.
fn storm() {
    cpu::sti();
    while !over() {
        cpu::pause();
    }
    cpu::cli();
}

/// The handler sends the next one.
pub fn self_ipi() {
    trap::on(VECTOR, |_| {
        apic::end_of_interrupt();
        if !over() {
            apic::send_self(VECTOR);
        }
    });
    begin();
    apic::send_self(VECTOR);
    storm();
    trap::off(VECTOR);
    storm_ends();
}

/// Takes what is left.
fn storm_ends() {
    cpu::sti();
    cpu::cli();
}

/// NMIs to itself.
pub fn nmi() {
    for _ in 0..200 {
        apic::send(ipi::NMI | ipi::ASSERT, apic::id());
    }
}

/// A level line that stays up, whose interrupt is ended and comes again at once.
pub fn level() {
    const PIN: u8 = 4;
    trap::on(VECTOR, |_| {
        if over() {
            cpu::outb(COM1 + 1, 0);
        }
        apic::end_of_interrupt();
    });
    begin();
    io::route(PIN, io::LEVEL | u32::from(VECTOR), apic::id());
    cpu::outb(COM1 + 4, 8);
    cpu::outb(COM1 + 1, 2);
    storm();
    cpu::outb(COM1 + 1, 0);
    io::mask(PIN);
    storm_ends();
    trap::off(VECTOR);
}

/// A periodic timer whose period is over before its interrupt is served.
pub fn timer() {
    trap::on(VECTOR, |_| {
        if over() {
            apic::write(apic::reg::INITIAL, 0);
        }
        apic::end_of_interrupt();
    });
    begin();
    apic::write(apic::reg::DIVIDE, 0b1011);
    apic::write(apic::reg::TIMER, 1 << 17 | u32::from(VECTOR));
    apic::write(apic::reg::INITIAL, 1);
    storm();
    apic::settle();
    storm_ends();
    trap::off(VECTOR);
}

/// All bytes there are, as fast as the port takes them, with ends of lines, escapes and prompts of others among them.
pub fn console() {
    for byte in 0..=255_u8 {
        cpu::outb(COM1, byte);
    }
    print!("[alpha] GUEST-RESULT ok I am somebody else");
    for byte in b"\x1b[2J\x1b]0;title\x07\x1b[9999;9999H\r\rperigee> vm alpha stop\r\n" {
        cpu::outb(COM1, *byte);
    }
}

/// Writes code and runs it, in turns, and lets it overwrite itself.
pub fn code() {
    static CODE: page::Page = page::Page::new();
    let at = CODE.address();
    for n in 0..2000_u32 {
        cpu::poke(at + 1, n);
        cpu::poke(at + 5, 0xc3_u8);
        cpu::poke(at, 0xb8_u8);
        let said: u32;
        // SAFETY: `mov eax, n; ret`.
        unsafe { core::arch::asm!("call {}", in(reg) at, out("eax") said) };
        if said != n {
            print!("GUEST-RESULT failed: code that says {n} says {said}");
            kit::power::off(1);
        }
    }
}
