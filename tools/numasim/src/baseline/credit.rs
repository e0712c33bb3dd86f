//! Xen's first credit scheduler.
//!
//! Rules and constants from xen/common/sched/credit.c: a slice of 30 ms and a tick every 10 ms; 10 credits
//! a millisecond; the vCPU that runs is debited at its tick and loses BOOST there; every 30 ms credits are
//! handed out by weight among those that were active, and who has none left is OVER, else UNDER;
//! who has more than a slice's worth is no longer active and keeps half; a queue is in order of priority,
//! first come first served inside; who wakes while UNDER is BOOSTed above both; a CPU whose next is
//! OVER or nobody looks for a better one on all others; a vCPU that wakes goes to an idle CPU if there is
//! one. No affinity: its NUMA support is an affinity that the operator sets.
//!
//! Published of it (Ongaro, Cox and Rixner, VEE 2008): a vCPU that mostly sleeps wakes in microseconds
//! beside CPU hogs, thanks to BOOST; one that computes as well loses it and waits for slices.

use crate::baseline::{idle_cpus, kick};
use crate::policy::{Acts, Left, Next, Policy};
use crate::world::World;

const SLICE: u64 = 30_000_000;
const TICK: u64 = 10_000_000;
const PER_MS: f64 = 10.0;
const PER_SLICE: f64 = 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Priority {
    Over,
    Under,
    Boost,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    credit: f64,
    priority: Priority,
    active: bool,
    cpu: usize,
    /// Paid up to here of the present slice.
    paid: u64,
}

/// The scheduler.
#[derive(Debug, Default)]
pub struct Credit {
    queues: Vec<Vec<usize>>,
    current: Vec<Option<usize>>,
    accounts: Vec<Account>,
    ticks: u64,
    rotor: usize,
}

impl Credit {
    fn insert(&mut self, cpu: usize, vcpu: usize) {
        let mine = self.accounts[vcpu].priority;
        let at = self.queues[cpu]
            .iter()
            .position(|v| self.accounts[*v].priority < mine);
        self.accounts[vcpu].cpu = cpu;
        let at = at.unwrap_or(self.queues[cpu].len());
        self.queues[cpu].insert(at, vcpu);
    }

    fn burn(&mut self, vcpu: usize, ns: u64) {
        self.accounts[vcpu].credit -= ns as f64 / 1e6 * PER_MS;
    }

    /// The best waiting vCPU of other CPUs above a priority, the local node's first.
    fn steal(&mut self, w: &World, cpu: usize, above: Option<Priority>) -> Option<usize> {
        let node = w.node_of(cpu);
        let mut peers: Vec<usize> = (0..self.queues.len()).filter(|c| *c != cpu).collect();
        peers.sort_by_key(|c| (w.node_of(*c) != node, *c));
        for peer in peers {
            if let Some(first) = self.queues[peer].first().copied()
                && above.is_none_or(|p| self.accounts[first].priority > p)
            {
                self.queues[peer].remove(0);
                return Some(first);
            }
        }
        None
    }

    /// Every 30 ms.
    fn hand_out(&mut self, w: &World) {
        let weight = |v: usize| f64::from(w.vms[w.vcpus[v].vm].weight);
        let active: Vec<usize> = (0..self.accounts.len())
            .filter(|v| self.accounts[*v].active)
            .collect();
        let whole: f64 = active.iter().map(|v| weight(*v)).sum();
        let pot = PER_SLICE * self.queues.len() as f64;
        for v in active {
            let fair = (pot * weight(v) / whole.max(1.0)).min(PER_SLICE);
            let a = &mut self.accounts[v];
            a.credit += fair;
            if a.credit < 0.0 {
                a.priority = Priority::Over;
                a.credit = a.credit.max(-PER_SLICE);
            } else {
                if a.priority == Priority::Over {
                    a.priority = Priority::Under;
                }
                if a.credit > PER_SLICE {
                    a.active = false;
                    a.credit /= 2.0;
                }
            }
        }
        for queue in &mut self.queues {
            queue.sort_by_key(|v| core::cmp::Reverse(self.accounts[*v].priority));
        }
    }
}

