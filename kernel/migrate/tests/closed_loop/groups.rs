//! vCPUs that work on memory of their own.

use crate::common::vcpu;
use crate::lab::*;
use migrate::*;
use sched::{Affinity, Event as Told, VcpuSpec};
use units::*;

/// A machine whose first vCPU works on the first pages and must stay on node 0, and whose second one works on the others and must
/// stay on node 3.
fn twins(pages: &[(u16, usize)], first: usize) -> Lab {
    let mut lab = Lab::new(row());
    let (nodes, load) = (vec![NodeId(0), NodeId(3)], crate::common::Load::Busy);
    let i = lab.vm_with("twins", 0, pages, |_, _| true, load, Some(nodes));
    for (index, node) in [(0, 0), (1, 3)] {
        let spec = VcpuSpec {
            affinity: Affinity::Nodes(vec![NodeId(node)]),
            ..VcpuSpec::default()
        };
        let vcpu = vcpu(i as u16, index);
        lab.sim.event(Told::Respecified { vcpu, spec });
    }
    let all = lab.vms[i].pages.len();
    lab.vms[i].works = vec![(0..first).collect(), (first..all).collect()];
    lab
}

fn pages(lab: &Lab) -> Vec<u16> {
    lab.vms[0].pages.iter().map(|n| n.0).collect()
}

#[test]
fn each_ones_pages_come_to_it() {
    let mut lab = twins(&[(3, 8), (0, 8)], 8);
    lab.run(SECONDS(20));
    assert_eq!(
        pages(&lab),
        [vec![0; 8], vec![3; 8]].concat(),
        "{}",
        lab.sentences()
    );
}

#[test]
fn without_looks_nobody_knows_whose_pages_they_are() {
    let mut lab = twins(&[(3, 8), (0, 8)], 8);
    lab.vms[0].works.clear();
    lab.run(SECONDS(20));
    let first = &pages(&lab)[..8];
    assert!(first.iter().all(|n| *n != 0), "{}", lab.sentences());
}

#[test]
fn who_is_near_stays_though_the_machine_touches_one_node_more() {
    let mut lab = twins(&[(0, 18), (3, 8)], 18);
    // By when groups are known.
    lab.vms[0].mode = Mode::Off;
    lab.run(SECONDS(4));
    lab.vms[0].mode = Mode::Auto;
    lab.run(SECONDS(20));
    assert!(lab.orders().is_empty(), "{:?}", lab.orders());
    let last = lab.sentences();
    let near = last
        .lines()
        .last()
        .is_some_and(|l| l.contains("proximity is 0.9") || l.contains("proximity is 1.0"));
    assert!(near, "{last}");
}
