//! The real-time clock and its memory (MC146818).

use kit::apic::{self, io};
use kit::clock::{self, us};
use kit::{Test, Verdict, cpu, ensure, this, trap};

pub const TESTS: &[Test] = &[
    Test::new("rtc-memory", memory),
    Test::new("rtc-advances", advances),
    Test::new("rtc-periodic", periodic_interrupt),
    Test::new("rtc-update-ended", update_ended),
];

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const PIN: u8 = 8;
const VECTOR: u8 = 0x73;
const SECONDS: u8 = 0;
const A: u8 = 0xa;
const B: u8 = 0xb;
const C: u8 = 0xc;
const PERIODIC: u8 = 0x40;
const UPDATE_ENDED: u8 = 0x10;

fn read(register: u8) -> u8 {
    cpu::outb(INDEX, register);
    cpu::inb(DATA)
}

fn write(register: u8, value: u8) {
    cpu::outb(INDEX, register);
    cpu::outb(DATA, value);
}

/// Reads what the clock wanted, which lets it want again.
pub fn acknowledge() -> u8 {
    read(C)
}

fn enable(bits: u8) {
    write(B, read(B) & 0x0f | bits);
    acknowledge();
}

/// Interrupts 1024 times a second, or none.
pub fn periodic(on: bool) {
    write(A, 0x26);
    enable(if on { PERIODIC } else { 0 });
}

fn memory() -> Verdict {
    let kept = read(0x55);
    write(0x55, 0xa5);
    let first = read(0x55);
    write(0x55, 0x5a);
    let second = read(0x55);
    write(0x55, kept);
    ensure!(
        (first, second) == (0xa5, 0x5a),
        "CMOS memory reads {first:#x} and {second:#x}"
    );
    ensure!(read(0xd) & 0x80 != 0, "the battery is said to be empty");
    Ok(())
}

fn advances() -> Verdict {
    let change = || {
        let from = read(SECONDS);
        clock::within_ms(10_000, || read(SECONDS) != from)
    };
    ensure!(change(), "the second does not change in 10 s");
    let began = cpu::tsc();
    let value = read(SECONDS);
    ensure!(change(), "the second does not change again in 10 s");
    let took = us(began, cpu::tsc());
    let next = read(SECONDS);
    // A processor that was kept waiting sees the change late, never early.
    ensure!(took >= 400_000, "a second took {took} us");
    ensure!(
        value != next && next < 0x60,
        "after second {value:x} comes {next:x}"
    );
    Ok(())
}

fn listen(bits: u8) {
    trap::on(VECTOR, |frame| {
        acknowledge();
        trap::count(this(), VECTOR, frame);
        apic::end_of_interrupt();
    });
    io::route(PIN, VECTOR.into(), apic::id());
    write(A, 0x26);
    enable(bits);
    cpu::sti();
}

fn deaf() {
    cpu::cli();
    enable(0);
    io::mask(PIN);
    trap::off(VECTOR);
}

fn periodic_interrupt() -> Verdict {
    const MANY: u32 = 40;
    let began = cpu::tsc();
    listen(PERIODIC);
    let came = clock::within_ms(30_000, || this().hits(VECTOR) >= MANY);
    let took = us(began, cpu::tsc());
    deaf();
    ensure!(
        came,
        "{} of {MANY} periodic interrupts came",
        this().hits(VECTOR)
    );
    let wanted = u64::from(MANY) * 1_000_000 / 1024;
    ensure!(
        took >= wanted * 85 / 100,
        "{MANY} periods took {took} us, not {wanted}"
    );
    Ok(())
}

fn update_ended() -> Verdict {
    listen(UPDATE_ENDED);
    let came = clock::within_ms(20_000, || this().hits(VECTOR) >= 2);
    deaf();
    ensure!(
        came,
        "{} of 2 updates interrupted in 20 s",
        this().hits(VECTOR)
    );
    Ok(())
}
