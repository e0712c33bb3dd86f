//! How a page moves: the chains of type states of [`memory::page_move`], each step with the locks that it asks for.
//!
//! * Where processors set D, a page is copied while the guest runs, and again what it wrote meanwhile; a large leaf
//!   is split for that time, so that a word that is written makes 4 KiB stale and not 2 MiB.
//! * Elsewhere it is copied while nobody can reach it.
//!
//! Small pages go together ([`batch`]). The table's lock is held to arm, freeze and commit; flushes and copies run without.

mod batch;

use crate::arch::time;
use crate::mm;
use crate::sabotage;
use crate::virt::Backend;
use crate::vm::{DirectTables, Vm};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use config::Sabotage;
use core::slice;
use memory::buddy::Allocation;
use memory::page_move::large::{self, LargeMove, Rounds};
use memory::page_move::{Copied, Displaced, MoveError, PageMove, Planned, Quiet};
use memory::table::{Flush, NoProcessor, RadixTable, TableError};
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

/// Moves one large leaf, or small ones together; says what became of each.
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
    match orders {
        [order] if order.size != PageSize::Size4K => vec![one(vm, *order, to)],
        orders => batch::carry_out(vm, orders, to),
    }
}

/// A leaf that was ordered as a large one.
fn one<B: Backend>(vm: &Vm<B>, order: PageOrder, to: NodeId) -> Moved {
    let (from, mapped) = whereabouts(vm, order.gpa)?;
    if from == to {
        return Ok(None);
    }
    let at = order.gpa.align_down(mapped.max(order.size));
    let moved = match (mapped.max(order.size), B::sets_dirty_bits()) {
        (PageSize::Size2M, true) => in_parts(vm, at, mapped, to),
        (size, _) => whole(vm, at, size, mapped, to),
    };
    moved.map(|(size, pause, again)| {
        vm.ram.relocated(size, from, to);
        Some(Done {
            from,
            size,
            pause,
            again,
        })
    })
}

/// The node of an address, and the size of the leaf that maps it.
fn whereabouts<B: Backend>(vm: &Vm<B>, at: Gpa) -> Result<(NodeId, PageSize), Unmoved> {
    let leaf = vm.ram.leaf(at);
    leaf.ok_or_else(|| alloc::format!("{at} is not mapped; it was not moved").into())
}

type Parts = (PageSize, Nanos, u64);

/// 2 MiB, as small pages while they are copied.
fn in_parts<B: Backend>(
    vm: &Vm<B>,
    at: Gpa,
    mapped: PageSize,
    to: NodeId,
) -> Result<Parts, Unmoved> {
    let target = mm::allocate_on(to, PageSize::Size2M).map_err(|e| e.to_string())?;
    if mapped == PageSize::Size2M {
        vm.ram.remap(&[at], &[]);
    }
    match copy_in_rounds(vm, at, target) {
        Ok((old, pause, again)) => {
            // As the allocator knows them they are small ones since the split.
            mm::join_block(old.frame);
            mm::free_displaced(old);
            Ok((PageSize::Size2M, pause, again))
        }
        Err(why) => {
            vm.ram.remap(&[], &[at]);
            Err(refuse(why))
        }
    }
}

/// A VM's nested table.
type Table<B> = RadixTable<<B as Backend>::Format, DirectTables>;
/// A mover's error, with the target that it did not use.
type Refused = (MoveError, Allocation);

fn copy_in_rounds<B: Backend>(
    vm: &Vm<B>,
    at: Gpa,
    target: Allocation,
) -> Result<(Displaced, Nanos, u64), Refused> {
    let (ram, flush) = (&vm.ram, vm.ram.shootdown());
    let planned = LargeMove::plan(at, target)?;
    let armed = ram.change_table(|table, _| planned.arm(slice::from_mut(table)))?;
    let (mut moving, _all) = armed.shoot_down(&flush).copy(mm::copy_frames);
    let (mut rounds, mut again) = (Rounds::default(), 0);
    while rounds.go_on(written(vm, &moving)) {
        let (armed, _) = ram.change_table(|table, _| moving.again(slice::from_mut(table)))?;
        let (mirrored, copied) = armed.shoot_down(&flush).copy(mm::copy_frames);
        (moving, again) = (mirrored, again + copied);
    }
    sabotage::linger();
    let began = time::now();
    let frozen = ram.change_table(|table, _| moving.freeze(slice::from_mut(table)))?;
    sabotage::linger();
    let quiet = match sabotage::on(Sabotage::MapEarly) {
        false => frozen.shoot_down(&flush),
        true => frozen.shoot_down(&NoProcessor),
    };
    let copy = match sabotage::on(Sabotage::JudgeEarly) {
        false => mm::copy_frames,
        true => |_, _, _| {},
    };
    let (done, copied) = ram.with_table(|table| quiet.copy(slice::from_ref(table), copy));
    let old = ram.change_table(|table, _| done.commit(slice::from_mut(table)));
    ram.arrived(at);
    if sabotage::on(Sabotage::MapEarly) {
        sabotage::linger();
        Flush::All.carry_out(&flush);
    }
    Ok((old?, time::now().since(began), again + copied))
}

fn written<B: Backend>(vm: &Vm<B>, moving: &LargeMove<large::Mirrored>) -> u32 {
    vm.ram
        .with_table(|table| moving.written(slice::from_ref(table)))
}

/// One leaf that is copied while nobody can reach it.
fn whole<B: Backend>(
    vm: &Vm<B>,
    at: Gpa,
    size: PageSize,
    mapped: PageSize,
    to: NodeId,
) -> Result<Parts, Unmoved> {
    if mapped < size {
        // It is mapped by small pages for a close look, which ends here.
        vm.ram.remap(&[], &[at]);
    }
    let target = mm::allocate_on(to, size).map_err(|e| e.to_string())?;
    let moved = PageMove::plan(at, size, target).and_then(|planned| {
        let began = time::now();
        let quiet = absent(vm, planned)?;
        let old = install(vm, quiet.copy(mm::copy_frames))?;
        Ok((old, time::now().since(began)))
    });
    match moved {
        Ok((old, pause)) => {
            mm::free_displaced(old);
            Ok((size, pause, 0))
        }
        Err(why) => Err(refuse(why)),
    }
}

fn absent<B: Backend>(vm: &Vm<B>, planned: PageMove<Planned>) -> Result<PageMove<Quiet>, Refused> {
    let frozen = vm
        .ram
        .change_table(|table, _| planned.freeze(slice::from_mut(table)))?;
    Ok(frozen.shoot_down(&vm.ram.shootdown()))
}

fn install<B: Backend>(vm: &Vm<B>, copied: PageMove<Copied>) -> Result<Displaced, Refused> {
    let at = copied.at();
    let old = vm
        .ram
        .change_table(|table, _| copied.commit(slice::from_mut(table)));
    vm.ram.arrived(at);
    old
}

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
