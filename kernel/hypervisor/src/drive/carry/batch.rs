//! Small leaves that move together: two shootdowns serve them all.

use super::{Done, Moved, Refused, Table, Unmoved, one, refuse, whereabouts};
use crate::arch::time;
use crate::mm;
use crate::sabotage;
use crate::virt::Backend;
use crate::vm::Vm;
use alloc::string::ToString;
use alloc::vec::Vec;
use config::Sabotage;
use core::slice;
use memory::page_move::{Copied, Mirrored, PageMove, Planned, Quiet, Settled, State, shoot_down};
use memory::table::{Flush, Lookup, NoProcessor};
use migrate::PageOrder;
use units::{Gpa, Nanos, NodeId, PageSize};

/// Moves them; says what became of each.
pub fn carry_out<B: Backend>(vm: &Vm<B>, orders: &[PageOrder], to: NodeId) -> Vec<Moved> {
    let mut batch = Batch::of(orders);
    let planned = batch.plan(vm, to);
    let flush = vm.ram.shootdown();
    let began;
    let frozen = if B::sets_dirty_bits() {
        let armed = batch.each(vm, planned, PageMove::<Planned>::arm);
        let watched = shoot_down(armed, &flush).into_iter();
        let mirrored = watched.map(|page| page.mirror(mm::copy_frames)).collect();
        if sabotage::on(Sabotage::JudgeEarly) {
            batch.judge_early(vm);
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
    let copied: Vec<_> = quiet.map(|page| batch.settle(page)).collect();
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
        mm::free_displaced(old);
        if let Some(from) = batch.done(at, pause) {
            vm.ram.relocated(PageSize::Size4K, from, to);
        }
    }
    batch.pages.into_iter().map(|page| page.fate).collect()
}

/// Small leaves that move together.
struct Batch {
    pages: Vec<Page>,
}

/// One of them.
struct Page {
    order: PageOrder,
    from: NodeId,
    again: u64,
    fate: Moved,
    /// [`Sabotage::JudgeEarly`]: the copy counts, whatever came after.
    judged: bool,
}

impl Batch {
    fn of(orders: &[PageOrder]) -> Self {
        let page = |order: &PageOrder| Page {
            order: *order,
            from: order.from,
            again: 0,
            fate: Ok(None),
            judged: false,
        };
        let pages = orders.iter().map(page).collect();
        Self { pages }
    }

    /// Begins the move of each leaf that is not there already.
    fn plan<B: Backend>(&mut self, vm: &Vm<B>, to: NodeId) -> Vec<PageMove<Planned>> {
        let mut planned = Vec::with_capacity(self.pages.len());
        for page in &mut self.pages {
            let at = page.order.gpa;
            match whereabouts(vm, at) {
                Ok((from, _)) if from == to => {}
                Ok((from, PageSize::Size4K)) => {
                    page.from = from;
                    match begin(at, to) {
                        Ok(begun) => planned.push(begun),
                        Err(why) => page.fate = Err(why),
                    }
                }
                // The close look under which it was ordered is over; the orders for the other pages find them moved.
                Ok(_) => page.fate = one(vm, page.order, to),
                Err(why) => page.fate = Err(why),
            }
        }
        planned
    }

    /// Takes each page one step further, under one lock.
    fn each<B: Backend, S, T>(
        &mut self,
        vm: &Vm<B>,
        pages: Vec<PageMove<S>>,
        step: impl Fn(PageMove<S>, &mut [Table<B>]) -> Result<T, Refused>,
    ) -> Vec<T>
    where
        S: State,
    {
        let mut done = Vec::with_capacity(pages.len());
        let mut refused = Vec::new();
        vm.ram.change_table(|table, _| {
            for page in pages {
                let at = page.at();
                match step(page, slice::from_mut(table)) {
                    Ok(next) => done.push(next),
                    Err(why) => refused.push((at, why)),
                }
            }
        });
        for (at, why) in refused {
            if let Some(page) = self.page(at) {
                page.fate = Err(refuse(why));
            }
        }
        done
    }

    /// What was copied in time is the page; else it is copied now.
    fn settle(&mut self, page: PageMove<Quiet>) -> PageMove<Copied> {
        match page.settle() {
            Settled::Clean(page) => page,
            Settled::Written(page) => {
                match self.page(page.at()) {
                    Some(known) if known.judged => return page.copy(|_, _, _| {}),
                    Some(known) => known.again = 1,
                    None => {}
                }
                page.copy(mm::copy_frames)
            }
        }
    }

    /// [`Sabotage::JudgeEarly`].
    fn judge_early<B: Backend>(&mut self, vm: &Vm<B>) {
        for page in &mut self.pages {
            let found = vm.ram.with_table(|table| table.translate(page.order.gpa));
            page.judged = matches!(found, Ok(Lookup::Mapped(leaf)) if !leaf.dirty);
        }
    }

    /// A page is at its new place; where it was.
    fn done(&mut self, at: Gpa, pause: Nanos) -> Option<NodeId> {
        let page = self.page(at)?;
        page.fate = Ok(Some(Done {
            from: page.from,
            size: PageSize::Size4K,
            pause,
            again: page.again,
        }));
        Some(page.from)
    }

    fn page(&mut self, at: Gpa) -> Option<&mut Page> {
        self.pages.iter_mut().find(|page| page.order.gpa == at)
    }
}

fn begin(at: Gpa, to: NodeId) -> Result<PageMove<Planned>, Unmoved> {
    let target = mm::allocate_on(to, PageSize::Size4K).map_err(|e| e.to_string())?;
    PageMove::plan(at, PageSize::Size4K, target).map_err(refuse)
}
