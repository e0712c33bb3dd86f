//! The bytes of KVM's paravirtual clock, which Linux guests read instead of calibrating anything.
//!
//! The guest gives a guest-physical address by MSR ([`SharedPage::decode_system_time`] and
//! friends), and the hypervisor keeps a structure there up to date: for each vCPU the time at
//! some TSC value and how to scale TSC ticks since (Linux: Documentation/virt/kvm/x86/msr.rst). A
//! guest computes `system_time + scale(tsc - tsc_timestamp)` without an exit.
//!
//! All fields are little endian. The version of a structure is odd while it changes: a guest
//! that reads an odd or a changed version tries again. [`TimeInfo::updates`] therefore is a list of
//! writes to be made in order, each visible before the next.

use units::{Gpa, Nanos};

/// Multiplier and shift that turn TSC ticks into nanoseconds:
/// `((ticks << shift) * mul) >> 32`, where a negative shift goes right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockScale {
    /// `tsc_to_system_mul`: a fraction of 2^32.
    pub mul: u32,
    /// `tsc_shift`: binary shift of the ticks before the multiplication.
    pub shift: i8,
}

impl ClockScale {
    /// The scale of a TSC that ticks `tsc_hz` times a second; `None` for 0 and for frequencies
    /// above 2^40 Hz, which no processor has.
    ///
    /// The multiplier is rounded down from the exact quotient and has its top bit set, so the clock
    /// is slow by less than one part in 2^31 and never fast.
    #[must_use]
    pub const fn from_tsc_hz(tsc_hz: u64) -> Option<Self> {
        if tsc_hz == 0 || tsc_hz > 1 << 40 {
            return None;
        }
        // mul = 10^9 * 2^32 / (tsc_hz * 2^shift) must lie in [2^31, 2^32).
        let numerator = 1_000_000_000u128 << 32;
        let mut shift = 0i8;
        loop {
            let mul = if shift >= 0 {
                numerator / ((tsc_hz as u128) << shift)
            } else {
                (numerator << -shift) / tsc_hz as u128
            };
            if mul > u32::MAX as u128 {
                shift += 1;
            } else if mul < 1 << 31 {
                shift -= 1;
            } else {
                return Some(Self {
                    mul: mul as u32,
                    shift,
                });
            }
        }
    }

    /// Nanoseconds that `ticks` take, as a guest computes it; saturates.
    #[must_use]
    pub const fn nanos(self, ticks: u64) -> Nanos {
        let shifted = if self.shift >= 0 {
            if self.shift > 63 || ticks > u64::MAX >> self.shift {
                return Nanos::MAX;
            }
            ticks << self.shift
        } else if self.shift < -63 {
            0
        } else {
            ticks >> -self.shift
        };
        // A 64-bit by 32-bit product shifted right by 32 fits 64 bits.
        Nanos(((shifted as u128 * self.mul as u128) >> 32) as u64)
    }
}

/// Flag of [`TimeInfo`]: the clock is the same on every vCPU, so no guest-side comparison is needed.
pub const FLAG_TSC_STABLE: u8 = 1 << 0;
/// Flag of [`TimeInfo`]: the VM was stopped for a while; Linux quiets its watchdogs once.
pub const FLAG_GUEST_STOPPED: u8 = 1 << 1;

/// One write to a shared page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageWrite {
    /// Offset from the structure's first byte.
    pub offset: u64,
    /// The bytes; only the first `length` count.
    pub bytes: [u8; 32],
    /// How many.
    pub length: usize,
}

impl PageWrite {
    fn new(offset: u64, data: &[u8]) -> Self {
        let mut bytes = [0; 32];
        let length = data.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        Self {
            offset,
            bytes,
            length,
        }
    }

    /// What to write.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

/// `struct pvclock_vcpu_time_info`, 32 bytes, one for each vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo {
    /// Guest TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Guest time since its boot at `tsc_timestamp`.
    pub system_time: Nanos,
    /// TSC ticks to nanoseconds.
    pub scale: ClockScale,
    /// [`FLAG_TSC_STABLE`], [`FLAG_GUEST_STOPPED`].
    pub flags: u8,
}

impl TimeInfo {
    /// Bytes of the structure.
    pub const BYTES: usize = 32;
    /// Where the flags are; the guest takes [`FLAG_GUEST_STOPPED`] back there once it has seen it.
    pub const FLAGS_OFFSET: u64 = 29;

    /// The structure with this version.
    #[must_use]
    pub fn to_bytes(&self, version: u32) -> [u8; Self::BYTES] {
        let mut b = [0; Self::BYTES];
        put(&mut b, 0, &version.to_le_bytes());
        put(&mut b, 8, &self.tsc_timestamp.to_le_bytes());
        put(&mut b, 16, &self.system_time.0.to_le_bytes());
        put(&mut b, 24, &self.scale.mul.to_le_bytes());
        put(&mut b, 28, &self.scale.shift.to_le_bytes());
        put(&mut b, Self::FLAGS_OFFSET as usize, &[self.flags]);
        b
    }

    /// The writes that replace a structure of version `previous`, in order, and the version after
    /// them. Each must be visible to the vCPU before the next one.
    #[must_use]
    pub fn updates(&self, previous: u32) -> ([PageWrite; 3], u32) {
        let (changing, done) = next_versions(previous);
        let bytes = self.to_bytes(changing);
        (
            [
                PageWrite::new(0, &changing.to_le_bytes()),
                PageWrite::new(4, bytes.get(4..).unwrap_or(&[])),
                PageWrite::new(0, &done.to_le_bytes()),
            ],
            done,
        )
    }

