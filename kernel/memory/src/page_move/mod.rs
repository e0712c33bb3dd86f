//! Moving a page to another node under a running guest, without losing a write.
//!
//! ```text
//!   Planned --arm--> Armed --flush--> Watched --copy--> Mirrored --+
//!      |                                                           |
//!      +---------------------------freeze-------------------+      | freeze
//!                                                           v      v
//!                                                           Frozen --flush--> Quiet
//!                                                                              |
//!      Quiet, mirrored and no replica had D -------------------> Copied --commit--> Displaced (old frame)
//!      Quiet, else: copy (the guest waits), or thaw and try again
//! ```
//! 1. **Arm**: D is cleared in every replica and the leaf is watched. Processors may still store through
//!    translations that say D = 1, unseen.
//! 2. **Flush**: every processor forgets. From here a store sets D.
//! 3. **Copy** the old frame to the target while the guest runs.
//! 4. **Freeze**: the leaf becomes absent by one atomic exchange, in every replica. What the exchange finds in D is
//!    final, for processors recheck presence in the locked operation that sets it. Processors may still hold
//!    the translation, read the old frame, and, where D was set, write to it.
//! 5. **Flush** again: nobody reaches the old frame, and a guest that touches the page faults and waits.
//! 6. **Judge**: where no replica had D, the copy is as good as the page, and the guest waited for two exchanges and a
//!    flush. Else the page was written meanwhile: [`PageMove::thaw`] and try again, or copy while it is frozen.
//! 7. **Commit**: the new leaf, with the old one's rights and A and D, is installed in every replica. The old
//!    frame is nobody's and is handed out to be scrubbed and freed.
//!
//! A page may also be frozen first and copied then ([`PageMove::<Planned>::freeze`]): where processors set no D, and
//! where a page is written faster than it is copied.
//!
//! Three ways to lose data are known, and each is a step taken out of turn: installing before the second flush
//! (a stale writer still writes the old frame), judging before the freeze, and write-protecting instead of unmapping
//! (a writer gets its right back while another processor still reads the old frame). Here each step consumes the
//! state before it and only its right predecessor has the method, so a wrong order does not compile:
//!
//! ```compile_fail,E0599
//! # use memory::page_move::{Frozen, PageMove};
//! fn copies_before_the_shootdown(page: PageMove<Frozen>) {
//!     let _copied = page.copy(|_old, _new, _pages| {});
//! }
//! ```
//! ```compile_fail,E0599
//! # use memory::page_move::{Armed, PageMove};
//! fn mirrors_what_may_change_unseen(page: PageMove<Armed>) {
//!     let _mirrored = page.mirror(|_old, _new, _pages| {});
//! }
//! ```
//! ```compile_fail,E0599
//! # use memory::page_move::{Mirrored, PageMove};
//! fn judges_before_the_freeze(page: PageMove<Mirrored>) {
//!     let _copied = page.settle();
//! }
//! ```
//! ```compile_fail,E0599
//! # use memory::page_move::{PageMove, Quiet};
//! # use memory::table::{NptFormat, RadixTable};
//! # use memory::testing::VecTables;
//! fn commits_what_was_not_copied(page: PageMove<Quiet>, tables: &mut [RadixTable<NptFormat, VecTables>]) {
//!     let _old = page.commit(tables);
//! }
//! ```
//!
//! The right order, for comparison:
//!
//! ```
//! # use memory::page_move::{Displaced, MoveError, PageMove, Planned, Settled};
//! # use memory::buddy::Allocation;
//! # use memory::table::{NoProcessor, NptFormat, RadixTable};
//! # use memory::testing::VecTables;
//! # type Tables<'a> = &'a mut [RadixTable<NptFormat, VecTables>];
//! fn moves(page: PageMove<Planned>, tables: Tables) -> Result<Displaced, (MoveError, Allocation)> {
//!     let page = page.arm(tables)?.shoot_down(&NoProcessor).mirror(|_old, _new, _pages| {});
//!     match page.freeze(tables)?.shoot_down(&NoProcessor).settle() {
//!         Settled::Clean(page) => page.commit(tables),
//!         Settled::Written(page) => page.copy(|_old, _new, _pages| {}).commit(tables),
//!     }
//! }
//! ```
//!
//! # Locks
//! Arm, freeze, commit, thaw and abort take the VM's tables mutably, that is, under the VM's table lock. Flushes
//! and copies need no table and must run with that lock *released*: a processor that is waited for
//! may want it in an exit handler.
//!
//! # The hypervisor's own accesses
//! They set no D and obey no flush. Whoever touches guest memory on the guest's behalf holds the VM's table lock
//! (shared) from the translation to the last byte: that is its pin, and a freeze finds no access in flight. What it
//! writes it says by [`RadixTable::soil`], so that a copy that was begun before is known to be stale. And it waits,
//! holding nothing, when it finds the page frozen.
//!
//! # Several moves
//! A leaf is watched by one move at a time; a second is refused when it arms. Whatever else changes the leaf while
//! it is watched ends the watch, and the freeze that follows is refused ([`MoveError::Changed`]).

