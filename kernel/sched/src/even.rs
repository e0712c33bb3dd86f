//! Moves that even out load, inside nodes and between them.

use alloc::vec::Vec;
use core::cmp::Reverse;
use telemetry::MoveReason;
use units::{CpuId, Nanos, NodeId, VcpuId};

use crate::event::Commands;
use crate::scheduler::Scheduler;

/// Moves for load in one look, inside each node or between nodes; more would act on loads that the
/// first ones have changed.
pub(crate) const MOVES_PER_LOOK: usize = 4;

/// Load is counted in weight x this, so that small parts of small weights do not vanish.
const LOAD_ONE: u64 = 1 << 8;

/// CPUs from each end of the order by load that are compared; on a host with no more CPUs, all pairs.
const ENDS: usize = 8;

/// vCPUs of a CPU that are considered for an exchange.
const EXCHANGED: usize = 16;

/// A CPU with its load and its node.
pub(crate) type Load = (u64, CpuId, NodeId);

/// A move or a swap between two CPUs, and what it is worth.
#[derive(Clone, Copy)]
struct Exchange {
    gain: i128,
    vcpu: VcpuId,
    back: Option<VcpuId>,
    from: (CpuId, u64),
    to: (CpuId, u64),
}

impl Scheduler {
    pub(crate) fn load_of(&self, vcpu: VcpuId) -> u64 {
        self.vcpus
            .get(vcpu)
            .map_or(0, |v| v.demand.of(u64::from(v.load_weight) * LOAD_ONE))
    }

    pub(crate) fn load_on(&self, cpu: CpuId) -> u64 {
        let residents = self.cpus.get(cpu).map_or(&[][..], |c| &c.residents);
        residents.iter().map(|id| self.load_of(*id)).sum()
    }

    /// The CPUs of a node with their loads.
    pub(crate) fn loads_of(&self, node: NodeId) -> Vec<Load> {
        let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
        cpus.iter()
            .map(|cpu| (self.load_on(*cpu), *cpu, node))
            .collect()
    }

    /// Moves for load inside a node, whose CPUs these are, until nothing is worth it or enough was done; false if nothing was. Nodes do not
    /// meddle with one another, so each is evened out by itself. `mean` is the load of the host's CPUs.
    pub(crate) fn even_out_inside(
        &mut self,
        now: Nanos,
        loads: &mut [Load],
        mean: u64,
        out: &mut Commands,
    ) -> bool {
        let limit = self.tunables.imbalance_inside;
        (0..MOVES_PER_LOOK)
            .take_while(|_| self.even_out_once(now, loads, limit, mean, out))
            .count()
            > 0
    }

    /// Those CPUs that will be compared may have changed since their loads were summed.
    pub(crate) fn weigh_ends(&self, loads: &mut [Load]) {
        loads.sort_unstable_by_key(|(load, cpu, _)| (Reverse(*load), *cpu));
        let last = loads.len().saturating_sub(ENDS);
        for (i, (load, cpu, _)) in loads.iter_mut().enumerate() {
            if i < ENDS || i >= last {
                *load = self.load_on(*cpu);
            }
        }
    }

    /// One of [`MOVES_PER_LOOK`] moves for load among all CPUs of the host; false if none is worth it.
    pub(crate) fn even_out_across(
        &mut self,
        now: Nanos,
        loads: &mut [Load],
        mean: u64,
        out: &mut Commands,
    ) -> bool {
        let limit = self.tunables.imbalance_across;
        self.even_out_once(now, loads, limit, mean, out)
    }

    /// The best move among these CPUs, if one is worth it.
    fn even_out_once(
        &mut self,
        now: Nanos,
        loads: &mut [Load],
        limit_per_cent: u32,
        mean: u64,
        out: &mut Commands,
    ) -> bool {
        loads.sort_unstable_by_key(|(load, cpu, _)| (Reverse(*load), *cpu));
        let Some(best) = self.best_exchange(now, loads, limit_per_cent, mean) else {
            return false;
        };
        // A running vCPU goes later, but its load is as good as there.
        let back = best.back.map_or(0, |id| self.load_of(id));
        let shift = self.load_of(best.vcpu).saturating_sub(back);
        for (load, cpu, _) in &mut *loads {
            if *cpu == best.from.0 {
                *load = load.saturating_sub(shift);
            } else if *cpu == best.to.0 {
                *load += shift;
            }
        }
        self.carry_out(now, &best, mean, out);
        true
    }

    fn carry_out(&mut self, now: Nanos, best: &Exchange, mean: u64, out: &mut Commands) {
        let per_mille = |load: u64| u32::try_from(load * 1000 / mean.max(1)).unwrap_or(u32::MAX);
        let reason = MoveReason::Balance {
            from_load: per_mille(best.from.1),
            to_load: per_mille(best.to.1),
        };
        let (from, to) = (best.from.0, best.to.0);
        if let (Some(a), Some(b)) = (self.node_of(from), self.node_of(to)) {
            self.gates.pay(a, b);
        }
        self.send(now, best.vcpu, to, reason, out);
        if let Some(back) = best.back {
            self.send(now, back, from, reason, out);
        }
    }

