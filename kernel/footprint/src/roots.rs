//! On which nodes a VM has page tables of its own.
//!
//! A CPU whose node has none walks another node's, remotely at every level; but tables cost memory, and each change of
//! one is made in all. So a node gets them when it does a good part of the VM's running, and loses them when it has
//! done next to none for a while: the two thresholds and times are far apart, so that a VM that wanders between
//! nodes does not make and drop tables all the time (MECHANISMS section 1).

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use units::{Nanos, NodeId};

/// How long is watched before something is said.
pub const SPAN: Nanos = Nanos::from_millis(10_000);
/// More than so much of a VM's run time, in per mille: worth tables of its own.
pub const CREATE_ABOVE: u64 = 100;
/// Less than so much, in per mille,
pub const DROP_BELOW: u64 = 20;
/// for so long: not worth them any more.
pub const DROP_AFTER: Nanos = Nanos::from_millis(60_000);

/// What ought to change, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootWish {
    /// Where.
    pub node: NodeId,
    /// It is to have tables of its own; else to lose them.
    pub own: bool,
    /// Its part of the VM's run time in the last [`SPAN`], in per mille.
    pub share: u64,
}

impl fmt::Display for RootWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, tenth) = (self.share / 10, self.share % 10);
        match self.own {
            true => write!(
                f,
                "{percent}.{tenth} % of its run time in {} s was there, more than {} %",
                SPAN.0 / 1_000_000_000,
                CREATE_ABOVE / 10
            ),
            false => write!(
                f,
                "less than {} % of its run time was there for {} s, {percent}.{tenth} % of late",
                DROP_BELOW / 10,
                DROP_AFTER.0 / 1_000_000_000
            ),
        }
    }
}

/// What is remembered of one VM.
#[derive(Clone, Debug)]
pub struct RootPolicy {
    watched: Nanos,
    /// Run time by node since the span began.
    ran: Vec<Nanos>,
    /// For how long each node has done next to nothing.
    quiet: Vec<Nanos>,
}

impl RootPolicy {
    /// For a host with so many nodes.
    pub fn new(nodes: usize) -> Self {
        Self {
            watched: Nanos::ZERO,
            ran: vec![Nanos::ZERO; nodes],
            quiet: vec![Nanos::ZERO; nodes],
        }
    }

    /// In the last `length` the VM ran for so long on each node; `has_own` says which nodes have tables. A VM that did
    /// not run at all keeps what it has.
    pub fn observe(
        &mut self,
        length: Nanos,
        run_time: &[Nanos],
        has_own: impl Fn(NodeId) -> bool,
    ) -> Vec<RootWish> {
        self.watched += length;
        for (sum, more) in self.ran.iter_mut().zip(run_time) {
            *sum += *more;
        }
        if self.watched < SPAN {
            return Vec::new();
        }
        let span = core::mem::replace(&mut self.watched, Nanos::ZERO);
        let all: u128 = self.ran.iter().map(|ran| u128::from(ran.0)).sum();
        let mut wishes = Vec::new();
        for ((node, ran), quiet) in (0..).map(NodeId).zip(&mut self.ran).zip(&mut self.quiet) {
            let ran = core::mem::replace(ran, Nanos::ZERO);
            let Some(share) = (u128::from(ran.0) * 1000).checked_div(all) else {
                continue;
            };
            let share = u64::try_from(share).unwrap_or(u64::MAX);
            *quiet = match share < DROP_BELOW {
                true => *quiet + span,
                false => Nanos::ZERO,
            };
            let own = has_own(node);
            if !own && share > CREATE_ABOVE || own && *quiet >= DROP_AFTER {
                wishes.push(RootWish {
                    node,
                    own: !own,
                    share,
                });
            }
        }
        wishes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const SECOND: Nanos = Nanos::from_millis(1000);

    /// Seconds of a VM whose nodes run these parts of each, in ms; what was wished for, with the second.
    fn watch(
        policy: &mut RootPolicy,
        seconds: u64,
        ms: [u64; 3],
        own: [bool; 3],
    ) -> Vec<(u64, RootWish)> {
        let ran = ms.map(Nanos::from_millis);
        let mut all = Vec::new();
        for second in 1..=seconds {
            let wishes = policy.observe(SECOND, &ran, |node| own[node.index()]);
            all.extend(wishes.into_iter().map(|wish| (second, wish)));
        }
        all
    }

    /// That there is one wish, about node 1, in this second, and that it says why.
    fn one_wish(wishes: &[(u64, RootWish)], expected: (u64, bool, u64), said: &str) {
        let [(second, wish)] = wishes else {
            panic!("{wishes:?}");
        };
        assert_eq!((*second, wish.own, wish.share), expected);
        assert_eq!((wish.node, wish.to_string()), (NodeId(1), said.to_string()));
    }

    #[test]
    fn a_node_that_does_a_good_part_gets_tables_after_ten_seconds() {
        let mut policy = RootPolicy::new(3);
        let wishes = watch(&mut policy, 10, [790, 110, 100], [true, false, false]);
        one_wish(
            &wishes,
            (10, true, 110),
            "11.0 % of its run time in 10 s was there, more than 10 %",
        );
        // A tenth is not more than a tenth; and who has them is not given them again.
        assert_eq!(
            watch(&mut policy, 30, [790, 110, 100], [true, true, false]),
            []
        );
    }

    #[test]
    fn tables_are_dropped_after_a_minute_of_next_to_nothing() {
        let mut policy = RootPolicy::new(3);
        let own = [true, true, false];
        assert_eq!(watch(&mut policy, 50, [990, 10, 0], own), []);
        // A busy span in between begins the minute anew; between the thresholds nothing changes.
        assert_eq!(watch(&mut policy, 10, [970, 30, 0], own), []);
        let wishes = watch(&mut policy, 60, [985, 15, 0], own);
        one_wish(
            &wishes,
            (60, false, 15),
            "less than 2 % of its run time was there for 60 s, 1.5 % of late",
        );
        assert_eq!(watch(&mut policy, 600, [985, 50, 0], own), []);
    }

    #[test]
    fn an_idle_vm_keeps_what_it_has() {
        let mut policy = RootPolicy::new(3);
        assert_eq!(watch(&mut policy, 600, [0, 0, 0], [true, true, false]), []);
    }
}
