//! A fair scheduler that knows no nodes.
//!
//! Rules, those of Linux' CFS on one flat domain (Documentation/scheduler/sched-design-CFS.rst):
//! each CPU runs the smallest virtual run time of its queue, weighted; a slice is a latency of 24 ms over
//! the queue, 3 ms at least (`sysctl_sched_latency` and `sched_min_granularity` on 8 CPUs and more); a
//! sleeper wakes at most half a latency behind the queue; it wakes on the CPU of before if that idles,
//! else on any idle one, else where it was; a CPU without work takes from the longest queue, wherever.
//! Memory stays where it is.
//!
//! Published of it: without knowledge of nodes a thread that sleeps and wakes is found on any of n nodes, so
//! that of its accesses (n-1)/n are remote (vProbe, Wu et al. 2014, measured more than 80 % under Xen's
//! credit scheduler on 4 and 8 nodes).

use crate::baseline::kick;
use crate::policy::{Acts, Left, Next, Policy};
use crate::rng::Rng;
use crate::world::World;

const LATENCY: u64 = 24_000_000;
const MIN_SLICE: u64 = 3_000_000;
const WAKE_MARGIN: f64 = 1_000_000.0;

/// One CPU's queue: waiting vCPUs, and the virtual time of the queue.
#[derive(Clone, Debug, Default)]
struct Queue {
    waiting: Vec<usize>,
    floor: f64,
}

/// How far a search for an idle CPU or for work goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The whole host at once.
    Flat,
    /// First the same last-level cache, then the node; other nodes only for a queue that is too long.
    Domains,
}

/// The scheduler; also the base of [`crate::baseline::linux`].
#[derive(Debug)]
pub struct Blind {
    queues: Vec<Queue>,
    pub(crate) current: Vec<Option<usize>>,
    vtime: Vec<f64>,
    since: Vec<u64>,
    pub(crate) home: Vec<usize>,
    pub(crate) reach: Reach,
    rng: Rng,
}

impl Default for Blind {
    fn default() -> Self {
        Self::new(Reach::Flat)
    }
}

impl Blind {
    pub(crate) const fn new(reach: Reach) -> Self {
        Self {
            queues: Vec::new(),
            current: Vec::new(),
            vtime: Vec::new(),
            since: Vec::new(),
            home: Vec::new(),
            reach,
            rng: Rng(7),
        }
    }

    fn load(&self, cpu: usize) -> usize {
        self.queues[cpu].waiting.len() + usize::from(self.current[cpu].is_some())
    }

    fn free(&self, cpu: usize) -> bool {
        self.load(cpu) == 0
    }

    /// An idle CPU of this list, from a random one on: which one is found first is chance.
    fn idle_in(&mut self, cpus: &[usize]) -> Option<usize> {
        let from = self.rng.below(cpus.len());
        (0..cpus.len())
            .map(|i| cpus[(from + i) % cpus.len()])
            .find(|c| self.free(*c))
    }

    fn place(&mut self, w: &World, vcpu: usize) -> usize {
        let before = self.home[vcpu];
        if self.free(before) {
            return before;
        }
        let all: Vec<usize> = match self.reach {
            Reach::Flat => (0..w.machine.cpus.len()).collect(),
            Reach::Domains => {
                let llc = w.machine.cpus[before].llc;
                let same = |c: &usize| w.machine.cpus[*c].llc == llc;
                let node = &w.machine.node_cpus[w.node_of(before)];
                node.iter().copied().filter(same).collect()
            }
        };
        self.idle_in(&all).unwrap_or(before)
    }

    pub(crate) fn enqueue(&mut self, cpu: usize, vcpu: usize, sleeper: bool) {
        let q = &mut self.queues[cpu];
        let least = q.floor - if sleeper { LATENCY as f64 / 2.0 } else { 0.0 };
        self.vtime[vcpu] = self.vtime[vcpu].max(least);
        self.home[vcpu] = cpu;
        q.waiting.push(vcpu);
    }

    /// Takes a waiting vCPU along with its lag to another queue.
    pub(crate) fn take(&mut self, from: usize, vcpu: usize, to: usize) {
        self.queues[from].waiting.retain(|v| *v != vcpu);
        self.vtime[vcpu] += self.queues[to].floor - self.queues[from].floor;
        self.enqueue(to, vcpu, false);
    }

    fn steal(&mut self, w: &World, cpu: usize) -> bool {
        let m = &w.machine;
        let waiting = |c: usize| self.queues[c].waiting.len();
        let longest = |cpus: &mut dyn Iterator<Item = usize>| {
            cpus.filter(|c| waiting(*c) > 0)
                .max_by_key(|c| (waiting(*c), *c))
        };
        let from = match self.reach {
            Reach::Flat => longest(&mut (0..m.cpus.len())),
            Reach::Domains => {
                let node = &m.node_cpus[m.cpus[cpu].node];
                longest(&mut node.iter().copied()).or_else(|| longest(&mut (0..m.cpus.len())))
            }
        };
        let Some(from) = from else { return false };
        let vcpu = self.queues[from]
            .waiting
            .iter()
            .copied()
            .max_by(|a, b| self.vtime[*a].total_cmp(&self.vtime[*b]).then(a.cmp(b)));
        vcpu.is_some_and(|vcpu| {
            self.take(from, vcpu, cpu);
            true
        })
    }

