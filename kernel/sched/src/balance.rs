//! Every 50 ms: feasible shares, the operator's credits, and moves that even out load.
//!
//! Three reasons move a vCPU here, in this order. Its machine's preferred node has room for it.
//! Load is uneven and moving (or swapping) it makes the sum of squared loads smaller by more than
//! the proximity it would lose. Or everything is as even as it can be and still one vCPU falls
//! behind, like the third of three equals on two CPUs: then it changes places with the one that is
//! most ahead.

use alloc::vec::Vec;
use core::cmp::Reverse;
use telemetry::MoveReason;
use units::{CpuId, Credits, Nanos, NodeId, Score, VcpuId, VmId};

use crate::event::Commands;
use crate::scheduler::Scheduler;

/// Moves for load in one look; more would act on loads that the first ones have changed.
const MOVES_PER_LOOK: usize = 4;

/// Load is counted in weight x this, so that small parts of small weights do not vanish.
const LOAD_ONE: u64 = 1 << 8;

impl Scheduler {
    pub(crate) fn balance(&mut self, now: Nanos, out: &mut Commands) {
        self.balanced_at = now;
        let tunables = self.tunables;
        for v in self.vcpus.values_mut() {
            v.advance(now, &tunables);
        }
        self.entitle();
        let vms: Vec<VmId> = self.vms.keys().copied().collect();
        for vm in vms {
            self.move_to_preferred(now, vm, out);
        }
        let mut moved = 0;
        while moved < MOVES_PER_LOOK && self.even_out(now, out) {
            moved += 1;
        }
        if moved == 0 {
            self.rotate(now, out);
        }
    }

    /// Clamps weights to what one CPU can give and derives each vCPU's share of the host.
    ///
    /// One vCPU cannot use more than one CPU: of weights 8 x 1 and 16 on two CPUs the large one
    /// gets one CPU, not two thirds of both. From the largest down: whoever would be entitled to more
    /// than a CPU gets exactly one, and the rest is shared among the others.
    fn entitle(&mut self) {
        let mut wanting: Vec<(Reverse<u32>, VcpuId)> = self
            .vcpus
            .iter()
            .filter(|(_, v)| v.wants && !v.paused)
            .map(|(id, v)| (Reverse(v.weight), *id))
            .collect();
        wanting.sort_unstable();
        let mut cpus = self.cpus.len() as u64;
        let mut rest: u64 = wanting.iter().map(|(w, _)| u64::from(w.0)).sum();
        let mut full = Vec::new();
        for (Reverse(weight), id) in &wanting {
            let weight = u64::from(*weight);
            if cpus == 0 || weight * cpus < rest {
                break;
            }
            full.push(*id);
            cpus -= 1;
            rest -= weight;
        }
        let fair = if cpus == 0 || rest == 0 {
            None
        } else {
            Some(rest.div_ceil(cpus))
        };
        for (Reverse(weight), id) in &wanting {
            let Some(v) = self.vcpus.get_mut(id) else {
                continue;
            };
            if full.contains(id) {
                v.entitled = Score::ONE;
                v.load_weight = fair.and_then(|f| u32::try_from(f).ok()).unwrap_or(v.weight);
            } else {
                v.entitled = Score::ratio(u128::from(*weight) * u128::from(cpus), u128::from(rest));
                v.load_weight = v.weight;
            }
        }
        self.level_accounts(&wanting);
    }

    /// What sleepers left over was taken by others and is no debt: accounts sum to 0.
    fn level_accounts(&mut self, wanting: &[(Reverse<u32>, VcpuId)]) {
        let n = i64::try_from(wanting.len()).unwrap_or(i64::MAX).max(1);
        let accounts = || wanting.iter().filter_map(|(_, id)| self.vcpus.get(id));
        let sum: i128 = accounts().map(|v| i128::from(v.account)).sum();
        let mean = i64::try_from(sum / i128::from(n)).unwrap_or(0);
        for (_, id) in wanting {
            if let Some(v) = self.vcpus.get_mut(id) {
                v.account = v.account.saturating_sub(mean);
            }
        }
    }

    fn load_of(&self, vcpu: VcpuId) -> u64 {
        self.vcpus
            .get(&vcpu)
            .map_or(0, |v| v.demand.of(u64::from(v.load_weight) * LOAD_ONE))
    }

    fn load_on(&self, cpu: CpuId) -> u64 {
        self.vcpus
            .iter()
            .filter(|(_, v)| v.cpu == cpu)
            .map(|(id, _)| self.load_of(*id))
            .sum()
    }

    fn node_of(&self, cpu: CpuId) -> Option<NodeId> {
        self.cpus.get(&cpu).map(|c| c.place.node)
    }

