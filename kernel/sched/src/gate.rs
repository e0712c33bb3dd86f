//! The gate between two nodes: whether vCPUs may change nodes for load *early*.
//!
//! A move between nodes costs a cache refill and the way to the memory, so small differences of
//! load are not worth it, and a difference that hovers around one threshold would send vCPUs to
//! and fro (the field knows hypervisors that moved machines every 5 s for that reason). So the gate
//! has two pairs of values: it opens at load > 0.7 and surplus > 0.3 and closes below 0.6 or 0.2; and
//! what passes is paid from a token bucket. It never blocks the pull after 5 ms of waiting: work
//! conservation comes first.

use alloc::vec::Vec;
use units::{Nanos, NodeId, Score};

use crate::scheduler::Scheduler;
use crate::tunables::GateTunables;

/// One direction between two nodes.
#[derive(Clone, Copy, Debug)]
struct Gate {
    open: bool,
    tokens: u32,
    filled_at: Nanos,
}

/// How loaded a node is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeLoad {
    /// CPU time that is wanted, in thousandths of its CPUs.
    demand: u32,
    /// The weights of those who want it, in thousandths of what there is on average on the host's CPUs.
    weight: u32,
}

impl NodeLoad {
    /// Two loads in one measure: where all CPUs are wanted on both, it is weights that tell who gets less than his share.
    const fn compared((from, to): (Self, Self)) -> (u32, u32) {
        if from.demand >= 1000 && to.demand >= 1000 {
            (from.weight, to.weight)
        } else {
            (from.demand, to.demand)
        }
    }
}

/// All gates of a host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gates {
    /// Nodes with CPUs, ascending; empty before the first look, when every way is open.
    nodes: Vec<NodeId>,
    /// Row = source.
    gates: Vec<Gate>,
}

impl Gates {
    fn index(&self, from: NodeId, to: NodeId) -> Option<usize> {
        let at = |n| self.nodes.binary_search(&n).ok();
        Some(at(from)? * self.nodes.len() + at(to)?)
    }

    /// There are these nodes: gates between others are forgotten, those between new ones are closed.
    fn between(&mut self, now: Nanos, nodes: &[NodeId], t: &GateTunables) {
        if self.nodes != nodes {
            self.nodes = nodes.to_vec();
            let fresh = Gate {
                open: false,
                tokens: t.depth,
                filled_at: now,
            };
            self.gates = alloc::vec![fresh; nodes.len() * nodes.len()];
        }
    }

    /// Judges all ways that begin at the node at this place by the nodes' loads.
    fn judge(&mut self, now: Nanos, place: usize, loads: &[NodeLoad], t: &GateTunables) {
        let Some(from) = loads.get(place) else { return };
        let gates = self.gates.iter_mut().skip(place * loads.len());
        for (gate, to) in gates.zip(loads) {
            let (from, to) = NodeLoad::compared((*from, *to));
            let surplus = from.saturating_sub(to);
            gate.open = if gate.open {
                from >= t.close_load && surplus >= t.close_surplus
            } else {
                from > t.open_load && surplus > t.open_surplus
            };
            let period = t.period.0.max(1);
            let income = now.since(gate.filled_at).0 / period;
            if income > 0 {
                let income = u32::try_from(income).unwrap_or(u32::MAX);
                gate.tokens = gate.tokens.saturating_add(income).min(t.depth);
                gate.filled_at = now;
            }
        }
    }

    /// Whether a vCPU may pass for load.
    pub(crate) fn passable(&self, from: NodeId, to: NodeId) -> bool {
        if self.nodes.is_empty() || from == to {
            return true;
        }
        self.index(from, to)
            .and_then(|i| self.gates.get(i))
            .is_none_or(|gate| gate.open && gate.tokens > 0)
    }

    /// One passed.
    pub(crate) fn pay(&mut self, from: NodeId, to: NodeId) {
        if let Some(gate) = self.index(from, to).and_then(|i| self.gates.get_mut(i)) {
            gate.tokens = gate.tokens.saturating_sub(1);
        }
    }
}

