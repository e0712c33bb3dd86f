//! Time: the TSC, compared once with the ACPI timer.
//!
//! Tests ask for bounds that hold however crowded the machine is: nothing may come early (but for the error of the
//! comparison), and late means seconds.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::Tables;
use crate::cpu::{inl, pause, tsc};

/// Frequency of the ACPI power-management timer.
pub const PM_HZ: u64 = 3_579_545;
/// How long the comparison takes.
const COMPARED_MS: u64 = 50;

static TICKS_PER_MS: AtomicU64 = AtomicU64::new(1_000_000);
static PM_PORT: AtomicU32 = AtomicU32::new(0);
static PM_MASK: AtomicU32 = AtomicU32::new(0xff_ffff);

/// The ACPI timer.
pub fn pm_timer() -> u32 {
    inl(PM_PORT.load(SeqCst) as u16) & PM_MASK.load(SeqCst)
}

/// Ticks of the ACPI timer from a reading until now.
pub fn pm_since(earlier: u32) -> u32 {
    pm_between(earlier, pm_timer())
}

/// Ticks of the ACPI timer from one reading to a later one.
pub fn pm_between(earlier: u32, later: u32) -> u32 {
    later.wrapping_sub(earlier) & PM_MASK.load(SeqCst)
}

/// Reads a counter and the TSC as nearly at once as a few tries allow: the reading, and the TSC before and after.
pub fn together(read: impl Fn() -> u32) -> (u32, u64, u64) {
    between(tsc, read)
}

/// Reads a counter between two readings of a clock that are as near each other as a few tries allow: the counter, and
/// the clock before and after.
pub fn between(clock: impl Fn() -> u64, read: impl Fn() -> u32) -> (u32, u64, u64) {
    (0..5)
        .map(|_| {
            let before = clock();
            let value = read();
            let after = clock();
            (after - before, value, before, after)
        })
        .min()
        .map_or((0, 0, 0), |(_, value, before, after)| {
            (value, before, after)
        })
}

/// The ACPI timer, and the TSC at the same time.
fn both() -> (u32, u64) {
    let (pm, before, after) = together(pm_timer);
    (pm, before + (after - before) / 2)
}

pub(crate) fn calibrate() {
    let tables = Tables::read();
    PM_PORT.store(tables.pm_timer.into(), SeqCst);
    if tables.pm_timer_is_32_bit {
        PM_MASK.store(u32::MAX, SeqCst);
    }
    let (pm, from) = both();
    while u64::from(pm_since(pm)) < PM_HZ * COMPARED_MS / 1000 {
        pause();
    }
    let (pm_end, to) = both();
    let ticks = u64::from(pm_between(pm, pm_end)).max(1);
    let per_ms = (u128::from(to - from) * u128::from(PM_HZ) / u128::from(ticks) / 1000) as u64;
    TICKS_PER_MS.store(per_ms.max(1), SeqCst);
}

/// Ticks of the TSC in a millisecond.
pub fn ticks_per_ms() -> u64 {
    TICKS_PER_MS.load(SeqCst)
}

/// Microseconds between two readings of the TSC.
pub fn us(from: u64, to: u64) -> u64 {
    (u128::from(to.wrapping_sub(from)) * 1000 / u128::from(ticks_per_ms())) as u64
}

/// Waits, busily.
pub fn delay_us(microseconds: u64) {
    let from = tsc();
    while us(from, tsc()) < microseconds {
        pause();
    }
}

/// Waits busily until `done`, for at most so many milliseconds; whether it came to be.
pub fn within_ms(limit: u64, mut done: impl FnMut() -> bool) -> bool {
    let from = tsc();
    loop {
        if done() {
            return true;
        }
        if us(from, tsc()) > limit * 1000 {
            return done();
        }
        pause();
    }
}