    /// Brings the vCPUs of a machine to its preferred node, each as soon as a CPU there is less
    /// wanted than the one it would leave.
    pub(crate) fn move_to_preferred(&mut self, now: Nanos, vm: VmId, out: &mut Commands) {
        let Some(node) = self.vms.get(&vm).and_then(|vm| vm.preferred) else {
            return;
        };
        let away: Vec<VcpuId> = self
            .vcpus
            .iter()
            .filter(|(id, v)| {
                id.vm == vm && v.move_to.is_none() && self.node_of(v.cpu) != Some(node)
            })
            .map(|(id, _)| *id)
            .collect();
        let mut sent: Vec<(CpuId, u64)> = Vec::new();
        for id in away {
            let Some(v) = self.vcpus.get(&id) else {
                continue;
            };
            let (from, demand) = (v.cpu, u64::from(v.demand.0));
            let coming = |cpu: CpuId| -> u64 {
                sent.iter()
                    .filter(|(to, _)| *to == cpu)
                    .map(|(_, d)| *d)
                    .sum()
            };
            let target = self
                .cpus
                .iter()
                .filter(|&(&cpu, c)| c.place.node == node && self.allowed(id, cpu))
                .map(|(&cpu, _)| (self.demand_on(cpu) + coming(cpu), cpu))
                .min();
            let Some((there, to)) = target else { continue };
            let here = self.demand_on(from).max(u64::from(Score::ONE.0));
            if there + demand > here {
                continue;
            }
            let score = |cpu| self.node_of(cpu).map_or(Score::ONE, |n| self.score(id, n));
            let reason = MoveReason::Preferred {
                from: score(from),
                to: score(to),
            };
            if self.vcpus.get(&id).is_some_and(|v| v.on_cpu.is_some()) {
                sent.push((to, demand));
            }
            self.send(now, id, to, reason, out);
        }
    }

    /// The best single move or swap for load; false if none is worth it.
    fn even_out(&mut self, now: Nanos, out: &mut Commands) -> bool {
        let loads: Vec<(CpuId, u64)> = self.cpus.keys().map(|c| (*c, self.load_on(*c))).collect();
        let mean = loads.iter().map(|(_, l)| l).sum::<u64>() / (loads.len() as u64).max(1);
        let mut best: Option<(i128, VcpuId, Option<VcpuId>, CpuId, CpuId)> = None;
        for &(from, a) in &loads {
            for &(to, b) in loads.iter().filter(|(to, _)| *to != from) {
                let limit = if self.node_of(from) == self.node_of(to) {
                    self.tunables.imbalance_inside
                } else {
                    self.tunables.imbalance_across
                };
                if a.saturating_sub(b) * 100 <= mean * u64::from(limit) {
                    continue;
                }
                for (gain, vcpu, back) in self.exchanges(now, from, to, a - b, mean) {
                    if gain > 0 && best.as_ref().is_none_or(|(g, ..)| gain > *g) {
                        best = Some((gain, vcpu, back, from, to));
                    }
                }
            }
        }
        let Some((_, vcpu, back, from, to)) = best else {
            return false;
        };
        let per_mille = |cpu: CpuId| {
            let load = loads.iter().find(|(c, _)| *c == cpu).map_or(0, |(_, l)| *l);
            u32::try_from(load * 1000 / mean.max(1)).unwrap_or(u32::MAX)
        };
        let (from_load, to_load) = (per_mille(from), per_mille(to));
        let reason = MoveReason::Balance { from_load, to_load };
        self.send(now, vcpu, to, reason, out);
        if let Some(back) = back {
            self.send(now, back, from, reason, out);
        }
        // A running vCPU goes later; until then loads look as before, so look again next time.
        self.vcpus.get(&vcpu).is_none_or(|v| v.move_to.is_none())
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
            self.vcpus
                .iter()
                .filter(|(id, v)| {
                    v.cpu == cpu
                        && v.runnable()
                        && v.move_to.is_none()
                        && (v.moved_at == Nanos::ZERO || now.since(v.moved_at) > quiet)
                        && self.allowed(**id, other)
                })
                .map(|(id, _)| *id)
                .collect()
        };
        let (here, there) = (movable(from, to), movable(to, from));
        // A CPU with one vCPU has nobody to give: its load is as even as it gets.
        if self.cpus.get(&from).is_none_or(|c| c.members().count() < 2) {
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

    /// Lets the vCPU that is most behind change places with the one that is most ahead, inside a
    /// node, where neither loses its memory.
    fn rotate(&mut self, now: Nanos, out: &mut Commands) {
        let mut best: Option<(i64, VcpuId, VcpuId)> = None;
        for (behind, b) in self.vcpus.iter().filter(|(_, v)| v.waiting()) {
            for (ahead, a) in &self.vcpus {
                let gap = b.account.saturating_sub(a.account);
                let fits = a.queued
                    && a.cpu != b.cpu
                    && a.spec.class == b.spec.class
                    && a.move_to.is_none()
                    && self.node_of(a.cpu) == self.node_of(b.cpu)
                    && self.allowed(*behind, a.cpu)
                    && self.allowed(*ahead, b.cpu)
                    && self.load_on(b.cpu) > self.load_on(a.cpu);
                if fits && best.is_none_or(|(g, ..)| gap > g) {
                    best = Some((gap, *behind, *ahead));
                }
            }
        }
        let Some((gap, behind, ahead)) = best else {
            return;
        };
        if gap <= Credits::for_time(self.tunables.fairness_gap).0 {
            return;
        }
        let cpus = (
            self.vcpus.get(&behind).map(|v| v.cpu),
            self.vcpus.get(&ahead).map(|v| v.cpu),
        );
        let (Some(from), Some(to)) = cpus else { return };
        let owed = self.vcpus.get(&behind).map_or(0, |v| v.account);
        let reason = MoveReason::Fairness {
            owed: Credits(owed),
        };
        self.send(now, behind, to, reason, out);
        self.send(now, ahead, from, reason, out);
    }
}
