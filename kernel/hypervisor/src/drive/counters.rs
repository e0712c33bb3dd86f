//! What counters mean to policy: reads that correct a footprint, and waits that the scheduler weighs.
//!
//! Without counters nothing here does anything: no footprint is told of reads, and the scheduler is never told of penalties, which it
//! takes to mean that distance may matter to everybody.

use super::tell;
use crate::counters;
use crate::virt::Backend;
use crate::vm::{Hypervisor, Vcpu, Vm};
use alloc::vec::Vec;
use footprint::{DramReads, Footprint, Latencies};
use pmu::{Kind, Latency, Tally, stall};
use sched::Event;
use units::{Nanos, NodeId, Score};

/// What was counted since the last pass: of each virtual CPU, by the node where it ran.
#[derive(Debug)]
pub struct Counted(Vec<Vec<Tally>>);

/// Takes what was counted of a VM; `None` without counters.
pub fn take<B: Backend>(vm: &Vm<B>) -> Option<Counted> {
    counters::state().ok()?;
    let of = |vcpu: &Vcpu<B>| vcpu.counted.lock().take();
    Some(Counted(vm.vcpus.iter().map(of).collect()))
}

fn nodes() -> impl Iterator<Item = NodeId> {
    (0..=u16::MAX).map(NodeId)
}

impl Counted {
    /// Reads that reached memory, by the node of the CPU that made them; `None` where these are not counted.
    pub fn reads(&self) -> Option<DramReads> {
        let most = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let (mut reads, mut any) = (DramReads::new(most), false);
        for by_node in &self.0 {
            for (node, tally) in nodes().zip(by_node) {
                let of = |kind| tally.estimate(kind);
                if let (Some(near), Some(far)) = (of(Kind::LocalDram), of(Kind::RemoteDram)) {
                    reads.add(node, near, far);
                    any = true;
                }
            }
        }
        any.then_some(reads)
    }
}

/// Part of its time in which each virtual CPU of a VM waits for memory; halved each pass, plus half of the new.
#[derive(Debug, Default)]
pub struct Waits(Vec<Option<Score>>);

impl Waits {
    /// Of one virtual CPU, once that is known.
    pub fn of(&self, vcpu: u16) -> Option<Score> {
        self.0.get(usize::from(vcpu)).copied().flatten()
    }

    /// Takes in a pass, and tells the scheduler of each virtual CPU that was counted in it.
    pub fn pass<B: Backend>(
        &mut self,
        hv: &Hypervisor<B>,
        vm: &Vm<B>,
        counted: &Counted,
        footprint: &Footprint,
        latencies: &Latencies,
    ) {
        self.0.resize(vm.vcpus.len(), None);
        let bound = {
            let sched = hv.sched.lock();
            let tunables = sched.tunables();
            Nanos(tunables.quantum.0 / u64::from(tunables.bonus_divisor.max(1)))
        };
        let refill = refill(vm, footprint, latencies);
        for ((vcpu, by_node), known) in vm.vcpus.iter().zip(&counted.0).zip(&mut self.0) {
            let Some(now) = wait(by_node, footprint, latencies) else {
                continue;
            };
            let stall = match *known {
                Some(before) => Score((before.0 + now.0) / 2),
                None => now,
            };
            *known = Some(stall);
            // In proportion over the whole range of a penalty: who only waits gets all of it.
            let penalty = Nanos(stall.of(bound.0));
            tell(
                hv,
                Event::CachePenalty {
                    vcpu: vcpu.id,
                    stall,
                    penalty,
                    refill,
                },
            );
        }
    }
}

/// Part of a virtual CPU's time in which it waited for memory, over all nodes where it ran.
fn wait(by_node: &[Tally], footprint: &Footprint, latencies: &Latencies) -> Option<Score> {
    let (mut waited, mut ran) = (0u128, 0u128);
    for (node, tally) in nodes().zip(by_node) {
        let latency = latency(node, footprint, latencies);
        if let Some(share) = stall::share(tally, latency) {
            let time = u128::from(tally.enabled().0);
            waited += time * u128::from(share.0);
            ran += time;
        }
    }
    (ran > 0).then(|| Score::ratio(waited, ran << 16))
}

/// Latencies from a node: to its own memory, and to that of others as the footprint says how often each is touched from
/// there; before it says anything, to all alike.
fn latency(from: NodeId, footprint: &Footprint, latencies: &Latencies) -> Latency {
    let mean = |weight: &dyn Fn(NodeId) -> u64| {
        let others = nodes().take(latencies.nodes()).filter(|n| *n != from);
        let (sum, all) = others.fold((0u128, 0u128), |(sum, all), n| {
            let weight = u128::from(weight(n));
            let ns = u128::from(latencies.ns(from, n));
            (sum + weight * ns, all + weight)
        });
        sum.checked_div(all)
    };
    let remote = mean(&|n| footprint.matrix().get(from, n)).or_else(|| mean(&|_| 1));
    let local_ns = latencies.ns(from, from);
    Latency {
        local_ns,
        remote_ns: remote.map_or(local_ns, |ns| u32::try_from(ns).unwrap_or(u32::MAX)),
    }
}

/// Time that one virtual CPU takes to fill another last-level cache: with its part of what the VM touches, or as much as
/// fits.
fn refill<B: Backend>(vm: &Vm<B>, footprint: &Footprint, latencies: &Latencies) -> Nanos {
    let touched: u64 = footprint.touched().iter().sum();
    let own = touched / (vm.vcpus.len() as u64).max(1);
    let latency = Latency {
        local_ns: latencies.min(),
        remote_ns: latencies.max(),
    };
    stall::refill(own.min(counters::cache_bytes()), latency)
}
