//! The local APIC's timer (SDM 3A 11.5.4).

use kit::apic::{self, MASKED, reg};
use kit::clock::{self, us, within_ms};
use kit::cpu::{self, rdmsr, tsc, wrmsr};
use kit::{Test, Verdict, ensure, this};

pub const TESTS: &[Test] = &[
    Test::new("timer-one-shot", one_shot),
    Test::new("timer-periodic", periodic),
    Test::new("timer-current-count", current_count),
    Test::new("timer-masked", masked),
    Test::new("timer-divide", divide),
    Test::new("timer-stop", stop),
    Test::new("timer-tsc-deadline", tsc_deadline).unless(no_deadline),
    Test::new("timer-tsc-deadline-past", deadline_past).unless(no_deadline),
];

const VECTOR: u8 = 0x40;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const DEADLINE_MSR: u32 = 0x6e0;
/// Divide by 1 and by 16.
const BY_1: u32 = 0b1011;
const BY_16: u32 = 0b0011;
/// The comparison of clocks may be off by this much, in percent.
const SLACK: u64 = 5;

fn no_deadline() -> Option<&'static str> {
    (cpu::cpuid(1, 0).ecx >> 24 & 1 == 0).then_some("CPUID has no TSC deadline")
}

/// Counts of the timer in a millisecond, divided by 1.
fn counts_per_ms() -> u64 {
    apic::write(reg::TIMER, MASKED);
    apic::write(reg::DIVIDE, BY_1);
    let rate = measured();
    apic::write(reg::INITIAL, 0);
    rate
}

/// Counts in a millisecond of a timer that starts now.
fn measured() -> u64 {
    let current = || clock::together(|| apic::read(reg::CURRENT));
    apic::write(reg::INITIAL, u32::MAX);
    let (first, from, _) = current();
    clock::delay_us(40_000);
    let (last, to, _) = current();
    u64::from(first - last) * 1000 / us(from, to).max(1)
}

fn quiet() {
    cpu::cli();
    apic::write(reg::INITIAL, 0);
    apic::write(reg::TIMER, MASKED);
}

fn one_shot() -> Verdict {
    let rate = counts_per_ms();
    ensure!(rate > 0, "the timer does not count");
    apic::write(reg::TIMER, u32::from(VECTOR));
    let began = tsc();
    apic::write(reg::INITIAL, (rate * 20) as u32);
    cpu::sti();
    let came = within_ms(10_000, || this().hits(VECTOR) > 0);
    let after = us(
        began,
        this().last_tsc.load(core::sync::atomic::Ordering::SeqCst),
    );
    ensure!(came, "no interrupt came in 10 s from a count of 20 ms");
    ensure!(
        after >= 20_000 * (100 - SLACK) / 100,
        "the interrupt came after {after} us, 20000 were asked for"
    );
    clock::delay_us(60_000);
    let (count, hits) = (apic::read(reg::CURRENT), this().hits(VECTOR));
    quiet();
    ensure!(hits == 1, "one shot fired {hits} times");
    ensure!(count == 0, "the count after the shot is {count}");
    Ok(())
}

fn periodic() -> Verdict {
    let rate = counts_per_ms();
    apic::write(reg::TIMER, PERIODIC | u32::from(VECTOR));
    let began = tsc();
    apic::write(reg::INITIAL, (rate * 5) as u32);
    cpu::sti();
    let came = within_ms(20_000, || this().hits(VECTOR) >= 10);
    let after = us(began, tsc());
    let hits = this().hits(VECTOR);
    quiet();
    ensure!(came, "only {hits} of 10 periods of 5 ms ended in 20 s");
    ensure!(
        after >= 50_000 * (100 - SLACK) / 100,
        "10 periods of 5 ms took {after} us"
    );
    let left = this().hits(VECTOR);
    cpu::sti();
    clock::delay_us(20_000);
    ensure!(this().hits(VECTOR) <= left + 1, "a stopped timer goes on");
    Ok(())
}

fn current_count() -> Verdict {
    apic::write(reg::DIVIDE, BY_1);
    apic::write(reg::TIMER, MASKED | PERIODIC);
    apic::write(reg::INITIAL, u32::MAX);
    let mut last = apic::read(reg::CURRENT);
    ensure!(
        last > u32::MAX / 2,
        "a count of {:#x} starts at {last:#x}",
        u32::MAX
    );
    for _ in 0..1000 {
        let now = apic::read(reg::CURRENT);
        ensure!(now <= last, "the count rose from {last:#x} to {now:#x}");
        last = now;
    }
    let initial = apic::read(reg::INITIAL);
    apic::write(reg::INITIAL, 1_000_000);
    let again = apic::read(reg::CURRENT);
    quiet();
    ensure!(initial == u32::MAX, "the initial count reads {initial:#x}");
    ensure!(
        again <= 1_000_000,
        "a new initial count does not start again: {again}"
    );
    Ok(())
}

