//! Looks at what vCPUs are about to touch, as the kernel makes them: now and then while a vCPU runs, at a page drawn from those
//! that it touches.

use units::{Gpa, NodeId};

use crate::rng::Rng;
use crate::workload::{Owner, Page};
use crate::world::World;

/// Run time between two looks at a vCPU, in ns.
const BETWEEN: u64 = 4_000_000;

/// Draws looks for all vCPUs.
#[derive(Debug)]
pub struct Looks {
    rng: Rng,
    /// Run time of each vCPU that no look has been drawn for.
    unseen: Vec<u64>,
}

impl Looks {
    /// Of chance.
    pub const fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            unseen: Vec::new(),
        }
    }

    /// The pages that looks meet at a vCPU that ran for so long since it was asked last, and the node where it runs.
    pub fn at(&mut self, w: &World, vcpu: usize, ran: u64) -> (NodeId, Vec<(Gpa, NodeId)>) {
        if self.unseen.len() <= vcpu {
            self.unseen.resize(vcpu + 1, 0);
        }
        let v = &w.vcpus[vcpu];
        let vm = &w.vms[v.vm];
        let accessor = NodeId(v.last.map_or(0, |cpu| w.node_of(cpu)) as u16);
        let unseen = self.unseen[vcpu] + ran;
        self.unseen[vcpu] = unseen % BETWEEN;
        let own = vm.pages.iter().any(|p| p.owner == Owner::Vcpu(v.index));
        let share = |page: &Page| match page.owner {
            Owner::Shared if own => page.weight * vm.shared,
            Owner::Shared => page.weight,
            Owner::Vcpu(index) if index == v.index => page.weight * (1.0 - vm.shared),
            Owner::Vcpu(_) => 0.0,
        };
        let met = (0..unseen / BETWEEN).filter_map(|_| {
            let mut left = self.rng.unit();
            let page = vm.pages.iter().position(|page| {
                left -= share(page);
                left < 0.0
            })?;
            let gpa = Gpa(page as u64 * crate::perigee::PAGE);
            Some((gpa, NodeId(vm.pages[page].node as u16)))
        });
        (accessor, met.collect())
    }
}
