//! Moving a page to another node under a running guest, without losing a write.
//!
//! ```text
//!   Planned --freeze--> Frozen --shoot_down--> Quiet --copy--> Copied --commit--> Displaced (old frame)
//!      |                  |                      |                |
//!      +---- cancel ------+-------- abort -------+----------------+----> the target, unused
//! ```
//! 1. **Freeze**: the leaf becomes absent by one atomic exchange, in every replica of the table. Processors may
//!    still hold its translation and go on writing to the old frame.
//! 2. **Shoot down**: every processor forgets. From here nobody can write to the old frame, and a
//!    guest that touches the page faults and waits.
//! 3. **Copy** the old frame to the target.
//! 4. **Commit**: the new leaf, with the old one's rights and A and D, is installed in every replica. The old
//!    frame is nobody's and is handed out to be scrubbed and freed.
//!
//! Three ways to lose data are known, and each is a step taken out of turn: installing before the
//! shootdown (a stale writer still writes the old frame), judging or copying before the freeze, and
//! write-protecting instead of unmapping. Here each step consumes the state before it and only its
//! right predecessor has the method, so a wrong order does not compile:
//!
//! ```compile_fail,E0599
//! # use memory::page_move::{Frozen, PageMove};
//! fn copies_before_the_shootdown(page: PageMove<Frozen>) {
//!     let _copied = page.copy(|_old, _new, _pages| {});
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
//! # use memory::page_move::{Displaced, Frozen, PageMove, Quiet};
//! # use memory::table::{NoProcessor, NptFormat, RadixTable};
//! # use memory::testing::VecTables;
//! fn moves(page: PageMove<Frozen>, tables: &mut [RadixTable<NptFormat, VecTables>]) -> Displaced {
//!     let page: PageMove<Quiet> = page.shoot_down(&NoProcessor);
//!     page.copy(|_old, _new, _pages| {}).commit(tables).expect("still frozen")
//! }
//! ```
//!
//! # Locks
//! Freeze, commit and abort take the VM's tables mutably, that is, under the VM's table lock. The shootdown and
//! the copy need no table and must run with that lock *released*: a processor that is waited for
//! may want it in an exit handler.
//!
//! # The hypervisor's own accesses
//! They set no D and obey no shootdown. Whoever touches guest memory on the guest's behalf
//! translates and touches it while holding the VM's table lock (shared), and waits, holding nothing, when it finds the
//! page frozen. A freeze then finds no access in flight. The transactional protocol, whose copies
//! overlap the guest's run, replaces this by pins.
//!
//! # The transactional protocol
//! [`Stage`] names the stages of both protocols. The full one arms and copies before it freezes
//! (MAPPED, ARMED, COPYING, FROZEN, then COMMITTED or ABORTED): its states Armed and Copying go between
//! [`Planned`] and [`Frozen`], and what follows the freeze stays as it is here.

use crate::buddy::{Allocation, Order};
use crate::table::{Flush, Leaf, RadixTable, Shootdown, TableError, TableFormat};
use crate::table::{Lookup, TableMemory};
use alloc::vec::Vec;
use core::fmt;
use units::{Frame, Gpa, PageSize};

/// Where a move stands, for events and reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// The guest uses the old frame; a target is reserved.
    Mapped,
    /// D was cleared everywhere and every processor flushed: a write will show.
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

/// Why a move did not start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveError {
    /// The leaf is not there, has another size, or is frozen by somebody else.
    Table(TableError),
    /// The target block has another size than the leaf.
    TargetSize {
        /// The page.
        at: Gpa,
        /// Its leaf's size.
        size: PageSize,
        /// The target's.
        target: Order,
    },
    /// The replicas of the table disagree about the page.
    Replicas {
        /// The page.
        at: Gpa,
    },
    /// No table was given.
    NoTable {
        /// The page.
        at: Gpa,
    },
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(error) => write!(f, "the page was not moved: {error}"),
            Self::TargetSize { at, size, target } => write!(
                f,
                "the page at {at} was not moved: it is a leaf of {size} and the target has {target}"
            ),
            Self::Replicas { at } => {
                write!(
                    f,
                    "the page at {at} was not moved: the replicas of the table map it differently"
                )
            }
            Self::NoTable { at } => {
                write!(f, "the page at {at} was not moved: its VM has no table")
            }
        }
    }
}

impl core::error::Error for MoveError {}

impl From<TableError> for MoveError {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

/// The states of a [`PageMove`].
pub trait State {
    /// What the guest sees of the state.
    const STAGE: Stage;
}
impl State for Planned {
    const STAGE: Stage = Stage::Mapped;
}
impl State for Frozen {
    const STAGE: Stage = Stage::Frozen;
}
impl State for Quiet {
    const STAGE: Stage = Stage::Frozen;
}
impl State for Copied {
    const STAGE: Stage = Stage::Frozen;
}

/// State: nothing has happened to the guest.
#[derive(Debug)]
pub struct Planned(());

/// State: absent in every replica; processors may still use the old translation.
#[derive(Debug)]
pub struct Frozen {
    leaves: Leaves,
}

/// State: absent, and no processor can reach the old frame.
#[derive(Debug)]
pub struct Quiet {
    leaves: Leaves,
}

/// State: the target holds what the old frame holds, and neither changes.
#[derive(Debug)]
pub struct Copied {
    leaves: Leaves,
}

/// The frozen leaf of each replica.
type Leaves = Vec<Leaf<Gpa>>;

/// One page on its way to `target`, in state `S`.
#[must_use = "the page stays out of the guest's reach until the move is committed or aborted"]
#[derive(Debug)]
pub struct PageMove<S> {
    at: Gpa,
    size: PageSize,
    target: Allocation,
    state: S,
}

/// The frame that a committed move left behind: nobody maps it, and it still holds the guest's data.
/// [`crate::buddy::Frames::take_back`] it, scrub it, free it.
#[must_use = "the frame is lost unless it is taken back, scrubbed and freed"]
#[derive(PartialEq, Eq, Debug)]
pub struct Displaced {
    /// First frame.
    pub frame: Frame,
    /// Size of the block.
    pub size: PageSize,
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
            return Err((
                MoveError::TargetSize {
                    at,
                    size,
                    target: order,
                },
                target,
            ));
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

