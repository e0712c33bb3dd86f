//! Leaves change their size: for close looks and moves for a while, for the operator for good.
//!
//! What is apart for a while is noted ([`memory::apart`]) under the tables' lock for writing, in the same step.

use super::{GuestRam, VmShootdown};
use crate::mm;
use crate::vm::tables::DirectTables;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;
use memory::apart::Purpose;
use memory::replica::Replicas;
use memory::table::{Flush, Lookup, Shootdown, TableFormat};
use units::{Frame, Gpa, PageSize};

/// What [`GuestRam::remap`] did.
#[derive(Debug)]
pub struct Remapped {
    /// Granules that small pages map now.
    pub split: Vec<Gpa>,
    /// How many one leaf maps now.
    pub joined: usize,
    /// CPUs that were interrupted for it.
    pub interrupted: u64,
}

/// One shootdown for several changes that were all made before the first asks for it: it makes CPUs forget
/// everything of the VM, so the others have nothing left to do.
#[derive(Debug)]
struct Together<'s, 'r> {
    inner: &'s VmShootdown<'r>,
    done: Cell<bool>,
}

impl Shootdown for Together<'_, '_> {
    fn shoot_down(&self, flush: Flush) {
        if !self.done.replace(true) {
            self.inner.shoot_down(flush);
        }
    }
}

impl<F: TableFormat<Address = Gpa>> GuestRam<F> {
    /// Maps each granule of `split` by pages of 4 KiB for a while if one leaf of 2 MiB maps it, and each of `join` by one
    /// leaf again that is apart for this purpose. One shootdown for all.
    pub fn remap(&self, purpose: Purpose, split: &[Gpa], join: &[Gpa]) -> Remapped {
        self.change_table(|table, shootdown| {
            let join = self.apart.lock().only(purpose, join);
            let done = resize(table, shootdown, split, &join);
            let mut apart = self.apart.lock();
            for at in join {
                apart.forget(at);
            }
            apart.note(&done.split, purpose);
            done
        })
    }

    /// Takes granules apart that are to be copied while the guest runs; says which are now. Where there was a look it is
    /// over. What another move has taken apart already is left to that.
    pub fn take_apart(&self, granules: &[Gpa]) -> Vec<Gpa> {
        self.change_table(|table, shootdown| {
            let mut taken = self.apart.lock().overtake(granules);
            let split = resize(table, shootdown, granules, &[]).split;
            self.apart.lock().note(&split, Purpose::Move);
            taken.extend(split);
            taken
        })
    }

    /// A look at a granule is over, if there was one: it is to move as the one leaf that it is again.
    pub fn end_look(&self, at: Gpa) {
        let looked_at = self.change_table(|_, _| self.apart.lock().overtake(&[at]));
        self.remap(Purpose::Move, &[], &looked_at);
    }

    /// A move has put this granule together. To be called by whoever changes the tables for that, under their lock.
    pub fn became_whole(&self, at: Gpa) {
        self.apart.lock().forget(at);
    }

    /// Maps the granules that begin in this range by small pages, and not just for a while. Says of how many that is true
    /// now, and how many there are that were not so before.
    pub fn split_for_good(&self, range: Range<u64>) -> (usize, usize) {
        self.change_table(|table, shootdown| {
            let last = Gpa(range.end.saturating_sub(1));
            let leaves = table.first().leaves(Gpa(range.start), last);
            let large = leaves.filter(|leaf| leaf.size == PageSize::Size2M);
            let inside = large.filter(|leaf| range.contains(&leaf.at.0));
            let large: Vec<Gpa> = inside.map(|leaf| leaf.at).collect();
            let (looked_at, moving) = {
                let mut apart = self.apart.lock();
                (apart.keep(&range), apart.count_in(&range))
            };
            let done = resize(table, shootdown, &large, &[]);
            let all = large.len() + looked_at + moving;
            (done.split.len() + looked_at, all)
        })
    }

    /// What a granule is apart for, if it is so for a while.
    pub fn apart(&self, granule: Gpa) -> Option<Purpose> {
        self.apart.lock().purpose(granule)
    }

    /// How many are, and how many close looks ended early so far as their pages moved.
    pub fn count_apart(&self) -> (u64, u64) {
        let apart = self.apart.lock();
        (apart.count() as u64, apart.overtaken())
    }
}

/// Maps each granule of `split` by small pages if one leaf maps it, and each of `join` by one leaf where 512 pages still
/// form one. What the table maps as one or as many, the allocator knows as one block or as many.
fn resize<F: TableFormat<Address = Gpa>>(
    table: &mut Replicas<F, DirectTables>,
    shootdown: &VmShootdown<'_>,
    split: &[Gpa],
    join: &[Gpa],
) -> Remapped {
    let together = Together {
        inner: shootdown,
        done: Cell::new(false),
    };
    let size = PageSize::Size2M;
    // All are frozen before the first shootdown.
    let begin = |at: &Gpa| Some((*at, table.begin_collapse(*at, size).ok()?));
    let joins: Vec<_> = join.iter().filter_map(begin).collect();
    let begin = |at: &Gpa| Some((*at, table.begin_split(*at, size).ok()?));
    let splits: Vec<_> = split.iter().filter_map(begin).collect();
    let joined = joins.len();
    let mut done = Vec::with_capacity(splits.len());
    for (at, join) in joins {
        match table.finish_collapse(join.shoot_down(&together)) {
            Ok(flush) => {
                flush.carry_out(shootdown);
                if let Some(first) = first_frame(table, at) {
                    mm::join_block(first);
                }
            }
            Err(why) => log::error!("a granule could not be mapped by one leaf: {why}"),
        }
    }
    for (at, split) in splits {
        match table.finish_split(split.shoot_down(&together)) {
            Ok(()) => {
                if let Some(first) = first_frame(table, at) {
                    mm::split_block(first);
                }
                done.push(at);
            }
            Err(why) => log::error!("a granule could not be mapped by small pages: {why}"),
        }
    }
    Remapped {
        split: done,
        joined,
        interrupted: shootdown.interrupted.get(),
    }
}

/// The frame that `at`, a leaf's first address, is mapped to.
fn first_frame<F: TableFormat<Address = Gpa>>(
    table: &Replicas<F, DirectTables>,
    at: Gpa,
) -> Option<Frame> {
    match table.first().translate(at) {
        Ok(Lookup::Mapped(leaf)) => Some(leaf.frame),
        _ => None,
    }
}
