//! Linux' automatic NUMA balancing over its fair scheduler, as a KVM host has it.
//!
//! Rules and constants from kernel/sched/fair.c: every scan period (1 s at first, 1 to 60 s) the next 256 MiB of
//! an address space lose their mapping, and the next touch faults and tells who touched where; a fault
//! migrates the page to the toucher's node if the page's last fault came from that node too (the
//! two-stage filter of `should_numa_migrate_memory`), or if the balance of the group's faults asks for it
//! (3/4 of the ratio of the nodes); faults halve with each pass; the node with most faults becomes
//! preferred, and the task goes there to an idle CPU, or swaps with one that gains by it too; the scan period
//! doubles when 7 of 10 faults are local and shortens otherwise. The scheduler below searches caches and nodes
//! before the rest of the host ([`Reach::Domains`]).
//!
//! Published of it (Gorman's mm-numa series and numa(7) documentation): a process on one node with memory on
//! another ends with both together, and a page touched once from elsewhere stays.

use crate::baseline::blind::{Blind, Reach};
use crate::policy::{Acts, Left, Next, Policy};
use crate::rng::Rng;
use crate::workload::Owner;
use crate::world::World;

const SCAN_PAGES: usize = 128;
const PERIOD_MIN: u64 = 1_000_000_000;
const PERIOD_MAX: u64 = 60_000_000_000;
const FAULT: f64 = 2_000.0;
const LOOK: u64 = 4_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Hint {
    armed: bool,
    last: Option<(usize, usize)>,
}

#[derive(Clone, Debug)]
struct Space {
    hints: Vec<Hint>,
    cursor: usize,
    period: u64,
    next_scan: u64,
    passes: u32,
    /// Faults by vCPU and memory node, decayed, and of the present pass.
    faults: Vec<Vec<f64>>,
    fresh: Vec<Vec<f64>>,
    local: f64,
    remote: f64,
    preferred: Vec<Option<usize>>,
}

/// Scheduler and balancing.
#[derive(Debug)]
pub struct Linux {
    base: Blind,
    spaces: Vec<Space>,
    rng: Rng,
}

impl Default for Linux {
    fn default() -> Self {
        Self {
            base: Blind::new(Reach::Domains),
            spaces: Vec::new(),
            rng: Rng(11),
        }
    }
}

impl Linux {
    /// Who touches a page next: its owner, or any vCPU that runs.
    fn toucher(&mut self, w: &World, vm: usize, owner: Owner) -> Option<(usize, usize)> {
        let v = &w.vms[vm];
        let index = match owner {
            Owner::Vcpu(index) => index,
            Owner::Shared => self.rng.below(v.vcpus.len()),
        };
        let cpu = w.vcpus[v.vcpus[index]].on?;
        Some((index, w.node_of(cpu)))
    }

    fn touch(&mut self, w: &World, vm: usize, acts: &mut Acts) {
        for page in 0..w.vms[vm].pages.len() {
            if !self.spaces[vm].hints[page].armed {
                continue;
            }
            let p = w.vms[vm].pages[page];
            // A rarely used page is not touched in every look.
            if self.rng.unit() > (p.weight * 100.0).min(1.0) {
                continue;
            }
            let Some((index, node)) = self.toucher(w, vm, p.owner) else {
                continue;
            };
            let space = &mut self.spaces[vm];
            let last = space.hints[page].last.replace((index, node));
            space.hints[page].armed = false;
            space.fresh[index][p.node] += 1.0;
            acts.charges.push((w.vms[vm].vcpus[index], FAULT));
            if p.node == node {
                space.local += 1.0;
                continue;
            }
            space.remote += 1.0;
            if space.may_migrate(index, node, p.node, last) {
                acts.pages.push((vm, page, node));
            }
        }
    }

    /// A pass is over: faults halve, preferences are taken anew, vCPUs go there.
    fn place(&mut self, w: &World, vm: usize, acts: &mut Acts) {
        let space = &mut self.spaces[vm];
        let nodes = w.machine.nodes();
        for (old, new) in space.faults.iter_mut().zip(&mut space.fresh) {
            for (a, b) in old.iter_mut().zip(new) {
                *a = *a / 2.0 + core::mem::take(b);
            }
        }
        let group: Vec<f64> = (0..nodes)
            .map(|n| space.faults.iter().map(|f| f[n]).sum())
            .collect();
        for (index, own) in space.faults.iter().enumerate() {
            // A task's own faults weigh beside its group's.
            let score = |n: &usize| own[*n] * 4.0 + group[*n];
            let best = w
                .machine
                .cpu_nodes()
                .max_by(|a, b| score(a).total_cmp(&score(b)));
            space.preferred[index] = best.filter(|n| score(n) > 0.0);
        }
        let faults = space.local + space.remote;
        if faults > 0.0 {
            let slots = space.local / faults * 10.0;
            space.period = if slots >= 7.0 {
                (space.period + space.period / 10 * (slots as u64 - 6)).min(PERIOD_MAX)
            } else {
                (space.period - space.period / 10 * (7 - slots as u64).min(5)).max(PERIOD_MIN)
            };
            (space.local, space.remote) = (0.0, 0.0);
        }
        for index in 0..w.vms[vm].vcpus.len() {
            if let Some(node) = self.spaces[vm].preferred[index] {
                self.go(w, w.vms[vm].vcpus[index], node, acts);
            }
        }
    }

