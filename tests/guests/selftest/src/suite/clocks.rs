//! Clocks: none goes back, whatever processor reads it, and all agree.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use kit::clock::{self, PM_HZ, us};
use kit::page::Page;
use kit::{Test, Verdict, apic, cpu, ensure, smp, this};

pub const TESTS: &[Test] = &[
    Test::new("clock-tsc-monotonic", tsc_monotonic),
    Test::new("clock-pm-timer-monotonic", pm_monotonic),
    Test::new("clock-tsc-rate", tsc_rate),
    Test::new("clock-apic-rate-kept", apic_rate),
    Test::new("clock-kvmclock-monotonic", kvmclock_monotonic).unless(no_kvmclock),
    Test::new("clock-kvmclock-rate", kvmclock_rate).unless(no_kvmclock),
    Test::new("clock-rdtscp", rdtscp).unless(no_rdtscp),
    Test::new("clock-tsc-written", tsc_written).unless(kit::plain_emulator),
];

/// How long the processors race.
const RACE_US: u64 = 400_000;

static LAST: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicBool = AtomicBool::new(false);
static READINGS: AtomicU64 = AtomicU64::new(0);
static BACK: AtomicU64 = AtomicU64::new(0);

/// All processors read a clock by turns for a while; how far it ever went back, and how often it was read.
fn race(read: fn() -> u64) -> (u64, u64) {
    static READ: AtomicU64 = AtomicU64::new(0);
    [&LAST, &READINGS, &BACK]
        .iter()
        .for_each(|n| n.store(0, SeqCst));
    READ.store(read as usize as u64, SeqCst);
    smp::everywhere(60_000, || {
        // SAFETY: stored above, a `fn() -> u64`.
        let read: fn() -> u64 = unsafe { core::mem::transmute(READ.load(SeqCst) as usize) };
        let began = cpu::tsc();
        while us(began, cpu::tsc()) < RACE_US {
            if HELD.swap(true, SeqCst) {
                cpu::pause();
                continue;
            }
            let (last, now) = (LAST.load(SeqCst), read());
            BACK.fetch_max(last.saturating_sub(now), SeqCst);
            LAST.store(now, SeqCst);
            READINGS.fetch_add(1, SeqCst);
            HELD.store(false, SeqCst);
        }
    });
    (BACK.load(SeqCst), READINGS.load(SeqCst))
}

fn tsc_monotonic() -> Verdict {
    let (back, readings) = race(cpu::tsc);
    ensure!(readings > 100, "only {readings} readings were made");
    ensure!(
        back == 0,
        "the TSC went back by {back} in {readings} readings"
    );
    Ok(())
}

fn pm_monotonic() -> Verdict {
    // Of 24 bits, 4.7 s; a difference in the upper half of the range is a step back.
    static FIRST: AtomicU64 = AtomicU64::new(0);
    FIRST.store(u64::from(clock::pm_timer()), SeqCst);
    let (back, readings) = race(|| u64::from(clock::pm_since(FIRST.load(SeqCst) as u32)));
    ensure!(readings > 20, "only {readings} readings were made");
    // A run that crowded processors stretch over the whole range starts again from zero, once.
    ensure!(
        back == 0 || back > 0x80_0000,
        "the PM timer went back by {back} in {readings} readings"
    );
    Ok(())
}

/// A clock and the ACPI timer agree about a second to 2 %. A crowd may come between a reading of the one and a reading
/// of the other, so the clock's second is known within bounds.
fn keeps_time(name: &str, now: impl Fn() -> u64, us: impl Fn(u64, u64) -> u64) -> Verdict {
    let (first, before, after) = clock::between(&now, clock::pm_timer);
    clock::delay_us(1_000_000);
    let (last, to, to_end) = clock::between(&now, clock::pm_timer);
    let ticks = clock::pm_between(first, last);
    let by_pm = u64::from(ticks) * 1_000_000 / PM_HZ;
    let (least, most) = (us(after, to), us(before, to_end));
    ensure!(
        least * 49 < by_pm * 50 && by_pm * 49 < most * 50,
        "{least} to {most} us by {name} are {by_pm} us by the PM timer"
    );
    Ok(())
}

fn tsc_rate() -> Verdict {
    keeps_time("the TSC", cpu::tsc, us)
}

