//! The I/O APIC (82093AA): edges, levels, and the end of an interrupt. The line is that of the first serial port, which
//! is high as long as the port has something to say and may say it.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use kit::apic::{self, MASKED, io, reg};
use kit::serial::COM1;
use kit::{Frame, Test, Verdict, clock, cpu, ensure, processor, smp, this, trap};

pub const TESTS: &[Test] = &[
    Test::new("ioapic-registers", registers),
    Test::new("ioapic-edge", edge),
    Test::new("ioapic-edge-masked", edge_masked),
    Test::new("ioapic-level", level),
    Test::new("ioapic-level-redelivered", level_redelivered),
    Test::new("ioapic-level-masked", level_masked),
    Test::new("ioapic-level-storm", level_storm),
    Test::new("ioapic-polarity", polarity).unless(kit::plain_emulator),
    Test::new("ioapic-destination", destination).with_two(),
];

const PIN: u8 = 4;
const VECTOR: u8 = 0x71;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const IDENTIFICATION: u16 = COM1 + 2;
const MODEM_CONTROL: u16 = COM1 + 4;
/// The transmitter is empty: true whenever nothing is sent.
const ON_EMPTY: u8 = 2;
const OUT2: u8 = 8;

/// The serial port's line goes up, or down.
fn line(up: bool) {
    cpu::outb(MODEM_CONTROL, OUT2);
    cpu::outb(INTERRUPT_ENABLE, 0);
    if up {
        cpu::outb(INTERRUPT_ENABLE, ON_EMPTY);
    } else {
        cpu::inb(IDENTIFICATION);
    }
}

/// Everything as it was, whatever a test did.
fn quiet(verdict: Verdict) -> Verdict {
    cpu::cli();
    line(false);
    io::mask(PIN);
    // An interrupt that a failed test left in service would hold all later ones back.
    while apic::bit(reg::ISR, VECTOR) {
        apic::end_of_interrupt();
    }
    trap::off(VECTOR);
    verdict
}

/// How often the vector came, waiting for `wanted` and then a while for one too many.
fn hits(wanted: u32) -> u32 {
    cpu::sti();
    clock::within_ms(10_000, || this().hits(VECTOR) >= wanted);
    clock::delay_us(3_000);
    cpu::cli();
    this().hits(VECTOR)
}

fn registers() -> Verdict {
    let version = io::read(1);
    ensure!(
        version >> 16 & 0xff == 23,
        "the I/O APIC has {} pins, not 24",
        (version >> 16 & 0xff) + 1
    );
    io::route(PIN, MASKED | io::LEVEL | io::LOW | 0x99, 0x5);
    let (low, high) = (io::entry(PIN), io::read(0x11 + 2 * PIN));
    io::mask(PIN);
    ensure!(
        low & 0x1_ffff == MASKED | io::LEVEL | io::LOW | 0x99,
        "an entry reads back as {low:#x}"
    );
    ensure!(high >> 24 == 5, "a destination reads back as {high:#x}");
    Ok(())
}

fn edge() -> Verdict {
    quiet((|| {
        line(false);
        io::route(PIN, VECTOR.into(), apic::id());
        line(true);
        let first = hits(1);
        ensure!(first == 1, "a rising edge gives {first} interrupts");
        line(false);
        let fall = hits(1);
        ensure!(fall == 1, "the falling edge gives one, too");
        line(true);
        let second = hits(2);
        ensure!(
            second == 2,
            "after a second edge {second} interrupts have come"
        );
        Ok(())
    })())
}

fn edge_masked() -> Verdict {
    quiet((|| {
        line(false);
        io::route(PIN, MASKED | u32::from(VECTOR), apic::id());
        line(true);
        let masked = hits(0);
        ensure!(masked == 0, "a masked pin gives {masked} interrupts");
        Ok(())
    })())
}

static SEEN: AtomicU32 = AtomicU32::new(0);
static FLAGS: AtomicU32 = AtomicU32::new(0);

/// Looks at the entry and the trigger mode while in service, lowers the line, ends.
fn serve(frame: &mut Frame) {
    trap::count(this(), VECTOR, frame);
    SEEN.store(io::entry(PIN), SeqCst);
    FLAGS.store(u32::from(apic::bit(reg::TMR, VECTOR)), SeqCst);
    line(false);
    apic::end_of_interrupt();
}

