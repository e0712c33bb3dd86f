//! The time-stamp counter: how fast it runs, and whether all CPUs' counters agree.
//!
//! The rate comes from CPUID where CPUID knows it, else it is counted against the ACPI PM timer,
//! else against the 8254. The counters of two CPUs are compared twice: by a ping-pong that
//! estimates their distance, and by a warp test in which both take turns under a lock and nobody may
//! see time go back.
#![expect(unsafe_code, reason = "RDTSC and port reads of reference timers")]

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::fmt;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use raw_cpuid::CpuId;
use spin::Mutex;
use x86_64::instructions::port::Port;

use super::cpu;
use super::percpu::PerCpu;
use crate::platform::PmTimer;

static HZ: AtomicU64 = AtomicU64::new(0);
static SYNCHRONISED: AtomicBool = AtomicBool::new(true);

/// The counter of this processor, not before everything that precedes the call.
pub fn read() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 and CR4.TSD does not concern ring 0. LFENCE keeps it
    // behind earlier loads (SDM 2B, RDTSC).
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Ticks in a second; 0 before [`calibrate`].
pub fn hz() -> u64 {
    HZ.load(Ordering::Relaxed)
}

/// Whether the counters of all CPUs agree, so that a reading on one is good on another.
pub fn synchronised() -> bool {
    SYNCHRONISED.load(Ordering::Relaxed)
}

/// Where the rate came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// CPUID leaf 0x15.
    Cpuid,
    /// A hypervisor below us, leaf 0x4000_0010.
    Hypervisor,
    /// The ACPI power-management timer.
    PmTimer,
    /// The 8254's channel 2.
    Pit,
    /// Nothing answered; the rate is an assumption.
    Assumed,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpuid => "CPUID leaf 0x15",
            Self::Hypervisor => "the hypervisor below (CPUID 0x40000010)",
            Self::PmTimer => "the ACPI PM timer",
            Self::Pit => "the 8254 timer",
            Self::Assumed => "an assumption, because no reference timer answered",
        })
    }
}

/// Finds out how fast the counter runs.
pub fn calibrate(pm_timer: Option<PmTimer>) -> (u64, Source) {
    let (hz, source) = by_cpuid()
        .or_else(|| {
            pm_timer
                .and_then(by_pm_timer)
                .map(|hz| (hz, Source::PmTimer))
        })
        .or_else(|| by_pit().map(|hz| (hz, Source::Pit)))
        .unwrap_or((1_000_000_000, Source::Assumed));
    HZ.store(hz, Ordering::Relaxed);
    (hz, source)
}

/// Rates below and above these are taken for a broken reference.
const PLAUSIBLE_HZ: core::ops::RangeInclusive<u64> = 1_000_000..=100_000_000_000;

fn by_cpuid() -> Option<(u64, Source)> {
    let cpuid = CpuId::new();
    let nominal = cpuid
        .get_tsc_info()
        .and_then(|t| t.tsc_frequency())
        .map(|hz| (hz, Source::Cpuid));
    let told = || {
        let khz = cpuid.get_hypervisor_info()?.tsc_frequency()?;
        Some((u64::from(khz) * 1000, Source::Hypervisor))
    };
    nominal
        .or_else(told)
        .filter(|(hz, _)| PLAUSIBLE_HZ.contains(hz))
}

/// A reference reading between two readings of the counter.
struct Reading {
    tsc: u64,
    uncertainty: u64,
    reference: u64,
}

/// The reading with the least time between its two counter values, out of a few.
fn best_reading(mut reference: impl FnMut() -> u64) -> Reading {
    let mut best = Reading {
        tsc: 0,
        uncertainty: u64::MAX,
        reference: 0,
    };
    for _ in 0..8 {
        let before = read();
        let value = reference();
        let after = read();
        let uncertainty = after.wrapping_sub(before);
        if uncertainty < best.uncertainty {
            best = Reading {
                tsc: before + uncertainty / 2,
                uncertainty,
                reference: value,
            };
        }
    }
    best
}

/// Ticks in a second, from two readings of a reference that runs at `hz`.
fn rate(start: &Reading, end: &Reading, elapsed: u64, hz: u64) -> Option<u64> {
    let ticks = end.tsc.checked_sub(start.tsc)?;
    if elapsed == 0 {
        return None;
    }
    u64::try_from(u128::from(ticks) * u128::from(hz) / u128::from(elapsed))
        .ok()
        .filter(|hz| PLAUSIBLE_HZ.contains(hz))
}

/// The PM timer runs at 3.579545 MHz, 24 or 32 bits wide (ACPI 6.5, 4.8.3.3). Its reads cost a
/// microsecond, so 20 ms give four digits.
fn by_pm_timer(timer: PmTimer) -> Option<u64> {
    const HZ: u64 = 3_579_545;
    const SPAN: u64 = HZ / 50;
    const GIVE_UP: u32 = 2_000_000;
    let elapsed = |from: u64, to: u64| to.wrapping_sub(from) & timer.mask();
    let start = best_reading(|| timer.read());
    let mut tries = 0;
    while elapsed(start.reference, timer.read()) < SPAN {
        tries += 1;
        if tries > GIVE_UP {
            return None;
        }
        spin_loop();
    }
    let end = best_reading(|| timer.read());
    rate(&start, &end, elapsed(start.reference, end.reference), HZ)
}

