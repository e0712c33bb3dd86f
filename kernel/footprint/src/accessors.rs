//! Who touches a granule, and each of its pages, as the nodes' own page tables say.
//!
//! Where nodes have page tables of their own the processor sets the accessed bit in those of the node that touched
//! (MECHANISMS section 1). Whether two nodes touch a granule equally often is not whether both bits are set: so hits are
//! counted by node, as they are counted in all, and what weighs is the rate that they make likely. And a granule of which one node
//! works on all pages and another reads one flag looks touched by both in each interval; so a close look counts by page and by node, and
//! says how many pages share each node's rate.
//!
//! Counting pages by node takes half a KiB for each node that touches a granule. There is room for so many
//! ([`Room`]) that the sampler's notes stay below 0.2 % of the machine's memory; a granule without room is divided as its own
//! bits say.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use units::Nanos;

use crate::lens::{PAGES, density};
use crate::port::Seen;
use crate::rate::{Rates, likely};
use crate::touched::Touched;

/// In how many observations of a granule each node's tables said that it was touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HitsByNode {
    observed: u16,
    hits: Vec<u16>,
}

impl HitsByNode {
    /// Takes in an observation that says by whom, or that nobody did.
    pub fn observe(&mut self, seen: Seen) {
        self.observed = self.observed.saturating_add(1);
        for node in seen.nodes() {
            if self.hits.len() <= node {
                self.hits.resize(node + 1, 0);
            }
            if let Some(hits) = self.hits.get_mut(node) {
                *hits = hits.saturating_add(1).min(self.observed);
            }
        }
    }

    /// Forgets the older half.
    pub fn halve(&mut self) {
        self.observed /= 2;
        self.hits.iter_mut().for_each(|hits| *hits /= 2);
    }

    /// The nodes with any hit.
    pub fn seen(&self) -> Seen {
        let nodes = (0u16..).zip(&self.hits).filter(|(_, hits)| **hits > 0);
        nodes.fold(Seen::UNTOUCHED, |all, (node, _)| {
            all.and(Seen::by(units::NodeId(node)))
        })
    }

    /// By node: how often it touches the granule.
    pub fn rates(&self, interval: Nanos) -> Vec<u64> {
        let rate = |hits: &u16| match hits {
            0 => 0,
            hits => likely((*hits).into(), self.observed.into(), interval),
        };
        self.hits.iter().map(rate).collect()
    }

    /// Bytes of memory behind it.
    pub fn bytes(&self) -> usize {
        self.hits.capacity() * size_of::<u16>()
    }
}

/// How many nodes' hits by page may be kept in all.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// How many are kept.
    pub taken: usize,
    /// How many may be.
    pub of: usize,
}

/// In how many intervals of its close looks each page of a granule was touched by each node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageHitsByNode {
    observed: u8,
    nodes: Vec<OfNode>,
}

/// The part of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OfNode {
    node: usize,
    /// Intervals in which it touched any page.
    any: u8,
    hits: Box<[u8; PAGES]>,
}

impl PageHitsByNode {
    /// Takes in an interval: the pages that were touched in it and by whom. Forgets everything where there is no room for
    /// a node more.
    pub fn observe(&mut self, touched: &Touched, most: u8, room: &mut Room) {
        if self.observed >= most {
            self.observed /= 2;
            for of in &mut self.nodes {
                of.any /= 2;
                of.hits.iter_mut().for_each(|hits| *hits /= 2);
            }
        }
        for (node, _) in touched.by_node() {
            if self.nodes.iter().any(|of| of.node == node) {
                continue;
            }
            if room.taken >= room.of {
                self.forget(room);
                return;
            }
            room.taken += 1;
            self.nodes.push(OfNode {
                node,
                any: 0,
                hits: Box::new([0; PAGES]),
            });
        }
        self.observed = self.observed.saturating_add(1);
        for (node, pages) in touched.by_node() {
            if let Some(of) = self.nodes.iter_mut().find(|of| of.node == node) {
                pages.count_in(&mut of.hits);
                of.any = of.any.saturating_add(1).min(self.observed);
            }
        }
    }

    /// Forgets everything.
    pub fn forget(&mut self, room: &mut Room) {
        room.taken -= self.nodes.len();
        *self = Self::default();
    }

