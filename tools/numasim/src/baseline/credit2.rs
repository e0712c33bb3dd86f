//! Xen's credit2 with soft affinity to the node of the memory, as `xl` sets it at start.
//!
//! Rules and constants from xen/common/sched/credit2.c: one queue for the CPUs of a node, in order of
//! credit; a vCPU burns a credit a nanosecond at the largest weight and proportionally more below; it begins
//! with 10 ms; when the next in the queue has none left everybody is reset; a slice lasts until the credit
//! falls below the next one's, at most 10 ms and at least 500 us; who comes from another queue's CPU must lead
//! by 500 us (migration resistance); queues are balanced by their load average over about a second, soft
//! affinity before hard: a vCPU is not pushed out of its soft affinity for balance unless its queue is
//! overloaded; an idle CPU inside the soft affinity is preferred at wake-up, any other idle one comes
//! second.
//!
//! Published of soft affinity (Xen 4.5 release notes and docs/misc on NUMA placement): vCPUs stay on their
//! node as long as it has room, and run elsewhere rather than wait.

use crate::baseline::kick;
use crate::policy::{Acts, Left, Next, Policy};
use crate::world::World;

const INIT: f64 = 10_000_000.0;
const MIN_TIMER: u64 = 500_000;
const MAX_TIMER: u64 = 10_000_000;
const RESIST: f64 = 500_000.0;
const WINDOW: f64 = 1e9;
const BALANCE: u64 = 30_000_000;

/// The scheduler.
#[derive(Debug, Default)]
pub struct Credit2 {
    /// One queue a node.
    queues: Vec<Vec<usize>>,
    load: Vec<f64>,
    looked: u64,
    current: Vec<Option<usize>>,
    credit: Vec<f64>,
    last: Vec<usize>,
    soft: Vec<usize>,
    max_weight: f64,
}

impl Credit2 {
    fn weight(w: &World, vcpu: usize) -> f64 {
        f64::from(w.vms[w.vcpus[vcpu].vm].weight)
    }

    fn insert(&mut self, node: usize, vcpu: usize) {
        let credit = self.credit[vcpu];
        let at = self.queues[node]
            .iter()
            .position(|v| self.credit[*v] < credit);
        let at = at.unwrap_or(self.queues[node].len());
        self.queues[node].insert(at, vcpu);
    }

    fn busy(&self, w: &World, node: usize) -> usize {
        let running = w.machine.node_cpus[node]
            .iter()
            .filter(|c| self.current[**c].is_some());
        running.count() + self.queues[node].len()
    }

    fn room(&self, w: &World, node: usize) -> bool {
        self.busy(w, node) < w.machine.node_cpus[node].len()
    }

    /// Somebody waits at `node`: an idle CPU, or the one with the smallest credit below the newcomer's.
    fn tickle(&mut self, w: &World, node: usize, vcpu: usize, acts: &mut Acts) {
        let cpus = &w.machine.node_cpus[node];
        let idle = |c: &usize| self.current[*c].is_none() && !acts.kicks.contains(c);
        let own = cpus
            .iter()
            .copied()
            .find(|c| *c == self.last[vcpu] && idle(c));
        if let Some(cpu) = own.or_else(|| cpus.iter().copied().find(idle)) {
            return kick(acts, cpu);
        }
        let least = cpus
            .iter()
            .filter_map(|c| Some((*c, self.credit[self.current[*c]?])))
            .min_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((cpu, credit)) = least
            && credit + RESIST < self.credit[vcpu]
        {
            kick(acts, cpu);
        }
    }

    fn reset(&mut self) {
        for credit in &mut self.credit {
            *credit = credit.clamp(-INIT, MIN_TIMER as f64) + INIT;
        }
    }

    /// From the queue with the highest load average to the one with the lowest, soft affinity first.
    fn balance(&mut self, w: &World, acts: &mut Acts) {
        let nodes: Vec<usize> = w.machine.cpu_nodes().collect();
        let per_cpu = |n: usize| self.load[n] / w.machine.node_cpus[n].len() as f64;
        let by = |a: &&usize, b: &&usize| per_cpu(**a).total_cmp(&per_cpu(**b)).then(a.cmp(b));
        let (Some(&most), Some(&least)) = (nodes.iter().max_by(by), nodes.iter().min_by(by)) else {
            return;
        };
        let gap = self.load[most] - self.load[least];
        let overloaded = per_cpu(most) > 1.0;
        let may = |v: &usize| self.soft[*v] == least || self.soft[*v] != most || overloaded;
        if gap > 1.0 && most != least {
            // Home comers first.
            let pick = |home: bool| {
                let mut of = self.queues[most].iter().copied();
                of.find(|v| may(v) && (!home || self.soft[*v] == least))
            };
            if let Some(vcpu) = pick(true).or_else(|| pick(false)) {
                self.queues[most].retain(|v| *v != vcpu);
                self.insert(least, vcpu);
                self.tickle(w, least, vcpu, acts);
            }
        }
    }
}