mod error;
mod freeze;
pub mod large;
mod mirror;
mod undo;

pub use error::MoveError;
pub use freeze::{Copied, Displaced, Frozen, Quiet, Settled};
pub use mirror::{Armed, Mirrored, Watched};

use crate::buddy::{Allocation, Order};
use crate::table::{Flush, Leaf, Shootdown};
use alloc::vec::Vec;
use core::fmt;
use units::{Gpa, PageSize};

/// Where a move stands, for events and reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// The guest uses the old frame; a target is reserved.
    Mapped,
    /// D was cleared everywhere: a write will show once every processor has flushed.
    Armed,
    /// The content is being copied while the guest runs.
    Copying,
    /// The leaf is absent: the guest waits.
    Frozen,
    /// The guest uses the new frame.
    Committed,
    /// The guest uses the old frame again; the target is free.
    Aborted,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Armed => "armed",
            Self::Copying => "copying",
            Self::Frozen => "frozen",
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        })
    }
}

/// The states of a [`PageMove`].
pub trait State {
    /// What the guest sees of the state.
    const STAGE: Stage;
}

/// A state that processors have to be told of.
pub trait Unflushed: State {
    /// The state when they have forgotten the page.
    type Flushed: State;
    /// The same move after the flush.
    fn flushed(self) -> Self::Flushed;
}

/// State: nothing has happened to the guest.
#[derive(Debug)]
pub struct Planned(());

impl State for Planned {
    const STAGE: Stage = Stage::Mapped;
}

/// The leaf of each replica as it was found.
type Leaves = Vec<Leaf<Gpa>>;

/// One page on its way to `target`, in state `S`.
#[must_use = "the page stays watched or out of the guest's reach until the move is committed or aborted"]
#[derive(Debug)]
pub struct PageMove<S> {
    at: Gpa,
    size: PageSize,
    target: Allocation,
    state: S,
}

impl<S: State> PageMove<S> {
    /// Where the move stands.
    pub fn stage(&self) -> Stage {
        S::STAGE
    }
    /// First address of the page.
    pub fn at(&self) -> Gpa {
        self.at
    }
    /// Its size.
    pub fn size(&self) -> PageSize {
        self.size
    }
    /// Where it goes.
    pub fn target(&self) -> &Allocation {
        &self.target
    }

    /// The same page in another state.
    fn into<T>(self, next: impl FnOnce(S) -> T) -> PageMove<T> {
        let Self {
            at,
            size,
            target,
            state,
        } = self;
        PageMove {
            at,
            size,
            target,
            state: next(state),
        }
    }
}

impl PageMove<Planned> {
    /// A move of the leaf of `size` at `at` to `target`.
    ///
    /// # Errors
    /// [`MoveError::TargetSize`], with the target given back.
    pub fn plan(
        at: Gpa,
        size: PageSize,
        target: Allocation,
    ) -> Result<Self, (MoveError, Allocation)> {
        if target.order() != Order::from(size) {
            let order = target.order();
            let error = MoveError::TargetSize {
                at,
                size,
                target: order,
            };
            return Err((error, target));
        }
        Ok(Self {
            at,
            size,
            target,
            state: Planned(()),
        })
    }

    /// Gives the target back; the guest never noticed.
    pub fn cancel(self) -> Allocation {
        self.target
    }
}

impl<S: Unflushed> PageMove<S> {
    /// What must be flushed before anything else may happen.
    pub fn flush(&self) -> Flush {
        Flush::Range {
            first: self.at.0,
            bytes: self.size.bytes(),
        }
    }

    /// Makes every processor forget the page. For several pages use [`shoot_down`].
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> PageMove<S::Flushed> {
        self.flush().carry_out(by);
        self.into(S::flushed)
    }
}

/// Makes every processor forget all pages of a batch, by one merged flush.
pub fn shoot_down<S: Unflushed>(
    batch: Vec<PageMove<S>>,
    by: &(impl Shootdown + ?Sized),
) -> Vec<PageMove<S::Flushed>> {
    let flush = batch
        .iter()
        .fold(Flush::None, |flush, page| flush.merge(page.flush()));
    flush.carry_out(by);
    let flushed = |page: PageMove<S>| page.into(S::flushed);
    batch.into_iter().map(flushed).collect()
}
