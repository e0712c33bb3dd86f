//! The pair of 8259A interrupt controllers, through the local APIC's LINT0 as "ExtINT" (MP specification 3.6.2.1).

use kit::apic::{self, MASKED, io, reg};
use kit::{Test, Verdict, clock, cpu, ensure, this, trap};

pub const TESTS: &[Test] = &[
    Test::new("pic-delivers", delivers),
    Test::new("pic-masks", masks),
    Test::new("pic-in-service", in_service),
    Test::new("pic-slave", slave),
];

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const BASE: u8 = 0x80;
const EXTINT: u32 = 7 << 8;
const END: u8 = 0x20;

/// Both controllers from the start, vectors from [`BASE`], everything masked but `open` (bits of both).
fn set_up(open: u16) {
    for (port, base, cascade) in [(MASTER, BASE, 4), (SLAVE, BASE + 8, 2)] {
        cpu::outb(port, 0x11);
        cpu::outb(port + 1, base);
        cpu::outb(port + 1, cascade);
        cpu::outb(port + 1, 1);
    }
    cpu::outb(MASTER + 1, !(open as u8));
    cpu::outb(SLAVE + 1, !((open >> 8) as u8));
    io::mask(2);
    io::mask(0);
    apic::write(reg::LINT0, EXTINT);
}

fn quiet() {
    cpu::cli();
    cpu::outb(MASTER + 1, 0xff);
    cpu::outb(SLAVE + 1, 0xff);
    cpu::outb(SLAVE, END);
    cpu::outb(MASTER, END);
    apic::write(reg::LINT0, MASKED);
    super::pit::stop();
    trap::off(BASE);
    trap::off(BASE + 8);
}

fn delivers() -> Verdict {
    set_up(1);
    trap::on(BASE, |frame| {
        trap::count(this(), BASE, frame);
        cpu::outb(MASTER, END);
    });
    super::pit::rate(2000); // 1.7 ms
    cpu::sti();
    let came = clock::within_ms(20_000, || this().hits(BASE) >= 20);
    quiet();
    ensure!(
        came,
        "{} of 20 ticks came through the 8259A",
        this().hits(BASE)
    );
    ensure!(
        !apic::bit(reg::ISR, BASE),
        "ExtINT is in service in the local APIC"
    );
    Ok(())
}

fn masks() -> Verdict {
    set_up(0);
    super::pit::rate(2000);
    cpu::sti();
    // IRR shows the request (OCW3 read command) although it is masked.
    cpu::outb(MASTER, 0x0a);
    let requested = clock::within_ms(10_000, || cpu::inb(MASTER) & 1 != 0);
    clock::delay_us(10_000);
    let masked = this().hits(BASE);
    let mask = cpu::inb(MASTER + 1);
    quiet();
    ensure!(mask == 0xff, "the mask reads {mask:#x}");
    ensure!(requested, "IRR does not show a masked request");
    ensure!(masked == 0, "a masked request came {masked} times");
    Ok(())
}

fn in_service() -> Verdict {
    set_up(1);
    // Its handler does not end it: no second one may come.
    trap::on(BASE, |frame| trap::count(this(), BASE, frame));
    super::pit::rate(2000);
    cpu::sti();
    let came = clock::within_ms(10_000, || this().hits(BASE) >= 1);
    clock::delay_us(15_000);
    let without_end = this().hits(BASE);
    cpu::outb(MASTER, 0x0b);
    let in_service = cpu::inb(MASTER);
    cpu::outb(MASTER, END);
    let again = clock::within_ms(10_000, || this().hits(BASE) == 2);
    quiet();
    ensure!(
        came && without_end == 1,
        "{without_end} interrupts came before the first had ended"
    );
    ensure!(
        in_service == 1,
        "the in-service register reads {in_service:#x}"
    );
    ensure!(again, "none came after the end");
    Ok(())
}

fn slave() -> Verdict {
    set_up(1 << 8 | 1 << 2);
    trap::on(BASE + 8, |frame| {
        trap::count(this(), BASE + 8, frame);
        super::rtc::acknowledge();
        cpu::outb(SLAVE, END);
        cpu::outb(MASTER, END);
    });
    super::rtc::periodic(true);
    cpu::sti();
    let came = clock::within_ms(20_000, || this().hits(BASE + 8) >= 5);
    cpu::cli();
    super::rtc::periodic(false);
    quiet();
    ensure!(
        came,
        "{} of 5 interrupts came through the slave",
        this().hits(BASE + 8)
    );
    Ok(())
}
