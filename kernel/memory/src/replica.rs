//! One VM's tables, a root for each node that runs it.
//!
//! A CPU that walks a table on another node waits for that node's memory at every level; with a root of its own it
//! walks at home. And since a processor sets A in the root that it walks, the bits of a root say what *its* node
//! touched (MECHANISMS section 1; R. Achermann et al., "Mitosis", ASPLOS 2020, and A. Panwar et al., "vMitosis",
//! ASPLOS 2021).
//!
//! All replicas translate alike: whatever changes one changes all, under the owner's lock, before the one flush that
//! completes the change. A and D differ; D of a page is the OR over all.
//!
//! A replica may be added or dropped at any time when nothing is frozen. Adding copies what the first one says, with A
//! = D = 0. Dropping takes three steps, which the types keep in order: [`Replicas::unlink`] (the caller has made
//! sure that entries load another root), the shootdown, and only then the OR of its A and D into
//! the others, and the end of its tables: until every CPU has flushed, walkers write A and D into them.

mod looks;

pub use looks::harvest_all;

use crate::table::{
    Attributes, CollapseReady, Collapsing, Flush, LargeLeaves, Leaf, Lookup, RadixTable, Shootdown,
    SplitReady, Splitting, TableAddress, TableError, TableFormat, TableMemory, Unmapped,
};
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use units::{Frame, NodeId, PageSize};

/// The tables of one VM: never none.
pub struct Replicas<F, M> {
    /// Each on the node that [`RadixTable::node`] names, no two on the same.
    tables: Vec<RadixTable<F, M>>,
}

/// Why a replica was not added or dropped. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaError {
    /// The node has one already.
    Exists(NodeId),
    /// The node has none.
    Missing(NodeId),
    /// It is the only one.
    Last(NodeId),
    /// Something is on its way to another frame or size.
    Busy {
        /// Where.
        at: u64,
    },
    /// There is no memory for its tables.
    Table(TableError),
}

impl fmt::Display for ReplicaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(node) => write!(f, "{node} has a root of its own already; none was added"),
            Self::Missing(node) => write!(f, "{node} has no root of its own; none was dropped"),
            Self::Last(node) => write!(f, "the root on {node} is the VM's only one; it stays"),
            Self::Busy { at } => write!(
                f,
                "{at:#x} is being moved or resized; roots are added and dropped when that is over"
            ),
            Self::Table(error) => write!(f, "no root was added: {error}"),
        }
    }
}

impl core::error::Error for ReplicaError {}

/// A replica that entries no longer load and that processors may still walk.
#[must_use = "its tables are lost unless it is retired"]
pub struct Unlinked<F, M>(RadixTable<F, M>);

/// A leaf that is in no replica any more but may still be in processors; see [`Unmapped`].
#[must_use = "the frame and empty tables are lost unless the unmapping is finished"]
#[derive(Debug)]
pub struct UnmappedAll<A>(Vec<Unmapped<A>>);

/// A large leaf that is frozen in all replicas; see [`Splitting`].
#[must_use = "the range stays frozen until the split is finished"]
#[derive(Debug)]
pub struct SplittingAll<A>(Vec<Splitting<A>>);

/// The same when processors have forgotten it; see [`SplitReady`].
#[must_use = "the range stays frozen until the split is finished"]
#[derive(Debug)]
pub struct SplitReadyAll<A>(Vec<SplitReady<A>>);

/// A table of leaves that is frozen in all replicas; see [`Collapsing`].
#[must_use = "the range stays frozen until the collapse is finished"]
#[derive(Debug)]
pub struct CollapsingAll<A>(Vec<Collapsing<A>>);

/// The same when processors have forgotten it; see [`CollapseReady`].
#[must_use = "the range stays frozen until the collapse is finished"]
#[derive(Debug)]
pub struct CollapseReadyAll<A>(Vec<CollapseReady<A>>);

/// The first of several requests is carried out, and covers the others: all are for the same range, and a shootdown
/// reaches the translations of every root.
struct Once<'s, S: ?Sized> {
    by: &'s S,
    done: Cell<bool>,
}

impl<'s, S: Shootdown + ?Sized> Once<'s, S> {
    fn new(by: &'s S) -> Self {
        let done = Cell::new(false);
        Self { by, done }
    }
}

impl<S: Shootdown + ?Sized> Shootdown for Once<'_, S> {
    fn shoot_down(&self, flush: Flush) {
        if !self.done.replace(true) {
            self.by.shoot_down(flush);
        }
    }
}

impl<A: TableAddress> UnmappedAll<A> {
    /// As [`Unmapped::finish`]; A and D of the leaf are the OR over all replicas.
    pub fn finish(
        self,
        by: &(impl Shootdown + ?Sized),
        memory: &impl TableMemory,
    ) -> Option<Leaf<A>> {
        let by = Once::new(by);
        let leaves = self
            .0
            .into_iter()
            .map(|unmapped| unmapped.finish(&by, memory));
        leaves.reduce(|all, one| Leaf {
            accessed: all.accessed | one.accessed,
            dirty: all.dirty | one.dirty,
            ..all
        })
    }
}

