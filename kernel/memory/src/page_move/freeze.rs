//! The page out of everybody's reach, and what happens to it there.

use super::undo::{Begun, GiveUp};
use super::{Leaves, MoveError, PageMove, Planned, Stage, State, Unflushed};
use crate::buddy::Allocation;
use crate::table::{Leaf, Lookup, RadixTable, TableError, TableFormat, TableMemory};
use alloc::vec::Vec;
use units::{Frame, Gpa, PageSize};

/// What the freeze found.
#[derive(Debug)]
struct Found {
    /// As the exchange found them, D as it was before the move was begun.
    leaves: Leaves,
    /// The target held what the old frame held, and no store came after that.
    is_mirrored: bool,
}

/// State: absent in every replica; processors may still use the old translation.
#[derive(Debug)]
pub struct Frozen(Found);

/// State: absent, and no processor can reach the old frame.
#[derive(Debug)]
pub struct Quiet(Found);

/// State: the target holds what the old frame holds, and neither changes.
#[derive(Debug)]
pub struct Copied(Found);

/// Whether the copy that was made while the guest ran is worth anything.
#[must_use = "the page stays out of the guest's reach until the move is committed or aborted"]
#[derive(Debug)]
pub enum Settled {
    /// No store came after it.
    Clean(PageMove<Copied>),
    /// The page was written meanwhile, or no copy was made.
    Written(PageMove<Quiet>),
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

impl State for Frozen {
    const STAGE: Stage = Stage::Frozen;
}
impl Begun for Frozen {
    fn traces(&self) -> &impl GiveUp {
        &self.0
    }
}
impl State for Quiet {
    const STAGE: Stage = Stage::Frozen;
}
impl Begun for Quiet {
    fn traces(&self) -> &impl GiveUp {
        &self.0
    }
}
impl State for Copied {
    const STAGE: Stage = Stage::Frozen;
}
impl Begun for Copied {
    fn traces(&self) -> &impl GiveUp {
        &self.0
    }
}
impl Unflushed for Frozen {
    type Flushed = Quiet;
    fn flushed(self) -> Quiet {
        Quiet(self.0)
    }
}

impl Frozen {
    /// After a copy that was begun when D was 0 everywhere; `was_dirty` is what D was before that.
    pub(super) fn mirrored(mut leaves: Leaves, was_dirty: Vec<bool>) -> Self {
        let is_mirrored = leaves.iter().all(|leaf| !leaf.dirty);
        for (leaf, was_dirty) in leaves.iter_mut().zip(was_dirty) {
            leaf.dirty |= was_dirty;
        }
        Self(Found {
            leaves,
            is_mirrored,
        })
    }
}

impl PageMove<Planned> {
    /// Makes the page absent in every replica before anything is copied.
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
        match freeze_all(self.at, self.size, replicas) {
            Ok(leaves) => Ok(self.into(|_| {
                Frozen(Found {
                    leaves,
                    is_mirrored: false,
                })
            })),
            Err(why) => Err((why, self.target)),
        }
    }
}

impl PageMove<Quiet> {
    /// Whether the copy that was made while the guest ran is the page.
    pub fn settle(self) -> Settled {
        if self.state.0.is_mirrored {
            Settled::Clean(self.into(|Quiet(found)| Copied(found)))
        } else {
            Settled::Written(self)
        }
    }

    /// Copies the content while the guest waits: `copy(old, new, pages)` must copy that many 4 KiB frames.
    pub fn copy(self, copy: impl FnOnce(Frame, Frame, u64)) -> PageMove<Copied> {
        if let Some(leaf) = self.state.0.leaves.first() {
            copy(leaf.frame, self.target.frame(), self.size.pages());
        }
        self.into(|Quiet(found)| Copied(found))
    }

    /// Maps the old frame again, to try once more.
    pub fn thaw<F, M>(self, replicas: &mut [RadixTable<F, M>]) -> PageMove<Planned>
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        thaw(replicas, &self.state.0.leaves);
        self.into(|_| Planned(()))
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
            state: Copied(Found { leaves, .. }),
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
}

/// Once frozen, a move is given up by mapping the old frame again. Safe at any time: old translations say the same.
impl GiveUp for Found {
    fn give_up<F, M>(&self, _at: Gpa, replicas: &mut [RadixTable<F, M>])
    where
        F: TableFormat<Address = Gpa>,
        M: TableMemory,
    {
        thaw(replicas, &self.leaves);
    }
}

/// Whether the replicas map the page alike.
pub(super) fn alike(leaves: &[Leaf<Gpa>]) -> bool {
    let said = |leaf: &Leaf<Gpa>| (leaf.frame, leaf.attributes);
    leaves
        .iter()
        .all(|leaf| leaves.first().map(said) == Some(said(leaf)))
}

/// Makes the page absent in every replica, or in none.
pub(super) fn freeze_all<F, M>(
    at: Gpa,
    size: PageSize,
    replicas: &mut [RadixTable<F, M>],
) -> Result<Leaves, MoveError>
where
    F: TableFormat<Address = Gpa>,
    M: TableMemory,
{
    let mut leaves = Leaves::with_capacity(replicas.len());
    let mut error = replicas.is_empty().then_some(MoveError::NoTable { at });
    for replica in replicas.iter_mut() {
        match replica.freeze(at, size) {
            Ok(leaf) => leaves.push(leaf),
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
        None => Ok(leaves),
        Some(why) => {
            thaw(replicas, &leaves);
            Err(why)
        }
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