/// Channel 2 of the 8254 counts down from 65535 at 1.193182 MHz with its gate open (port 0x61 bit
/// 0) and the speaker off (bit 1); its count is latched by a command to port 0x43.
fn by_pit() -> Option<u64> {
    const HZ: u64 = 1_193_182;
    const SPAN: u64 = HZ / 50;
    const GIVE_UP: u32 = 2_000_000;
    let (mut gate, mut command, mut data) = (
        Port::<u8>::new(0x61),
        Port::<u8>::new(0x43),
        Port::<u8>::new(0x42),
    );
    let mut count = move || {
        // SAFETY: latches and reads channel 2, which nothing else in the kernel uses.
        unsafe {
            command.write(0x80);
            let low = data.read();
            let high = data.read();
            u64::from(u16::from_le_bytes([low, high]))
        }
    };
    // SAFETY: as above; mode 0 counts down once and never interrupts (channel 2 has no IRQ).
    unsafe {
        let value = gate.read();
        gate.write(value & !0b10 | 0b01);
        Port::<u8>::new(0x43).write(0xb0);
        Port::<u8>::new(0x42).write(0xff);
        Port::<u8>::new(0x42).write(0xff);
    }
    let start = best_reading(&mut count);
    let mut tries = 0;
    while start.reference.wrapping_sub(count()) & 0xffff < SPAN {
        tries += 1;
        if tries > GIVE_UP {
            return None;
        }
        spin_loop();
    }
    let end = best_reading(&mut count);
    rate(
        &start,
        &end,
        start.reference.wrapping_sub(end.reference) & 0xffff,
        HZ,
    )
}

/// What comparing a CPU's counter with the boot processor's gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The CPU's counter minus the boot processor's, in ticks.
    pub offset: i64,
    /// How wrong `offset` can be, in ticks.
    pub uncertainty: u64,
    /// The furthest that time was seen to go back between the two, in ticks.
    pub warp: u64,
}

impl Comparison {
    /// Whether the two counters may be used for one another.
    pub fn agrees(&self) -> bool {
        self.warp == 0 && self.offset.unsigned_abs() <= self.uncertainty
    }
}

/// Rounds of the ping-pong; the quickest counts.
const PING_PONG_ROUNDS: u32 = 32;
/// A thousandth of a second is long for a warp test (hundreds of turns) and short for a start-up.
const WARP_TESTS_A_SECOND: u64 = 1_000;

/// The CPU that is being compared, by number.
static SUBJECT: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = u32::MAX;
static PING: AtomicU32 = AtomicU32::new(0);
static PONG: AtomicU32 = AtomicU32::new(0);
static PONG_TSC: AtomicU64 = AtomicU64::new(0);
static WARP_TURN: Mutex<WarpTurn> = Mutex::new(WarpTurn { last: 0, warp: 0 });
static FOLLOWER_DONE: AtomicBool = AtomicBool::new(false);

struct WarpTurn {
    last: u64,
    warp: u64,
}

/// The boot processor's side of a comparison with a CPU that runs [`follow`]; one at a time. Stores
/// what it found in `cpu` and lowers [`synchronised`] if the counters disagree. `None` if the other
/// CPU stops answering, which `give_up` decides.
pub fn compare(cpu: &PerCpu, give_up: impl Fn() -> bool) -> Option<Comparison> {
    PING.store(0, Ordering::Relaxed);
    PONG.store(0, Ordering::Relaxed);
    FOLLOWER_DONE.store(false, Ordering::Relaxed);
    *WARP_TURN.lock() = WarpTurn { last: 0, warp: 0 };
    SUBJECT.store(cpu.cpu.0, Ordering::Release);
    let found = lead(give_up);
    SUBJECT.store(NOBODY, Ordering::Release);
    let found = found?;
    if !found.agrees() {
        cpu.tsc_offset.store(found.offset, Ordering::Relaxed);
        SYNCHRONISED.store(false, Ordering::Relaxed);
    }
    Some(found)
}

fn lead(give_up: impl Fn() -> bool) -> Option<Comparison> {
    let (mut offset, mut round_trip) = (0_i64, u64::MAX);
    for round in 1..=PING_PONG_ROUNDS {
        let before = read();
        PING.store(round, Ordering::Release);
        while PONG.load(Ordering::Acquire) != round {
            if give_up() {
                return None;
            }
            spin_loop();
        }
        let there = PONG_TSC.load(Ordering::Relaxed);
        let after = read();
        let took = after.wrapping_sub(before);
        if took < round_trip {
            round_trip = took;
            offset = there
                .wrapping_sub(before.wrapping_add(took / 2))
                .cast_signed();
        }
    }
    PING.store(u32::MAX, Ordering::Release);
    warp_turns();
    while !FOLLOWER_DONE.load(Ordering::Acquire) {
        if give_up() {
            return None;
        }
        spin_loop();
    }
    Some(Comparison {
        offset,
        uncertainty: round_trip / 2,
        warp: WARP_TURN.lock().warp,
    })
}

/// The other CPU's side of [`compare`]. If the boot processor has given up on this CPU, it must not
/// mix into the comparison of another: it halts.
pub fn follow(me: &PerCpu) {
    while SUBJECT.load(Ordering::Acquire) != me.cpu.0 {
        spin_loop();
    }
    let mut answered = 0;
    loop {
        if SUBJECT.load(Ordering::Acquire) != me.cpu.0 {
            cpu::halt_forever();
        }
        let round = PING.load(Ordering::Acquire);
        if round == u32::MAX {
            break;
        }
        if round > answered {
            PONG_TSC.store(read(), Ordering::Relaxed);
            PONG.store(round, Ordering::Release);
            answered = round;
        }
        spin_loop();
    }
    warp_turns();
    FOLLOWER_DONE.store(true, Ordering::Release);
}

fn warp_turns() {
    let start = read();
    while read().wrapping_sub(start) < hz() / WARP_TESTS_A_SECOND {
        let mut turn = WARP_TURN.lock();
        let now = read();
        turn.warp = turn.warp.max(turn.last.saturating_sub(now));
        turn.last = turn.last.max(now);
    }
}