    /// Once in 64 ms: one vCPU from the longest to the shortest queue if they differ by two.
    pub(crate) fn level(&mut self, w: &World, acts: &mut Acts) {
        let groups: Vec<Vec<usize>> = match self.reach {
            Reach::Flat => vec![(0..w.machine.cpus.len()).collect()],
            Reach::Domains => {
                let mut nodes = w.machine.node_cpus.clone();
                nodes.push((0..w.machine.cpus.len()).collect());
                nodes
            }
        };
        for group in groups {
            let by_load = |c: &&usize| (self.load(**c), **c);
            let (Some(&most), Some(&least)) = (
                group.iter().max_by_key(by_load),
                group.iter().min_by_key(by_load),
            ) else {
                continue;
            };
            if self.load(most) >= self.load(least) + 2
                && let Some(vcpu) = self.queues[most].waiting.first().copied()
            {
                self.take(most, vcpu, least);
                if self.current[least].is_none() {
                    kick(acts, least);
                }
            }
        }
    }
}

impl Policy for Blind {
    fn name(&self) -> &'static str {
        "no-numa"
    }

    fn start(&mut self, w: &World, _acts: &mut Acts) {
        self.queues = vec![Queue::default(); w.machine.cpus.len()];
        self.current = vec![None; w.machine.cpus.len()];
        self.since = vec![0; w.machine.cpus.len()];
        self.vtime = vec![0.0; w.vcpus.len()];
        let mut crowd = vec![0; w.machine.cpus.len()];
        self.home = (0..w.vcpus.len())
            .map(|v| {
                let cpus = &w.machine.node_cpus[w.vms[w.vcpus[v].vm].start];
                let cpu = *cpus.iter().min_by_key(|c| (crowd[**c], **c)).unwrap_or(&0);
                crowd[cpu] += 1;
                cpu
            })
            .collect();
    }

    fn wake(&mut self, w: &World, vcpu: usize, acts: &mut Acts) {
        let cpu = self.place(w, vcpu);
        self.enqueue(cpu, vcpu, true);
        match self.current[cpu] {
            None => kick(acts, cpu),
            Some(running) => {
                let weight = f64::from(w.vms[w.vcpus[running].vm].weight);
                let runs = (w.now - self.since[cpu]) as f64 * 256.0 / weight;
                if self.vtime[vcpu] + WAKE_MARGIN < self.vtime[running] + runs {
                    kick(acts, cpu);
                }
            }
        }
    }

    fn left(&mut self, w: &World, cpu: usize, vcpu: usize, ran: u64, how: Left, _acts: &mut Acts) {
        self.current[cpu] = None;
        let weight = f64::from(w.vms[w.vcpus[vcpu].vm].weight);
        self.vtime[vcpu] += ran as f64 * 256.0 / weight;
        match how {
            Left::Slept => {}
            Left::Preempted => self.enqueue(cpu, vcpu, false),
            // KVM's directed yield: behind everybody who waits here.
            Left::Spun => {
                let last = self.queues[cpu].waiting.iter().map(|v| self.vtime[*v]);
                let last = last.fold(self.vtime[vcpu], f64::max);
                self.vtime[vcpu] = self.vtime[vcpu].max(last + 1.0);
                self.enqueue(cpu, vcpu, false);
            }
        }
    }

    fn pick(&mut self, w: &World, cpu: usize, _acts: &mut Acts) -> Next {
        if self.queues[cpu].waiting.is_empty() {
            self.steal(w, cpu);
        }
        let q = &mut self.queues[cpu];
        let least = |a: &usize, b: &usize| self.vtime[*a].total_cmp(&self.vtime[*b]).then(a.cmp(b));
        let Some(vcpu) = q.waiting.iter().copied().min_by(least) else {
            return Next::Idle(None);
        };
        q.waiting.retain(|v| *v != vcpu);
        q.floor = q.floor.max(self.vtime[vcpu]);
        self.current[cpu] = Some(vcpu);
        self.since[cpu] = w.now;
        let others = q.waiting.len() as u64 + 1;
        Next::Run(vcpu, (LATENCY / others).max(MIN_SLICE))
    }

    fn tick(&mut self, w: &World, acts: &mut Acts) -> u64 {
        self.level(w, acts);
        // Somebody waits while a CPU idles: an idle CPU looks around at its tick (4 ms).
        for cpu in 0..w.machine.cpus.len() {
            if self.free(cpu) && self.queues.iter().any(|q| !q.waiting.is_empty()) {
                kick(acts, cpu);
            }
        }
        w.now + 4_000_000
    }
}