    /// By node: how many pages share its rate of the granule, in 1/1024.
    pub fn densities(&self, interval: Nanos) -> Vec<u64> {
        let rates = Rates::of(self.observed.into(), interval);
        self.by_node(|of| {
            let all = of.hits.iter().map(|hits| rates.get((*hits).into())).sum();
            density(all, rates.get(of.any.into())).unwrap_or(0)
        })
    }

    /// By node: how often it touches this page.
    pub fn rates(&self, page: usize, interval: Nanos) -> Vec<u64> {
        self.by_node(|of| match of.hits.get(page).copied().unwrap_or(0) {
            0 => 0,
            hits => likely(hits.into(), self.observed.into(), interval),
        })
    }

    fn by_node(&self, value: impl Fn(&OfNode) -> u64) -> Vec<u64> {
        let mut values = vec![0; self.nodes.iter().map(|of| of.node + 1).max().unwrap_or(0)];
        for of in &self.nodes {
            if let Some(slot) = values.get_mut(of.node) {
                *slot = value(of);
            }
        }
        values
    }

    /// Bytes of memory behind it.
    pub fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<OfNode>() + self.nodes.len() * PAGES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use units::{NodeId, PageSet};

    const TICK: Nanos = Nanos::from_millis(100);

    fn by(nodes: &[u16]) -> Seen {
        let each = nodes.iter().map(|node| Seen::by(NodeId(*node)));
        each.fold(Seen::UNTOUCHED, Seen::and)
    }

    #[test]
    fn a_granule_is_its_nodes_by_their_rates() {
        let mut hits = HitsByNode::default();
        for i in 0..40 {
            hits.observe(match i % 10 {
                0 => by(&[0, 2]),
                _ => by(&[2]),
            });
        }
        let rates = hits.rates(TICK);
        // A tenth of the intervals is a touch a second; all of them are as many as can be seen.
        assert!(rates[0].abs_diff(1078) < 5 && rates[1] == 0, "{rates:?}");
        assert!(rates[2] > 20 * 1024, "{rates:?}");
        assert_eq!(hits.seen(), by(&[0, 2]));
        hits.halve();
        assert_eq!(hits.rates(TICK)[0], likely(2, 20, TICK));
        assert_eq!(HitsByNode::default().rates(TICK), []);
    }

    #[test]
    fn pages_are_their_nodes_and_say_how_many_share_a_rate() {
        let mut room = Room { taken: 0, of: 2 };
        let mut pages = PageHitsByNode::default();
        for _ in 0..20 {
            let mut touched = Touched::default();
            touched.add(by(&[1]), (0..100).collect());
            touched.add(by(&[0]), PageSet::from_iter([400]));
            touched.add(by(&[0, 1]), PageSet::from_iter([401]));
            pages.observe(&touched, 100, &mut room);
        }
        assert_eq!(pages.densities(TICK), [2 << 10, 101 << 10]);
        let most = likely(20, 20, TICK);
        assert_eq!(pages.rates(3, TICK), [0, most]);
        assert_eq!(pages.rates(400, TICK), [most, 0]);
        assert_eq!(pages.rates(401, TICK), [most, most]);
        assert_eq!(pages.rates(500, TICK), [0, 0]);
        assert_eq!(room.taken, 2);
    }

    #[test]
    fn without_room_there_is_nothing_by_page_and_room_is_given_back() {
        let mut room = Room { taken: 0, of: 1 };
        let mut pages = PageHitsByNode::default();
        let mut touched = Touched::default();
        touched.add(by(&[1]), PageSet::from_iter([3]));
        pages.observe(&touched, 100, &mut room);
        assert_eq!((room.taken, pages.rates(3, TICK).len()), (1, 2));
        touched.add(by(&[0]), PageSet::from_iter([4]));
        pages.observe(&touched, 100, &mut room);
        assert_eq!((room.taken, pages.rates(3, TICK)), (0, vec![]));
        // Who touched is not known: nothing is counted.
        touched.clear();
        touched.add(Seen::TOUCHED, PageSet::from_iter([3]));
        pages.observe(&touched, 100, &mut room);
        assert_eq!((room.taken, pages.densities(TICK)), (0, vec![]));
    }
}