    /// The best single move or swap between the loaded end of a list in falling order of load and its other
    /// end; None if none is worth it.
    fn best_exchange(
        &self,
        now: Nanos,
        loads: &[Load],
        limit_per_cent: u32,
        mean: u64,
    ) -> Option<Exchange> {
        let mut best: Option<Exchange> = None;
        let mut movable = Movable::default();
        for &(a, from, from_node) in loads.iter().take(ENDS) {
            // A CPU with one vCPU has nobody to give: its load is as even as it gets.
            let gives = self.cpus.get(from).is_some_and(|c| c.len() >= 2);
            for &(b, to, to_node) in loads.iter().rev().take(ENDS) {
                let gap = a.saturating_sub(b);
                if from == to || gap * 100 <= mean * u64::from(limit_per_cent) || !gives {
                    break;
                }
                // No exchange is worth more than that of half the gap.
                let most = worth(gap / 2, gap).max(worth(gap.div_ceil(2), gap));
                if best.is_some_and(|b| most <= b.gain) || !self.gates.passable(from_node, to_node)
                {
                    continue;
                }
                movable.look(self, now, from);
                movable.look(self, now, to);
                let pair = Pair {
                    from: (from, a),
                    to: (to, b),
                    gap,
                    mean,
                };
                self.best_of_pair(&pair, movable.of(from), movable.of(to), &mut best);
            }
        }
        best
    }

    /// Whom of a CPU's may be moved for load, by name, with the load of each.
    fn movable(&self, now: Nanos, cpu: CpuId) -> Vec<(VcpuId, u64)> {
        let quiet = self.tunables.balance_period + self.tunables.balance_period;
        let residents = self.cpus.get(cpu).map_or(&[][..], |c| &c.residents);
        let may = |id: &VcpuId| {
            self.vcpus.get(*id).is_some_and(|v| {
                v.runnable()
                    && v.move_to.is_none()
                    && (v.moved_at == Nanos::ZERO || now.since(v.moved_at) > quiet)
            })
        };
        let movable = residents.iter().copied().filter(may);
        let mut movable: Vec<(VcpuId, u64)> = movable.map(|id| (id, self.load_of(id))).collect();
        movable.sort_unstable();
        movable
    }

    /// Takes the best of moves and swaps between two CPUs if it is better than what was found before.
    fn best_of_pair(
        &self,
        pair: &Pair,
        here: &[(VcpuId, u64)],
        there: &[(VcpuId, u64)],
        best: &mut Option<Exchange>,
    ) {
        let (from, to) = (pair.from.0, pair.to.0);
        let lost = |id: VcpuId, load: u64, a: CpuId, b: CpuId| {
            let part = self.loss(id, a, b).of(load);
            i128::from(part) * i128::from(pair.mean) * i128::from(self.tunables.locality_per_cent)
                / 50
        };
        let mut consider = |d: u64, vcpu: VcpuId, back: Option<VcpuId>, cost: &dyn Fn() -> i128| {
            let least = best.map_or(0, |b| b.gain);
            let worth = worth(d, pair.gap);
            // What it costs is asked last: most are worth too little anyway.
            if worth <= least {
                return;
            }
            let gain = worth - cost();
            if gain > least {
                *best = Some(Exchange {
                    gain,
                    vcpu,
                    back,
                    from: pair.from,
                    to: pair.to,
                });
            }
        };
        let may = |from: CpuId| move |(id, _): &&(VcpuId, u64)| self.allowed(*id, from);
        for &(id, load) in here.iter().filter(may(to)).take(EXCHANGED) {
            consider(load, id, None, &|| lost(id, load, from, to));
            for &(back, less) in there.iter().filter(may(from)).take(EXCHANGED) {
                if let Some(d) = load.checked_sub(less) {
                    let cost = || lost(id, load, from, to) + lost(back, less, to, from);
                    consider(d, id, Some(back), &cost);
                }
            }
        }
    }
}

/// Two CPUs with their loads.
struct Pair {
    from: (CpuId, u64),
    to: (CpuId, u64),
    gap: u64,
    mean: u64,
}

/// Whom of the CPUs that are compared may be moved: looked up once for all pairs.
#[derive(Default)]
struct Movable(Vec<(CpuId, Vec<(VcpuId, u64)>)>);

impl Movable {
    fn look(&mut self, of: &Scheduler, now: Nanos, cpu: CpuId) {
        if !self.0.iter().any(|(known, _)| *known == cpu) {
            self.0.push((cpu, of.movable(now, cpu)));
        }
    }

    fn of(&self, cpu: CpuId) -> &[(VcpuId, u64)] {
        let known = self.0.iter().find(|(known, _)| *known == cpu);
        known.map_or(&[], |(_, movable)| movable)
    }
}

/// What it is worth that `d` more load goes from one CPU to another than comes back, where they differ by `gap`: by so much
/// falls the sum of the squares, (a-d)² + (b+d)² - a² - b² = -2d(gap - d).
fn worth(d: u64, gap: u64) -> i128 {
    2 * i128::from(d) * (i128::from(gap) - i128::from(d))
}
