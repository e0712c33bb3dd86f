//! Leaves that move together, and what becomes of each.

use super::{Done, Moved, Refused, Table, Unmoved, refuse};
use crate::sabotage;
use crate::virt::Backend;
use crate::vm::Vm;
use alloc::vec::Vec;
use config::Sabotage;
use memory::page_move::large::LargeMove;
use memory::page_move::{PageMove, State};
use migrate::PageOrder;
use units::{Gpa, Nanos, NodeId};

/// See the module.
pub struct Batch {
    pub pages: Vec<Page>,
}

/// One of them.
pub struct Page {
    pub order: PageOrder,
    /// Pages of 4 KiB that were copied once more.
    pub again: u64,
    /// What became of it so far.
    pub fate: Moved,
    /// [`config::Sabotage::JudgeEarly`]: the copy counts, whatever came after.
    pub judged: bool,
}

/// A move in whatever state.
pub trait Moving {
    /// Its first address.
    fn at(&self) -> Gpa;
}

impl<S: State> Moving for PageMove<S> {
    fn at(&self) -> Gpa {
        PageMove::at(self)
    }
}

impl<S> Moving for LargeMove<S> {
    fn at(&self) -> Gpa {
        LargeMove::at(self)
    }
}

impl Batch {
    pub fn of(orders: &[PageOrder]) -> Self {
        let page = |order: &PageOrder| Page {
            order: *order,
            again: 0,
            fate: Ok(None),
            judged: false,
        };
        let pages = orders.iter().map(page).collect();
        Self { pages }
    }

    /// Takes each one step further, under one lock.
    pub fn each<B: Backend, P: Moving, T>(
        &mut self,
        vm: &Vm<B>,
        moves: Vec<P>,
        step: impl Fn(P, &mut [Table<B>]) -> Result<T, Refused>,
    ) -> Vec<T> {
        let mut done = Vec::with_capacity(moves.len());
        let mut refused = Vec::new();
        vm.ram.change_table(|tables, _| {
            for page in moves {
                let at = page.at();
                let replicas = match sabotage::on(Sabotage::ForgetReplica) {
                    false => tables.all_mut(),
                    true => tables.all_mut().get_mut(..1).unwrap_or_default(),
                };
                match step(page, replicas) {
                    Ok(next) => done.push(next),
                    Err(why) => refused.push((at, why)),
                }
            }
        });
        for (at, why) in refused {
            self.stays(at, refuse(why));
        }
        done
    }

    /// A leaf was not moved.
    pub fn stays(&mut self, at: Gpa, why: Unmoved) {
        if let Some(page) = self.page(at) {
            page.fate = Err(why);
        }
    }

    /// A leaf has come from a node to its new place.
    pub fn arrived(&mut self, at: Gpa, from: NodeId, pause: Nanos) {
        if let Some(page) = self.page(at) {
            page.fate = Ok(Some(Done {
                from,
                size: page.order.size,
                pause,
                again: page.again,
            }));
        }
    }

    pub fn page(&mut self, at: Gpa) -> Option<&mut Page> {
        self.pages.iter_mut().find(|page| page.order.gpa == at)
    }

    /// What became of each.
    pub fn fates(self) -> Vec<Moved> {
        self.pages.into_iter().map(|page| page.fate).collect()
    }
}
