//! How a page moves: the chains of type states of [`memory::page_move`], each step with the locks that it asks for.
//!
//! * [`small`], [`large`]: where processors set D, pages are copied while the guest runs, and again what it wrote meanwhile;
//!   a large leaf is split for that time, so that a word that is written makes 4 KiB stale and not 2 MiB.
//! * [`whole`]: elsewhere a large leaf is copied while nobody can reach it.
//!
//! A large leaf that is apart just for a while (`vm/ram/apart.rs`) moves as the leaf that it is, whichever of its pages are
//! ordered: single frames would not lie side by side at the new place, and it would be small for ever.
//!
//! Leaves go in batches, since a shootdown serves as many as wait for it. The table's lock is held to arm, freeze and
//! commit; flushes and copies run without.

mod batch;
mod large;
mod small;
mod whole;

use crate::mm;
use crate::virt::Backend;
use crate::vm::{DirectTables, Vm};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::slice;
use memory::buddy::Allocation;
use memory::page_move::MoveError;
use memory::table::{RadixTable, TableError};
use migrate::PageOrder;
use units::{Gpa, Nanos, NodeId, PageSize};

/// A leaf that was moved.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// From this node.
    pub from: NodeId,
    /// Its size.
    pub size: PageSize,
    /// How long the guest could not touch it.
    pub pause: Nanos,
    /// Pages of 4 KiB that were copied once more because they were written meanwhile.
    pub again: u64,
}

/// What became of a leaf; nothing was done to one that is there already.
pub type Moved = Result<Option<Done>, Unmoved>;

/// Why a leaf was not moved.
#[derive(Clone, Debug)]
pub struct Unmoved {
    /// A sentence.
    pub why: String,
    /// Something else changed the leaf meanwhile, a close look for one: another try may do.
    again: bool,
}

impl From<String> for Unmoved {
    fn from(why: String) -> Self {
        Self { why, again: false }
    }
}

/// How often a leaf is tried once more that something else changed.
const MORE_TRIES: u32 = 2;

/// Moves leaves that were ordered with the same size; says what became of each.
pub fn carry_out<B: Backend>(vm: &Vm<B>, orders: &[PageOrder], to: NodeId) -> Vec<Moved> {
    let _memory_stays = vm.ram.moving();
    let mut moved = attempt(vm, orders, to);
    for _ in 0..MORE_TRIES {
        let stuck = orders.iter().zip(&mut moved);
        for (order, fate) in stuck.filter(|(_, fate)| matches!(fate, Err(why) if why.again)) {
            if let Some(next) = attempt(vm, slice::from_ref(order), to).pop() {
                *fate = next;
            }
        }
    }
    moved
}

fn attempt<B: Backend>(vm: &Vm<B>, orders: &[PageOrder], to: NodeId) -> Vec<Moved> {
    match orders.first().map(|order| order.size) {
        Some(PageSize::Size4K) => small::carry_out(vm, orders, to),
        Some(PageSize::Size2M) if B::sets_dirty_bits() => large::carry_out(vm, orders, to),
        _ => orders
            .iter()
            .map(|o| whole::carry_out(vm, *o, to))
            .collect(),
    }
}

/// A small page of a large leaf: that one moves.
fn with_its_leaf<B: Backend>(vm: &Vm<B>, order: PageOrder, size: PageSize, to: NodeId) -> Moved {
    let gpa = order.gpa.align_down(size);
    let order = PageOrder { gpa, size, ..order };
    let mut moved = attempt(vm, slice::from_ref(&order), to);
    moved.pop().unwrap_or(Ok(None))
}

/// The node of an address, and the size of the leaf that maps it.
fn whereabouts<B: Backend>(vm: &Vm<B>, at: Gpa) -> Result<(NodeId, PageSize), Unmoved> {
    let leaf = vm.ram.leaf(at);
    leaf.ok_or_else(|| alloc::format!("{at} is not mapped; it was not moved").into())
}

/// Memory for a leaf.
fn target(to: NodeId, size: PageSize) -> Result<Allocation, Unmoved> {
    mm::allocate_on(to, size).map_err(|why| why.to_string().into())
}

/// A VM's nested table.
type Table<B> = RadixTable<<B as Backend>::Format, DirectTables>;
/// A mover's error, with the target that it did not use.
type Refused = (MoveError, Allocation);

/// Frees the target that was not used.
fn refuse((why, target): Refused) -> Unmoved {
    mm::free_allocation(target);
    Unmoved {
        again: matches!(
            why,
            MoveError::Changed { .. } | MoveError::Table(TableError::WrongSize { .. })
        ),
        why: why.to_string(),
    }
}
