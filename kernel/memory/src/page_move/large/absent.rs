//! The pages out of everybody's reach, and what happens to them there.

use super::{LargeMove, Stale, WHOLE, soil};
use crate::buddy::Allocation;
use crate::page_move::MoveError;
use crate::page_move::freeze::Displaced;
use crate::page_move::undo::GiveUp;
use crate::table::{
    CollapseReady, Collapsing, Pages, RadixTable, Shootdown, TableError, TableFormat, TableMemory,
};
use alloc::vec::Vec;
use units::{Frame, Gpa};

/// The frozen tables of small leaves, one in each replica.
#[derive(Debug)]
pub(super) struct Absent<J> {
    pub(super) old: Frame,
    pub(super) joins: Vec<J>,
    pub(super) is_dirty: bool,
}

/// State: absent in every replica; processors may still use the old translations.
#[derive(Debug)]
pub struct Frozen(pub(super) Absent<Collapsing<Gpa>>);

/// State: absent, and no processor can reach the old frames.
#[derive(Debug)]
pub struct Quiet(pub(super) Absent<CollapseReady<Gpa>>);

/// State: the target holds what the old frames hold, and neither changes.
#[derive(Debug)]
pub struct Copied(pub(super) Absent<CollapseReady<Gpa>>);

impl LargeMove<Frozen> {
    /// Makes every processor forget the pages.
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> LargeMove<Quiet> {
        self.flush().carry_out(by);
        let forgotten = |join: Collapsing<Gpa>| join.shoot_down(&crate::table::NoProcessor);
        self.into(|Frozen(absent)| {
            Quiet(Absent {
                old: absent.old,
                joins: absent.joins.into_iter().map(forgotten).collect(),
                is_dirty: absent.is_dirty,
            })
        })
    }
}

impl LargeMove<Quiet> {
    /// Copies what was written since the last copy, while the guest waits; says how many pages that were.
    pub fn copy<F, M>(
        self,
        replicas: &[RadixTable<F, M>],
        copy: impl FnMut(Frame, Frame, u64),
    ) -> (LargeMove<Copied>, u64)
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let Quiet(absent) = &self.state;
        let pairs = replicas.iter().zip(&absent.joins);
        let written = pairs.fold(Pages::default(), |all, (replica, join)| {
            all.and(replica.written_parts(join))
        });
        let copied = Stale::Some(written).copy(absent.old, self.target.frame(), copy);
        (self.into(|Quiet(absent)| Copied(absent)), copied)
    }
}

impl LargeMove<Copied> {
    /// Maps the new block by one leaf in every replica, with A and D of the parts.
    ///
    /// # Errors
    /// The target, if a replica no longer has the frozen table (the VM's memory was torn down).
    pub fn commit<F, M>(
        self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<Displaced, (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let Copied(absent) = self.state;
        let mut pairs = replicas.iter().zip(&absent.joins);
        let is_there = replicas.len() == absent.joins.len()
            && pairs.all(|(replica, join)| replica.is_collapsing(join));
        if !is_there {
            let error = TableError::NotFrozen { at: self.at.0 };
            return Err((MoveError::Table(error), self.target));
        }
        let (new, old) = (self.target.into_frame(), absent.old);
        for (replica, join) in replicas.iter_mut().zip(absent.joins) {
            let joined = replica.finish_collapse_to(join, new, absent.is_dirty);
            debug_assert!(joined.is_ok(), "every replica was frozen a moment ago");
        }
        Ok(Displaced {
            frame: old,
            size: WHOLE,
        })
    }
}

/// After it by mapping the old pages again.
impl<J: AsRef<Collapsing<Gpa>>> GiveUp for Absent<J> {
    fn give_up<F, M>(&self, at: Gpa, replicas: &mut [RadixTable<F, M>])
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        thaw(replicas, &self.joins);
        soil(replicas, at, self.is_dirty);
    }
}

/// Puts the tables of small leaves back into as many replicas as were frozen.
pub(super) fn thaw<F, M>(replicas: &mut [RadixTable<F, M>], joins: &[impl AsRef<Collapsing<Gpa>>])
where
    F: TableFormat<Address = Gpa>,
    M: TableMemory,
{
    for (replica, join) in replicas.iter_mut().zip(joins) {
        replica.cancel_collapse(join.as_ref());
    }
}
