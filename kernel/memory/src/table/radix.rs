//! The table itself: looking up, and taking everything down.

use super::watch::Watches;
use super::{
    Attributes, ENTRIES, Flush, Level, Rights, Shootdown, TableAddress, TableError, TableFormat,
    TableMemory,
};
use crate::buddy::OutOfFrames;
use core::fmt;
use core::marker::PhantomData;
use units::{Frame, NodeId, PageSize};

/// A leaf as one read of its entry showed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf<A> {
    /// First address that it translates.
    pub at: A,
    /// First frame that it translates to.
    pub frame: Frame,
    /// Its size.
    pub size: PageSize,
    /// Rights and memory type.
    pub attributes: Attributes,
    /// Some processor used it since A was last cleared.
    pub accessed: bool,
    /// Some processor stored through it since D was last cleared.
    pub dirty: bool,
    /// It is absent for processors: on its way to another frame or size.
    pub frozen: bool,
}

/// What an address translates to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup<A> {
    /// Mapped by this leaf.
    Mapped(Leaf<A>),
    /// Mapped by this leaf or by one inside it, but being moved or resized: wait.
    Frozen {
        /// First address of the frozen entry.
        at: A,
        /// The size of the entry.
        size: PageSize,
    },
    /// Not mapped: the entry at `level` is empty.
    NotMapped {
        /// Where the walk ended.
        level: Level,
    },
}

/// What one entry means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    Empty,
    Table(Frame),
    Leaf,
    FrozenTable(Frame),
    FrozenLeaf,
}

impl Entry {
    pub(crate) fn decode<F: TableFormat>(entry: u64, level: Level) -> Self {
        let leaf = F::is_leaf(entry, level);
        match (F::is_present(entry), F::is_frozen(entry)) {
            (true, _) if leaf => Self::Leaf,
            (true, _) => Self::Table(F::table_frame(entry)),
            (_, true) if leaf => Self::FrozenLeaf,
            (_, true) => Self::FrozenTable(F::table_frame(entry)),
            _ => Self::Empty,
        }
    }
}

/// Whether code may be fetched through leaves of 2 MiB and 1 GiB.
///
/// On many of Intel's processors a guest that changes the size of one of its own pages while it executes there can
/// raise a machine check that stops the whole host ("Machine Check Error on Page Size Change", CVE-2018-12207):
/// both sizes end up in the instruction TLB. With small leaves wherever code is fetched there is only one size to cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LargeLeaves {
    /// They may be executed.
    #[default]
    Executable,
    /// They lose that right, whatever is asked for. Where somebody executes they are to be split with
    /// [`super::Splitting::to_execute`]; what was split so does not become one leaf again.
    NotExecutable,
}

/// An entry's place, and its value when the walk passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) table: Frame,
    pub(crate) index: usize,
    pub(crate) level: Level,
    pub(crate) value: u64,
}

impl Slot {
    pub(crate) fn entry<F: TableFormat>(&self) -> Entry {
        Entry::decode::<F>(self.value, self.level)
    }
}

/// A radix table of format `F` in memory `M`.
///
/// [`RadixTable::destroy`] gives its frames back; merely dropping it leaks them, since only the
/// caller can say when no processor uses the root any more.
pub struct RadixTable<F, M> {
    pub(super) memory: M,
    pub(super) node: NodeId,
    root: Frame,
    pub(super) tables: u64,
    pub(super) watches: Watches,
    pub(super) large: LargeLeaves,
    format: PhantomData<fn() -> F>,
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// An empty table whose frames come from `node`, if it has any left.
    ///
    /// # Errors
    /// [`OutOfFrames`] if there is no frame for the root.
    pub fn new(memory: M, node: NodeId) -> Result<Self, OutOfFrames> {
        let root = memory.allocate_table(node)?;
        Ok(Self {
            memory,
            node,
            root,
            tables: 1,
            watches: Watches::default(),
            large: LargeLeaves::default(),
            format: PhantomData,
        })
    }

    /// The same table under this rule; it maps nothing yet.
    #[must_use]
    pub fn with_large_leaves(self, large: LargeLeaves) -> Self {
        Self { large, ..self }
    }

    /// The rule that it is under.
    pub fn large_leaves(&self) -> LargeLeaves {
        self.large
    }

    /// `attributes` as far as a leaf of `size` may have them.
    pub(super) fn allowed(&self, attributes: Attributes, size: PageSize) -> Attributes {
        let rights = match self.large {
            LargeLeaves::NotExecutable if size > PageSize::Size4K => {
                attributes.rights - Rights::EXECUTE
            }
            _ => attributes.rights,
        };
        Attributes {
            rights,
            ..attributes
        }
    }

    /// A table that says the same with A = D = 0, its frames from `node`. Nothing is frozen or watched.
    ///
    /// # Errors
    /// There are not enough frames; those that were taken went back.
    pub(crate) fn twin(&self, node: NodeId) -> Result<Self, OutOfFrames>
    where
        M: Clone,
    {
        let twin = Self::new(self.memory.clone(), node)?;
        let mut twin = twin.with_large_leaves(self.large);
        match twin.copy_below(twin.root, self.root, Level::ROOT) {
            Ok(tables) => {
                twin.tables += tables;
                Ok(twin)
            }
            Err(error) => {
                // No processor has seen it.
                twin.destroy(&super::NoProcessor, |_| {});
                Err(error)
            }
        }
    }

