//! Thresholds that follow the load.
//!
//! Four dials are set anew at each plan, from what the host's CPUs and memories carry and from how much there is to move:
//!
//! | dial | CPUs are busy | memory is busy | much to move |
//! |---|---|---|---|
//! | time between two looks | twice as long | | |
//! | hot threshold, steps of 16 | 4 at least | 8 at least | up by one a tick while what is hotter fills the budget, back by one |
//! | copy budget of a VM and pair of nodes | half | a quarter; nothing to, from or across what is busy | |
//! | strength of the proximity bonus | 250 less | 250 more | |
//!
//! The reasons: looks and copies take CPU time that guests now wait for, so there are fewer and only for pages that are worth
//! more; and while everybody waits, each turn out of order is felt, so proximity counts for less. A busy memory
//! controller makes far accesses dearer still, so proximity counts for more; but a copy would add to what it
//! carries, so pages stay and vCPUs move (MECHANISMS sections 6 and 9).
//!
//! Busy has two values for each input, see [`latch`]; what is to be moved has a dead band of 10 %.

pub mod latch;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::iter::Sum;
use telemetry::{Dial, Event};
use units::{Nanos, NodeId, PerMille};

use crate::view::HostView;
use latch::{Bounds, Latch};

/// Use of the host's CPUs from which they are busy, and below which they no longer are.
pub const CPU: Bounds = Bounds {
    open: PerMille(900),
    close: PerMille(800),
};
/// The same of a memory controller or a link.
pub const MEMORY: Bounds = Bounds {
    open: PerMille(700),
    close: PerMille(600),
};
/// Highest step of the hot threshold.
pub const TOP_STEP: u8 = 15;
/// Steps at least, while CPUs or memory are busy.
const BUSY_CPU_STEP: u8 = 4;
const BUSY_MEMORY_STEP: u8 = 8;
/// Strength of the bonus at rest, and what either load takes or adds.
const BONUS: u16 = 750;
const BONUS_SHIFT: u16 = 250;
/// What is to be moved should take the budget this long.
const VOLUME: Nanos = Nanos::from_secs(10);

/// What the dials say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// So many times as much time passes between two looks as the sampler wants.
    pub interval_times: u16,
    /// Steps of a quarter by which a page must pay more than it would have to.
    pub hot_step: u8,
    /// Part of the copy budget that may be used.
    pub budget: PerMille,
    /// Part of the proximity bonus that the scheduler gives.
    pub bonus: PerMille,
}

impl Settings {
    /// What one dial says, in its unit.
    pub fn of(&self, dial: Dial) -> u16 {
        match dial {
            Dial::Interval => self.interval_times,
            Dial::HotThreshold => self.hot_step.into(),
            Dial::Budget => self.budget.0,
            Dial::Bonus => self.bonus.0,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval_times: 1,
            hot_step: 0,
            budget: PerMille(1000),
            bonus: PerMille(BONUS),
        }
    }
}

/// What would pay to be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Bytes.
    pub bytes: u64,
    /// Of them, those that would still pay if the hot threshold were a step higher.
    pub hotter: u64,
}

impl Sum for Wanted {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            bytes: sum.bytes.saturating_add(one.bytes),
            hotter: sum.hotter.saturating_add(one.hotter),
        })
    }
}

/// What they follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Use of all CPUs together.
    pub cpu: PerMille,
    /// Use of the busiest memory controller or link; unknown where none is.
    pub memory: Option<PerMille>,
    /// What would pay to be moved.
    pub wanted: Wanted,
    /// Bytes that the budget allows in the time that a move is planned for.
    pub affordable: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    settings: Settings,
    inputs: Inputs,
    cpu: Latch,
    memory: Latch,
    nodes: BTreeMap<NodeId, Latch>,
    links: BTreeMap<(NodeId, NodeId), Latch>,
    /// Step that the volume asks for.
    volume_step: u8,
    last: BTreeMap<Dial, (Nanos, String)>,
}

impl Adapter {
    /// What the dials say now.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What they were set by.
    pub const fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// When and why a dial was turned last; None if it never was.
    pub fn last_change(&self, dial: Dial) -> Option<(Nanos, &str)> {
        self.last.get(&dial).map(|(at, why)| (*at, why.as_str()))
    }

    /// Whether pages may go from one node to another: neither memory nor the way between them is busy.
    pub fn passable(&self, from: NodeId, to: NodeId) -> bool {
        let node = |n| self.nodes.get(&n).is_some_and(|l| l.is_on());
        let link = self.links.get(&(from, to)).is_some_and(|l| l.is_on());
        !(node(from) || node(to) || link)
    }