impl Policy for Credit {
    fn name(&self) -> &'static str {
        "credit"
    }

    fn start(&mut self, w: &World, _acts: &mut Acts) {
        self.queues = vec![Vec::new(); w.machine.cpus.len()];
        self.current = vec![None; w.machine.cpus.len()];
        let mut used = vec![0; w.machine.nodes()];
        for v in &w.vcpus {
            let start = w.vms[v.vm].start;
            let cpus = &w.machine.node_cpus[start];
            let cpu = cpus[used[start] % cpus.len()];
            used[start] += 1;
            self.accounts.push(Account {
                credit: 0.0,
                priority: Priority::Under,
                active: false,
                cpu,
                paid: 0,
            });
        }
    }

    fn wake(&mut self, w: &World, vcpu: usize, acts: &mut Acts) {
        if self.accounts[vcpu].priority == Priority::Under {
            self.accounts[vcpu].priority = Priority::Boost;
        }
        let own = self.accounts[vcpu].cpu;
        let taken = |c: usize| !self.queues[c].is_empty();
        let idle: Vec<usize> = idle_cpus(w, &self.current).filter(|c| !taken(*c)).collect();
        let cpu = if idle.contains(&own) || idle.is_empty() {
            own
        } else {
            // One idler, in turn (`tickle_one_idle`).
            self.rotor += 1;
            idle[self.rotor % idle.len()]
        };
        self.insert(cpu, vcpu);
        match self.current[cpu] {
            None => kick(acts, cpu),
            Some(running) if self.accounts[vcpu].priority > self.accounts[running].priority => {
                kick(acts, cpu);
            }
            Some(_) => {}
        }
    }

    fn left(&mut self, _w: &World, cpu: usize, vcpu: usize, ran: u64, how: Left, _acts: &mut Acts) {
        self.current[cpu] = None;
        let due = ran - self.accounts[vcpu].paid.min(ran);
        self.burn(vcpu, due);
        match how {
            Left::Slept => {}
            Left::Preempted => self.insert(cpu, vcpu),
            // Behind one of lower priority, which at the queue's end means last.
            Left::Spun => {
                self.accounts[vcpu].cpu = cpu;
                self.queues[cpu].push(vcpu);
            }
        }
    }

    fn pick(&mut self, w: &World, cpu: usize, _acts: &mut Acts) -> Next {
        let first = self.queues[cpu].first().copied();
        let best = first.map(|v| self.accounts[v].priority);
        let stolen = if best.is_none_or(|p| p == Priority::Over) {
            self.steal(w, cpu, best)
        } else {
            None
        };
        let vcpu = match stolen {
            Some(vcpu) => vcpu,
            None if first.is_some() => self.queues[cpu].remove(0),
            None => return Next::Idle(None),
        };
        self.current[cpu] = Some(vcpu);
        let a = &mut self.accounts[vcpu];
        (a.cpu, a.paid) = (cpu, 0);
        Next::Run(vcpu, SLICE)
    }

    fn tick(&mut self, w: &World, acts: &mut Acts) -> u64 {
        self.ticks += 1;
        for cpu in 0..self.current.len() {
            let Some(vcpu) = self.current[cpu] else {
                if self.queues.iter().any(|q| !q.is_empty()) {
                    kick(acts, cpu);
                }
                continue;
            };
            let a = &mut self.accounts[vcpu];
            a.active = true;
            if a.priority == Priority::Boost {
                a.priority = Priority::Under;
            }
            a.paid += TICK;
            self.burn(vcpu, TICK);
        }
        if self.ticks.is_multiple_of(3) {
            self.hand_out(w);
        }
        for cpu in 0..self.current.len() {
            let waits = self.queues[cpu].first().map(|v| self.accounts[*v].priority);
            if let (Some(vcpu), Some(waits)) = (self.current[cpu], waits)
                && waits > self.accounts[vcpu].priority
            {
                kick(acts, cpu);
            }
        }
        w.now + TICK
    }
}
