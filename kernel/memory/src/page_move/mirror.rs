//! Copying while the guest runs: arm, mirror, and what may go wrong before the freeze.

use super::freeze::{self, Frozen};
use super::undo::{Begun, GiveUp};
use super::{Leaves, MoveError, PageMove, Planned, Stage, State, Unflushed};
use crate::buddy::Allocation;
use crate::table::{RadixTable, TableFormat, TableMemory, Ticket};
use alloc::vec::Vec;
use units::{Frame, Gpa};

/// The watch that a move keeps in every replica, and what each leaf was.
#[derive(Debug)]
struct Watch {
    leaves: Leaves,
    tickets: Vec<Ticket>,
}

/// State: watched; processors may still store through old translations, unseen.
#[derive(Debug)]
pub struct Armed(Watch);

/// State: watched, and every store from now on shows.
#[derive(Debug)]
pub struct Watched(Watch);

/// State: the target holds what the old frame held at some moment since; stores after that show.
#[derive(Debug)]
pub struct Mirrored(Watch);

impl State for Armed {
    const STAGE: Stage = Stage::Armed;
}
impl Begun for Armed {
    fn traces(&self) -> &impl GiveUp {
        &self.0
    }
}
impl State for Watched {
    const STAGE: Stage = Stage::Copying;
}
impl Begun for Watched {
    fn traces(&self) -> &impl GiveUp {
        &self.0
    }
}
impl State for Mirrored {
    const STAGE: Stage = Stage::Copying;
}
impl Begun for Mirrored {
    fn traces(&self) -> &impl GiveUp {
        &self.0
    }
}
impl Unflushed for Armed {
    type Flushed = Watched;
    fn flushed(self) -> Watched {
        Watched(self.0)
    }
}

impl Watch {
    /// Ends it where it lasts; the leaf is as dirty as it was before, at least.
    fn end<F, M>(&self, at: Gpa, replicas: &mut [RadixTable<F, M>])
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let watches = self.leaves.iter().zip(&self.tickets);
        for (replica, (leaf, ticket)) in replicas.iter_mut().zip(watches) {
            replica.end_watch(at, ticket);
            if leaf.dirty {
                replica.soil(at);
            }
        }
    }

    /// Whether every replica still has the leaf that was armed.
    fn lasts<F, M>(&self, at: Gpa, replicas: &[RadixTable<F, M>]) -> bool
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let mut pairs = replicas.iter().zip(&self.tickets);
        replicas.len() == self.tickets.len()
            && pairs.all(|(replica, ticket)| replica.is_watched(at, ticket))
    }
}

impl PageMove<Planned> {
    /// Clears D in every replica and watches it.
    ///
    /// # Errors
    /// [`MoveError`] if a replica does not map the page as the others do, or another move watches or has frozen it. The
    /// page is then as before, and the target is given back.
    pub fn arm<F, M>(
        self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<PageMove<Armed>, (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let (at, size) = (self.at, self.size);
        let mut watch = Watch {
            leaves: Leaves::with_capacity(replicas.len()),
            tickets: Vec::with_capacity(replicas.len()),
        };
        let mut error = replicas.is_empty().then_some(MoveError::NoTable { at });
        for replica in replicas.iter_mut() {
            match replica.watch(at, size) {
                Ok((leaf, ticket)) => {
                    watch.leaves.push(leaf);
                    watch.tickets.push(ticket);
                }
                Err(why) => error = Some(why.into()),
            }
            if error.is_none() && !freeze::alike(&watch.leaves) {
                error = Some(MoveError::Replicas { at });
            }
            if error.is_some() {
                break;
            }
        }
        match error {
            None => Ok(self.into(|_| Armed(watch))),
            Some(why) => {
                watch.end(at, replicas);
                Err((why, self.target))
            }
        }
    }
}

impl PageMove<Watched> {
    /// Copies the content while the guest runs: `copy(old, new, pages)` must copy that many 4 KiB frames, reading
    /// each byte once, whatever it is at that moment.
    pub fn mirror(self, copy: impl FnOnce(Frame, Frame, u64)) -> PageMove<Mirrored> {
        if let Some(leaf) = self.state.0.leaves.first() {
            copy(leaf.frame, self.target.frame(), self.size.pages());
        }
        self.into(|Watched(watch)| Mirrored(watch))
    }
}

impl PageMove<Mirrored> {
    /// Makes the page absent in every replica, with what D says since it was armed.
    ///
    /// # Errors
    /// [`MoveError::Changed`] if the leaf is not the one that was armed. The page is left as it is found, and the
    /// target is given back.
    pub fn freeze<F, M>(
        self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<PageMove<Frozen>, (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let (at, size) = (self.at, self.size);
        let watch = &self.state.0;
        if !watch.lasts(at, replicas) {
            watch.end(at, replicas);
            return Err((MoveError::Changed { at }, self.target));
        }
        let was_dirty = watch.leaves.iter().map(|leaf| leaf.dirty).collect();
        match freeze::freeze_all(at, size, replicas) {
            Ok(leaves) => Ok(self.into(|_| Frozen::mirrored(leaves, was_dirty))),
            Err(why) => {
                watch.end(at, replicas);
                Err((why, self.target))
            }
        }
    }
}

/// Before the freeze a move is given up by ending the watch: the guest never noticed.
impl GiveUp for Watch {
    fn give_up<F, M>(&self, at: Gpa, replicas: &mut [RadixTable<F, M>])
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        self.end(at, replicas);
    }
}
