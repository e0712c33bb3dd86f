//! The constants of this room, each a starting value that may be changed at run time.

use units::Nanos;

/// Weight of an ordinary vCPU.
pub const DEFAULT_WEIGHT: u32 = 256;

/// Largest weight that is accepted; larger ones are lowered to it.
pub const MAX_WEIGHT: u32 = 1 << 16;

/// What the scheduler decides by. Sources: MECHANISMS section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Q: the bound that every vCPU's lag keeps, whatever the bonuses.
    pub quantum: Nanos,
    /// Length of one request, which is the longest slice. With requests of Q/2, a bonus of Q/10
    /// and a queue's rounding there is room below Q.
    pub request: Nanos,
    /// |bonus| + penalty stay below the quantum divided by this.
    pub bonus_divisor: u32,
    /// A vCPU that was just given a CPU keeps it this long against others of its class.
    pub min_run: Nanos,
    /// Share of a CPU, in thousandths, that each lower class keeps while it has work.
    pub floor_per_mille: u16,
    /// No CPU stays idle longer than this while a vCPU that it may run waits.
    pub pull_limit: Nanos,
    /// How long a CPU leaves a vCPU to the idle CPU that was kicked for it. The
    /// kicked one comes in microseconds; where CPUs are virtual themselves it may take milliseconds,
    /// and a machine that is pulled away each time never stays near its memory.
    pub kick_grace: Nanos,
    /// Cost of a move inside a last-level cache.
    pub move_near: Nanos,
    /// Cost of a move across last-level caches.
    pub move_far: Nanos,
    /// Time between two looks at the balance of the whole machine.
    pub balance_period: Nanos,
    /// Load difference, in per cent, that is worth a move between nodes.
    pub imbalance_across: u32,
    /// Load difference, in per cent, that is worth a move inside a node.
    pub imbalance_inside: u32,
    /// Weight of lost proximity against imbalance, in per cent.
    pub locality_per_cent: u32,
    /// Over- and underserved by more than this, two vCPUs of neighbouring CPUs change places.
    pub fairness_gap: Nanos,
    /// Time over which a vCPU's demand is averaged.
    pub demand_window: Nanos,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            quantum: Nanos::from_millis(10),
            request: Nanos::from_millis(5),
            bonus_divisor: 10,
            min_run: Nanos::from_millis(1),
            floor_per_mille: 50,
            pull_limit: Nanos::from_millis(5),
            kick_grace: Nanos::from_millis(50),
            move_near: Nanos::from_micros(50),
            move_far: Nanos::from_micros(500),
            balance_period: Nanos::from_millis(50),
            imbalance_across: 17,
            imbalance_inside: 5,
            locality_per_cent: 50,
            fairness_gap: Nanos::from_millis(60),
            demand_window: Nanos::from_millis(100),
        }
    }
}
