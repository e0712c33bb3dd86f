//! A look at the whole host's balance, in parts.
//!
//! Some CPU's pick does it, and meanwhile no other can pick: on a host of 1,024 CPUs and 10,000 vCPUs a look at all of them takes tens
//! of milliseconds. So a round is a list of stages that look at one machine or one node after the other, and a pick does
//! some [`WORK`] and leaves the rest to the next picks, of whichever CPUs. On a small host a round is over within the pick that begins
//! it; on a large one it takes a few hundred picks, which come within milliseconds there. Between two parts vCPUs wake, sleep and
//! move: what a stage carries over to a later one is looked at again before it is acted upon.

use alloc::vec::Vec;
use units::{Nanos, NodeId};

use crate::entitle::Shares;
use crate::even::{Load, MOVES_PER_LOOK};
use crate::event::Commands;
use crate::gate::{NodeLoad, Wanted};
use crate::repack;
use crate::scheduler::Scheduler;
use crate::swap::{Longing, Scattered};

/// vCPUs and CPUs that are looked at in one pick, times the CPUs of the host: what a long pick costs is its length for each CPU that
/// waits meanwhile. Each takes some tens of nanoseconds.
const WORK: usize = 1 << 17;
/// But so many on the largest host, or a round would take too many picks.
const LEAST: usize = 512;

/// Where a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing is to be done before the next round.
    #[default]
    Over,
    /// Averages of each machine's vCPUs are brought up to date, and weights counted.
    Count,
    /// Each gets its share of the host.
    Entitle,
    /// Accounts are brought to a sum of 0.
    Level,
    /// What is wanted on each node.
    Want,
    /// Gates away from each node.
    Judge,
    /// Each machine's vCPUs go to its preferred node.
    Prefer,
    /// Load is evened out inside each node.
    Inside,
    /// And between nodes, if that was not worth anything.
    Across,
    /// Cores with two busy threads, and ones with none.
    Spread,
    /// Who shares a core.
    Pair,
    /// Whom another node would gain most.
    Long,
    /// It changes places.
    Swap,
    /// Whose machine would be closer together.
    Scatter,
    /// One of those changes places.
    Gather,
    /// A node is divided anew, or two of it change places for fairness.
    Divide,
}

/// A round that is under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Round {
    stage: Stage,
    /// The machine, node or other that the stage looks at next.
    place: usize,
    shares: Shares,
    wanted: Vec<Wanted>,
    /// Load of a CPU on average.
    mean: u64,
    gates: Vec<NodeLoad>,
    loads: Vec<Load>,
    /// Something moved for load.
    moved: bool,
    longing: Option<Longing>,
    scattered: Vec<Scattered>,
    /// Nodes may be divided anew.
    divides: bool,
}

impl Round {
    fn go_to(&mut self, stage: Stage) {
        (self.stage, self.place) = (stage, 0);
    }
}

impl Scheduler {
    /// Does a part of the round that is under way, or begins one if it is time.
    pub(crate) fn balance(&mut self, now: Nanos, out: &mut Commands) {
        if self.round.stage == Stage::Over {
            if now.since(self.balanced_at) < self.tunables.balance_period {
                return;
            }
            self.balanced_at = now;
            self.round.go_to(Stage::Count);
        }
        let mut round = core::mem::take(&mut self.round);
        let most = (WORK / self.cpus.len().max(1)).max(LEAST);
        let mut work = 0;
        while round.stage != Stage::Over && work < most {
            work += self.step(now, &mut round, out);
        }
        self.round = match round.stage {
            Stage::Over => Round::default(),
            _ => round,
        };
    }

    /// One machine or node of one stage; how many vCPUs and CPUs were looked at, about.
    fn step(&mut self, now: Nanos, round: &mut Round, out: &mut Commands) -> usize {
        match round.stage {
            Stage::Over => 0,
            Stage::Count | Stage::Entitle | Stage::Level => self.step_shares(now, round),
            Stage::Want | Stage::Judge => self.step_gates(now, round),
            Stage::Prefer | Stage::Long | Stage::Scatter => self.step_machine(now, round, out),
            Stage::Inside | Stage::Spread | Stage::Pair | Stage::Divide => {
                self.step_node(now, round, out)
            }
            Stage::Across | Stage::Swap | Stage::Gather => self.step_once(now, round, out),
        }
    }

