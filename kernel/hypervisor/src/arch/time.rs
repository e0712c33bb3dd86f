//! The kernel's clock: nanoseconds since [`start`], never going back on any CPU or between CPUs.

use core::sync::atomic::{AtomicU64, Ordering};

use units::Nanos;

use super::{percpu, tsc};

/// Nanoseconds a tick, as a fraction of 2^32; 0 before [`start`].
static SCALE: AtomicU64 = AtomicU64::new(0);
/// Counter of the boot processor when the clock started.
static ORIGIN: AtomicU64 = AtomicU64::new(0);
/// Latest time that any CPU has seen, kept only where the counters disagree.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// Starts the clock at zero, with counters that run at `hz`.
pub fn start(hz: u64) {
    let scale = (1_000_000_000_u128 << 32) / u128::from(hz.max(1));
    ORIGIN.store(tsc::read(), Ordering::Relaxed);
    SCALE.store(u64::try_from(scale).unwrap_or(u64::MAX), Ordering::Release);
}

/// Time since [`start`]; zero before it.
///
/// Where counters disagree each CPU subtracts its measured offset, and because that is exact only
/// to a few hundred ticks a shared maximum keeps order.
pub fn now() -> Nanos {
    let now = at(tsc::read());
    if tsc::synchronised() {
        return now;
    }
    Nanos(LATEST.fetch_max(now.0, Ordering::AcqRel).max(now.0))
}

/// The time at which this CPU's counter reads `ticks`.
pub fn at(ticks: u64) -> Nanos {
    let offset = percpu::current().tsc_offset.load(Ordering::Relaxed);
    let since = ticks
        .wrapping_sub(offset.cast_unsigned())
        .wrapping_sub(ORIGIN.load(Ordering::Relaxed));
    // Slightly before the origin (another CPU's uncertainty) is zero, not 584 years.
    if since.cast_signed() < 0 {
        return Nanos::ZERO;
    }
    let scaled = u128::from(since) * u128::from(SCALE.load(Ordering::Acquire));
    Nanos((scaled >> 32) as u64)
}

/// The first tick of this CPU's counter at which it is `when`, for timers that stop by the counter. Never before it: who is
/// stopped too early sees that it is not time yet, and must be stopped again.
pub fn ticks_at(when: Nanos) -> u64 {
    let offset = percpu::current().tsc_offset.load(Ordering::Relaxed);
    let scale = SCALE.load(Ordering::Acquire).max(1);
    let ticks = (u128::from(when.0) << 32).div_ceil(scale.into());
    ORIGIN
        .load(Ordering::Relaxed)
        .saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
        .wrapping_add(offset.cast_unsigned())
}

/// Counter ticks in a duration, saturating.
pub fn ticks_in(duration: Nanos) -> u64 {
    let ticks = u128::from(duration.0) * u128::from(tsc::hz()) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// Waits, with interrupts as they are. Before [`start`] it does not wait at all.
pub fn spin(duration: Nanos) {
    let start = tsc::read();
    let ticks = ticks_in(duration);
    while tsc::read().wrapping_sub(start) < ticks {
        core::hint::spin_loop();
    }
}