impl<A: TableAddress> SplittingAll<A> {
    /// As [`Splitting::to_execute`].
    #[must_use = "the range stays frozen until the split is finished"]
    pub fn to_execute(self) -> Self {
        Self(self.0.into_iter().map(Splitting::to_execute).collect())
    }

    /// As [`Splitting::shoot_down`], once for all.
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> SplitReadyAll<A> {
        let by = Once::new(by);
        SplitReadyAll(
            self.0
                .into_iter()
                .map(|split| split.shoot_down(&by))
                .collect(),
        )
    }
}

impl<A: TableAddress> CollapsingAll<A> {
    /// As [`Collapsing::shoot_down`], once for all.
    pub fn shoot_down(self, by: &(impl Shootdown + ?Sized)) -> CollapseReadyAll<A> {
        let by = Once::new(by);
        CollapseReadyAll(
            self.0
                .into_iter()
                .map(|join| join.shoot_down(&by))
                .collect(),
        )
    }
}

impl<F: TableFormat, M: TableMemory + Clone> Replicas<F, M> {
    /// One empty table, on `node`, under this rule, as all that are added later.
    ///
    /// # Errors
    /// There is no frame for its root.
    pub fn new(
        memory: M,
        node: NodeId,
        large: LargeLeaves,
    ) -> Result<Self, crate::buddy::OutOfFrames> {
        let table = RadixTable::new(memory, node)?.with_large_leaves(large);
        Ok(Self {
            tables: alloc::vec![table],
        })
    }

    /// The replica whose translations count when nobody cares which node asks: all are alike.
    pub fn first(&self) -> &RadixTable<F, M> {
        // Never none: see the type.
        #[expect(clippy::indexing_slicing, reason = "there is always one")]
        &self.tables[0]
    }

    /// All of them.
    pub fn all(&self) -> &[RadixTable<F, M>] {
        &self.tables
    }

    /// All of them, for a page move, which treats them alike.
    pub fn all_mut(&mut self) -> &mut [RadixTable<F, M>] {
        &mut self.tables
    }

    /// The replica that CPUs of `node` walk: their own, or the first.
    pub fn of(&self, node: NodeId) -> &RadixTable<F, M> {
        let own = self.tables.iter().find(|table| table.node() == node);
        own.unwrap_or_else(|| self.first())
    }

    /// What `at` translates to, with A and D of all replicas.
    ///
    /// # Errors
    /// As [`RadixTable::translate`].
    pub fn translate(&self, at: F::Address) -> Result<Lookup<F::Address>, TableError> {
        let mut found = self.first().translate(at)?;
        for table in self.tables.iter().skip(1) {
            if let (Lookup::Mapped(leaf), Lookup::Mapped(other)) =
                (&mut found, table.translate(at)?)
            {
                leaf.accessed |= other.accessed;
                leaf.dirty |= other.dirty;
            }
        }
        Ok(found)
    }

