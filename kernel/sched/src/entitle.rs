//! What each vCPU is entitled to on the whole machine: the operator's credits.
//!
//! One vCPU cannot use more than one CPU: of weights 8 x 1 and 16 on two CPUs the large one
//! gets one CPU, not two thirds of both. From the largest down: whoever would be entitled to more
//! than a CPU gets exactly one, and the rest is shared among the others. Who that is depends on weights alone, so they are
//! counted first, and then each vCPU's share follows from its own; both a machine at a time ([`crate::round`]).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use units::{Nanos, Score, VcpuId, VmId};

use crate::scheduler::Scheduler;

/// How the host's CPUs are shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    /// How many vCPUs that want to run have which weight.
    weights: BTreeMap<u32, u64>,
    /// Those of this weight or more have a CPU each.
    full_from: Option<u32>,
    /// The CPUs that are left for the others, and the sum of their weights.
    cpus: u64,
    rest: u64,
    /// Sum of accounts and number of those who want to run.
    accounts: (i128, i64),
}

impl Shares {
    /// All weights are counted: who has a CPU, and what is left?
    pub(crate) fn divide(&mut self, cpus: usize) {
        self.cpus = cpus as u64;
        let weight_of = |(weight, count): (&u32, &u64)| u64::from(*weight) * count;
        self.rest = self.weights.iter().map(weight_of).sum();
        for (weight, count) in self.weights.iter().rev() {
            if self.cpus == 0 || u64::from(*weight) * self.cpus < self.rest {
                break;
            }
            // Who is counted here leaves the same to judge the next of his weight by.
            self.full_from = Some(*weight);
            self.cpus = self.cpus.saturating_sub(*count);
            self.rest = self.rest.saturating_sub(u64::from(*weight) * count);
        }
    }

    /// What a vCPU of this weight is entitled to, and what it weighs as load.
    fn of(&self, weight: u32) -> (Score, u32) {
        if self.full_from.is_some_and(|full| weight >= full) {
            let fair = match (self.cpus, self.rest) {
                (0, _) | (_, 0) => None,
                (cpus, rest) => u32::try_from(rest.div_ceil(cpus)).ok(),
            };
            return (Score::ONE, fair.unwrap_or(weight));
        }
        let part = u128::from(weight) * u128::from(self.cpus);
        (Score::ratio(part, u128::from(self.rest)), weight)
    }

    /// What is too much on each account.
    fn surplus(&self) -> i64 {
        let (sum, count) = self.accounts;
        i64::try_from(sum / i128::from(count.max(1))).unwrap_or(0)
    }
}

impl Scheduler {
    /// Brings a machine's vCPUs up to date and counts their weights.
    pub(crate) fn count_weights(&mut self, now: Nanos, vm: VmId, shares: &mut Shares) {
        let tunables = self.tunables;
        for v in self.vcpus.of_mut(vm) {
            v.advance(now, &tunables);
            if v.wants && !v.paused {
                *shares.weights.entry(v.weight).or_default() += 1;
            }
        }
    }

    /// Gives a machine's vCPUs their shares of the host.
    pub(crate) fn entitle(&mut self, vm: VmId, shares: &mut Shares) {
        for v in self.vcpus.of_mut(vm).filter(|v| v.wants && !v.paused) {
            (v.entitled, v.load_weight) = shares.of(v.weight);
            let (sum, count) = shares.accounts;
            shares.accounts = (sum + i128::from(v.account), count.saturating_add(1));
        }
        self.share_limit(vm);
    }

    /// How much of a CPU each vCPU of a limited machine can use at most: an equal part for each that wants to run.
    fn share_limit(&mut self, vm: VmId) {
        let purse = self.vcpus.vm(vm).and_then(|vm| vm.purse.as_ref());
        let Some(cap) = purse.map(|purse| u128::from(purse.cap().0)) else {
            return;
        };
        let wants = self.vcpus.of(vm).filter(|(_, v)| v.wants);
        let wants: Vec<VcpuId> = wants.map(|(id, _)| id).collect();
        let part = Score::ratio(cap, 1000 * wants.len().max(1) as u128).min(Score::ONE);
        for id in wants {
            if let Some(v) = self.vcpus.get_mut(id) {
                v.most = part;
            }
        }
    }

    /// What sleepers left over was taken by others and is no debt: accounts sum to 0.
    pub(crate) fn level_accounts(&mut self, vm: VmId, shares: &Shares) {
        let surplus = shares.surplus();
        for v in self.vcpus.of_mut(vm).filter(|v| v.wants && !v.paused) {
            v.account = v.account.saturating_sub(surplus);
        }
    }
}