/// The local APIC's timer runs at the same rate at two times, each known within bounds: a crowd or a slow exit
/// may come between a reading of the counter and one of the clock.
fn apic_rate() -> Verdict {
    let current = || clock::together(|| apic::read(apic::reg::CURRENT));
    let rate = || {
        apic::write(apic::reg::DIVIDE, 0b1011);
        apic::write(apic::reg::TIMER, apic::MASKED);
        apic::write(apic::reg::INITIAL, u32::MAX);
        let (first, from, from_end) = current();
        clock::delay_us(200_000);
        let (last, to, to_end) = current();
        apic::write(apic::reg::INITIAL, 0);
        let counts = u64::from(first - last) * 1000;
        (counts / us(from, to_end), counts / us(from_end, to))
    };
    let (first, second) = (rate(), rate());
    let apart = first.0.max(second.0).saturating_sub(first.1.min(second.1));
    ensure!(
        apart * 50 < first.0,
        "{first:?} counts in a millisecond, then {second:?}"
    );
    Ok(())
}

const KVM_FEATURES: u32 = 0x4000_0001;
const SYSTEM_TIME: u32 = 0x4b56_4d01;

fn no_kvmclock() -> Option<&'static str> {
    let present = cpu::cpuid(1, 0).ecx >> 31 & 1 != 0;
    // "KVMKVMKVM\0\0\0", with the second generation of clock registers (bit 3).
    let kvm = present && cpu::cpuid(0x4000_0000, 0).ebx == 0x4b4d_564b;
    (!kvm || cpu::cpuid(KVM_FEATURES, 0).eax & 8 == 0).then_some("there is no kvmclock")
}

static PAGES: [Page; kit::MAX_CPUS] = [const { Page::new() }; kit::MAX_CPUS];

/// Nanoseconds by this processor's page (Linux, Documentation/virt/kvm/x86/msr.rst).
fn kvmclock() -> u64 {
    let page = PAGES[this().index].address();
    loop {
        let version: u32 = cpu::peek(page);
        let (at, base): (u64, u64) = (cpu::peek(page + 8), cpu::peek(page + 16));
        let (factor, shift): (u32, i8) = (cpu::peek(page + 24), cpu::peek(page + 28));
        let ticks = cpu::tsc().wrapping_sub(at);
        let shifted = if shift < 0 {
            ticks >> -shift
        } else {
            ticks << shift
        };
        let now = base.wrapping_add(((u128::from(shifted) * u128::from(factor)) >> 32) as u64);
        if version & 1 == 0 && version == cpu::peek::<u32>(page) {
            return now;
        }
    }
}

fn with_kvmclock(work: impl FnOnce() -> Verdict) -> Verdict {
    let on = smp::everywhere(20_000, || {
        cpu::wrmsr(SYSTEM_TIME, PAGES[this().index].address() | 1);
    });
    ensure!(on, "a processor does not answer");
    let verdict = work();
    smp::everywhere(20_000, || cpu::wrmsr(SYSTEM_TIME, 0));
    verdict
}

fn kvmclock_monotonic() -> Verdict {
    with_kvmclock(|| {
        let (back, readings) = race(kvmclock);
        ensure!(readings > 100, "only {readings} readings were made");
        ensure!(
            back == 0,
            "kvmclock went back by {back} ns in {readings} readings"
        );
        Ok(())
    })
}

fn kvmclock_rate() -> Verdict {
    with_kvmclock(|| {
        keeps_time("kvmclock", kvmclock, |from, to| {
            to.saturating_sub(from) / 1000
        })
    })
}

fn no_rdtscp() -> Option<&'static str> {
    (cpu::cpuid_if_any(0x8000_0001, 0).edx >> 27 & 1 == 0).then_some("CPUID has no RDTSCP")
}

fn rdtscp() -> Verdict {
    const TSC_AUX: u32 = 0xc000_0103;
    cpu::wrmsr(TSC_AUX, 0x1234_5678);
    let (low, high, aux): (u32, u32, u32);
    let before = cpu::tsc();
    // SAFETY: reads a counter.
    unsafe { core::arch::asm!("rdtscp", out("eax") low, out("edx") high, out("ecx") aux) };
    let now = u64::from(high) << 32 | u64::from(low);
    let msr = cpu::rdmsr(0x10);
    ensure!(aux == 0x1234_5678, "RDTSCP gives {aux:#x} from TSC_AUX");
    ensure!(before <= now, "RDTSCP is behind RDTSC");
    ensure!(msr >= now || msr == 0, "the TSC by RDMSR is behind RDTSCP");
    Ok(())
}

/// Writing the TSC moves it, for this processor.
fn tsc_written() -> Verdict {
    let old = cpu::tsc();
    let jump = 1_000_000_000_000;
    cpu::wrmsr(0x10, old + jump);
    let new = cpu::tsc();
    let now = cpu::tsc();
    cpu::wrmsr(0x10, now.wrapping_sub(jump));
    let back = cpu::tsc();
    ensure!(new >= old + jump, "the TSC did not jump: {old} to {new}");
    ensure!(back < old + jump, "the TSC did not jump back");
    Ok(())
}
