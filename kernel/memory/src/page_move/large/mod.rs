//! Moving 2 MiB of which only a little changes: as 512 small leaves that are copied while the guest runs, copied
//! again where it writes, and joined at the new place.
//!
//! ```text
//!   Planned --arm--> Armed --flush--> Watched --copy--> Mirrored --freeze--> Frozen --flush--> Quiet
//!                      ^                                   |                                     |
//!                      +-------------- again --------------+               copy what is left ----+--> Copied --commit
//! ```
//! One leaf of 2 MiB has one D bit, and a guest that writes one word would make all of it stale. So the
//! caller splits the leaf first ([`RadixTable::begin_split`]). **Again** clears the D bits that are
//! set since; after the flush, those pages are copied once more. When few are left, or when the guest writes as fast
//! as is copied ([`Rounds`]), the table of the 512 leaves is **frozen**, by one exchange in each replica. Its D bits are read only
//! after the flush that follows, since walkers write into a table that they still know. What they name is copied while
//! the guest waits, and one leaf is installed at the new place.
//!
//! So after the first copy exactly those pages are copied that were written: each step says how many.

mod absent;
mod rounds;

pub use absent::{Copied, Frozen, Quiet};
pub use rounds::Rounds;

use super::freeze::alike;
use super::undo::{Begun, GiveUp};
use super::{Leaves, MoveError, Stage, State};
use crate::buddy::{Allocation, Order};
use crate::table::{
    Flush, NoProcessor, Pages, RadixTable, Shootdown, TableFormat, TableMemory, Ticket,
};
use alloc::vec::Vec;
use units::{Frame, Gpa, PageSize};

const WHOLE: PageSize = PageSize::Size2M;

/// 2 MiB on their way to `target`, in state `S`.
#[must_use = "the pages stay watched or out of the guest's reach until the move is committed or aborted"]
#[derive(Debug)]
pub struct LargeMove<S> {
    at: Gpa,
    target: Allocation,
    state: S,
}

/// State: nothing has happened to the guest.
#[derive(Debug)]
pub struct Planned(());

/// The watch that a move keeps in every replica.
#[derive(Debug)]
struct Watch {
    old: Frame,
    tickets: Vec<Ticket>,
    /// Some page was dirty before the move was begun or was written since.
    is_dirty: bool,
}

/// State: D was cleared; processors may still store through old translations, unseen. The target lacks these pages.
#[derive(Debug)]
pub struct Armed(Watch, Stale);

/// State: every store from now on shows. The target lacks these pages.
#[derive(Debug)]
pub struct Watched(Watch, Stale);

/// State: the target holds what each page held at some moment; stores after that show.
#[derive(Debug)]
pub struct Mirrored(Watch);

/// Pages that the target lacks.
#[derive(Clone, Copy, Debug)]
enum Stale {
    All,
    Some(Pages),
}

impl Stale {
    fn copy(self, old: Frame, new: Frame, mut copy: impl FnMut(Frame, Frame, u64)) -> u64 {
        match self {
            Self::All => {
                copy(old, new, WHOLE.pages());
                WHOLE.pages()
            }
            Self::Some(pages) => {
                for page in pages.iter() {
                    copy(Frame(old.0 + page), Frame(new.0 + page), 1);
                }
                pages.count().into()
            }
        }
    }
}

impl Watch {
    /// Ends it where it lasts; the pages are as dirty as they were, at least.
    fn end<F, M>(&self, at: Gpa, replicas: &mut [RadixTable<F, M>])
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        for (replica, ticket) in replicas.iter_mut().zip(&self.tickets) {
            replica.end_watch(at, ticket);
        }
        soil(replicas, at, self.is_dirty);
    }
}