/// What is wanted on a node's CPUs: time, and weight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    demand: u64,
    pub(crate) weight: u64,
    cpus: u64,
}

impl Wanted {
    /// As a load, where the host's CPUs have this weight on average.
    fn load(self, mean: u64) -> NodeLoad {
        let each = |sum: u64, one: u64| {
            let thousandths = sum * 1000 / one.max(1) / self.cpus.max(1);
            u32::try_from(thousandths).unwrap_or(u32::MAX)
        };
        NodeLoad {
            demand: each(self.demand, Score::ONE.0.into()),
            weight: each(self.weight, mean),
        }
    }
}

impl Scheduler {
    /// What is wanted on a node.
    pub(crate) fn wanted_on(&self, node: NodeId) -> Wanted {
        let cpus = self.node_cpus.get(&node).map_or(&[][..], Vec::as_slice);
        Wanted {
            demand: cpus.iter().map(|c| self.demand_on(*c)).sum(),
            weight: cpus.iter().map(|c| self.load_on(*c)).sum(),
            cpus: cpus.len() as u64,
        }
    }

    /// The nodes' loads are known: before gates are judged by them, it must be the gates of these nodes.
    pub(crate) fn gate_loads(&mut self, now: Nanos, wanted: &[Wanted], mean: u64) -> Vec<NodeLoad> {
        let gate = self.tunables.gate;
        self.gates.between(now, &self.nodes, &gate);
        wanted.iter().map(|w| w.load(mean)).collect()
    }

    /// Opens and closes what leads away from the node at this place.
    pub(crate) fn judge_gates(&mut self, now: Nanos, place: usize, loads: &[NodeLoad]) {
        let gate = self.tunables.gate;
        self.gates.judge(now, place, loads, &gate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tunables;

    #[test]
    fn full_nodes_are_compared_by_weight() {
        let load = |demand, weight| NodeLoad { demand, weight };
        let heavy = (load(1250, 1480), load(1260, 520));
        assert_eq!(NodeLoad::compared(heavy), (1480, 520));
        // There is room on the second, whatever weighs on it.
        let room = (load(1250, 500), load(700, 1500));
        assert_eq!(NodeLoad::compared(room), (1250, 700));
    }

    #[test]
    fn a_gate_opens_and_closes_at_different_values_and_counts_what_passes() {
        let t = Tunables::default().gate;
        let nodes = [NodeId(0), NodeId(1)];
        let mut gates = Gates::default();
        let judge = |gates: &mut Gates, now, loads: &[NodeLoad]| {
            gates.between(now, &nodes, &t);
            (0..loads.len()).for_each(|place| gates.judge(now, place, loads, &t));
        };
        assert!(
            gates.passable(NodeId(0), NodeId(1)),
            "nothing is known: open"
        );
        let mut at = |ms, loads: [u32; 2]| {
            let loads = loads.map(|demand| NodeLoad { demand, weight: 0 });
            judge(&mut gates, Nanos::from_millis(ms), &loads);
            gates.passable(NodeId(0), NodeId(1))
        };
        assert!(!at(50, [650, 300]), "not loaded enough to open");
        assert!(at(100, [710, 400]), "open");
        assert!(at(150, [650, 430]), "between the values it stays open");
        assert!(!at(200, [590, 300]), "closed for load");
        assert!(!at(250, [690, 300]), "and stays closed between the values");
        assert!(at(300, [900, 500]));
        assert!(!at(350, [900, 710]), "closed for surplus");
        assert!(at(400, [1500, 0]));
        for _ in 0..t.depth {
            assert!(gates.passable(NodeId(0), NodeId(1)));
            gates.pay(NodeId(0), NodeId(1));
        }
        assert!(!gates.passable(NodeId(0), NodeId(1)), "the bucket is empty");
        let loads = [1500, 0].map(|demand| NodeLoad { demand, weight: 0 });
        judge(&mut gates, Nanos::from_millis(402), &loads);
        assert!(gates.passable(NodeId(0), NodeId(1)), "one token came in");
    }
}