    /// Brings a vCPU to an idle CPU of its preferred node, or lets it change places.
    fn go(&mut self, w: &World, vcpu: usize, node: usize, acts: &mut Acts) {
        let from = self.base.home[vcpu];
        if w.node_of(from) == node || node >= w.machine.node_cpus.len() {
            return;
        }
        let cpus = &w.machine.node_cpus[node];
        let idle = cpus
            .iter()
            .copied()
            .find(|c| self.base.current[*c].is_none() && !acts.kicks.contains(c));
        let target = idle.or_else(|| {
            let swaps = |c: &usize| {
                let Some(other) = self.base.current[*c] else {
                    return false;
                };
                let (vm, index) = (w.vcpus[other].vm, w.vcpus[other].index);
                self.spaces[vm].preferred[index] == Some(w.node_of(from))
            };
            cpus.iter().copied().find(swaps)
        });
        if let Some(to) = target {
            // It goes when it is next put down; its queue is changed then.
            let swapped = self.base.current[to];
            self.base.home[vcpu] = to;
            acts.kicks.push(from);
            acts.kicks.push(to);
            if let Some(other) = swapped {
                self.base.home[other] = from;
            }
        }
    }
}

impl Space {
    /// The two-stage filter, and the balance of shared pages among the group's nodes.
    fn may_migrate(
        &self,
        index: usize,
        to: usize,
        from: usize,
        last: Option<(usize, usize)>,
    ) -> bool {
        match last {
            None => return self.passes < 4,
            Some((_, node)) if node != to => return false,
            Some((who, _)) if who == index => return true,
            Some(_) => {}
        }
        let sum = |n: usize| self.faults.iter().map(|f| f[n]).sum::<f64>();
        sum(to) * 4.0 >= sum(from) * 3.0 || sum(to) == 0.0
    }
}

impl Policy for Linux {
    fn name(&self) -> &'static str {
        "linux-numa"
    }

    fn start(&mut self, w: &World, acts: &mut Acts) {
        self.base.start(w, acts);
        for vm in &w.vms {
            let nodes = w.machine.nodes();
            let none = vec![vec![0.0; nodes]; vm.vcpus.len()];
            self.spaces.push(Space {
                hints: vec![Hint::default(); vm.pages.len()],
                cursor: 0,
                period: PERIOD_MIN,
                next_scan: PERIOD_MIN,
                passes: 0,
                faults: none.clone(),
                fresh: none,
                local: 0.0,
                remote: 0.0,
                preferred: vec![None; vm.vcpus.len()],
            });
        }
    }

    fn wake(&mut self, w: &World, vcpu: usize, acts: &mut Acts) {
        self.base.wake(w, vcpu, acts);
    }

    fn left(&mut self, w: &World, cpu: usize, vcpu: usize, ran: u64, how: Left, acts: &mut Acts) {
        let goes_to = self.base.home[vcpu];
        if goes_to != cpu && how != Left::Slept {
            self.base.left(w, cpu, vcpu, ran, Left::Slept, acts);
            self.base.enqueue(goes_to, vcpu, false);
            acts.kicks.push(goes_to);
        } else {
            self.base.left(w, cpu, vcpu, ran, how, acts);
        }
    }

    fn pick(&mut self, w: &World, cpu: usize, acts: &mut Acts) -> Next {
        let next = self.base.pick(w, cpu, acts);
        if let Next::Run(vcpu, _) = next {
            self.base.home[vcpu] = cpu;
        }
        next
    }

    fn tick(&mut self, w: &World, acts: &mut Acts) -> u64 {
        self.base.tick(w, acts);
        for vm in 0..w.vms.len() {
            self.touch(w, vm, acts);
            if w.now < self.spaces[vm].next_scan {
                continue;
            }
            let space = &mut self.spaces[vm];
            space.next_scan = w.now + space.period;
            let pages = space.hints.len();
            for _ in 0..SCAN_PAGES.min(pages) {
                let cursor = space.cursor;
                space.hints[cursor].armed = true;
                space.cursor = (cursor + 1) % pages;
                if space.cursor == 0 {
                    space.passes += 1;
                }
            }
            if SCAN_PAGES >= pages || space.cursor < SCAN_PAGES {
                self.place(w, vm, acts);
            }
        }
        w.now + LOOK
    }
}
