//! A new division of a node's vCPUs where moves and exchanges of two lead no further.
//!
//! Evening out by single moves and exchanges ([`crate::even`]) ends where none of them helps, and that need not be where load
//! is even: of twelve vCPUs with weights 1:2:4 on four CPUs, 4+4, 4+1+1+1, 4+2+1 and 2+2+2 is such an end, though 4+2+1 four times
//! is possible. Then the heavy ones get a tenth less than theirs for good, and changing places only changes who does. So
//! where load stays uneven the vCPUs that compute are divided anew, the heaviest first, each to the CPU with the least load (R.
//! Graham, 1969), and if that is much more even, each goes to where it belongs. It is tried once a second.

use alloc::vec::Vec;
use core::cmp::Reverse;
use telemetry::MoveReason;
use units::{CpuId, Nanos, NodeId, Score, VcpuId};

use crate::event::Commands;
use crate::scheduler::Scheduler;

/// Time between two divisions.
pub(crate) const PERIOD: Nanos = Nanos::from_secs(1);
/// CPUs from each end of the order by load that are divided among.
const ENDS: usize = 8;
/// A vCPU that uses this part of a CPU where it gets it computes; others stay where they are.
const COMPUTES: Score = Score::from_per_mille(900);

/// A CPU and what is put on it.
struct Bin {
    cpu: CpuId,
    load: u64,
    held: Vec<VcpuId>,
}

impl Scheduler {
    /// Divides a node's vCPUs anew if that is much more even; false if not.
    pub(crate) fn repack(&mut self, now: Nanos, node: NodeId, out: &mut Commands) -> bool {
        let mut cpus: Vec<(u64, CpuId)> = self
            .node_cpus
            .get(&node)
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|cpu| (self.load_on(*cpu), *cpu))
            .collect();
        if cpus.len() < 2 || cpus.iter().any(|(_, cpu)| self.has_siblings(*cpu)) {
            // Which vCPUs may share a core is another question.
            return false;
        }
        cpus.sort_unstable();
        if cpus.len() > 2 * ENDS {
            cpus.drain(ENDS..cpus.len() - ENDS);
        }
        let mean = cpus.iter().map(|(load, _)| load).sum::<u64>() / cpus.len() as u64;
        let spread = spread(cpus.iter().map(|(load, _)| *load));
        if spread * 100 <= mean * u64::from(self.tunables.imbalance_inside) {
            return false;
        }
        let (mut bins, mut items) = self.unpacked(&cpus);
        items.sort_unstable_by_key(|(load, id, _)| (Reverse(*load), *id));
        for (load, id, from) in items {
            // Of equals the one where it is.
            let least = bins.iter_mut().min_by_key(|b| (b.load, b.cpu != from));
            if let Some(bin) = least {
                bin.load += load;
                bin.held.push(id);
            }
        }
        if self::spread(bins.iter().map(|b| b.load)) * 2 > spread {
            return false;
        }
        let per_mille = |load: u64| u32::try_from(load * 1000 / mean.max(1)).unwrap_or(u32::MAX);
        for (id, to, load) in self.homes(bins) {
            let Some(from) = self.vcpus.get(id).map(|v| v.cpu) else {
                continue;
            };
            let reason = MoveReason::Balance {
                from_load: per_mille(self.load_on(from)),
                to_load: per_mille(load),
            };
            self.send(now, id, to, reason, out);
        }
        true
    }

    /// The CPUs with what must stay on them, and what may be divided: its load, and where it is.
    fn unpacked(&self, cpus: &[(u64, CpuId)]) -> (Vec<Bin>, Vec<(u64, VcpuId, CpuId)>) {
        let (mut bins, mut items) = (Vec::new(), Vec::new());
        for &(_, cpu) in cpus {
            let mut bin = Bin {
                cpu,
                load: 0,
                held: Vec::new(),
            };
            let residents = self.cpus.get(cpu).map_or(&[][..], |c| &c.residents);
            for &id in residents {
                let computes = self
                    .vcpus
                    .get(id)
                    .is_some_and(|v| v.runnable() && v.move_to.is_none() && v.demand >= COMPUTES);
                if computes && cpus.iter().all(|(_, other)| self.allowed(id, *other)) {
                    items.push((self.load_of(id), id, cpu));
                } else {
                    bin.load += self.load_of(id);
                }
            }
            bins.push(bin);
        }
        (bins, items)
    }

    /// Whom of the division where it should go. What a CPU has of its own is its bin's; of bins that had nothing else on
    /// them, each goes to the CPU that already has most of it.
    fn homes(&self, bins: Vec<Bin>) -> Vec<(VcpuId, CpuId, u64)> {
        let fixed = |b: &Bin| b.held.iter().map(|id| self.load_of(*id)).sum::<u64>() != b.load;
        let (bound, mut free): (Vec<Bin>, Vec<Bin>) = bins.into_iter().partition(fixed);
        let mut cpus: Vec<CpuId> = free.iter().map(|b| b.cpu).collect();
        let at = |id: VcpuId| self.vcpus.get(id).map(|v| v.cpu);
        free.sort_by_key(|b| Reverse(b.load));
        let mut homes: Vec<Bin> = bound;
        for mut bin in free {
            let has = |cpu: &CpuId| -> u64 {
                let there = bin.held.iter().filter(|id| at(**id) == Some(*cpu));
                there.map(|id| self.load_of(*id)).sum()
            };
            let best = (0..cpus.len()).max_by_key(|i| cpus.get(*i).map(has));
            if let Some(i) = best {
                bin.cpu = cpus.swap_remove(i);
            }
            homes.push(bin);
        }
        let moves = homes.iter().flat_map(|bin| {
            let away = bin.held.iter().filter(|id| at(**id) != Some(bin.cpu));
            away.map(|id| (*id, bin.cpu, bin.load))
        });
        moves.collect()
    }
}

fn spread(loads: impl Iterator<Item = u64> + Clone) -> u64 {
    let (least, most) = (loads.clone().min(), loads.max());
    most.unwrap_or(0) - least.unwrap_or(0)
}
