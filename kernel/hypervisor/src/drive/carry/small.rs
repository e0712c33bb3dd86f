//! Small leaves: two shootdowns serve them all.

use super::batch::Batch;
use super::{Moved, refuse, target, whereabouts, with_its_leaf};
use crate::arch::time;
use crate::mm;
use crate::sabotage;
use crate::virt::Backend;
use crate::vm::Vm;
use alloc::vec::Vec;
use config::Sabotage;
use memory::page_move::{Copied, Mirrored, PageMove, Planned, Quiet, Settled, shoot_down};
use memory::table::{Flush, Lookup, NoProcessor};
use migrate::PageOrder;
use units::{Gpa, NodeId, PageSize};

const SMALL: PageSize = PageSize::Size4K;
const LARGE: PageSize = PageSize::Size2M;

/// Moves them; says what became of each.
pub fn carry_out<B: Backend>(vm: &Vm<B>, orders: &[PageOrder], to: NodeId) -> Vec<Moved> {
    let mut batch = Batch::of(orders);
    let planned = plan(&mut batch, vm, to);
    let flush = vm.ram.shootdown();
    let began;
    let frozen = if B::sets_dirty_bits() {
        let armed = batch.each(vm, planned, PageMove::<Planned>::arm);
        let watched = shoot_down(armed, &flush).into_iter();
        let mirrored = watched.map(|page| page.mirror(mm::copy_frames)).collect();
        if sabotage::on(Sabotage::JudgeEarly) {
            judge_early(&mut batch, vm);
        }
        sabotage::linger();
        began = time::now();
        batch.each(vm, mirrored, PageMove::<Mirrored>::freeze)
    } else {
        began = time::now();
        batch.each(vm, planned, PageMove::<Planned>::freeze)
    };
    sabotage::linger();
    let quiet = match sabotage::on(Sabotage::MapEarly) {
        false => shoot_down(frozen, &flush).into_iter(),
        true => shoot_down(frozen, &NoProcessor).into_iter(),
    };
    let copied: Vec<_> = quiet.map(|page| settle(&mut batch, page)).collect();
    let places: Vec<Gpa> = copied.iter().map(PageMove::at).collect();
    let old = batch.each(vm, copied, |page, tables| {
        let at = page.at();
        page.commit(tables).map(|old| (at, old))
    });
    places.into_iter().for_each(|at| vm.ram.arrived(at));
    if sabotage::on(Sabotage::MapEarly) {
        sabotage::linger();
        Flush::All.carry_out(&flush);
    }
    let pause = time::now().since(began);
    for (at, old) in old {
        if let Some(from) = mm::node_of(old.frame) {
            batch.arrived(at, from, pause);
            vm.ram.relocated(SMALL, from, to);
        }
        mm::free_displaced(old);
    }
    batch.fates()
}

/// Begins the move of each leaf that is not there already.
fn plan<B: Backend>(batch: &mut Batch, vm: &Vm<B>, to: NodeId) -> Vec<PageMove<Planned>> {
    let mut planned = Vec::with_capacity(batch.pages.len());
    for page in &mut batch.pages {
        let at = page.order.gpa;
        let begun = match whereabouts(vm, at) {
            Ok((from, _)) if from == to => continue,
            // It belongs to a leaf that is apart for a while, or was when the order was given. The orders for the other
            // pages find them moved.
            Ok((_, size)) if size > SMALL || is_apart(vm, at) => {
                page.fate = with_its_leaf(vm, page.order, size.max(LARGE), to);
                continue;
            }
            Ok(_) => target(to, SMALL).and_then(|to| PageMove::plan(at, SMALL, to).map_err(refuse)),
            Err(why) => Err(why),
        };
        match begun {
            Ok(begun) => planned.push(begun),
            Err(why) => page.fate = Err(why),
        }
    }
    planned
}

/// Whether small pages map its granule just for a while.
fn is_apart<B: Backend>(vm: &Vm<B>, at: Gpa) -> bool {
    vm.ram.apart(at.align_down(LARGE)).is_some()
}

/// What was copied in time is the page; else it is copied now.
fn settle(batch: &mut Batch, page: PageMove<Quiet>) -> PageMove<Copied> {
    match page.settle() {
        Settled::Clean(page) => page,
        Settled::Written(page) => {
            match batch.page(page.at()) {
                Some(known) if known.judged => return page.copy(|_, _, _| {}),
                Some(known) => known.again = 1,
                None => {}
            }
            page.copy(mm::copy_frames)
        }
    }
}

/// [`Sabotage::JudgeEarly`].
fn judge_early<B: Backend>(batch: &mut Batch, vm: &Vm<B>) {
    for page in &mut batch.pages {
        let found = vm.ram.with_table(|table| table.translate(page.order.gpa));
        page.judged = matches!(found, Ok(Lookup::Mapped(leaf)) if !leaf.dirty);
    }
}