impl Policy for Credit2 {
    fn name(&self) -> &'static str {
        "credit2-soft"
    }

    fn start(&mut self, w: &World, _acts: &mut Acts) {
        self.queues = vec![Vec::new(); w.machine.nodes()];
        self.load = vec![0.0; w.machine.nodes()];
        self.current = vec![None; w.machine.cpus.len()];
        self.credit = vec![INIT; w.vcpus.len()];
        self.max_weight = w
            .vms
            .iter()
            .map(|vm| f64::from(vm.weight))
            .fold(1.0, f64::max);
        for v in &w.vcpus {
            let vm = &w.vms[v.vm];
            self.last.push(w.machine.node_cpus[vm.start][0]);
            // The node with CPUs that holds most of its memory.
            let held = |n: &usize| vm.pages.iter().filter(|p| p.node == *n).count();
            let node = w
                .machine
                .cpu_nodes()
                .max_by_key(|n| (held(n), core::cmp::Reverse(*n)));
            self.soft.push(node.unwrap_or(0));
        }
    }

    fn wake(&mut self, w: &World, vcpu: usize, acts: &mut Acts) {
        let before = w.node_of(self.last[vcpu]);
        let soft = self.soft[vcpu];
        let any = w.machine.cpu_nodes().find(|n| self.room(w, *n));
        let node = if self.room(w, soft) {
            soft
        } else if self.room(w, before) {
            before
        } else {
            any.unwrap_or(soft)
        };
        self.insert(node, vcpu);
        self.tickle(w, node, vcpu, acts);
    }

    fn left(&mut self, w: &World, cpu: usize, vcpu: usize, ran: u64, how: Left, _acts: &mut Acts) {
        self.current[cpu] = None;
        self.last[vcpu] = cpu;
        self.credit[vcpu] -= ran as f64 * self.max_weight / Self::weight(w, vcpu);
        match how {
            Left::Slept => {}
            Left::Preempted => self.insert(w.node_of(cpu), vcpu),
            // A yield gives up the lead: behind the next one.
            Left::Spun => {
                let node = w.node_of(cpu);
                self.insert(node, vcpu);
                if self.queues[node].first() == Some(&vcpu) && self.queues[node].len() > 1 {
                    self.queues[node].swap(0, 1);
                }
            }
        }
    }

    fn pick(&mut self, w: &World, cpu: usize, _acts: &mut Acts) -> Next {
        let node = w.node_of(cpu);
        // Who ran on another CPU of the queue must lead by the resistance.
        let rank = |v: &usize| self.credit[*v] - if self.last[*v] == cpu { 0.0 } else { RESIST };
        let best = self.queues[node]
            .iter()
            .copied()
            .max_by(|a, b| rank(a).total_cmp(&rank(b)).then(b.cmp(a)));
        // An idle CPU takes from an overloaded queue of another node (balance on the idle path).
        let stolen = || {
            let over = |n: &usize| self.queues[*n].len();
            let from = w
                .machine
                .cpu_nodes()
                .filter(|n| *n != node)
                .max_by_key(over)?;
            let vcpu = self.queues[from].last().copied()?;
            Some((from, vcpu))
        };
        let (from, vcpu) = match best.map(|v| (node, v)).or_else(stolen) {
            Some(found) => found,
            None => return Next::Idle(None),
        };
        self.queues[from].retain(|v| *v != vcpu);
        if self.credit[vcpu] <= 0.0 {
            self.reset();
        }
        self.current[cpu] = Some(vcpu);
        let lead = match self.queues[node].first() {
            Some(next) => {
                (self.credit[vcpu] - self.credit[*next]) * Self::weight(w, vcpu) / self.max_weight
            }
            None => self.credit[vcpu],
        };
        Next::Run(vcpu, (lead.max(0.0) as u64).clamp(MIN_TIMER, MAX_TIMER))
    }

    fn tick(&mut self, w: &World, acts: &mut Acts) -> u64 {
        let part = ((w.now - self.looked) as f64 / WINDOW).min(1.0);
        self.looked = w.now;
        for node in 0..self.load.len() {
            let now = self.busy(w, node) as f64;
            self.load[node] += part * (now - self.load[node]);
        }
        self.balance(w, acts);
        if self.queues.iter().any(|q| !q.is_empty()) {
            let idle = (0..self.current.len()).filter(|c| self.current[*c].is_none());
            idle.for_each(|c| kick(acts, c));
        }
        w.now + BALANCE
    }
}
