//! The MC146818 real-time clock and its 128 bytes of CMOS memory, behind an index and a data port
//! (Motorola MC146818A data sheet; ports 70h and 71h).
//!
//! The time is guest time plus an offset; nothing ticks. The update cycle takes no time, but
//! update-in-progress shows for the 244 us before each second in which hardware would warn.

mod calendar;

use crate::layout::{CMOS_CENTURY, RTC_HZ};
use crate::scale::{nanos_to_ticks, ticks_to_nanos};
use calendar::DateTime;
use units::Nanos;

const SECOND: u64 = 1_000_000_000;
/// How long before a second update-in-progress shows (data sheet, "update cycle").
const UPDATE_WARNING: u64 = 244_000;

const A_UPDATE: u8 = 0x80;
const A_DIVIDER_RESET: u8 = 0x60;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_REQUEST: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const D_VALID: u8 = 0x80;

/// The alarm bytes with these bits set match every value.
const ALARM_ANY: u8 = 0xC0;

#[derive(Clone, Debug)]
pub(crate) struct Rtc {
    index: u8,
    a: u8,
    b: u8,
    flags: u8,
    /// Seconds since 1970 at guest time `-phase`.
    offset: u64,
    /// Nanoseconds into a second at guest time zero, so that `now + phase` counts seconds.
    phase: u64,
    /// The time while it stands still, because software sets it or holds the divider in reset.
    stopped: Option<DateTime>,
    /// Seconds, minutes, hours as registers 1, 3, 5.
    alarm: [u8; 3],
    ram: [u8; 128],
    polled: Nanos,
    lost: u64,
}

impl Rtc {
    pub(crate) const fn new(unix_seconds: u64) -> Self {
        Self {
            index: 0,
            a: 0x26, // 32,768 Hz time base, 1,024 Hz periodic rate
            b: B_24_HOURS,
            flags: 0,
            offset: DateTime::clamp_unix(unix_seconds),
            phase: 0,
            stopped: None,
            alarm: [0; 3],
            ram: [0; 128],
            polled: Nanos::ZERO,
            lost: 0,
        }
    }

    pub(crate) const fn select(&mut self, value: u8) {
        self.index = value & 0x7F; // bit 7 masks NMI
    }

    /// Reads the data port. Reading register C clears its flags.
    pub(crate) fn read(&mut self, now: Nanos) -> u8 {
        self.poll(now);
        match self.index {
            0..=9 | CMOS_CENTURY if !matches!(self.index, 1 | 3 | 5) => self.read_time(now),
            1 | 3 | 5 => self.alarm[usize::from(self.index / 2)], // 0, 1 or 2
            0xA if self.updating(now) => self.a | A_UPDATE,
            0xA => self.a,
            0xB => self.b,
            0xC => {
                let flags = core::mem::take(&mut self.flags);
                flags
                    | if flags & self.b & 0x70 != 0 {
                        C_REQUEST
                    } else {
                        0
                    }
            }
            0xD => D_VALID,
            index => self.ram.get(usize::from(index)).copied().unwrap_or(0),
        }
    }

    /// Writes the data port.
    pub(crate) fn write(&mut self, value: u8, now: Nanos) {
        self.poll(now);
        match self.index {
            0..=9 | CMOS_CENTURY if !matches!(self.index, 1 | 3 | 5) => self.write_time(value, now),
            1 | 3 | 5 => self.alarm[usize::from(self.index / 2)] = value,
            0xA => self.set_control(value & !A_UPDATE, self.b, now),
            0xB => self.set_control(self.a, value, now),
            0xC | 0xD => {}
            index => {
                if let Some(byte) = self.ram.get_mut(usize::from(index)) {
                    *byte = value;
                }
            }
        }
    }

    /// The level of the interrupt line: up from a flag that is enabled until register C is read.
    pub(crate) const fn interrupting(&self) -> bool {
        self.flags & self.b & 0x70 != 0
    }

    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Sets the flags of everything that happened since the last call.
    pub(crate) fn poll(&mut self, now: Nanos) {
        let then = self.polled;
        if now <= then {
            return;
        }
        self.polled = now;
        if let Some(hz) = self.periodic_hz() {
            let periods = nanos_to_ticks(now, hz).saturating_sub(nanos_to_ticks(then, hz));
            if periods > 0 {
                if self.b & C_PERIODIC != 0 {
                    let unserved = u64::from(self.flags & C_PERIODIC != 0);
                    self.lost = self.lost.saturating_add(periods - 1 + unserved);
                }
                self.flags |= C_PERIODIC;
            }
        }
        if self.stopped.is_none() && self.seconds(now) > self.seconds(then) {
            self.flags |= C_UPDATE;
            if self
                .alarm_after(self.seconds(then))
                .is_some_and(|at| at <= self.seconds(now))
            {
                self.flags |= C_ALARM;
            }
        }
    }