    /// Sets the dials by what `host` carries; `wanted` bytes would pay to be moved, and `rate` is the whole budget in bytes
    /// per second. Tells each change.
    pub fn tick(
        &mut self,
        now: Nanos,
        host: &HostView<'_>,
        wanted: Wanted,
        rate: u64,
    ) -> Vec<Event> {
        self.look(host);
        let (cpu, memory) = (self.cpu.is_on(), self.memory.is_on());
        let budget = PerMille(1000 / if cpu { 2 } else { 1 } / if memory { 4 } else { 1 });
        let affordable = u128::from(rate) * u128::from(VOLUME.0) / 1_000_000_000;
        let affordable = affordable * u128::from(budget.0) / 1000;
        self.inputs.wanted = wanted;
        self.inputs.affordable = u64::try_from(affordable).unwrap_or(u64::MAX);
        self.volume_step = self.follow_volume();
        let least = match (cpu, memory) {
            (_, true) => BUSY_MEMORY_STEP,
            (true, false) => BUSY_CPU_STEP,
            (false, false) => 0,
        };
        let bonus =
            BONUS - if cpu { BONUS_SHIFT } else { 0 } + if memory { BONUS_SHIFT } else { 0 };
        let next = Settings {
            interval_times: if cpu { 2 } else { 1 },
            hot_step: self.volume_step.max(least),
            budget,
            bonus: PerMille(bonus),
        };
        self.turn(now, next)
    }

    fn look(&mut self, host: &HostView<'_>) {
        let cpus: u64 = host.nodes.iter().map(|n| u64::from(n.cpus)).sum();
        // What more than a node's CPUs are asked for waits; it does not make them busier.
        let used = host
            .nodes
            .iter()
            .map(|n| u64::from(n.demand.min(u32::from(n.cpus) * 1000)));
        let cpu = used.sum::<u64>().checked_div(cpus).unwrap_or(0);
        self.inputs.cpu = PerMille(u16::try_from(cpu).unwrap_or(1000));
        self.cpu.judge(Some(self.inputs.cpu), CPU);
        for node in host.nodes {
            self.nodes
                .entry(node.node)
                .or_default()
                .judge(node.memory_load, MEMORY);
        }
        for link in host.links {
            let latch = self.links.entry((link.from, link.to)).or_default();
            latch.judge(link.load, MEMORY);
        }
        let nodes = host.nodes.iter().filter_map(|n| n.memory_load);
        let links = host.links.iter().filter_map(|l| l.load);
        self.inputs.memory = nodes.chain(links).max();
        self.memory.judge(self.inputs.memory, MEMORY);
    }

    /// One step at a time, with a dead band of 10 % around what is affordable. It goes up only if what is hotter than the next
    /// step is still more than that: where all pages are alike, none of them would be moved otherwise.
    fn follow_volume(&self) -> u8 {
        let Inputs {
            wanted, affordable, ..
        } = self.inputs;
        let tenth = affordable / 10;
        if wanted.hotter > affordable.saturating_add(tenth) {
            (self.volume_step + 1).min(TOP_STEP)
        } else if wanted.bytes < affordable - tenth {
            self.volume_step.saturating_sub(1)
        } else {
            self.volume_step
        }
    }

    /// Takes over new settings, and tells what changed and why.
    fn turn(&mut self, now: Nanos, next: Settings) -> Vec<Event> {
        let before = core::mem::replace(&mut self.settings, next);
        let why = self.situation();
        let turned = Dial::ALL.into_iter().filter_map(|dial| {
            let (from, to) = (before.of(dial), next.of(dial));
            let reason = why.clone();
            let event = Event::Adapted {
                dial,
                from,
                to,
                reason,
            };
            (from != to).then_some((dial, event))
        });
        let turned: Vec<(Dial, Event)> = turned.collect();
        for (dial, event) in &turned {
            self.last.insert(*dial, (now, event.to_string()));
        }
        turned.into_iter().map(|(_, event)| event).collect()
    }

    /// "CPUs 95.0 % used (busy), memory 20.0 % (not busy), 12 MiB to move of 10240 MiB affordable"
    pub fn situation(&self) -> String {
        let busy = |latch: Latch| if latch.is_on() { "busy" } else { "not busy" };
        let memory = match self.inputs.memory {
            Some(load) => format!("{load} ({})", busy(self.memory)),
            None => String::from("unknown (taken as not busy)"),
        };
        format!(
            "CPUs {} used ({}), busiest memory or link {memory}, {} MiB would pay to be moved and {} MiB could be",
            self.inputs.cpu,
            busy(self.cpu),
            self.inputs.wanted.bytes >> 20,
            self.inputs.affordable >> 20,
        )
    }
}