    /// What each vCPU is entitled to.
    fn step_shares(&mut self, now: Nanos, round: &mut Round) -> usize {
        let shares = &mut round.shares;
        let Some((vm, vcpus)) = self.vcpus.at(round.place) else {
            match round.stage {
                Stage::Count => {
                    shares.divide(self.cpus.len());
                    round.go_to(Stage::Entitle);
                }
                Stage::Entitle => round.go_to(Stage::Level),
                _ => round.go_to(Stage::Want),
            }
            return 1;
        };
        round.place += 1;
        match round.stage {
            Stage::Count => self.count_weights(now, vm, shares),
            Stage::Entitle => self.entitle(vm, shares),
            _ => self.level_accounts(vm, shares),
        }
        1 + vcpus
    }

    /// How loaded nodes are, and the gates between them.
    fn step_gates(&mut self, now: Nanos, round: &mut Round) -> usize {
        let Some(node) = self.nodes.get(round.place).copied() else {
            if round.stage == Stage::Judge {
                round.go_to(Stage::Prefer);
                return 1;
            }
            let all = round.wanted.iter().map(|w| w.weight).sum::<u64>();
            round.mean = all / (self.cpus.len() as u64).max(1);
            round.gates = self.gate_loads(now, &round.wanted, round.mean);
            round.go_to(Stage::Judge);
            return self.nodes.len();
        };
        if round.stage == Stage::Want {
            round.wanted.push(self.wanted_on(node));
            round.place += 1;
            return self.residents_of(node);
        }
        self.judge_gates(now, round.place, &round.gates);
        round.place += 1;
        self.nodes.len()
    }

    /// What is looked for machine by machine.
    fn step_machine(&mut self, now: Nanos, round: &mut Round, out: &mut Commands) -> usize {
        let Some((vm, vcpus)) = self.vcpus.at(round.place) else {
            round.go_to(match round.stage {
                Stage::Prefer => Stage::Inside,
                Stage::Long => Stage::Swap,
                _ => Stage::Gather,
            });
            return 1;
        };
        round.place += 1;
        match round.stage {
            Stage::Prefer => 1 + self.bring_home(now, vm, out),
            Stage::Long => {
                round.longing = round.longing.max(self.longs_most(now, vm));
                // Each that has scores looks at all nodes.
                1 + vcpus * (1 + self.nodes.len() / 16)
            }
            _ => {
                self.scattered(now, vm, &mut round.scattered);
                1 + vcpus
            }
        }
    }

    /// What is done node by node.
    fn step_node(&mut self, now: Nanos, round: &mut Round, out: &mut Commands) -> usize {
        let Some(node) = self.nodes.get(round.place).copied() else {
            let next = match round.stage {
                Stage::Inside if !round.moved && self.nodes.len() > 1 => Stage::Across,
                Stage::Inside => Stage::Spread,
                Stage::Spread => Stage::Pair,
                Stage::Pair if round.moved => Stage::Over,
                Stage::Pair if self.nodes.len() > 1 => Stage::Long,
                Stage::Pair => self.divide(now, round),
                _ => Stage::Over,
            };
            round.go_to(next);
            return 1;
        };
        round.place += 1;
        match round.stage {
            Stage::Inside => {
                let mut loads = self.loads_of(node);
                round.moved |= self.even_out_inside(now, &mut loads, round.mean, out);
                round.loads.append(&mut loads);
                2 * self.residents_of(node)
            }
            Stage::Spread => self.spread_cores(now, node, out),
            Stage::Pair => self.pair_by_stall(now, node, out),
            _ => {
                if !round.divides || !self.repack(now, node, out) {
                    self.rotate(now, node, out);
                }
                2 * self.residents_of(node)
            }
        }
    }