    /// Copies what another table has below one of its entries; says how many tables that took.
    fn copy_below(&self, to: Frame, from: Frame, level: Level) -> Result<u64, OutOfFrames> {
        let mut tables = 0;
        for index in 0..ENTRIES {
            let value = self.memory.load(from, index);
            match (Entry::decode::<F>(value, level), level.below()) {
                (Entry::Table(child), Some(below)) => {
                    let own = self.memory.allocate_table(self.node)?;
                    self.memory.store(to, index, F::table(own));
                    tables += 1 + self.copy_below(own, child, below)?;
                }
                (Entry::Leaf, _) => {
                    let unused = value & !(F::ACCESSED | F::DIRTY);
                    self.memory.store(to, index, unused);
                }
                _ => {}
            }
        }
        Ok(tables)
    }

    /// The root's frame: what CR3, nCR3 or the EPT pointer is made from.
    pub fn root(&self) -> Frame {
        self.root
    }
    /// The node that table frames are taken from.
    pub fn node(&self) -> NodeId {
        self.node
    }
    /// Frames that the tables themselves occupy.
    pub fn table_frames(&self) -> u64 {
        self.tables
    }
    /// The memory that the tables are in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// What `at` translates to. For software that walks on a guest's behalf; sets no A or D.
    ///
    /// # Errors
    /// [`TableError::OutOfRange`] if the table cannot translate the address at all.
    pub fn translate(&self, at: F::Address) -> Result<Lookup<F::Address>, TableError> {
        let outside = TableError::OutOfRange {
            at: at.bits(),
            pages: 1,
        };
        let offset = at.to_offset().ok_or(outside)?;
        let slot = self.find(offset);
        let size = slot.level.leaf_size().unwrap_or(PageSize::Size1G);
        let start = F::Address::from_offset(offset & !(slot.level.span() - 1));
        Ok(match slot.entry::<F>() {
            Entry::Leaf => Lookup::Mapped(leaf::<F>(slot.value, start, size)),
            Entry::FrozenLeaf | Entry::FrozenTable(_) => Lookup::Frozen { at: start, size },
            Entry::Empty | Entry::Table(_) => Lookup::NotMapped { level: slot.level },
        })
    }

    /// Takes the table down: visits every leaf (frozen ones too) so that the caller can free what
    /// it mapped, then frees all table frames.
    ///
    /// No processor may start using the root any more; `by` makes those forget that did. The
    /// frames of visited leaves are free of translations when `visit` sees them.
    pub fn destroy(self, by: &(impl Shootdown + ?Sized), mut visit: impl FnMut(Leaf<F::Address>)) {
        Flush::All.carry_out(by);
        self.destroy_below(self.root, Level::ROOT, 0, &mut visit);
    }

    fn destroy_below(
        &self,
        table: Frame,
        level: Level,
        start: u64,
        visit: &mut impl FnMut(Leaf<F::Address>),
    ) {
        for index in 0..ENTRIES {
            let value = self.memory.load(table, index);
            let at = start + index as u64 * level.span();
            match (
                Entry::decode::<F>(value, level),
                level.below(),
                level.leaf_size(),
            ) {
                (Entry::Table(child) | Entry::FrozenTable(child), Some(below), _) => {
                    self.destroy_below(child, below, at, visit);
                }
                (Entry::Leaf | Entry::FrozenLeaf, _, Some(size)) => {
                    visit(leaf::<F>(value, F::Address::from_offset(at), size));
                }
                _ => {}
            }
        }
        self.memory.free_table(table);
    }

    /// The entry where a walk for `offset` ends: a leaf, or empty, or frozen.
    pub(super) fn find(&self, offset: u64) -> Slot {
        self.find_at(offset, Level::LOWEST)
    }

    /// The entry where a walk for `offset` ends, but no deeper than `lowest`, where it may find a table.
    pub(crate) fn find_at(&self, offset: u64, lowest: Level) -> Slot {
        let (mut table, mut level) = (self.root, Level::ROOT);
        loop {
            let index = level.index(offset);
            let value = self.memory.load(table, index);
            let slot = Slot {
                table,
                index,
                level,
                value,
            };
            match (slot.entry::<F>(), level.below()) {
                (Entry::Table(child), Some(below)) if level > lowest => {
                    (table, level) = (child, below);
                }
                _ => return slot,
            }
        }
    }
}

impl<F: TableFormat, M> fmt::Debug for RadixTable<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RadixTable")
            .field("format", &F::NAME)
            .field("root", &self.root)
            .field("tables", &self.tables)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// Decodes a leaf entry.
pub(super) fn leaf<F: TableFormat>(entry: u64, at: F::Address, size: PageSize) -> Leaf<F::Address> {
    Leaf {
        at,
        frame: F::leaf_frame(entry, size),
        size,
        attributes: F::attributes(entry, size),
        accessed: entry & F::ACCESSED != 0,
        dirty: entry & F::DIRTY != 0,
        frozen: !F::is_present(entry),
    }
}

/// The tree offset of a range of `pages` pages, checked to lie within one half of the input.
pub(super) fn offset_of<F: TableFormat>(at: F::Address, pages: u64) -> Result<u64, TableError> {
    let error = TableError::OutOfRange {
        at: at.bits(),
        pages,
    };
    let offset = at.to_offset().ok_or(error)?;
    let bytes = pages.checked_mul(units::PAGE_BYTES).ok_or(error)?;
    let last = at
        .bits()
        .checked_add(bytes.checked_sub(1).ok_or(error)?)
        .ok_or(error)?;
    let last = F::Address::offset_of_bits(last).ok_or(error)?;
    (last >= offset).then_some(offset).ok_or(error)
}