fn level() -> Verdict {
    quiet((|| {
        line(false);
        trap::on(VECTOR, serve);
        io::route(PIN, io::LEVEL | u32::from(VECTOR), apic::id());
        line(true);
        let first = hits(1);
        let (inside, after) = (SEEN.load(SeqCst), io::entry(PIN));
        ensure!(
            first == 1,
            "a level that is served gives {first} interrupts"
        );
        ensure!(
            inside & io::REMOTE_IRR != 0,
            "remote IRR is clear in service: {inside:#x}"
        );
        ensure!(
            FLAGS.load(SeqCst) == 1,
            "the local APIC does not call it level triggered"
        );
        ensure!(
            after & io::REMOTE_IRR == 0,
            "remote IRR stays after the end: {after:#x}"
        );
        line(true);
        let second = hits(2);
        ensure!(
            second == 2,
            "after the level rose again {second} interrupts have come"
        );
        Ok(())
    })())
}

/// Leaves the line up for the first three.
fn serve_late(frame: &mut Frame) {
    trap::count(this(), VECTOR, frame);
    // While remote IRR is set, nothing more may come from the pin, however often it is looked at.
    if this().hits(VECTOR) == 1 {
        clock::delay_us(2_000);
        FLAGS.store(u32::from(apic::bit(reg::IRR, VECTOR)), SeqCst);
    }
    if this().hits(VECTOR) == 3 {
        line(false);
    }
    apic::end_of_interrupt();
}

fn level_redelivered() -> Verdict {
    quiet((|| {
        line(false);
        trap::on(VECTOR, serve_late);
        io::route(PIN, io::LEVEL | u32::from(VECTOR), apic::id());
        line(true);
        let count = hits(3);
        ensure!(
            FLAGS.load(SeqCst) == 0,
            "a second one was sent before the first had ended"
        );
        ensure!(
            count == 3,
            "a line that is up for three ends gives {count} interrupts"
        );
        let after = io::entry(PIN);
        ensure!(after & io::REMOTE_IRR == 0, "remote IRR stays: {after:#x}");
        Ok(())
    })())
}

fn level_masked() -> Verdict {
    quiet((|| {
        line(false);
        trap::on(VECTOR, serve);
        io::route(PIN, MASKED | io::LEVEL | u32::from(VECTOR), apic::id());
        line(true);
        let masked = hits(0);
        ensure!(masked == 0, "a masked level gives {masked} interrupts");
        io::route(PIN, io::LEVEL | u32::from(VECTOR), apic::id());
        let unmasked = hits(1);
        ensure!(
            unmasked == 1,
            "a level that is unmasked gives {unmasked} interrupts"
        );
        Ok(())
    })())
}

/// A line that stays up gives an interrupt for every end.
fn level_storm() -> Verdict {
    const MANY: u32 = 200;
    quiet((|| {
        line(false);
        trap::on(VECTOR, |frame| {
            trap::count(this(), VECTOR, frame);
            if this().hits(VECTOR) == MANY {
                line(false);
            }
            apic::end_of_interrupt();
        });
        io::route(PIN, io::LEVEL | u32::from(VECTOR), apic::id());
        line(true);
        let count = hits(MANY);
        ensure!(
            count == MANY,
            "{count} interrupts came, {MANY} were asked for"
        );
        Ok(())
    })())
}

fn polarity() -> Verdict {
    quiet((|| {
        line(true);
        trap::on(VECTOR, |frame| {
            trap::count(this(), VECTOR, frame);
            io::mask(PIN);
            apic::end_of_interrupt();
        });
        io::route(PIN, io::LEVEL | io::LOW | u32::from(VECTOR), apic::id());
        let high = hits(0);
        ensure!(high == 0, "a high line interrupts a pin that is active low");
        line(false);
        let low = hits(1);
        ensure!(
            low == 1,
            "a low line gives {low} interrupts to a pin that is active low"
        );
        Ok(())
    })())
}

fn destination() -> Verdict {
    quiet((|| {
        for index in 0..smp::online() {
            smp::forget();
            line(false);
            io::route(PIN, VECTOR.into(), processor(index).apic_id.load(SeqCst));
            cpu::sti();
            line(true);
            let came = clock::within_ms(10_000, || processor(index).hits(VECTOR) == 1);
            cpu::cli();
            let total: u32 = (0..smp::online()).map(|i| processor(i).hits(VECTOR)).sum();
            ensure!(
                came && total == 1,
                "an interrupt for processor {index} came {total} times, there: {came}"
            );
        }
        Ok(())
    })())
}
