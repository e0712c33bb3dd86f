//! The 8254 timer: counter 0 with its interrupt, counter 2 with its gate (Intel 231164).

use kit::apic::{self, io};
use kit::clock::{self, us};
use kit::{Tables, Test, Verdict, cpu, ensure, smp, this};

pub const TESTS: &[Test] = &[
    Test::new("pit-counts-down", counts_down),
    Test::new("pit-read-back", read_back),
    Test::new("pit-rate", tick_rate),
    Test::new("pit-one-shot", one_shot),
    Test::new("pit-counter-2", counter_2),
];

const COUNTER_0: u16 = 0x40;
const CONTROL: u16 = 0x43;
const PORT_B: u16 = 0x61;
const HZ: u64 = 1_193_182;
const VECTOR: u8 = 0x72;

fn load(counter: u8, mode: u8, count: u16) {
    cpu::outb(CONTROL, counter << 6 | 0x30 | mode << 1);
    let port = COUNTER_0 + u16::from(counter);
    cpu::outb(port, count as u8);
    cpu::outb(port, (count >> 8) as u8);
}

/// Counter 0 interrupts every `count` of its periods.
pub fn rate(count: u16) {
    load(0, 2, count);
}

/// Counter 0 is silent: it counts once, and its line goes where nobody listens.
pub fn stop() {
    load(0, 0, 1);
    clock::delay_us(100);
}

fn latched(counter: u8) -> u16 {
    cpu::outb(CONTROL, counter << 6);
    let port = COUNTER_0 + u16::from(counter);
    let low = cpu::inb(port);
    u16::from(low) | u16::from(cpu::inb(port)) << 8
}

fn counts_down() -> Verdict {
    load(0, 2, 0);
    let mut rises = 0;
    let mut last = latched(0);
    let began = cpu::tsc();
    while us(began, cpu::tsc()) < 30_000 {
        let now = latched(0);
        rises += u32::from(now > last);
        last = now;
    }
    let took = us(began, cpu::tsc());
    stop();
    // 65,536 counts are 54.9 ms: it may start again once for each of them.
    ensure!(
        u64::from(rises) <= took / 54_000 + 1,
        "the count rose {rises} times in {took} us"
    );
    Ok(())
}

fn read_back() -> Verdict {
    load(0, 2, 50_000);
    clock::delay_us(200);
    cpu::outb(CONTROL, 0b1100_0010); // count and status of counter 0
    let status = cpu::inb(COUNTER_0);
    let count = u16::from(cpu::inb(COUNTER_0)) | u16::from(cpu::inb(COUNTER_0)) << 8;
    stop();
    ensure!(status & 0x3f == 0x34, "the status reads {status:#x}");
    ensure!(count > 0 && count <= 50_000, "the count reads {count}");
    Ok(())
}

fn route() {
    io::route(Tables::read().timer_pin, VECTOR.into(), apic::id());
}

fn quiet() {
    cpu::cli();
    io::mask(Tables::read().timer_pin);
    stop();
}

/// Counter 0 is silent, and its next interrupt will be seen: the one that silence begins with has come, however late.
fn silent() -> Verdict {
    route();
    load(0, 0, 1);
    cpu::sti();
    let came = clock::within_ms(20_000, || this().hits(VECTOR) >= 1);
    cpu::cli();
    smp::forget();
    ensure!(came, "a count of 1 in mode 0 never interrupted");
    Ok(())
}

fn tick_rate() -> Verdict {
    silent()?;
    const TICKS: u64 = 20;
    const COUNT: u16 = 6000; // 5.03 ms
    let began = cpu::tsc();
    rate(COUNT);
    cpu::sti();
    let came = clock::within_ms(30_000, || u64::from(this().hits(VECTOR)) >= TICKS);
    let took = us(began, cpu::tsc());
    quiet();
    let wanted = TICKS * u64::from(COUNT) * 1_000_000 / HZ;
    ensure!(
        came,
        "{} of {TICKS} ticks came in 30 s",
        this().hits(VECTOR)
    );
    // What was late may come in a bunch; what is early is wrong.
    ensure!(
        took >= wanted * 90 / 100,
        "{TICKS} ticks took {took} us, not {wanted}"
    );
    Ok(())
}

fn one_shot() -> Verdict {
    silent()?;
    let began = cpu::tsc();
    load(0, 0, 12_000); // 10.06 ms
    cpu::sti();
    let came = clock::within_ms(20_000, || this().hits(VECTOR) >= 1);
    let took = us(began, cpu::tsc());
    clock::delay_us(20_000);
    let hits = this().hits(VECTOR);
    quiet();
    ensure!(came, "mode 0 never interrupted");
    ensure!(took >= 9_000, "10 ms of mode 0 took {took} us");
    ensure!(hits == 1, "mode 0 interrupted {hits} times");
    Ok(())
}

fn counter_2() -> Verdict {
    let before = cpu::inb(PORT_B);
    cpu::outb(PORT_B, before & !3);
    let loaded = cpu::tsc();
    load(2, 0, 24_000); // 20.1 ms
    // The gate is shut: it does not count.
    clock::delay_us(5_000);
    let shut = latched(2);
    let began = cpu::tsc();
    cpu::outb(PORT_B, before & !2 | 1);
    let early = cpu::inb(PORT_B) & 0x20;
    let came = clock::within_ms(20_000, || cpu::inb(PORT_B) & 0x20 != 0);
    let end = cpu::tsc();
    cpu::outb(PORT_B, before);
    // The plain emulator counts on with its gate shut.
    ensure!(
        shut >= 23_990 || kit::plain_emulator().is_some(),
        "it counts with its gate shut: {shut}"
    );
    ensure!(early == 0, "its output is high at once");
    ensure!(came, "its output never rises");
    // There the time before the gate opened counts as well.
    let counts_from = if kit::plain_emulator().is_some() {
        loaded
    } else {
        began
    };
    let took = us(counts_from, end);
    ensure!(took >= 18_000, "20 ms took {took} us");
    Ok(())
}
