//! Moves that even out load, inside nodes and between them.

use alloc::vec::Vec;
use core::cmp::Reverse;
use telemetry::MoveReason;
use units::{CpuId, Nanos, NodeId, VcpuId};

use crate::event::Commands;
use crate::scheduler::Scheduler;

/// Moves for load in one look, inside each node or between nodes; more would act on loads that the
/// first ones have changed.
const MOVES_PER_LOOK: usize = 4;

/// Load is counted in weight x this, so that small parts of small weights do not vanish.
const LOAD_ONE: u64 = 1 << 8;

/// CPUs from each end of the order by load that are compared; on a host with no more CPUs, all pairs.
const ENDS: usize = 8;

/// vCPUs of a CPU that are considered for an exchange.
const EXCHANGED: usize = 16;

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

    /// Moves for load until nothing is worth it or enough was done; false if nothing was.
    pub(crate) fn even_out(&mut self, now: Nanos, out: &mut Commands) -> bool {
        let mut loads: Vec<(u64, CpuId, NodeId)> = self
            .cpus
            .iter()
            .map(|(id, c)| (self.load_on(id), id, c.place.node))
            .collect();
        let mean = loads.iter().map(|(l, ..)| l).sum::<u64>() / (loads.len() as u64).max(1);
        loads.sort_unstable_by_key(|(load, cpu, node)| (*node, Reverse(*load), *cpu));
        let inside = self.tunables.imbalance_inside;
        let mut moved = false;
        // Nodes do not meddle with one another, so each is evened out by itself.
        for node in loads.chunk_by_mut(|a, b| a.2 == b.2) {
            moved |= self.even_out_among(now, node, inside, mean, out);
        }
        if moved || self.nodes.len() < 2 {
            return moved;
        }
        let across = self.tunables.imbalance_across;
        self.even_out_among(now, &mut loads, across, mean, out)
    }

    /// Moves among these CPUs until nothing is worth it or enough was done; false if nothing was.
    fn even_out_among(
        &mut self,
        now: Nanos,
        loads: &mut [(u64, CpuId, NodeId)],
        limit_per_cent: u32,
        mean: u64,
        out: &mut Commands,
    ) -> bool {
        let mut moved = false;
        for _ in 0..MOVES_PER_LOOK {
            loads.sort_unstable_by_key(|(load, cpu, _)| (Reverse(*load), *cpu));
            let Some(best) = self.best_exchange(now, loads, limit_per_cent, mean) else {
                break;
            };
            moved = true;
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
        }
        moved
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
        loads: &[(u64, CpuId, NodeId)],
        limit_per_cent: u32,
        mean: u64,
    ) -> Option<Exchange> {
        let mut best: Option<Exchange> = None;
        for &(a, from, from_node) in loads.iter().take(ENDS) {
            for &(b, to, to_node) in loads.iter().rev().take(ENDS) {
                let gap = a.saturating_sub(b);
                if from == to || gap * 100 <= mean * u64::from(limit_per_cent) {
                    break;
                }
                if !self.gates.passable(from_node, to_node) {
                    continue;
                }
                for (gain, vcpu, back) in self.exchanges(now, from, to, gap, mean) {
                    if gain > 0 && best.is_none_or(|b| gain > b.gain) {
                        best = Some(Exchange {
                            gain,
                            vcpu,
                            back,
                            from: (from, a),
                            to: (to, b),
                        });
                    }
                }
            }
        }
        best
    }

    /// Moves and swaps between two CPUs whose loads differ by `gap`, with what each is worth.
    fn exchanges(
        &self,
        now: Nanos,
        from: CpuId,
        to: CpuId,
        gap: u64,
        mean: u64,
    ) -> Vec<(i128, VcpuId, Option<VcpuId>)> {
        let movable = |cpu: CpuId, other: CpuId| -> Vec<VcpuId> {
            let quiet = self.tunables.balance_period + self.tunables.balance_period;
            let residents = self.cpus.get(cpu).map_or(&[][..], |c| &c.residents);
            let may = |id: &VcpuId| {
                self.vcpus.get(*id).is_some_and(|v| {
                    v.runnable()
                        && v.move_to.is_none()
                        && (v.moved_at == Nanos::ZERO || now.since(v.moved_at) > quiet)
                        && self.allowed(*id, other)
                })
            };
            let movable = residents.iter().copied().filter(may);
            let mut movable: Vec<VcpuId> = movable.collect();
            movable.sort_unstable();
            movable.truncate(EXCHANGED);
            movable
        };
        let (here, there) = (movable(from, to), movable(to, from));
        // A CPU with one vCPU has nobody to give: its load is as even as it gets.
        if self.cpus.get(from).is_none_or(|c| c.members().count() < 2) {
            return Vec::new();
        }
        let lost = |id: VcpuId, a: CpuId, b: CpuId| {
            let part = self.loss(id, a, b).of(self.load_of(id));
            i128::from(part) * i128::from(mean) * i128::from(self.tunables.locality_per_cent) / 50
        };
        // (a-d)² + (b+d)² - a² - b² = -2d(gap - d)
        let worth = |d: u64| 2 * i128::from(d) * (i128::from(gap) - i128::from(d));
        let mut options = Vec::new();
        for &id in &here {
            let load = self.load_of(id);
            options.push((worth(load) - lost(id, from, to), id, None));
            for &back in &there {
                if let Some(d) = load.checked_sub(self.load_of(back)) {
                    let cost = lost(id, from, to) + lost(back, to, from);
                    options.push((worth(d) - cost, id, Some(back)));
                }
            }
        }
        options
    }
}
