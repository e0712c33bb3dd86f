//! Hardware threads of one core: shared between machines only if the operator says so.
//!
//! Threads share a first-level cache and buffers, through which one machine can read another's data
//! (L1TF, MDS). So while a thread of a core runs a vCPU of machine X, the others run vCPUs of X or
//! nothing ("core scheduling"; Linux has it since 5.14). X keeps the core for one request at most while
//! others wait: then its threads run dry, and the last to leave chooses anew, among the queues of all
//! threads, so that no thread's queue is left out because it never chooses. Whom it may not take, as he is bound to
//! another thread, it gives way to.

use alloc::vec::Vec;
use telemetry::{Class, MoveReason};
use units::{CpuId, Nanos, VcpuId, VmId};

use crate::event::Commands;
use crate::queue::Cpu;
use crate::scheduler::Scheduler;

/// A vCPU that waits: the less, the more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    class: Class,
    since: Nanos,
    vcpu: VcpuId,
}

impl Waiting {
    /// By a request at least, or it is of a higher class.
    fn has_waited_longer(self, other: Self, request: Nanos) -> bool {
        (self.class, self.since + request) < (other.class, other.since)
    }
}

impl Scheduler {
    /// The machine that has `cpu`'s core at this moment, if that forbids others.
    pub(crate) fn core_owner(&self, cpu: CpuId) -> Option<VmId> {
        if self.tunables.share_cores {
            return None;
        }
        self.running_sibling(cpu)
            .and_then(|s| Some(self.cpus.get(s)?.current?.vm))
    }

    /// Another thread of the core that runs something.
    pub(crate) fn running_sibling(&self, cpu: CpuId) -> Option<CpuId> {
        let siblings = &self.cpus.get(cpu)?.siblings;
        siblings
            .iter()
            .copied()
            .find(|s| self.cpus.get(*s).is_some_and(|c| c.current.is_some()))
    }

    /// Whether the CPU is one of several threads of a core.
    pub fn has_siblings(&self, cpu: CpuId) -> bool {
        self.cpus.get(cpu).is_some_and(|c| !c.siblings.is_empty())
    }

    /// Since when the core has been its owner's, if `cpu` starts to run now.
    pub(crate) fn core_since(&self, cpu: CpuId, now: Nanos) -> Nanos {
        self.running_sibling(cpu)
            .and_then(|s| self.cpus.get(s))
            .map_or(now, |c| c.core_since)
    }

    /// Whether the core's owner has had it long enough while another machine waits at one of its threads.
    pub(crate) fn core_is_due(&self, cpu: CpuId, now: Nanos) -> bool {
        let Some(owner) = self.core_owner(cpu) else {
            return false;
        };
        if now.since(self.core_since(cpu, now)) < self.tunables.request {
            return false;
        }
        let others_wait = |id: CpuId| {
            self.cpus.get(id).is_some_and(|c| {
                let waits = |v: VcpuId| {
                    v.vm != owner && self.vcpus.get(v).is_some_and(|v| v.on_cpu.is_none())
                };
                c.members().any(waits)
            })
        };
        let siblings = self.cpus.get(cpu).map_or(&[][..], |c| &c.siblings);
        others_wait(cpu) || siblings.iter().any(|s| others_wait(*s))
    }

    /// A thread that finds its core free takes the best of a sibling's queue if that has waited a
    /// request longer than its own best, or is of a higher class.
    pub(crate) fn balance_core(&mut self, cpu: CpuId, now: Nanos, out: &mut Commands) {
        if self.tunables.share_cores || self.running_sibling(cpu).is_some() {
            return;
        }
        let Some(c) = self.cpus.get(cpu) else { return };
        if c.siblings.is_empty() {
            return;
        }
        let own = self.best_waiting(cpu);
        let theirs = c
            .siblings
            .iter()
            .filter_map(|s| self.best_waiting(*s).map(|r| (r, *s)))
            .filter(|(theirs, _)| self.allowed(theirs.vcpu, cpu))
            .min();
        let Some((theirs, from)) = theirs else {
            return;
        };
        let Waiting { since, vcpu, .. } = theirs;
        if own.is_none_or(|own| theirs.has_waited_longer(own, self.tunables.request)) {
            self.transfer(now, vcpu, cpu, out);
            out.push(crate::Command::Migrate {
                vcpu,
                from,
                to: cpu,
                reason: MoveReason::IdlePull {
                    waited: now.since(since),
                },
            });
        }
    }

    /// Whether `cpu`, which finds its core free, leaves it to a sibling: the best of that one's queue may not come here, is
    /// of another machine than the best that is here, and has waited a request longer or is of a higher class.
    pub(crate) fn gives_way(&self, cpu: CpuId) -> bool {
        if self.tunables.share_cores || self.running_sibling(cpu).is_some() {
            return false;
        }
        let Some(c) = self.cpus.get(cpu).filter(|c| !c.siblings.is_empty()) else {
            return false;
        };
        let Some(own) = self.best_waiting(cpu) else {
            return false;
        };
        let theirs = c.siblings.iter().filter_map(|s| self.best_waiting(*s));
        let mut bound = theirs.filter(|t| t.vcpu.vm != own.vcpu.vm && !self.allowed(t.vcpu, cpu));
        bound.any(|theirs| theirs.has_waited_longer(own, self.tunables.request))
    }

    /// Whom this CPU could best enter.
    fn best_waiting(&self, at: CpuId) -> Option<Waiting> {
        let vcpu = self.best(at, None)?.vcpu;
        let v = self.vcpus.get(vcpu)?;
        Some(Waiting {
            class: v.spec.class,
            since: v.waiting_since,
            vcpu,
        })
    }

    /// `cpu` runs machine `vm`: idle threads of its core with vCPUs of that machine may come as well.
    pub(crate) fn invite_siblings(&mut self, cpu: CpuId, vm: VmId, out: &mut Commands) {
        self.kick_siblings(
            cpu,
            |c| c.current.is_none() && !c.kicked && c.members().any(|id| id.vm == vm),
            out,
        );
    }

    /// `cpu` has nothing to run: threads of its core that were kept idle may choose now.
    pub(crate) fn free_siblings(&mut self, cpu: CpuId, out: &mut Commands) {
        if self.running_sibling(cpu).is_some() {
            return;
        }
        self.kick_siblings(
            cpu,
            |c| c.current.is_none() && !c.kicked && !c.is_empty(),
            out,
        );
    }

    fn kick_siblings(&mut self, cpu: CpuId, which: impl Fn(&Cpu) -> bool, out: &mut Commands) {
        let siblings = self.cpus.get(cpu).map_or(&[][..], |c| &c.siblings);
        let chosen = siblings.iter().copied();
        let chosen = chosen.filter(|s| self.cpus.get(*s).is_some_and(&which));
        let chosen: Vec<CpuId> = chosen.collect();
        for sibling in chosen {
            self.kick(sibling, out);
        }
    }
}
