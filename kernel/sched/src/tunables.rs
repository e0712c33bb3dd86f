//! The constants of this room, each a starting value that may be changed at run time.

use serde::{Deserialize, Serialize};
use units::Nanos;

/// Weight of an ordinary vCPU.
pub const DEFAULT_WEIGHT: u32 = 256;

/// Largest weight that is accepted; larger ones are lowered to it.
pub const MAX_WEIGHT: u32 = 1 << 16;

/// What the scheduler decides by. Sources: MECHANISMS section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunables {
    /// Q: the bound that every vCPU's lag keeps, whatever the bonuses.
    pub quantum: Nanos,
    /// Length of one request, which is the longest slice. With requests of Q/2, a bonus of Q/10
    /// and a queue's rounding there is room below Q.
    pub request: Nanos,
    /// |bonus| + penalty stay below the quantum divided by this.
    pub bonus_divisor: u32,
    /// Part of the bonus for proximity that is given, in thousandths.
    pub proximity_per_mille: u16,
    /// A vCPU that was just given a CPU keeps it this long against others of its class.
    pub min_run: Nanos,
    /// Share of a CPU, in thousandths, that each lower class keeps while it has work.
    pub floor_per_mille: u16,
    /// No CPU stays idle longer than this while a vCPU that it may run waits.
    pub pull_limit: Nanos,
    /// How long a CPU leaves a vCPU to the idle CPU that was kicked for it, and a CPU of another node twice as long. The
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
    /// Weight of lost proximity against imbalance, in per cent. With 100 a move that loses proximity must gain as much of what
    /// machines get done: for loads l about a mean m, the sum of l log l, which is what sharing CPUs costs, falls by
    /// the fall of the sum of l² over 2m, and the machine that moves loses its load times the proximity.
    pub locality_per_cent: u32,
    /// Over- and underserved by more than this, two vCPUs of neighbouring CPUs change places.
    pub fairness_gap: Nanos,
    /// Time over which a vCPU's demand is averaged.
    pub demand_window: Nanos,
    /// Whether hardware threads of one core may run vCPUs of different machines at a time. They
    /// share a first-level cache and more, which leaks (L1TF, MDS).
    pub share_cores: bool,
    /// Whether a spinning vCPU's slice goes to a preempted neighbour of its machine.
    pub donate: bool,
    /// The gate between two nodes, see [`crate::gate`].
    pub gate: GateTunables,
}

/// When vCPUs may go from one node to another for load before the pull limit forces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateTunables {
    /// Load of the source from which on the gate opens, in thousandths.
    pub open_load: u32,
    /// Surplus over the target from which on it opens.
    pub open_surplus: u32,
    /// Load below which it closes.
    pub close_load: u32,
    /// Surplus below which it closes.
    pub close_surplus: u32,
    /// Time in which one more move is allowed.
    pub period: Nanos,
    /// Moves that may be saved up.
    pub depth: u32,
}

impl Tunables {
    /// With this bound Q; what must stay in proportion to it does.
    pub fn with_quantum(quantum: Nanos) -> Self {
        let default = Self::default();
        let request = Nanos((quantum.0 / 2).max(1));
        Self {
            quantum,
            request,
            min_run: default.min_run.min(Nanos(request.0 / 5)),
            ..default
        }
    }
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            quantum: Nanos::from_millis(10),
            request: Nanos::from_millis(5),
            bonus_divisor: 10,
            proximity_per_mille: 1000,
            min_run: Nanos::from_millis(1),
            floor_per_mille: 50,
            pull_limit: Nanos::from_millis(5),
            kick_grace: Nanos::from_millis(50),
            move_near: Nanos::from_micros(50),
            move_far: Nanos::from_micros(500),
            balance_period: Nanos::from_millis(50),
            imbalance_across: 17,
            imbalance_inside: 5,
            locality_per_cent: 100,
            fairness_gap: Nanos::from_millis(60),
            demand_window: Nanos::from_millis(100),
            share_cores: false,
            donate: true,
            gate: GateTunables {
                open_load: 700,
                open_surplus: 300,
                close_load: 600,
                close_surplus: 200,
                period: Nanos::from_millis(2),
                depth: 4,
            },
        }
    }
}