    /// Makes the page absent in every replica.
    ///
    /// # Errors
    /// [`MoveError`] if a replica does not map the page as the others do, or somebody else froze it. The
    /// page is then mapped everywhere as before, and the target is given back.
    pub fn freeze<F, M>(
        self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<PageMove<Frozen>, (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let Self {
            at, size, target, ..
        } = self;
        if replicas.is_empty() {
            return Err((MoveError::NoTable { at }, target));
        }
        let mut leaves = Leaves::with_capacity(replicas.len());
        for replica in replicas.iter_mut() {
            let error = match replica.freeze(at, size) {
                Ok(leaf) => {
                    leaves.push(leaf);
                    let first = leaves.first().map(|first| (first.frame, first.attributes));
                    if first == Some((leaf.frame, leaf.attributes)) {
                        continue;
                    }
                    MoveError::Replicas { at }
                }
                Err(error) => error.into(),
            };
            thaw(replicas, &leaves);
            return Err((error, target));
        }
        Ok(PageMove {
            at,
            size,
            target,
            state: Frozen { leaves },
        })
    }
}

impl PageMove<Frozen> {
    /// What must be flushed before anything else may happen.
    pub fn flush(&self) -> Flush {
        Flush::Range {
            first: self.at.0,
            bytes: self.size.bytes(),
        }
    }

    /// Makes every processor forget the page. For several pages use [`shoot_down`].
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> PageMove<Quiet> {
        self.flush().carry_out(by);
        self.after_flush()
    }

    /// Maps the old frame again. Safe at any time: old translations say the same.
    pub fn abort<F, M>(self, replicas: &mut [RadixTable<F, M>]) -> Allocation
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        thaw(replicas, &self.state.leaves);
        self.target
    }

    fn after_flush(self) -> PageMove<Quiet> {
        let Self {
            at,
            size,
            target,
            state: Frozen { leaves },
        } = self;
        PageMove {
            at,
            size,
            target,
            state: Quiet { leaves },
        }
    }
}

/// Makes every processor forget all pages of a batch, by one merged flush.
pub fn shoot_down(
    batch: Vec<PageMove<Frozen>>,
    by: &(impl Shootdown + ?Sized),
) -> Vec<PageMove<Quiet>> {
    let flush = batch
        .iter()
        .fold(Flush::None, |flush, page| flush.merge(page.flush()));
    flush.carry_out(by);
    batch.into_iter().map(PageMove::after_flush).collect()
}

impl PageMove<Quiet> {
    /// Copies the content: `copy(old, new, pages)` must copy that many 4 KiB frames.
    pub fn copy(self, copy: impl FnOnce(Frame, Frame, u64)) -> PageMove<Copied> {
        let Self {
            at,
            size,
            target,
            state: Quiet { leaves },
        } = self;
        if let Some(leaf) = leaves.first() {
            copy(leaf.frame, target.frame(), size.pages());
        }
        PageMove {
            at,
            size,
            target,
            state: Copied { leaves },
        }
    }

    /// Maps the old frame again.
    pub fn abort<F, M>(self, replicas: &mut [RadixTable<F, M>]) -> Allocation
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        thaw(replicas, &self.state.leaves);
        self.target
    }
}

impl PageMove<Copied> {
    /// Maps the new frame in every replica, with the old leaf's rights, A and D.
    ///
    /// # Errors
    /// The target, if a replica no longer has the frozen leaf (the VM's memory was torn down): nothing of
    /// the page is mapped to it then.
    pub fn commit<F, M>(
        self,
        replicas: &mut [RadixTable<F, M>],
    ) -> Result<Displaced, (MoveError, Allocation)>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        let Self {
            at,
            size,
            target,
            state: Copied { leaves },
        } = self;
        let gone = replicas.iter().zip(&leaves).any(|(replica, _)| {
            !matches!(replica.translate(at), Ok(Lookup::Frozen { at: found, .. }) if found == at)
        });
        let Some(old) = leaves
            .first()
            .filter(|_| !gone && replicas.len() == leaves.len())
        else {
            let error = TableError::NotFrozen { at: at.0 };
            return Err((MoveError::Table(error), target));
        };
        let new = target.into_frame();
        for (replica, leaf) in replicas.iter_mut().zip(&leaves) {
            let installed = replica.install(leaf, new);
            debug_assert!(installed.is_ok(), "every replica was frozen a moment ago");
        }
        Ok(Displaced {
            frame: old.frame,
            size,
        })
    }

    /// Maps the old frame again; the copy was in vain.
    pub fn abort<F, M>(self, replicas: &mut [RadixTable<F, M>]) -> Allocation
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        thaw(replicas, &self.state.leaves);
        self.target
    }
}

/// Puts the leaves back into as many replicas as were frozen.
fn thaw<F, M>(replicas: &mut [RadixTable<F, M>], leaves: &[Leaf<Gpa>])
where
    F: TableFormat<Address = Gpa>,
    M: TableMemory,
{
    for (replica, leaf) in replicas.iter_mut().zip(leaves) {
        let thawed = replica.install(leaf, leaf.frame);
        debug_assert!(
            thawed.is_ok(),
            "the caller froze this leaf and nobody else may thaw it"
        );
    }
}
