//! The constants of this room, each a starting value that may be changed at run time.

use units::{Nanos, Score};

use crate::view::HostView;

/// What the planner decides by. Sources: MECHANISMS sections 4 and 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Proximity that a move of vCPUs must gain to be begun.
    pub open_gain: Score,
    /// The same for page moves. Lower, as what few pages gain costs little: with 0.05 a machine could stay at 90 % of its
    /// accesses near, where 95 % are wanted.
    pub open_pages: Score,
    /// Proximity below which page moves under way are ended. Lower than `open_pages`, so that a
    /// machine at the threshold does not flutter.
    pub close_pages: Score,
    /// Consecutive passes that must agree.
    pub passes: u8,
    /// Accesses to memory that a vCPU is taken to make in a second of run time, where no PMU
    /// counts them. At 180 ns per remote access this makes 36 % of run time remote stall, which is what
    /// memory-bound programs show; machines that touch little are kept out by evidence.
    pub accesses_per_s: u64,
    /// Where it counts them: reads that a processor has under way at a time, so that each costs this part of its latency. What
    /// is taken above overlaps nothing.
    pub overlap: u64,
    /// Longest time over which a benefit is believed to last.
    pub horizon: Nanos,
    /// Benefit must exceed cost this many times.
    pub gamma: u32,
    /// The same after a bounce.
    pub gamma_bounced: u32,
    /// For how long a node that was left, and a bounce, are remembered.
    pub bounce_memory: Nanos,
    /// An option is as good as the best if it saves at least this part of what that saves.
    pub comparable: Score,
    /// Part of what an option and its followers save together that counts as most of it.
    pub most: Score,
    /// Cost of moving one vCPU across nodes, its cache contents included.
    pub vcpu_move: Nanos,
    /// Cost of copying 1 MiB between nodes (2 GiB/s).
    pub copy_mib: Nanos,
    /// Cost of a page besides its copy: shootdowns and the guest's faults on it.
    pub page_overhead: Nanos,
    /// Time that an order of vCPU moves gets before it is judged.
    pub settle: Nanos,
    /// Time after which page moves without a result count as lost.
    pub lost_after: Nanos,
    /// A vCPU order that did not come about is not repeated for this long.
    pub stuck_memory: Nanos,
    /// A page that was moved stays for this long.
    pub page_rest: Nanos,
    /// A page that could not be moved is tried again after this time, doubled with each failure.
    pub page_retry: Nanos,
    /// Most bytes in one order.
    pub order_bytes: u64,
    /// Upper limit of the copy budget for a machine and pair of nodes, in bytes per second.
    pub budget_bytes_per_s: u64,
    /// Part of a node's memory that moves leave free.
    pub reserve: Score,
    /// Whether thresholds follow the load and the use that moves were of, see [`crate::adapt`]; else they stay as they are.
    pub adapt: bool,
    /// Use of a node's CPUs, in thousandths, up to which it has room for vCPUs.
    pub cpu_room_per_mille: u32,
}

impl Tunables {
    /// The whole copy budget of a machine and pair of nodes, in bytes per second.
    pub fn rate(&self, host: &HostView<'_>) -> u64 {
        self.budget_bytes_per_s.min(host.link_bytes_per_s).max(1)
    }
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            open_gain: Score::from_per_mille(50),
            open_pages: Score::from_per_mille(20),
            close_pages: Score::from_per_mille(10),
            passes: 2,
            accesses_per_s: 2_000_000,
            overlap: 4,
            horizon: Nanos::from_secs(10),
            gamma: 2,
            gamma_bounced: 4,
            bounce_memory: Nanos::from_secs(60),
            comparable: Score::from_per_mille(900),
            most: Score::from_per_mille(750),
            vcpu_move: Nanos::from_micros(500),
            copy_mib: Nanos::from_micros(500),
            page_overhead: Nanos::from_micros(5),
            settle: Nanos::from_millis(500),
            lost_after: Nanos::from_secs(5),
            stuck_memory: Nanos::from_secs(10),
            page_rest: Nanos::from_secs(10),
            page_retry: Nanos::from_secs(1),
            order_bytes: 64 << 20,
            budget_bytes_per_s: 1 << 30,
            reserve: Score::from_per_mille(30),
            adapt: true,
            cpu_room_per_mille: 1000,
        }
    }
}