impl<S> LargeMove<S> {
    /// First address.
    pub fn at(&self) -> Gpa {
        self.at
    }
    /// Where it goes.
    pub fn target(&self) -> &Allocation {
        &self.target
    }
    /// What must be flushed before anything else may happen.
    fn flush(&self) -> Flush {
        let (first, bytes) = (self.at.0, WHOLE.bytes());
        Flush::Range { first, bytes }
    }
    fn into<T>(self, next: impl FnOnce(S) -> T) -> LargeMove<T> {
        let Self { at, target, state } = self;
        let state = next(state);
        LargeMove { at, target, state }
    }
}

impl LargeMove<Planned> {
    /// A move of the 512 small leaves at `at` to `target`.
    ///
    /// # Errors
    /// [`MoveError::TargetSize`], with the target given back.
    pub fn plan(at: Gpa, target: Allocation) -> Result<Self, (MoveError, Allocation)> {
        if target.order() != Order::from(WHOLE) {
            let error = MoveError::TargetSize {
                at,
                size: WHOLE,
                target: target.order(),
            };
            return Err((error, target));
        }
        let state = Planned(());
        Ok(Self { at, target, state })
    }

    /// Gives the target back; the guest never noticed.
    pub fn cancel(self) -> Allocation {
        self.target
    }

    /// Clears D in every replica and watches it.
    ///
    /// # Errors
    /// [`MoveError`] if in some replica no 512 small leaves form one block, as in the others, or another move watches
    /// or has frozen some of them. They are then as before, and the target is given back.
    pub fn arm<F, M>(
        self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<LargeMove<Armed>, (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let at = self.at;
        let mut leaves = Leaves::with_capacity(replicas.len());
        let mut watch = Watch {
            old: Frame(0),
            tickets: Vec::with_capacity(replicas.len()),
            is_dirty: false,
        };
        let mut error = replicas.is_empty().then_some(MoveError::NoTable { at });
        for replica in replicas.iter_mut() {
            match replica.watch_parts(at) {
                Ok((whole, dirty, ticket)) => {
                    watch.old = whole.frame;
                    watch.is_dirty |= dirty.count() > 0;
                    watch.tickets.push(ticket);
                    leaves.push(whole);
                }
                Err(why) => error = Some(why.into()),
            }
            if error.is_none() && !alike(&leaves) {
                error = Some(MoveError::Replicas { at });
            }
            if error.is_some() {
                break;
            }
        }
        match error {
            None => Ok(self.into(|_| Armed(watch, Stale::All))),
            Some(why) => {
                watch.end(at, replicas);
                Err((why, self.target))
            }
        }
    }
}

impl LargeMove<Armed> {
    /// Makes every processor forget the pages.
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> LargeMove<Watched> {
        self.flush().carry_out(by);
        self.flushed()
    }

    fn flushed(self) -> LargeMove<Watched> {
        self.into(|Armed(watch, stale)| Watched(watch, stale))
    }
}

/// Makes every processor forget all pages of a batch, by one merged flush.
pub fn shoot_down(
    batch: Vec<LargeMove<Armed>>,
    by: &(impl Shootdown + ?Sized),
) -> Vec<LargeMove<Watched>> {
    merged(&batch).carry_out(by);
    batch.into_iter().map(LargeMove::<Armed>::flushed).collect()
}

/// The same after the freeze.
pub fn shoot_down_frozen(
    batch: Vec<LargeMove<Frozen>>,
    by: &(impl Shootdown + ?Sized),
) -> Vec<LargeMove<Quiet>> {
    merged(&batch).carry_out(by);
    let quiet = batch.into_iter().map(|page| page.shoot_down(&NoProcessor));
    quiet.collect()
}

fn merged<S>(batch: &[LargeMove<S>]) -> Flush {
    let flushes = batch.iter().map(LargeMove::flush);
    flushes.fold(Flush::None, Flush::merge)
}

impl LargeMove<Watched> {
    /// Copies what the target lacks while the guest runs; says how many pages that were. `copy(old, new, pages)`
    /// must copy that many 4 KiB frames.
    pub fn copy(self, copy: impl FnMut(Frame, Frame, u64)) -> (LargeMove<Mirrored>, u64) {
        let Watched(watch, stale) = &self.state;
        let copied = stale.copy(watch.old, self.target.frame(), copy);
        (self.into(|Watched(watch, _)| Mirrored(watch)), copied)
    }
}

impl LargeMove<Mirrored> {
    /// How many pages were written since they were copied, so far.
    pub fn written<F, M>(&self, replicas: &[RadixTable<F, M>]) -> u32
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let pairs = replicas.iter().zip(&self.state.0.tickets);
        let seen = pairs.fold(Pages::default(), |all, (replica, ticket)| {
            all.and(replica.peek_dirty(self.at, ticket))
        });
        seen.count()
    }