    /// Maps one leaf in all replicas, or in none.
    ///
    /// # Errors
    /// As [`RadixTable::map`]. If a later replica has no memory for tables, the earlier ones unmap it again, which `by`
    /// completes.
    pub fn map(
        &mut self,
        at: F::Address,
        frame: Frame,
        size: PageSize,
        attributes: Attributes,
        by: &(impl Shootdown + ?Sized),
    ) -> Result<Flush, TableError> {
        let mut flush = Flush::None;
        for i in 0..self.tables.len() {
            let Some(table) = self.tables.get_mut(i) else {
                continue;
            };
            match table.map(at, frame, size, attributes) {
                Ok(more) => flush = flush.merge(more),
                Err(error) => {
                    for table in self.tables.iter_mut().take(i) {
                        if let Ok(unmapped) = table.unmap(at, size) {
                            let memory = table.memory().clone();
                            unmapped.finish(by, &memory);
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(flush)
    }

    /// Removes a leaf from all replicas.
    ///
    /// # Errors
    /// As [`RadixTable::unmap`]; then nothing was changed, for what holds for one holds for all.
    pub fn unmap(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<UnmappedAll<F::Address>, TableError> {
        let each = self.tables.iter_mut().map(|table| table.unmap(at, size));
        each.collect::<Result<_, _>>().map(UnmappedAll)
    }

    /// Gives a leaf other rights or another memory type in all replicas.
    ///
    /// # Errors
    /// As [`RadixTable::protect`]; then nothing was changed.
    pub fn protect(
        &mut self,
        at: F::Address,
        size: PageSize,
        attributes: Attributes,
    ) -> Result<Flush, TableError> {
        let mut flush = Flush::None;
        for table in &mut self.tables {
            flush = flush.merge(table.protect(at, size, attributes)?);
        }
        Ok(flush)
    }

    /// Freezes a large leaf in all replicas, to become 512 smaller ones.
    ///
    /// # Errors
    /// As [`RadixTable::begin_split`]; then nothing is frozen.
    pub fn begin_split(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<SplittingAll<F::Address>, TableError> {
        let mut begun = Vec::with_capacity(self.tables.len());
        for i in 0..self.tables.len() {
            let Some(table) = self.tables.get_mut(i) else {
                continue;
            };
            match table.begin_split(at, size) {
                Ok(split) => begun.push(split),
                Err(error) => {
                    for (table, split) in self.tables.iter_mut().zip(begun) {
                        table.cancel_split(split);
                    }
                    return Err(error);
                }
            }
        }
        Ok(SplittingAll(begun))
    }

    /// Installs the smaller leaves.
    ///
    /// # Errors
    /// As [`RadixTable::finish_split`], after each replica was tried.
    pub fn finish_split(&mut self, ready: SplitReadyAll<F::Address>) -> Result<(), TableError> {
        let each = self.tables.iter_mut().zip(ready.0);
        let results: Vec<_> = each
            .map(|(table, ready)| table.finish_split(ready))
            .collect();
        results.into_iter().collect()
    }

    /// Freezes the table of 512 leaves at `at` in all replicas, to become one leaf.
    ///
    /// # Errors
    /// As [`RadixTable::begin_collapse`]; then nothing is frozen, for what holds for one holds for all.
    pub fn begin_collapse(
        &mut self,
        at: F::Address,
        size: PageSize,
    ) -> Result<CollapsingAll<F::Address>, TableError> {
        let each = self
            .tables
            .iter_mut()
            .map(|table| table.begin_collapse(at, size));
        each.collect::<Result<_, _>>().map(CollapsingAll)
    }

    /// Installs the one leaf.
    ///
    /// # Errors
    /// As [`RadixTable::finish_collapse`], after each replica was tried.
    pub fn finish_collapse(
        &mut self,
        ready: CollapseReadyAll<F::Address>,
    ) -> Result<Flush, TableError> {
        let each = self.tables.iter_mut().zip(ready.0);
        let results: Vec<_> = each
            .map(|(table, ready)| table.finish_collapse(ready))
            .collect();
        results
            .into_iter()
            .try_fold(Flush::None, |all, one| Ok(all.merge(one?)))
    }

    /// Adds a replica whose tables lie on `node`.
    ///
    /// # Errors
    /// [`ReplicaError::Exists`], [`ReplicaError::Busy`], [`ReplicaError::Table`]; then nothing was changed.
    pub fn add(&mut self, node: NodeId) -> Result<(), ReplicaError> {
        if self.tables.iter().any(|table| table.node() == node) {
            return Err(ReplicaError::Exists(node));
        }
        self.check_idle()?;
        let twin = self.first().twin(node);
        self.tables
            .push(twin.map_err(|e| ReplicaError::Table(e.into()))?);
        Ok(())
    }

    /// Takes the replica of `node` out. CPUs of that node must load another root from now on.
    ///
    /// # Errors
    /// [`ReplicaError::Missing`], [`ReplicaError::Last`], [`ReplicaError::Busy`].
    pub fn unlink(&mut self, node: NodeId) -> Result<Unlinked<F, M>, ReplicaError> {
        let own = self.tables.iter().position(|table| table.node() == node);
        let own = own.ok_or(ReplicaError::Missing(node))?;
        if self.tables.len() < 2 {
            return Err(ReplicaError::Last(node));
        }
        self.check_idle()?;
        Ok(Unlinked(self.tables.remove(own)))
    }

    /// Makes processors forget an unlinked replica, keeps its A and D, and gives its tables back.
    pub fn retire(&mut self, old: Unlinked<F, M>, by: &(impl Shootdown + ?Sized)) {
        let Some(first) = self.tables.first() else {
            return;
        };
        // The leaves are visited after the shootdown.
        old.0.destroy(by, |leaf| first.inherit(&leaf));
    }

    fn check_idle(&self) -> Result<(), ReplicaError> {
        match self.first().first_frozen() {
            Some(at) => Err(ReplicaError::Busy { at }),
            None => Ok(()),
        }
    }

    /// Takes all tables down; see [`RadixTable::destroy`]. Each leaf is visited once, with A and D of the first.
    pub fn destroy(self, by: &(impl Shootdown + ?Sized), mut visit: impl FnMut(Leaf<F::Address>)) {
        for (i, table) in self.tables.into_iter().enumerate() {
            table.destroy(by, |leaf| {
                if i == 0 {
                    visit(leaf);
                }
            });
        }
    }
}

impl<F: TableFormat, M> fmt::Debug for Replicas<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.tables).finish()
    }
}

impl<F: TableFormat, M> fmt::Debug for Unlinked<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unlinked").field(&self.0).finish()
    }
}