    /// When an enabled interrupt is due; `None` while one is still unread, since the line is up.
    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        if self.interrupting() {
            return None;
        }
        let now = self.polled;
        let periodic = self
            .periodic_hz()
            .filter(|_| self.b & C_PERIODIC != 0)
            .map(|hz| ticks_to_nanos(nanos_to_ticks(now, hz).saturating_add(1), hz));
        let running = self.stopped.is_none();
        let update =
            (running && self.b & C_UPDATE != 0).then(|| self.start_of(self.seconds(now) + 1));
        let alarm = (running && self.b & C_ALARM != 0)
            .then(|| self.alarm_after(self.seconds(now)))
            .flatten()
            .map(|second| self.start_of(second));
        [periodic, update, alarm].into_iter().flatten().min()
    }

    /// Whole seconds since 1970.
    fn seconds(&self, now: Nanos) -> u64 {
        self.offset
            .saturating_add(now.0.saturating_add(self.phase) / SECOND)
    }

    /// The guest time at which a second of [`Self::seconds`] begins.
    fn start_of(&self, second: u64) -> Nanos {
        let nanos = second.saturating_sub(self.offset).saturating_mul(SECOND);
        Nanos(nanos.saturating_sub(self.phase))
    }

    fn updating(&self, now: Nanos) -> bool {
        self.stopped.is_none()
            && now.0.saturating_add(self.phase) % SECOND >= SECOND - UPDATE_WARNING
    }

    fn date_time(&self, now: Nanos) -> DateTime {
        self.stopped
            .unwrap_or_else(|| DateTime::from_unix(self.seconds(now)))
    }

    /// Rates 1 and 2 repeat 8 and 9 (data sheet, table 5).
    fn periodic_hz(&self) -> Option<u64> {
        match self.a & 0xF {
            _ if self.divider_in_reset() => None,
            0 => None,
            rate @ 1..=2 => Some(RTC_HZ >> (rate + 6)),
            rate => Some(RTC_HZ >> (rate - 1)),
        }
    }

    fn divider_in_reset(&self) -> bool {
        self.a & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// Registers A and B: the time stands still while SET is set or the divider is in reset, and
    /// the first second after a divider reset is half a one.
    fn set_control(&mut self, a: u8, b: u8, now: Nanos) {
        let was_in_reset = self.divider_in_reset();
        let shown = self.date_time(now);
        self.a = a;
        // SET clears the update-ended interrupt enable (data sheet, register B).
        self.b = if b & B_SET != 0 { b & !C_UPDATE } else { b };
        if was_in_reset && !self.divider_in_reset() {
            self.set_phase(SECOND / 2, now);
        }
        if self.divider_in_reset() || self.b & B_SET != 0 {
            self.stopped = Some(shown);
        } else if self.stopped.take().is_some() {
            self.set_time(shown, now);
        }
    }

    /// Chooses the phase such that `now` is `into` nanoseconds into a second.
    fn set_phase(&mut self, into: u64, now: Nanos) {
        self.phase = (SECOND + into - now.0 % SECOND) % SECOND;
    }

    fn set_time(&mut self, time: DateTime, now: Nanos) {
        let passed = now.0.saturating_add(self.phase) / SECOND;
        // A date before the machine's start cannot be an offset below zero: 1970 is the earliest.
        self.offset = time.to_unix().saturating_sub(passed);
    }

    fn read_time(&self, now: Nanos) -> u8 {
        let t = self.date_time(now);
        match self.index {
            0 => self.encode(t.second),
            2 => self.encode(t.minute),
            4 => self.encode_hour(t.hour),
            6 => self.encode(t.weekday()),
            7 => self.encode(t.day),
            8 => self.encode(t.month),
            9 => self.encode((t.year % 100) as u8),

            _ => self.encode((t.year / 100) as u8),
        }
    }

    fn write_time(&mut self, value: u8, now: Nanos) {
        let mut t = self.date_time(now);
        let decoded = self.decode(value);
        match self.index {
            0 => t.second = decoded.min(59),
            2 => t.minute = decoded.min(59),
            4 => t.hour = self.decode_hour(value).min(23),
            6 => return, // derived from the date
            7 => t.day = decoded.clamp(1, 31),
            8 => t.month = decoded.clamp(1, 12),
            9 => t.year = t.year / 100 * 100 + u16::from(decoded.min(99)),
            _ => t.year = t.year % 100 + 100 * u16::from(decoded.min(99)),
        }
        match &mut self.stopped {
            Some(stopped) => *stopped = t,
            None => self.set_time(t, now),
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xF)
        }
    }

    /// In 12-hour mode bit 7 is "PM" and the hours run 12, 1 to 11.
    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let clock = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(clock) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7F) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// The first second after `second` that the alarm matches; `None` if it matches none.
    fn alarm_after(&self, second: u64) -> Option<u64> {
        let [s, m, h] = self.alarm;
        let wanted =
            |byte: u8, value: u8| (byte & ALARM_ANY != ALARM_ANY).then_some(u64::from(value));
        let (s, m, h) = (
            wanted(s, self.decode(s)),
            wanted(m, self.decode(m)),
            wanted(h, self.decode_hour(h)),
        );
        if s.is_some_and(|s| s > 59) || m.is_some_and(|m| m > 59) || h.is_some_and(|h| h > 23) {
            return None;
        }
        let mut at = second.checked_add(1)?;
        // Jumps to the next hour, minute or second that can match: 24 + 60 + 60 steps at most.
        for _ in 0..150 {
            let day = at % 86_400;
            if h.is_some_and(|h| h != day / 3600) {
                at = at - at % 3600 + 3600;
            } else if m.is_some_and(|m| m != day / 60 % 60) {
                at = at - at % 60 + 60;
            } else if s.is_some_and(|s| s != day % 60) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
