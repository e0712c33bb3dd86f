//! How near a vCPU is to its memory, and the sum by which it is compared.

use telemetry::Terms;
use units::{CpuId, NodeId, Score, VcpuId};

use crate::queue::{Cpu, bonus_and_penalty, move_cost, terms};
use crate::scheduler::Scheduler;
use crate::vcpu::Vcpu;

impl Scheduler {
    /// How near `cpu` is to what `vcpu` touches. Before the first footprint, its home counts as
    /// near and everything else as half as near.
    pub(crate) fn score(&self, vcpu: VcpuId, node: NodeId) -> Score {
        let of_its_own = self.vcpus.get(vcpu).map(|v| &v.own.scores);
        let of_its_machine = self.vcpus.vm(vcpu.vm).map(|vm| &vm.scores);
        let scores = of_its_own.filter(|s| !s.is_empty()).or(of_its_machine);
        let known = scores.and_then(|scores| scores.get(node.index()));
        let home = || self.vcpus.get(vcpu).and_then(|v| v.spec.home);
        match known {
            Some(score) => *score,
            None if home().is_some_and(|home| home != node) => Score(Score::ONE.0 / 2),
            None => Score::ONE,
        }
    }

    /// Mean of [`Self::score`] over the nodes that have CPUs.
    fn mean_score(&self, vcpu: VcpuId) -> Score {
        let own = self.vcpus.get(vcpu).map(|v| &v.own);
        if let Some(own) = own.filter(|own| !own.scores.is_empty()) {
            return own.mean;
        }
        match self.vcpus.vm(vcpu.vm) {
            Some(vm) if !vm.scores.is_empty() => vm.mean,
            _ => {
                let home = self.vcpus.get(vcpu).and_then(|v| v.spec.home);
                let Some(home) = home else { return Score::ONE };
                let all = self.nodes.len() as u64;
                let near = u64::from(self.nodes.binary_search(&home).is_ok());
                let half = u64::from(Score::ONE.0 / 2);
                let sum = near * half + all * half;
                Score(u32::try_from(sum / all.max(1)).unwrap_or(Score::ONE.0))
            }
        }
    }

    /// The sum of `vcpu` on `cpu`.
    pub(crate) fn terms_on(&self, vcpu: VcpuId, cpu: CpuId) -> Option<Terms> {
        let (v, c) = (self.vcpus.get(vcpu)?, self.cpus.get(cpu)?);
        let (bonus, penalty) = self.bonus_on(vcpu, v, cpu, c);
        Some(terms(v, bonus, penalty))
    }

    /// What proximity and caches add to the deadline of `v` on `c`.
    pub(crate) fn bonus_on(&self, vcpu: VcpuId, v: &Vcpu, cpu: CpuId, c: &Cpu) -> (i64, i64) {
        let last = v
            .last_cpu
            .filter(|last| *last != cpu)
            .and_then(|l| Some((l, self.cpus.get(l)?.place)));
        let cost = move_cost(last, (cpu, c.place), v.refill, &self.tunables);
        let proximity = self.score(vcpu, c.place.node);
        bonus_and_penalty(v, proximity, self.mean_score(vcpu), cost, &self.tunables)
    }
}

/// Mean of the scores of these nodes; a node without one counts as near.
pub(crate) fn mean(scores: &[Score], nodes: &[NodeId]) -> Score {
    let sum: u64 = nodes
        .iter()
        .map(|n| u64::from(scores.get(n.index()).map_or(Score::ONE.0, |s| s.0)))
        .sum();
    let mean = sum / (nodes.len() as u64).max(1);
    Score(u32::try_from(mean).unwrap_or(Score::ONE.0))
}