    /// Takes the D bits that are set since, to copy those pages once more; says how many they are.
    ///
    /// # Errors
    /// [`MoveError::Changed`] if a leaf is not one that was armed. The pages are left as they are found, and the target
    /// is given back.
    pub fn again<F, M>(
        mut self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<(LargeMove<Armed>, u32), (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let at = self.at;
        let watch = &mut self.state.0;
        let same = replicas.len() == watch.tickets.len();
        let mut pairs = replicas.iter_mut().zip(&watch.tickets);
        let written = pairs.try_fold(Pages::default(), |all, (replica, ticket)| {
            Some(all.and(replica.take_dirty(at, ticket)?))
        });
        let Some(written) = written.filter(|_| same) else {
            // What was taken before the one that failed was written.
            watch.is_dirty = true;
            watch.end(at, replicas);
            return Err((MoveError::Changed { at }, self.target));
        };
        watch.is_dirty |= written.count() > 0;
        let armed = self.into(|Mirrored(watch)| Armed(watch, Stale::Some(written)));
        Ok((armed, written.count()))
    }

    /// Makes the pages absent in every replica.
    ///
    /// # Errors
    /// [`MoveError::Changed`] as [`LargeMove::<Mirrored>::again`].
    pub fn freeze<F, M>(
        self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<LargeMove<Frozen>, (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let (at, watch) = (self.at, &self.state.0);
        let mut pairs = replicas.iter().zip(&watch.tickets);
        let lasts = replicas.len() == watch.tickets.len()
            && pairs.all(|(replica, ticket)| replica.is_watched(at, ticket));
        let mut joins = Vec::with_capacity(replicas.len());
        if lasts {
            let begin = |replica: &mut RadixTable<F, M>| replica.begin_collapse(at, WHOLE).ok();
            joins.extend(replicas.iter_mut().map_while(begin));
        }
        if lasts && joins.len() == replicas.len() {
            return Ok(self.into(|Mirrored(watch)| {
                Frozen(absent::Absent {
                    old: watch.old,
                    joins,
                    is_dirty: watch.is_dirty,
                })
            }));
        }
        absent::thaw(replicas, &joins);
        watch.end(at, replicas);
        Err((MoveError::Changed { at }, self.target))
    }
}

impl<S: Begun> LargeMove<S> {
    /// Ends the move: the pages are as they were before, and the target is given back.
    pub fn abort<F, M>(self, replicas: &mut [RadixTable<F, M>]) -> Allocation
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        self.state.traces().give_up(self.at, replicas);
        self.target
    }
}

macro_rules! begun {
    ($($state:ident $stage:ident),+) => {$(
        impl State for $state {
            const STAGE: Stage = Stage::$stage;
        }
        impl Begun for $state {
            fn traces(&self) -> &impl GiveUp {
                &self.0
            }
        }
    )+};
}
begun!(Armed Armed, Watched Copying, Mirrored Copying);
begun!(Frozen Frozen, Quiet Frozen, Copied Frozen);

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

/// What was dirty stays dirty, if only by one page of the block: that of `at`.
fn soil<F, M>(replicas: &[RadixTable<F, M>], at: Gpa, is_dirty: bool)
where
    F: TableFormat<Address = Gpa>,
    M: TableMemory,
{
    if let Some(first) = replicas.first().filter(|_| is_dirty) {
        first.soil(at);
    }
}
