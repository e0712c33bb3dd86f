//! A clock that counts instructions: each takes the same time.
//!
//! Emulated code takes the time that its translation takes on the host, and that is not what a processor would take: after
//! each world switch, and each time that a guest turns to another address space, the emulator looks all translations up anew,
//! hundreds of microseconds in which hardly anything is executed. Whoever samples by time then meets kernels twice as
//! often as their share of the accesses is. On a machine with this clock a moment chosen by time is an instruction chosen
//! by lot.
//!
//! Each vCPU has its own time, which grows with what it executes; the machine's time is that of the one that is ahead. One that
//! is ahead by more than [`WINDOW`] waits for the others that run, so that all go on together. While all idle, the host's
//! time passes. A timer that is due is waited for, or the instruction at which it comes would again depend on the host.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

const PS_PER_NS: i64 = 1000;
/// A vCPU looks after timers and the others this often.
const LOOK_EVERY: i64 = 10_000 * PS_PER_NS;
/// How far one vCPU may be ahead of another that runs.
const WINDOW: i64 = 100_000 * PS_PER_NS;
/// So long a vCPU waits at most, in the host's time: what it waits for may itself wait for it.
const PATIENCE: Duration = Duration::from_millis(2);

/// One vCPU's time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    /// Picoseconds; written by its own thread, and by whoever wakes it.
    now: AtomicI64,
    runs: AtomicBool,
    /// When it looks after timers next.
    look_at: AtomicI64,
}

/// The machine's time while nobody runs: since when, by the host's clock, and what it was then.
#[derive(Debug)]
struct Idle {
    since: Instant,
    at: i64,
}

/// What the emulator knows of timers.
pub(crate) trait Timers {
    /// Nanoseconds until the next one is due; 0 if it is, `None` if there is none.
    fn next(&self) -> Option<i64>;
    /// Has those that are due run soon.
    fn nudge(&self);
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Picoseconds that an instruction takes.
    instruction: i64,
    lanes: Vec<Lane>,
    /// The machine's time never goes back below this.
    floor: AtomicI64,
    idle: Mutex<Idle>,
}

impl Clock {
    /// Of so many vCPUs, none of which runs.
    pub(crate) fn new(vcpus: usize, instruction_ps: u32) -> Self {
        Self {
            instruction: instruction_ps.into(),
            lanes: (0..vcpus).map(|_| Lane::default()).collect(),
            floor: AtomicI64::new(0),
            idle: Mutex::new(Idle {
                since: Instant::now(),
                at: 0,
            }),
        }
    }

    /// The machine's time in nanoseconds.
    pub(crate) fn now_ns(&self) -> i64 {
        self.now() / PS_PER_NS
    }

    fn now(&self) -> i64 {
        let ahead = match self.running().max() {
            Some(ahead) => ahead,
            None => {
                let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                let passed = i64::try_from(idle.since.elapsed().as_nanos()).unwrap_or(i64::MAX);
                idle.at.saturating_add(passed.saturating_mul(PS_PER_NS))
            }
        };
        self.floor.fetch_max(ahead, SeqCst).max(ahead)
    }

    /// Times of the vCPUs that run.
    fn running(&self) -> impl Iterator<Item = i64> + '_ {
        let lanes = self.lanes.iter().filter(|lane| lane.runs.load(SeqCst));
        lanes.map(|lane| lane.now.load(Relaxed))
    }

    /// A vCPU goes on, from the machine's time.
    pub(crate) fn resumes(&self, vcpu: usize) {
        let now = self.now();
        if let Some(lane) = self.lanes.get(vcpu) {
            lane.now.store(now, Relaxed);
            lane.look_at.store(now, Relaxed);
            lane.runs.store(true, SeqCst);
        }
    }

    /// A vCPU has nothing to execute.
    pub(crate) fn idles(&self, vcpu: usize) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lane) = self.lanes.get(vcpu) else {
            return;
        };
        let own = lane.now.load(Relaxed);
        let at = self.floor.fetch_max(own, SeqCst).max(own);
        lane.runs.store(false, SeqCst);
        *idle = Idle {
            since: Instant::now(),
            at,
        };
    }

    /// A vCPU executes so many instructions.
    pub(crate) fn executes(&self, vcpu: usize, instructions: usize, timers: &impl Timers) {
        let Some(lane) = self.lanes.get(vcpu) else {
            return;
        };
        let took = i64::try_from(instructions)
            .unwrap_or(i64::MAX)
            .saturating_mul(self.instruction);
        let now = lane.now.load(Relaxed).saturating_add(took);
        lane.now.store(now, Relaxed);
        if now < lane.look_at.load(Relaxed) {
            return;
        }
        wait(|| timers.next() != Some(0), || timers.nudge());
        wait(|| !self.is_ahead(now), || {});
        let next = timers
            .next()
            .map_or(LOOK_EVERY, |ns| ns.saturating_mul(PS_PER_NS));
        let next = next.clamp(self.instruction, LOOK_EVERY);
        lane.look_at.store(now.saturating_add(next), Relaxed);
    }

    fn is_ahead(&self, now: i64) -> bool {
        self.running()
            .min()
            .is_some_and(|slowest| now - slowest > WINDOW)
    }
}

