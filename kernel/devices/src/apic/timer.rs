//! The timer of a local APIC: one-shot, periodic, TSC deadline (SDM 3A 11.5.4).
//!
//! Nothing counts. A running timer is the moment at which it is due; the current count is derived
//! from the time that remains.

use crate::access::Now;
use crate::scale::{nanos_to_ticks, ticks_to_nanos};
use units::Nanos;

/// The shortest period a guest gets. Shorter requests run at this one; what is left out counts as
/// lost. 10,000 interrupts a second are ten times what any guest of ours asks for, and few enough
/// for the host.
pub(super) const MIN_PERIOD: Nanos = Nanos::from_micros(100);

/// LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    /// Of an LVT timer register; the reserved combination is one-shot.
    pub(super) const fn of_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// What the timer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Stopped,
    /// Counting down, to reach zero at `due`.
    Counting {
        due: Nanos,
    },
    /// Waiting for the time-stamp counter; `due` is the moment expected for that.
    Deadline {
        tsc: u64,
        due: Nanos,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    bus_hz: u64,
    tsc_hz: u64,
    mode: Mode,
    divider: u64,
    initial_count: u32,
    state: State,
}

impl Timer {
    pub(super) const fn new(bus_hz: u64, tsc_hz: u64) -> Self {
        Self {
            bus_hz,
            tsc_hz,
            mode: Mode::OneShot,
            divider: 2,
            initial_count: 0,
            state: State::Stopped,
        }
    }

