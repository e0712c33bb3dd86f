//! What each vCPU is entitled to on the whole machine: the operator's credits.

use alloc::vec::Vec;
use core::cmp::Reverse;
use units::{Score, VcpuId};

use crate::scheduler::Scheduler;

impl Scheduler {
    /// Clamps weights to what one CPU can give and derives each vCPU's share of the host.
    ///
    /// One vCPU cannot use more than one CPU: of weights 8 x 1 and 16 on two CPUs the large one
    /// gets one CPU, not two thirds of both. From the largest down: whoever would be entitled to more
    /// than a CPU gets exactly one, and the rest is shared among the others.
    pub(crate) fn entitle(&mut self) {
        let mut wanting: Vec<(Reverse<u32>, VcpuId)> = self
            .vcpus
            .iter()
            .filter(|(_, v)| v.wants && !v.paused)
            .map(|(id, v)| (Reverse(v.weight), id))
            .collect();
        wanting.sort_unstable();
        let mut cpus = self.cpus.len() as u64;
        let mut rest: u64 = wanting.iter().map(|(w, _)| u64::from(w.0)).sum();
        let mut full = 0;
        for (Reverse(weight), _) in &wanting {
            let weight = u64::from(*weight);
            if cpus == 0 || weight * cpus < rest {
                break;
            }
            full += 1;
            cpus -= 1;
            rest -= weight;
        }
        let fair = if cpus == 0 || rest == 0 {
            None
        } else {
            Some(rest.div_ceil(cpus))
        };
        for (i, (Reverse(weight), id)) in wanting.iter().enumerate() {
            let Some(v) = self.vcpus.get_mut(*id) else {
                continue;
            };
            if i < full {
                v.entitled = Score::ONE;
                v.load_weight = fair.and_then(|f| u32::try_from(f).ok()).unwrap_or(v.weight);
            } else {
                v.entitled = Score::ratio(u128::from(*weight) * u128::from(cpus), u128::from(rest));
                v.load_weight = v.weight;
            }
        }
        self.level_accounts(&wanting);
        self.share_limits();
    }

    /// How much of a CPU each vCPU of a limited machine can use at most: an equal part for each that wants to run.
    fn share_limits(&mut self) {
        let limited = self.vcpus.vms().filter_map(|(id, vm)| {
            let cap = u128::from(vm.purse.as_ref()?.cap().0);
            let wants = self.vcpus.of(id).filter(|(_, v)| v.wants);
            let wants: Vec<VcpuId> = wants.map(|(id, _)| id).collect();
            Some((cap, wants))
        });
        let limited: Vec<(u128, Vec<VcpuId>)> = limited.collect();
        for (cap, wants) in limited {
            let part = Score::ratio(cap, 1000 * wants.len().max(1) as u128).min(Score::ONE);
            for id in wants {
                if let Some(v) = self.vcpus.get_mut(id) {
                    v.most = part;
                }
            }
        }
    }

    /// What sleepers left over was taken by others and is no debt: accounts sum to 0.
    fn level_accounts(&mut self, wanting: &[(Reverse<u32>, VcpuId)]) {
        let n = i64::try_from(wanting.len()).unwrap_or(i64::MAX).max(1);
        let accounts = || wanting.iter().filter_map(|(_, id)| self.vcpus.get(*id));
        let sum: i128 = accounts().map(|v| i128::from(v.account)).sum();
        let mean = i64::try_from(sum / i128::from(n)).unwrap_or(0);
        for (_, id) in wanting {
            if let Some(v) = self.vcpus.get_mut(*id) {
                v.account = v.account.saturating_sub(mean);
            }
        }
    }
}