fn masked() -> Verdict {
    let rate = counts_per_ms();
    apic::write(reg::TIMER, MASKED | u32::from(VECTOR));
    apic::write(reg::INITIAL, rate as u32);
    cpu::sti();
    let ran_out = within_ms(10_000, || apic::read(reg::CURRENT) == 0);
    clock::delay_us(5_000);
    apic::write(reg::TIMER, u32::from(VECTOR));
    clock::delay_us(5_000);
    let hits = this().hits(VECTOR);
    quiet();
    ensure!(ran_out, "a masked timer does not count");
    ensure!(hits == 0, "a masked timer interrupted {hits} times");
    Ok(())
}

fn divide() -> Verdict {
    let rate = counts_per_ms();
    apic::write(reg::DIVIDE, BY_16);
    let divided = measured();
    quiet();
    ensure!(
        (rate / 16 * 80 / 100..=rate / 16 * 120 / 100 + 1).contains(&divided),
        "{rate} counts in a millisecond become {divided} when divided by 16"
    );
    Ok(())
}

fn stop() -> Verdict {
    let rate = counts_per_ms();
    apic::write(reg::TIMER, u32::from(VECTOR));
    apic::write(reg::INITIAL, (rate * 1000) as u32);
    apic::write(reg::INITIAL, 0);
    let count = apic::read(reg::CURRENT);
    cpu::sti();
    clock::delay_us(5_000);
    let hits = this().hits(VECTOR);
    quiet();
    ensure!(count == 0, "a stopped timer counts from {count}");
    ensure!(hits == 0, "a stopped timer fired");
    Ok(())
}

fn tsc_deadline() -> Verdict {
    apic::write(reg::TIMER, DEADLINE | u32::from(VECTOR));
    let deadline = tsc() + 20 * clock::ticks_per_ms();
    wrmsr(DEADLINE_MSR, deadline);
    let (reads, then) = (rdmsr(DEADLINE_MSR), tsc());
    // In a crowd it may be over before it is read.
    ensure!(
        reads == deadline || reads == 0 && then >= deadline,
        "the deadline {deadline:#x} reads {reads:#x} at {then:#x}"
    );
    ensure!(
        apic::read(reg::CURRENT) == 0,
        "the count is used in deadline mode"
    );
    cpu::sti();
    let came = within_ms(10_000, || this().hits(VECTOR) > 0);
    let at = this().last_tsc.load(core::sync::atomic::Ordering::SeqCst);
    let left = rdmsr(DEADLINE_MSR);
    clock::delay_us(30_000);
    let hits = this().hits(VECTOR);
    let disarmed = disarms(|| wrmsr(DEADLINE_MSR, 0));
    let left_mode = disarms(quiet);
    let other_mode = rdmsr(DEADLINE_MSR);
    cpu::cli();
    ensure!(came, "no interrupt came in 10 s after a deadline of 20 ms");
    ensure!(
        at >= deadline,
        "the interrupt came {} ticks before its deadline",
        deadline - at
    );
    ensure!(
        left == 0,
        "the deadline reads {left:#x} after it has passed"
    );
    ensure!(hits == 1, "one deadline fired {hits} times");
    ensure!(disarmed, "a deadline of 0 does not disarm");
    ensure!(left_mode, "leaving the mode does not disarm");
    ensure!(
        other_mode == 0,
        "outside its mode the deadline reads {other_mode:#x}"
    );
    Ok(())
}

/// Whether a deadline does not fire if it is disarmed `by` this before it has come. In a crowd that may be too
/// late, and a later deadline is tried.
fn disarms(by: impl Fn()) -> bool {
    [10, 50, 250, 1250].into_iter().any(|ms| {
        let before = this().hits(VECTOR);
        let deadline = tsc() + ms * clock::ticks_per_ms();
        wrmsr(DEADLINE_MSR, deadline);
        by();
        let in_time = tsc() < deadline;
        cpu::sti();
        clock::delay_us((ms + 20) * 1000);
        in_time && this().hits(VECTOR) == before
    })
}

fn deadline_past() -> Verdict {
    apic::write(reg::TIMER, DEADLINE | u32::from(VECTOR));
    wrmsr(DEADLINE_MSR, 1);
    cpu::sti();
    let came = within_ms(5_000, || this().hits(VECTOR) == 1);
    quiet();
    ensure!(came, "a deadline in the past does not fire");
    Ok(())
}