    /// What is done for the whole host, a move at a time.
    fn step_once(&mut self, now: Nanos, round: &mut Round, out: &mut Commands) -> usize {
        match round.stage {
            Stage::Across => {
                if round.place == 0 {
                    self.weigh_ends(&mut round.loads);
                }
                let moved = self.even_out_across(now, &mut round.loads, round.mean, out);
                round.moved |= moved;
                round.place += 1;
                if !moved || round.place == MOVES_PER_LOOK {
                    round.go_to(Stage::Spread);
                }
                self.cpus.len()
            }
            Stage::Swap => {
                let longing = round.longing.take();
                let swapped = longing.is_some_and(|l| self.swap_for_proximity(now, l, out));
                let next = match swapped {
                    true => self.divide(now, round),
                    false => Stage::Scatter,
                };
                round.go_to(next);
                longing.map_or(1, |(_, _, _, node)| self.residents_of(node))
            }
            _ => {
                let one = round.scattered.get(round.place).copied();
                let gathered = one.map(|one| (self.gather(now, one, out), one.3));
                round.place += 1;
                if gathered.is_none_or(|(gathered, _)| gathered) {
                    let next = self.divide(now, round);
                    round.go_to(next);
                }
                gathered.map_or(1, |(_, node)| self.residents_of(node))
            }
        }
    }

    /// The last stage comes: whether nodes may be divided anew this time.
    fn divide(&mut self, now: Nanos, round: &mut Round) -> Stage {
        round.divides = now.since(self.packed_at) >= repack::PERIOD;
        if round.divides {
            self.packed_at = now;
        }
        Stage::Divide
    }

    /// The CPUs of a node and their vCPUs.
    fn residents_of(&self, node: NodeId) -> usize {
        let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
        let residents = cpus.iter().filter_map(|cpu| self.cpus.get(*cpu));
        residents.map(|c| 1 + c.residents.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tunables;
    use crate::event::{CpuPlace, Event, VcpuSpec};
    use units::{CpuId, Score, VcpuId, VmId};

    /// Of four CPUs to a node, with so many machines of one vCPU, of which every other has twice the weight.
    fn host(nodes: u16, vms: u16) -> Scheduler {
        let mut s = Scheduler::new(Tunables::default());
        let mut tell = |event| s.handle(Nanos(1), event, &mut Commands::new());
        for cpu in 0..u32::from(nodes) * 4 {
            let place = CpuPlace {
                node: NodeId((cpu / 4) as u16),
                llc: 0,
                core: cpu,
            };
            let cpu = CpuId(cpu);
            tell(Event::CpuOnline { cpu, place }).expect("new");
        }
        for vm in 0..vms {
            let vcpu = VcpuId {
                vm: VmId(vm),
                index: 0,
            };
            let spec = VcpuSpec {
                weight: 100 * (1 + u32::from(vm % 2)),
                ..VcpuSpec::default()
            };
            tell(Event::VcpuAdded { vcpu, spec }).expect("new");
            tell(Event::Wake { vcpu }).expect("known");
        }
        s
    }

    /// Picks of different CPUs until a round is over.
    fn picks(s: &mut Scheduler) -> u32 {
        let cpus = s.cpus.len() as u32;
        let now = s.tunables.balance_period + Nanos::from_millis(1);
        for i in 0..10_000 {
            let _ = s.pick(CpuId(i % cpus), now, &mut Commands::new());
            if s.round.stage == Stage::Over {
                return i + 1;
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn a_round_takes_one_pick_on_a_small_host_and_many_on_a_large_one() {
        for (nodes, vms, range) in [(2, 32, 1..2), (128, 2_048, 20..200)] {
            let mut s = host(nodes, vms);
            let picks = picks(&mut s);
            assert!(range.contains(&picks), "{picks} on {nodes} nodes");
            // Each gets its part of the host by its weight, 150 on average.
            let cpus = u128::from(nodes) * 4;
            for (id, v) in s.vcpus.iter() {
                let part = u128::from(v.weight) * cpus;
                let whole = u128::from(vms) * 150;
                assert_eq!(v.entitled, Score::ratio(part, whole), "{id}");
            }
        }
    }

    #[test]
    fn a_cpu_that_comes_online_ends_a_round_that_has_not_counted_it() {
        let mut s = host(128, 2_048);
        let now = s.tunables.balance_period + Nanos::from_millis(1);
        let _ = s.pick(CpuId(0), now, &mut Commands::new());
        assert_ne!(s.round.stage, Stage::Over);
        let place = CpuPlace {
            node: NodeId(500),
            llc: 0,
            core: 9_999,
        };
        let cpu = CpuId(9_999);
        let online = Event::CpuOnline { cpu, place };
        s.handle(now, online, &mut Commands::new()).expect("new");
        assert_eq!(s.round.stage, Stage::Over);
    }
}
