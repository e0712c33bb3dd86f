//! Large leaves, as small pages while they are copied: the shootdowns of one serve a few.

use super::batch::Batch;
use super::{Moved, Unmoved, refuse, target, whereabouts};
use crate::arch::time;
use crate::mm;
use crate::sabotage;
use crate::virt::Backend;
use crate::vm::Vm;
use alloc::format;
use alloc::vec::Vec;
use config::Sabotage;
use memory::apart::Purpose;
use memory::page_move::large::{
    Armed, LargeMove, Mirrored, Planned, Quiet, Rounds, shoot_down, shoot_down_frozen,
};
use memory::table::{Flush, NoProcessor};
use migrate::PageOrder;
use units::{Gpa, NodeId, PageSize};

const LARGE: PageSize = PageSize::Size2M;

/// A move that is copied while the guest runs, and how long yet.
type Rounding = (LargeMove<Mirrored>, Rounds);

/// Moves them; says what became of each.
pub fn carry_out<B: Backend>(vm: &Vm<B>, orders: &[PageOrder], to: NodeId) -> Vec<Moved> {
    let mut batch = Batch::of(orders);
    let (planned, taken) = plan(&mut batch, vm, to);
    let flush = vm.ram.shootdown();
    let armed = batch.each(vm, planned, LargeMove::<Planned>::arm);
    let mirrored = shoot_down(armed, &flush).into_iter();
    let mirrored = mirrored.map(|page| (page.copy(mm::copy_frames).0, Rounds::default()));
    let ready = in_rounds(&mut batch, vm, mirrored.collect());
    sabotage::linger();
    let began = time::now();
    let frozen = batch.each(vm, ready, LargeMove::<Mirrored>::freeze);
    sabotage::linger();
    let quiet = match sabotage::on(Sabotage::MapEarly) {
        false => shoot_down_frozen(frozen, &flush),
        true => shoot_down_frozen(frozen, &NoProcessor),
    };
    let places: Vec<Gpa> = quiet.iter().map(LargeMove::at).collect();
    let copied = quiet
        .into_iter()
        .map(|page| last_copy(&mut batch, vm, page));
    let copied = copied.collect();
    let old = batch.each(vm, copied, |page, tables| {
        let at = page.at();
        let old = page.commit(tables)?;
        vm.ram.became_whole(at);
        Ok((at, old))
    });
    places.into_iter().for_each(|at| vm.ram.arrived(at));
    if sabotage::on(Sabotage::MapEarly) {
        sabotage::linger();
        Flush::All.carry_out(&flush);
    }
    let pause = time::now().since(began);
    for (at, old) in old {
        // As the allocator knows them they are small ones since the split.
        mm::join_block(old.frame);
        // Where it was when it left, for another move may have brought it there since this one was planned.
        if let Some(from) = mm::node_of(old.frame) {
            batch.arrived(at, from, pause);
            vm.ram.relocated(LARGE, from, to);
        }
        mm::free_displaced(old);
    }
    let fails = |at: &Gpa| batch.page(*at).is_some_and(|page| page.fate.is_err());
    let stay: Vec<Gpa> = taken.into_iter().filter(fails).collect();
    if !stay.is_empty() {
        vm.ram.remap(Purpose::Move, &[], &stay);
    }
    batch.fates()
}

/// Takes each leaf apart that is not there already, and begins its move. Says which were taken apart.
fn plan<B: Backend>(
    batch: &mut Batch,
    vm: &Vm<B>,
    to: NodeId,
) -> (Vec<LargeMove<Planned>>, Vec<Gpa>) {
    let mut planned = Vec::with_capacity(batch.pages.len());
    for page in &mut batch.pages {
        let at = page.order.gpa;
        let begun = match whereabouts(vm, at) {
            Ok((from, _)) if from == to => continue,
            Ok((_, mapped)) => match vm.ram.apart(at) {
                Some(Purpose::Move) => Err(busy(at)),
                // A look that is over by now leaves one leaf.
                None if mapped != LARGE => Err(Unmoved {
                    why: format!("{at} is not mapped by a leaf of 2 MiB any more"),
                    again: true,
                }),
                Some(Purpose::Look) | None => {
                    target(to, LARGE).and_then(|to| LargeMove::plan(at, to).map_err(refuse))
                }
            },
            Err(why) => Err(why),
        };
        match begun {
            Ok(begun) => planned.push(begun),
            Err(why) => page.fate = Err(why),
        }
    }
    if planned.is_empty() {
        return (planned, Vec::new());
    }
    let places: Vec<Gpa> = planned.iter().map(LargeMove::at).collect();
    let taken = vm.ram.take_apart(&places);
    let (planned, refused): (Vec<_>, Vec<_>) = planned
        .into_iter()
        .partition(|page| taken.contains(&page.at()));
    for page in refused {
        let at = page.at();
        mm::free_allocation(page.cancel());
        batch.stays(at, busy(at));
    }
    (planned, taken)
}

fn busy(at: Gpa) -> Unmoved {
    let why = format!("{at} is moved by another order, or there is no memory for its tables");
    Unmoved { why, again: true }
}

/// Copies again what was written, as long as it helps.
fn in_rounds<B: Backend>(
    batch: &mut Batch,
    vm: &Vm<B>,
    mirrored: Vec<Rounding>,
) -> Vec<LargeMove<Mirrored>> {
    let mut ready = Vec::with_capacity(mirrored.len());
    let mut moving = mirrored;
    loop {
        let (mut again, mut rounds) = (Vec::new(), Vec::new());
        for (page, mut left) in moving {
            let written = vm.ram.with_table(|table| page.written(table.all()));
            match left.go_on(written) {
                true => {
                    rounds.push((page.at(), left));
                    again.push(page);
                }
                false => ready.push(page),
            }
        }
        if again.is_empty() {
            return ready;
        }
        let armed: Vec<LargeMove<Armed>> = batch.each(vm, again, |page, tables| {
            page.again(tables).map(|(armed, _written)| armed)
        });
        let watched = shoot_down(armed, &vm.ram.shootdown()).into_iter();
        moving = watched
            .filter_map(|page| {
                let (page, copied) = page.copy(mm::copy_frames);
                let (_, left) = rounds.iter().find(|(at, _)| *at == page.at())?;
                if let Some(known) = batch.page(page.at()) {
                    known.again += copied;
                }
                Some((page, *left))
            })
            .collect();
    }
}

/// Copies what was written since the last round, while the guest waits.
fn last_copy<B: Backend>(
    batch: &mut Batch,
    vm: &Vm<B>,
    page: LargeMove<Quiet>,
) -> LargeMove<memory::page_move::large::Copied> {
    let copy = match sabotage::on(Sabotage::JudgeEarly) {
        false => mm::copy_frames,
        true => |_, _, _| {},
    };
    let (page, copied) = vm.ram.with_table(|table| page.copy(table.all(), copy));
    if let Some(known) = batch.page(page.at()) {
        known.again += copied;
    }
    page
}