/// Waits until something holds, but not for ever.
fn wait(holds: impl Fn() -> bool, first: impl FnOnce()) {
    if holds() {
        return;
    }
    first();
    let began = Instant::now();
    while !holds() && began.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Timers of which none is due.
    struct Never;

    impl Timers for Never {
        fn next(&self) -> Option<i64> {
            None
        }

        fn nudge(&self) {
            panic!("nothing is due");
        }
    }

    #[test]
    fn instructions_are_the_time_and_it_never_goes_back() {
        let clock = Clock::new(2, 2500);
        clock.resumes(0);
        let began = clock.now_ns();
        clock.executes(0, 400, &Never);
        assert_eq!(clock.now_ns() - began, 1000);
        // One that wakes begins at the machine's time, not where it was.
        clock.resumes(1);
        clock.executes(1, 40, &Never);
        assert_eq!(clock.now_ns() - began, 1100);
        clock.idles(1);
        assert_eq!(clock.now_ns() - began, 1100, "what was, was");
        clock.executes(0, 80, &Never);
        assert_eq!(clock.now_ns() - began, 1200);
    }

    #[test]
    fn while_nobody_runs_the_hosts_time_passes() {
        let clock = Clock::new(1, 1000);
        clock.resumes(0);
        clock.executes(0, 5_000_000, &Never);
        clock.idles(0);
        let at = clock.now_ns();
        assert!(at >= 5_000_000);
        std::thread::sleep(Duration::from_millis(5));
        let later = clock.now_ns();
        assert!(later >= at + 4_000_000, "{at} {later}");
        clock.resumes(0);
        assert!(clock.now_ns() >= later);
    }

    #[test]
    fn a_timer_that_is_due_is_waited_for() {
        #[derive(Default)]
        struct Due {
            asked: AtomicUsize,
            nudged: AtomicBool,
        }
        impl Timers for Due {
            fn next(&self) -> Option<i64> {
                // It runs some time after the nudge.
                let asked = self.asked.fetch_add(1, SeqCst);
                Some(if self.nudged.load(SeqCst) && asked > 10 {
                    700
                } else {
                    0
                })
            }

            fn nudge(&self) {
                self.nudged.store(true, SeqCst);
            }
        }
        let (clock, timers) = (Clock::new(1, 1000), Due::default());
        clock.resumes(0);
        clock.executes(0, 1, &timers);
        assert!(timers.nudged.load(SeqCst) && timers.asked.load(SeqCst) > 10);
        // Until the next one is due nobody asks.
        let asked = timers.asked.load(SeqCst);
        clock.executes(0, 699, &timers);
        assert_eq!(timers.asked.load(SeqCst), asked);
        clock.executes(0, 1, &timers);
        assert!(timers.asked.load(SeqCst) > asked);
    }

    #[test]
    fn who_is_ahead_waits_for_the_others_but_not_for_ever() {
        let clock = Clock::new(2, 1000);
        (0..2).for_each(|vcpu| clock.resumes(vcpu));
        let ahead = 2 * WINDOW as usize / 1000;
        let began = Instant::now();
        clock.executes(0, ahead, &Never);
        assert!(began.elapsed() >= PATIENCE);
        assert!(clock.is_ahead(clock.now()));
        clock.executes(1, ahead, &Never);
        assert!(!clock.is_ahead(clock.now()));
    }
}
