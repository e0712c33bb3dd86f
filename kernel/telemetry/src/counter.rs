//! Counters: one set per CPU, written by that CPU, read by any.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// All counters, in the order of a dump.
            pub const ALL: [Self; [$($text,)*].len()] = [$(Self::$name,)*];

            /// Name in a dump.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// World switches into a guest.
    Entries = "entries",
    /// Exits by port access.
    ExitIo = "exit_io",
    /// Exits by MSR access.
    ExitMsr = "exit_msr",
    /// Exits by CPUID.
    ExitCpuid = "exit_cpuid",
    /// Exits by nested page faults.
    ExitNestedFault = "exit_nested_fault",
    /// Exits by HLT.
    ExitHlt = "exit_hlt",
    /// Exits by a physical interrupt.
    ExitInterrupt = "exit_interrupt",
    /// Exits by a hypercall.
    ExitHypercall = "exit_hypercall",
    /// All other exits.
    ExitOther = "exit_other",
    /// Interrupts and exceptions given to guests.
    Injections = "injections",
    /// Interprocessor interrupts sent.
    IpisSent = "ipis_sent",
    /// Timer interrupts taken.
    TimerInterrupts = "timer_interrupts",
    /// Decisions of the scheduler.
    Picks = "picks",
    /// Picks that changed the running vCPU.
    Switches = "switches",
    /// Picks that found nothing to run.
    IdlePicks = "idle_picks",
    /// vCPUs woken.
    Wakes = "wakes",
    /// vCPUs that changed their CPU.
    VcpuMoves = "vcpu_moves",
    /// Passes over accessed bits.
    HarvestPasses = "harvest_passes",
    /// Leaves read in those passes.
    HarvestLeaves = "harvest_leaves",
    /// Nanoseconds spent in those passes.
    HarvestNanos = "harvest_ns",
    /// Pages moved between nodes.
    PagesMoved = "pages_moved",
    /// Bytes moved between nodes.
    BytesMoved = "bytes_moved",
    /// Page moves repeated because the guest wrote meanwhile.
    PageMoveRetries = "page_move_retries",
    /// Page moves given up.
    PageMoveAborts = "page_move_aborts",
    /// TLB flushes of guest translations.
    GuestFlushes = "guest_flushes",
    /// Accesses to MSRs outside the policy table.
    UnknownMsrs = "unknown_msrs",
    /// Accesses to ports without a device.
    UnknownPorts = "unknown_ports",
    /// Events overwritten in the ring before anybody read them.
    EventsOverwritten = "events_overwritten",
    /// Records that the wire could not take.
    RecordsDropped = "records_dropped",
}

/// One counter in a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterValue {
    /// [`Counter::name`]; a string, so that an old reader keeps what it does not know.
    pub name: String,
    /// Its value.
    pub value: u64,
}

impl fmt::Display for CounterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.value)
    }
}

/// The counters of one CPU.
///
/// Relaxed atomics: a counter orders nothing, and a dump may catch two counters at slightly
/// different moments.
#[derive(Debug)]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
}

impl Counters {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; Counter::ALL.len()],
        }
    }

    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `n`.
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(value) = self.values.get(counter as usize) {
            value.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// The value now.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values
            .get(counter as usize)
            .map_or(0, |v| v.load(Ordering::Relaxed))
    }

    /// Those that are not 0, in the order of [`Counter::ALL`].
    pub fn dump(&self) -> Vec<CounterValue> {
        Counter::ALL
            .iter()
            .map(|&c| (c, self.get(c)))
            .filter(|(_, value)| *value > 0)
            .map(|(c, value)| CounterValue {
                name: String::from(c.name()),
                value,
            })
            .collect()
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_names_what_was_counted_and_nothing_else() {
        let counters = Counters::new();
        counters.count(Counter::ExitHlt);
        counters.add(Counter::BytesMoved, 1 << 21);
        let dump = counters.dump();
        assert_eq!(dump.len(), 2);
        assert_eq!(alloc::format!("{}", dump[0]), "exit_hlt 1");
        assert_eq!(alloc::format!("{}", dump[1]), "bytes_moved 2097152");
    }

    #[test]
    fn names_are_unique() {
        for (i, a) in Counter::ALL.iter().enumerate() {
            assert_eq!(*a as usize, i);
            assert!(
                Counter::ALL
                    .iter()
                    .skip(i + 1)
                    .all(|b| a.name() != b.name())
            );
        }
    }
}
