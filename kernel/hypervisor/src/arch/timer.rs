//! The local APIC's timer, one shot at a time.
//!
//! With TSC-deadline (CPUID.1:ECX[24]) a deadline is a value of the counter; without, it is a count of
//! the APIC's own clock, calibrated once on the boot processor. When the time comes, the handler
//! sets [`super::percpu::DEFER_TIMER`] and nothing else.
#![expect(unsafe_code, reason = "the TSC-deadline register")]

use core::arch::x86_64::{_mm_lfence, _mm_mfence};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use units::Nanos;

use super::{apic, idt, msr, percpu, time};

const MODE_TSC_DEADLINE: u32 = 0b10 << 17;
static TSC_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Ticks of the APIC's timer in a second.
static HZ: AtomicU64 = AtomicU64::new(0);

/// Calibrates on the boot processor; the clock must run.
pub fn calibrate() {
    let deadline = raw_cpuid::CpuId::new()
        .get_feature_info()
        .is_some_and(|f| f.has_tsc_deadline());
    TSC_DEADLINE.store(deadline, Ordering::Relaxed);
    if !deadline {
        // Masked by `apic::init`: it counts, and does not interrupt.
        apic::write(apic::TIMER_INITIAL, u32::MAX);
        let start = time::now();
        time::spin(Nanos::from_millis(10));
        let left = apic::read(apic::TIMER_CURRENT);
        let took = time::now().since(start).0.max(1);
        apic::write(apic::TIMER_INITIAL, 0);
        let counted = u64::from(u32::MAX - left);
        HZ.store(
            (counted.saturating_mul(1_000_000_000) / took).max(1),
            Ordering::Relaxed,
        );
    }
}

/// How the timer works on this machine, for the log.
pub fn describe() -> impl core::fmt::Display {
    struct Description;
    impl core::fmt::Display for Description {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            match TSC_DEADLINE.load(Ordering::Relaxed) {
                true => f.write_str("TSC-deadline timer"),
                false => {
                    let hz = HZ.load(Ordering::Relaxed);
                    write!(
                        f,
                        "one-shot timer at {}.{:03} MHz",
                        hz / 1_000_000,
                        hz / 1000 % 1000
                    )
                }
            }
        }
    }
    Description
}

/// Unmasks the calling CPU's timer; it stays disarmed.
pub(super) fn init() {
    let vector = u32::from(idt::TIMER);
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        apic::write(apic::LVT_TIMER, MODE_TSC_DEADLINE | vector);
        // In xAPIC mode the write above must be done before the first deadline (SDM 3A 11.5.4.1).
        // SAFETY: fences have no precondition.
        unsafe { _mm_mfence() };
    } else {
        apic::write(apic::LVT_TIMER, vector);
    }
}

/// Sets the calling CPU's timer to `deadline`, in place of any other. A deadline in the past
/// interrupts at once; one further away than the hardware counts interrupts early.
pub fn arm(deadline: Nanos) {
    // Asked before every entry, mostly for the same moment: the register is slow, and so is computing what to write.
    let set = &percpu::current().timer_deadline;
    if set.load(Ordering::Relaxed) == deadline.0 {
        return;
    }
    set.store(deadline.0, Ordering::Relaxed);
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: CPUID has the register. 0 would disarm, and counts started long ago. The fences
        // order the write in x2APIC mode (SDM 3A 11.12.3).
        unsafe {
            _mm_mfence();
            _mm_lfence();
            msr::write(msr::TSC_DEADLINE, time::ticks_at(deadline).max(1));
        }
        return;
    }
    let left = deadline.since(time::now());
    let ticks = u128::from(left.0) * u128::from(HZ.load(Ordering::Relaxed)) / 1_000_000_000;
    apic::write(
        apic::TIMER_INITIAL,
        u32::try_from(ticks).unwrap_or(u32::MAX).max(1),
    );
}

/// It has interrupted: the next [`arm`] sets it anew, whatever it is asked for.
pub(super) fn fired() {
    let here = percpu::current();
    here.timer_deadline.store(u64::MAX, Ordering::Relaxed);
    here.timer_interrupts.fetch_add(1, Ordering::Relaxed);
}

/// Stops the calling CPU's timer.
pub fn disarm() {
    let set = &percpu::current().timer_deadline;
    if set.load(Ordering::Relaxed) == u64::MAX {
        return;
    }
    set.store(u64::MAX, Ordering::Relaxed);
    if TSC_DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: CPUID has the register; 0 disarms (SDM 3A 11.5.4.1).
        unsafe { msr::write(msr::TSC_DEADLINE, 0) };
    } else {
        apic::write(apic::TIMER_INITIAL, 0);
    }
}