    /// The time that a guest reads at `tsc`; a TSC before the timestamp counts as no time since.
    #[must_use]
    pub fn time_at(&self, tsc: u64) -> Nanos {
        self.system_time + self.scale.nanos(tsc.saturating_sub(self.tsc_timestamp))
    }
}

/// `struct pvclock_wall_clock`, 12 bytes: the wall clock when the guest's system time was 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: u32,
    /// Nanoseconds of the second.
    pub nanoseconds: u32,
}

impl WallClock {
    /// Bytes of the structure.
    pub const BYTES: usize = 12;

    /// From the wall clock now and the guest's system time now, both in nanoseconds.
    #[must_use]
    pub const fn at_boot(unix_now: Nanos, system_time: Nanos) -> Self {
        let boot = unix_now.since(system_time).0;
        // 2106 is beyond this format; it wraps there, as on KVM.
        Self {
            seconds: (boot / 1_000_000_000) as u32,
            nanoseconds: (boot % 1_000_000_000) as u32,
        }
    }

    /// The structure with this version.
    #[must_use]
    pub fn to_bytes(&self, version: u32) -> [u8; Self::BYTES] {
        let mut b = [0; Self::BYTES];
        put(&mut b, 0, &version.to_le_bytes());
        put(&mut b, 4, &self.seconds.to_le_bytes());
        put(&mut b, 8, &self.nanoseconds.to_le_bytes());
        b
    }

    /// The writes that replace a structure of version `previous`, in order, and the version after.
    #[must_use]
    pub fn updates(&self, previous: u32) -> ([PageWrite; 3], u32) {
        let (changing, done) = next_versions(previous);
        let bytes = self.to_bytes(changing);
        (
            [
                PageWrite::new(0, &changing.to_le_bytes()),
                PageWrite::new(4, bytes.get(4..).unwrap_or(&[])),
                PageWrite::new(0, &done.to_le_bytes()),
            ],
            done,
        )
    }
}

/// `struct kvm_steal_time`, 64 bytes, one for each vCPU: time it was runnable but did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StealTime {
    /// Total since the guest switched it on.
    pub stolen: Nanos,
    /// Whether the vCPU is not running now; the guest's spin locks ask.
    pub preempted: Preempted,
}

/// Whether a vCPU has lost its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preempted {
    /// It runs, or halts by its own will.
    No,
    /// It waits for a processor.
    Yes,
}

impl StealTime {
    /// Bytes of the structure.
    pub const BYTES: usize = 64;

    /// The structure with this version.
    #[must_use]
    pub fn to_bytes(&self, version: u32) -> [u8; Self::BYTES] {
        let mut b = [0; Self::BYTES];
        put(&mut b, 0, &self.stolen.0.to_le_bytes());
        put(&mut b, 8, &version.to_le_bytes());
        put(&mut b, 16, &[u8::from(self.preempted == Preempted::Yes)]);
        b
    }

    /// The writes that replace a structure of version `previous`, in order, and the version after.
    #[must_use]
    pub fn updates(&self, previous: u32) -> ([PageWrite; 4], u32) {
        let (changing, done) = next_versions(previous);
        let bytes = self.to_bytes(changing);
        (
            [
                PageWrite::new(8, &changing.to_le_bytes()),
                PageWrite::new(0, bytes.get(..8).unwrap_or(&[])),
                PageWrite::new(16, bytes.get(16..17).unwrap_or(&[])),
                PageWrite::new(8, &done.to_le_bytes()),
            ],
            done,
        )
    }
}

/// What a guest asks for when it writes one of the clock's MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedPage {
    /// Keep nothing up to date any more.
    Disabled,
    /// Keep the structure here up to date.
    At(Gpa),
}

impl SharedPage {
    /// MSR_KVM_SYSTEM_TIME_NEW: bit 0 enables, the rest is an address, a multiple of 4. `None` when
    /// it is malformed, which is answered with #GP.
    #[must_use]
    pub const fn decode_system_time(value: u64) -> Option<Self> {
        if value & 1 == 0 {
            return Some(Self::Disabled);
        }
        if value & 2 != 0 {
            None
        } else {
            Some(Self::At(Gpa(value & !3)))
        }
    }

    /// MSR_KVM_STEAL_TIME: bit 0 enables, bits 5:1 are zero, the rest is an address. `None` when it
    /// is malformed, which is answered with #GP.
    #[must_use]
    pub const fn decode_steal_time(value: u64) -> Option<Self> {
        if value & 0x3E != 0 {
            return None;
        }
        if value & 1 == 0 {
            Some(Self::Disabled)
        } else {
            Some(Self::At(Gpa(value & !0x3F)))
        }
    }
}

/// The odd version while a structure changes and the even one after.
const fn next_versions(previous: u32) -> (u32, u32) {
    let changing = (previous | 1).wrapping_add(if previous & 1 == 0 { 0 } else { 2 });
    (changing, changing.wrapping_add(1))
}

fn put(b: &mut [u8], at: usize, data: &[u8]) {
    for (to, from) in b.iter_mut().skip(at).zip(data) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests;