    /// Changes the mode; a change into or out of TSC-deadline mode stops the timer.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.state = State::Stopped;
            self.initial_count = 0;
        }
        self.mode = mode;
    }

    pub(super) const fn initial_count(&self) -> u32 {
        self.initial_count
    }

    /// Starts a count-down, or stops with 0. Ignored in TSC-deadline mode.
    pub(super) fn set_initial_count(&mut self, count: u32, now: Nanos) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial_count = count;
        self.state = match count {
            0 => State::Stopped,
            count => State::Counting {
                due: now + self.span(count),
            },
        };
    }

    /// Sets the divide configuration register (SDM 3A figure 11-10). The count goes on from where
    /// it is, at the new rate.
    pub(super) fn set_divide_configuration(&mut self, register: u32, now: Nanos) {
        let count = self.current_count(now);
        let encoded = register >> 1 & 4 | register & 3;
        self.divider = 1 << ((encoded + 1) & 7);
        if let State::Counting { .. } = self.state {
            self.state = State::Counting {
                due: now + ticks_to_nanos(u64::from(count), self.hz()),
            };
        }
    }

    /// The current count register.
    pub(super) fn current_count(&self, now: Nanos) -> u32 {
        match self.state {
            State::Counting { due } => {
                let left = nanos_to_ticks(due.since(now), self.hz());
                u32::try_from(left)
                    .unwrap_or(u32::MAX)
                    .min(self.initial_count)
            }
            State::Stopped | State::Deadline { .. } => 0,
        }
    }

    /// IA32_TSC_DEADLINE; 0 when not armed.
    pub(super) const fn deadline(&self) -> u64 {
        match self.state {
            State::Deadline { tsc, .. } => tsc,
            State::Stopped | State::Counting { .. } => 0,
        }
    }

    /// Arms a deadline, or disarms with 0. Ignored outside TSC-deadline mode.
    pub(super) fn set_deadline(&mut self, tsc: u64, now: Now) {
        if self.mode == Mode::TscDeadline {
            self.state = match tsc {
                0 => State::Stopped,
                tsc => State::Deadline {
                    tsc,
                    due: self.deadline_due(tsc, now),
                },
            };
        }
    }

    /// Recomputes when the time-stamp counter will reach the deadline.
    pub(super) fn tsc_changed(&mut self, now: Now) {
        if let State::Deadline { tsc, .. } = self.state {
            self.state = State::Deadline {
                tsc,
                due: self.deadline_due(tsc, now),
            };
        }
    }

    /// Whether the timer went off at or before `now`, and how many further periods are over as
    /// well. However late the call and however short the period, it reports once.
    pub(super) fn expire(&mut self, now: Now) -> Option<u64> {
        match self.state {
            State::Counting { due } if due <= now.nanos && self.mode == Mode::Periodic => {
                let period = self.span(self.initial_count).max(MIN_PERIOD);
                let missed = now.nanos.since(due).0 / period.0;
                let steps = period.0.saturating_mul(missed.saturating_add(1));
                self.state = State::Counting {
                    due: due + Nanos(steps),
                };
                Some(missed)
            }
            State::Counting { due } if due <= now.nanos => {
                self.state = State::Stopped;
                Some(0)
            }
            State::Deadline { tsc, .. } if tsc <= now.tsc => {
                self.state = State::Stopped;
                Some(0)
            }
            State::Deadline { due, .. } if due <= now.nanos => {
                // The two clocks drifted apart: early by the counter's measure, so wait on.
                self.tsc_changed(now);
                None
            }
            State::Stopped | State::Counting { .. } | State::Deadline { .. } => None,
        }
    }

    /// When to call [`Self::expire`].
    pub(super) const fn due(&self) -> Option<Nanos> {
        match self.state {
            State::Stopped => None,
            State::Counting { due } | State::Deadline { due, .. } => Some(due),
        }
    }

    fn deadline_due(&self, tsc: u64, now: Now) -> Nanos {
        now.nanos + ticks_to_nanos(tsc.saturating_sub(now.tsc), self.tsc_hz)
    }

    fn span(&self, count: u32) -> Nanos {
        ticks_to_nanos(u64::from(count), self.hz())
    }

    const fn hz(&self) -> u64 {
        self.bus_hz / self.divider
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(nanos: u64) -> Now {
        Now {
            nanos: Nanos(nanos),
            tsc: nanos * 2,
        }
    }

    fn timer() -> Timer {
        let mut timer = Timer::new(1_000_000_000, 2_000_000_000);
        timer.set_divide_configuration(0b1011, Nanos::ZERO); // by 1
        timer
    }

    #[test]
    fn every_divide_value_is_the_manuals() {
        let table = [
            (0, 2),
            (1, 4),
            (2, 8),
            (3, 16),
            (8, 32),
            (9, 64),
            (10, 128),
            (11, 1),
        ];
        for (register, divider) in table {
            let mut t = timer();
            t.set_divide_configuration(register, Nanos::ZERO);
            assert_eq!(t.divider, divider);
        }
    }

    #[test]
    fn one_shot_fires_once_and_keeps_its_initial_count() {
        let mut t = timer();
        t.set_initial_count(1_000_000, Nanos(500));
        assert_eq!(t.current_count(Nanos(500)), 1_000_000);
        assert_eq!(t.current_count(Nanos(250_500)), 750_000);
        assert_eq!(t.expire(at(1_000_499)), None);
        assert_eq!(t.expire(at(1_000_500)), Some(0));
        assert_eq!(t.expire(at(9_000_000)), None);
        assert_eq!(
            (t.initial_count(), t.current_count(Nanos(9_000_000))),
            (1_000_000, 0)
        );
        assert_eq!(t.due(), None);
    }

    #[test]
    fn periodic_keeps_its_phase_and_counts_what_it_skipped() {
        let mut t = timer();
        t.set_mode(Mode::Periodic);
        t.set_initial_count(1_000_000, Nanos::ZERO);
        assert_eq!(
            (t.expire(at(1_000_300)), t.due()),
            (Some(0), Some(Nanos(2_000_000)))
        );
        assert_eq!(
            (t.expire(at(7_500_000)), t.due()),
            (Some(5), Some(Nanos(8_000_000)))
        );
        assert_eq!(t.current_count(Nanos(7_500_000)), 500_000);
    }

    #[test]
    fn a_period_of_one_tick_cannot_storm_the_host() {
        let mut t = timer();
        t.set_mode(Mode::Periodic);
        t.set_initial_count(1, Nanos::ZERO);
        let mut fired = 0;
        let mut now = 0;
        while now < 10_000_000 {
            now = t.due().map_or(now + 1, |due| due.0.max(now + 1));
            fired += u32::from(t.expire(at(now)).is_some());
        }
        assert!(
            (99..=101).contains(&fired),
            "10 ms hold 100 shortest periods, not {fired}"
        );
        assert!(
            t.expire(at(u64::MAX / 4)).is_some(),
            "centuries late is still one call"
        );
    }

    #[test]
    fn a_deadline_in_the_past_is_due_at_once_and_disarms() {
        let mut t = timer();
        t.set_mode(Mode::TscDeadline);
        t.set_deadline(5, at(100));
        assert_eq!(t.due(), Some(Nanos(100)));
        assert_eq!(t.expire(at(100)), Some(0));
        assert_eq!((t.deadline(), t.due()), (0, None));
    }

    #[test]
    fn a_deadline_is_never_early_even_if_the_clocks_drift() {
        let mut t = timer();
        t.set_mode(Mode::TscDeadline);
        t.set_deadline(2_000, at(0));
        assert_eq!(t.due(), Some(Nanos(1_000)));
        assert_eq!(
            t.expire(Now {
                nanos: Nanos(1_000),
                tsc: 1_998
            }),
            None
        );
        assert_eq!(t.due(), Some(Nanos(1_001)));
        assert_eq!(
            t.expire(Now {
                nanos: Nanos(1_001),
                tsc: 2_000
            }),
            Some(0)
        );
    }

    #[test]
    fn entering_deadline_mode_stops_a_count_and_ignores_the_count_register() {
        let mut t = timer();
        t.set_initial_count(1_000_000, Nanos::ZERO);
        t.set_mode(Mode::TscDeadline);
        assert_eq!(t.due(), None);
        t.set_initial_count(5, Nanos::ZERO);
        assert_eq!((t.due(), t.initial_count()), (None, 0));
        t.set_mode(Mode::OneShot);
        t.set_deadline(5, at(0));
        assert_eq!((t.due(), t.deadline()), (None, 0));
    }

    #[test]
    fn a_new_divider_goes_on_from_the_current_count() {
        let mut t = timer();
        t.set_initial_count(1_000, Nanos::ZERO);
        t.set_divide_configuration(0, Nanos(400)); // by 2
        assert_eq!(
            (t.current_count(Nanos(400)), t.due()),
            (600, Some(Nanos(1_600)))
        );
    }
}
