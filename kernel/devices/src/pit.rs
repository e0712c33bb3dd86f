//! The 8254 programmable interval timer (Intel 8254 data sheet): three counters behind ports 40h
//! to 43h. Counter 0 interrupts, counter 2 has its gate and output at port 61h.
//!
//! A counter is the moment at which its count was loaded; counts and outputs are derived. A new
//! count takes effect at once, also in modes 2 and 3, where hardware would finish the running
//! cycle first. The interrupt is taken from rising edges of counter 0's output.

use crate::layout::PIT_HZ;
use crate::scale::{nanos_to_ticks, ticks_to_nanos};
use units::Nanos;

/// Two interrupts of counter 0 come at least this far apart; edges between them count as lost.
const MIN_PERIOD: Nanos = Nanos::from_micros(100);

/// Read/write format of a counter, control word bits 5:4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    Both = 3,
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// Ticks in a full count: 1 to 65,536.
    reload: u64,
    /// When counting (re)started; `None` until a count is written, or triggered in modes 1 and 5.
    started: Option<Nanos>,
    /// Ticks counted when the gate stopped mode 0 or 4.
    frozen: Option<u64>,
    gate: bool,
    null_count: bool,
    /// First byte of a two-byte write.
    low_written: Option<u8>,
    /// The next unlatched read of a two-byte counter gives the high byte.
    high_next: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Both,
            reload: 0x1_0000,
            started: None,
            frozen: None,
            gate,
            null_count: true,
            low_written: None,
            high_next: false,
            latched: None,
            latched_status: None,
        }
    }

    /// A control word for this counter; false if it only latches the count.
    fn control(&mut self, value: u8, now: Nanos) -> bool {
        let access = match value >> 4 & 3 {
            0 => {
                self.latch(now);
                return false;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        // Modes 6 and 7 are 2 and 3: bit 2 is "don't care" there.
        let mode = value >> 1 & if value & 4 != 0 { 3 } else { 7 };
        *self = Self {
            mode,
            bcd: value & 1 != 0,
            access,
            ..Self::new(self.gate)
        };
        true
    }

    /// A byte of the count; true if it completes one.
    fn write(&mut self, value: u8, now: Nanos) -> bool {
        let count = match (self.access, self.low_written.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from(value) << 8 | u16::from(low),
            (Access::Both, None) => {
                self.low_written = Some(value);
                if self.mode == 0 {
                    self.started = None; // the first byte disables counting
                }
                return false;
            }
        };
        self.reload = match (self.bcd, count) {
            (true, 0) => 10_000,
            (true, bcd) => (0..4)
                .rev()
                .fold(0, |n, digit| n * 10 + u64::from(bcd >> (4 * digit) & 0xF)),
            (false, 0) => 0x1_0000,
            (false, binary) => u64::from(binary),
        };
        self.null_count = false;
        match self.mode {
            1 | 5 => {}
            _ => self.start(now),
        }
        true
    }

    fn start(&mut self, now: Nanos) {
        self.started = Some(now);
        self.frozen = (!self.gate).then_some(0);
    }

    fn set_gate(&mut self, gate: bool, now: Nanos) {
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        match self.mode {
            0 | 4 if falling => self.frozen = self.elapsed(now),
            0 | 4 if rising => {
                // Go on from where the count stopped.
                if let Some(ticks) = self.frozen.take() {
                    self.started = Some(now - ticks_to_nanos(ticks, PIT_HZ));
                }
            }
            1 | 5 if rising && !self.null_count => self.started = Some(now),
            2 | 3 if falling && self.started.is_some() => self.frozen = Some(0),
            2 | 3 if rising && self.started.is_some() => {
                self.frozen = None;
                self.started = Some(now);
            }
            _ => {}
        }
        self.gate = gate;
    }

    /// Ticks since the count was loaded.
    fn elapsed(&self, now: Nanos) -> Option<u64> {
        let started = self.started?;
        Some(
            self.frozen
                .unwrap_or_else(|| nanos_to_ticks(now.since(started), PIT_HZ)),
        )
    }

    fn is_periodic(&self) -> bool {
        self.mode & 2 != 0
    }

    fn count(&self, now: Nanos) -> u16 {
        let elapsed = self.elapsed(now).unwrap_or(0);
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let count = match self.mode {
            2 => self.reload - elapsed % self.reload,
            3 => {
                // Counts by two; an odd count starts at one less.
                let even = (self.reload & !1).max(2);
                even - elapsed % (even / 2) * 2
            }
            _ => (self.reload + modulus - elapsed % modulus) % modulus,
        } % modulus;
        let shown = match self.bcd {
            true => {
                (count % 10)
                    | ((count / 10 % 10) << 4)
                    | (count / 100 % 10) << 8
                    | (count / 1000) << 12
            }
            false => count,
        };
        shown as u16
    }

    fn output(&self, now: Nanos) -> bool {
        let Some(elapsed) = self.elapsed(now) else {
            return self.mode != 0;
        };
        match self.mode {
            0 | 1 => elapsed >= self.reload,
            2 => self.frozen.is_some() || elapsed % self.reload != self.reload - 1,
            3 => self.frozen.is_some() || elapsed % self.reload < self.reload.div_ceil(2),
            _ => elapsed != self.reload,
        }
    }

    /// A latched count is kept until it is read.
    fn latch(&mut self, now: Nanos) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now));
            self.high_next = self.access == Access::High;
        }
    }

    fn latch_status(&mut self, now: Nanos) {
        let status = u8::from(self.output(now)) << 7
            | u8::from(self.null_count) << 6
            | (self.access as u8) << 4
            | self.mode << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    fn read(&mut self, now: Nanos) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched
            .unwrap_or_else(|| self.count(now))
            .to_le_bytes();
        let high_byte = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.high_next = !self.high_next;
                !self.high_next
            }
        };
        if self.access != Access::Both || high_byte {
            self.latched = None;
        }
        if high_byte { high } else { low }
    }

    /// The time of the output's `n`-th rising edge, from 1; modes that are not periodic have one.
    fn edge(&self, n: u64) -> Option<Nanos> {
        let started = self.started.filter(|_| self.frozen.is_none())?;
        Some(started + ticks_to_nanos(self.reload.saturating_mul(n), PIT_HZ))
    }

    /// How many rising edges are over.
    fn edges(&self, now: Nanos) -> u64 {
        match self.elapsed(now).filter(|_| self.frozen.is_none()) {
            None => 0,
            Some(ticks) if self.is_periodic() => ticks / self.reload,
            Some(ticks) => u64::from(ticks >= self.reload),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Pit {
    counters: [Counter; 3],
    /// Edges of counter 0 since its count was loaded that were seen.
    seen: u64,
    /// When an edge was last reported.
    reported: Option<Nanos>,
    speaker: bool,
    lost: u64,
}

impl Pit {
    pub(crate) const fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            seen: 0,
            reported: None,
            speaker: false,
            lost: 0,
        }
    }

    /// Reads ports 40h to 43h by their offset.
    pub(crate) fn read(&mut self, offset: u16, now: Nanos) -> u8 {
        match self.counters.get_mut(usize::from(offset)) {
            Some(counter) => counter.read(now),
            None => 0xFF, // the control word is write-only
        }
    }

    /// Writes ports 40h to 43h by their offset.
    pub(crate) fn write(&mut self, offset: u16, value: u8, now: Nanos) {
        let counter = if offset == 3 {
            value >> 6
        } else {
            offset as u8
        };
        let restarted = match self.counters.get_mut(usize::from(counter)) {
            None => {
                self.read_back(value, now);
                false
            }
            Some(counter) if offset == 3 => counter.control(value, now),
            Some(counter) => counter.write(value, now),
        };
        if restarted && counter == 0 {
            self.seen = 0;
        }
    }

    fn read_back(&mut self, command: u8, now: Nanos) {
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if command & 2 << index == 0 {
                continue;
            }
            if command & 0x20 == 0 {
                counter.latch(now);
            }
            if command & 0x10 == 0 {
                counter.latch_status(now);
            }
        }
    }

    /// System control port B (61h): gate and speaker as written, a refresh toggle, the output of
    /// counter 2. The low bits of the refresh toggle change every 15.085 us.
    pub(crate) fn port_b(&self, now: Nanos) -> u8 {
        let [_, _, two] = &self.counters;
        u8::from(two.gate)
            | u8::from(self.speaker) << 1
            | (((now.0 / 15_085) & 1) as u8) << 4
            | u8::from(two.output(now)) << 5
    }

    pub(crate) fn write_port_b(&mut self, value: u8, now: Nanos) {
        let [_, _, two] = &mut self.counters;
        two.set_gate(value & 1 != 0, now);
        self.speaker = value & 2 != 0;
    }

    /// Whether counter 0's output rose since the last call; further rises count as lost.
    pub(crate) fn poll(&mut self, now: Nanos) -> bool {
        let [zero, _, _] = &self.counters;
        let edges = zero.edges(now);
        let fresh = edges.saturating_sub(self.seen);
        let early = self
            .reported
            .is_some_and(|last| now.since(last) < MIN_PERIOD);
        if fresh == 0 || early && zero.is_periodic() {
            return false;
        }
        self.seen = edges;
        self.reported = Some(now);
        self.lost = self.lost.saturating_add(fresh - 1);
        true
    }

    /// When to call [`Self::poll`].
    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        let [zero, _, _] = &self.counters;
        let edge = zero.edge(self.seen.saturating_add(1))?;
        match self.reported {
            Some(last) if zero.is_periodic() => Some(edge.max(last + MIN_PERIOD)),
            _ => Some(edge),
        }
        .filter(|_| zero.is_periodic() || self.seen == 0)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests;
