//! A root for each node that runs the guest.
//!
//! An entry loads the root of its CPU's node: the node's own, or else the first. Which that is may change while guests
//! run. Whoever changes it says so in [`GuestRam::roots`] and bumps the generation; an entry has published that its CPU is
//! inside, reads the root, and then the generation, and flushes if either is another than last time. So
//! * a root that is dropped is torn down when every CPU that may have read it has been outside once;
//! * a root whose frame was another's before is never walked with what is cached of that one: between the two the
//!   generation has changed.

use super::GuestRam;
use crate::vm::tables::DirectTables;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;
use memory::entry::Generation;
use memory::replica::{ReplicaError, Replicas};
use memory::table::{RadixTable, TableFormat};
use units::{Frame, Gpa, NodeId};

/// What became of a wish to add or drop a root.
#[derive(Debug)]
pub enum RootChange {
    /// It was done.
    Done,
    /// Pages are moving just now: later.
    Later,
    /// It cannot be done.
    Refused(ReplicaError),
}

impl<F: TableFormat<Address = Gpa>> GuestRam<F> {
    /// The root that a CPU of this node loads, and what its entry compares with what its tag has seen. To be asked by a
    /// CPU that has published that it is inside.
    pub fn way_in(&self, node: NodeId) -> (Frame, Generation) {
        let root = self.roots.get(node.index()).or(self.roots.first());
        let root = root.map_or(0, |root| root.load(SeqCst));
        (Frame(root), self.generations.now())
    }

    /// Whether the tables that CPUs of this node walk are its own.
    pub fn has_own_root(&self, node: NodeId) -> bool {
        self.table.read().of(node).node() == node
    }

    /// By node, for so many: the one whose tables its CPUs walk.
    pub fn root_of_each(&self, nodes: usize) -> Vec<NodeId> {
        let tables = self.table.read();
        let each = (0..).map(NodeId).take(nodes);
        each.map(|node| tables.of(node).node()).collect()
    }

    /// The nodes that have tables of their own.
    pub fn nodes_with_roots(&self) -> Vec<NodeId> {
        self.with_table(|tables| tables.all().iter().map(RadixTable::node).collect())
    }

    /// Gives a node tables of its own.
    pub fn add_root(&self, node: NodeId) -> RootChange {
        self.change_roots(|ram| {
            ram.change_table(|tables, _| {
                tables.add(node)?;
                ram.publish_roots(tables);
                Ok(())
            })
        })
    }

    /// Takes a node's tables away; what their A and D say is kept in the others.
    pub fn drop_root(&self, node: NodeId) -> RootChange {
        self.change_roots(|ram| {
            ram.change_table(|tables, shootdown| {
                let old = tables.unlink(node)?;
                ram.publish_roots(tables);
                tables.retire(old, shootdown);
                Ok(())
            })
        })
    }

    fn change_roots(&self, change: impl FnOnce(&Self) -> Result<(), ReplicaError>) -> RootChange {
        // A move has begun in each replica, and ends in each.
        let Some(_nothing_moves) = self.moving.try_write() else {
            return RootChange::Later;
        };
        match change(self) {
            Ok(()) => RootChange::Done,
            Err(ReplicaError::Busy { .. }) => RootChange::Later,
            Err(why) => RootChange::Refused(why),
        }
    }

    /// Entries load these from now on.
    fn publish_roots(&self, tables: &Replicas<F, DirectTables>) {
        for (node, root) in (0..).map(NodeId).zip(&self.roots) {
            root.store(tables.of(node).root().0, SeqCst);
        }
        self.generations.changed();
    }
}
