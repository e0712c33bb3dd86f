//! Who touched what: reading and clearing accessed and dirty bits.
//!
//! A walk sets A in every entry that it uses, so a subtree whose top entry has A = 0 was not used
//! since that bit was cleared, and a harvest that descends only where A = 1 costs in proportion to
//! what a guest touches, not to what it owns. Three rules make that sound:
//!
//! * **An ancestor's A is cleared before its descendants'.** If a processor walks in between, the
//!   ancestor is set again and the next harvest descends once more than needed. The other order
//!   could clear the ancestor after that walk, and the descendant would never be found again.
//! * **An ancestor's A is cleared only by a harvest that covers its whole span.** A harvest of one
//!   region would otherwise hide what was touched in the neighbouring one.
//! * **An ancestor is cleared once for each harvest, however often that pauses.** When a harvest
//!   resumes, the ancestors of its position are entered whatever their A says and keep what was set
//!   meanwhile: it speaks of leaves that this harvest has passed already.
//!
//! # Staleness
//! A processor that holds a cached translation does not set A again, and one that holds a cached
//! *upper* entry sets a leaf's A below an ancestor with A = 0. A = 0 therefore means "not used" only if
//! every CPU that ran the VM has flushed since the bit was cleared; else the sample is stale, not cold. The
//! caller knows that (the VM's sample generation): it passes [`Descend::Everywhere`] where it is not
//! so. A harvest itself never asks for a flush.

use crate::page_bits::{PagesInWord, WORD};
use crate::table::{
    ENTRIES, Entry, Level, RadixTable, Slot, TableAddress, TableFormat, TableMemory,
};
use core::fmt;
use core::ops::ControlFlow;
use units::{Frame, PageSize};

/// What to do with a bit that is found set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bit {
    /// Report it and leave it.
    Read,
    /// Report it and clear it, in one atomic operation.
    Clear,
}

/// Which subtrees to enter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Descend {
    /// Those with A = 1. Finds every leaf with A = 1 if every CPU flushed since the last clear;
    /// may miss a leaf with D = 1 whose A was cleared.
    WhereAccessed,
    /// All: for stale samples, and for leaves that are dirty though not recently accessed.
    Everywhere,
}

/// How to harvest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The accessed bits, of leaves and of tables.
    pub accessed: Bit,
    /// The dirty bits.
    pub dirty: Bit,
    /// Which subtrees to enter.
    pub descend: Descend,
}

impl Options {
    /// One pass of the footprint: read and clear A where it is set, leave D.
    pub const FOOTPRINT: Self = Self {
        accessed: Bit::Clear,
        dirty: Bit::Read,
        descend: Descend::WhereAccessed,
    };
    /// A look that changes nothing and misses nothing.
    pub const LOOK: Self = Self {
        accessed: Bit::Read,
        dirty: Bit::Read,
        descend: Descend::Everywhere,
    };
    /// What was written since the last time: read and clear D everywhere, leave A.
    pub const DIRTY: Self = Self {
        accessed: Bit::Read,
        dirty: Bit::Clear,
        descend: Descend::Everywhere,
    };

    /// The bits that are to be cleared.
    fn cleared<F: TableFormat>(self) -> u64 {
        let clear = |bit: Bit, mask: u64| if bit == Bit::Clear { mask } else { 0 };
        clear(self.accessed, F::ACCESSED) | clear(self.dirty, F::DIRTY)
    }
}

/// A leaf with A or D set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touched<A> {
    /// First address of the leaf.
    pub at: A,
    /// First frame of the leaf.
    pub frame: Frame,
    /// Its size.
    pub size: PageSize,
    /// A was set.
    pub accessed: bool,
    /// D was set.
    pub dirty: bool,
}

/// What a harvest cost and found so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Entries read, of tables and leaves.
    pub entries: u64,
    /// Leaves read, touched or not.
    pub leaves: u64,
    /// 4 KiB pages in leaves with A set.
    pub accessed_pages: u64,
    /// 4 KiB pages in leaves with D set.
    pub dirty_pages: u64,
}

impl Tally {
    /// Counts a leaf's bits.
    fn note<A>(&mut self, leaf: &Touched<A>) {
        let pages = leaf.size.pages();
        self.accessed_pages += if leaf.accessed { pages } else { 0 };
        self.dirty_pages += if leaf.dirty { pages } else { 0 };
    }

    fn add(&mut self, more: Self) {
        self.entries += more.entries;
        self.leaves += more.leaves;
        self.accessed_pages += more.accessed_pages;
        self.dirty_pages += more.dirty_pages;
    }
}

/// Whether a harvest is through.
#[must_use = "an unfinished harvest has cleared ancestors' bits and must be continued"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The whole range was visited.
    Finished,
    /// The budget was used up; call again with the same cursor.
    Paused,
}

/// A harvest in progress: its range, its place, its tally.
///
/// Once begun it should be carried to its end: ancestors whose A it cleared are remembered here and
/// nowhere else. A harvest that must be given up is followed by one with [`Descend::Everywhere`].
#[derive(Clone, PartialEq, Eq)]
pub struct Cursor {
    start: u64,
    end: u64,
    next: u64,
    /// Bit l: the entry of level l above `next` was entered before the pause.
    entered: u8,
    tally: Tally,
}

impl Cursor {
    /// Everything that a table translates.
    pub const ALL: Self = Self::over(0, 1 << 48);

    /// The leaves that translate `bytes` bytes from `first`; clipped to what a table translates. A
    /// leaf that straddles an end belongs to the range.
    pub fn new<A: TableAddress>(first: A, bytes: u64) -> Self {
        match first.to_offset() {
            Some(start) => Self::over(start, start.saturating_add(bytes).min(1 << 48)),
            None => Self::over(0, 0),
        }
    }
    const fn over(start: u64, end: u64) -> Self {
        let tally = Tally {
            entries: 0,
            leaves: 0,
            accessed_pages: 0,
            dirty_pages: 0,
        };
        Self {
            start,
            end,
            next: start,
            entered: 0,
            tally,
        }
    }
    /// Cost and yield so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }
    /// The same range from its beginning.
    pub fn restarted(&self) -> Self {
        Self::over(self.start, self.end)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            start,
            end,
            next,
            entered,
            tally,
        } = self;
        write!(
            f,
            "Cursor({start:#x}..{end:#x} at {next:#x}, entered {entered:#06b}, {tally:?})"
        )
    }
}

/// One call's state.
struct Pass<'c, V> {
    cursor: &'c mut Cursor,
    options: Options,
    budget: u64,
    /// Where this call began, and the levels entered before it.
    resumed_at: u64,
    resumed_in: u8,
    visit: V,
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Visits the leaves of the cursor's range that have A or D set, reading at most `budget`
    /// entries in this call (but at least one), and calls `visit` for each in order of address.
    ///
    /// Absent and frozen leaves are passed over: a frozen one's bits belong to whoever froze it.
    /// Between calls the table may change.
    pub fn harvest(
        &self,
        cursor: &mut Cursor,
        options: Options,
        budget: u64,
        visit: impl FnMut(Touched<F::Address>),
    ) -> Progress {
        let (resumed_at, resumed_in) = (cursor.next, cursor.entered);
        let budget = budget.max(1);
        let mut pass = Pass {
            cursor,
            options,
            budget,
            resumed_at,
            resumed_in,
            visit,
        };
        match self.harvest_table(self.root(), Level::ROOT, 0, &mut pass) {
            ControlFlow::Continue(()) => {
                pass.cursor.next = pass.cursor.end;
                pass.cursor.entered = 0;
                Progress::Finished
            }
            ControlFlow::Break(()) => Progress::Paused,
        }
    }

    fn harvest_table<V: FnMut(Touched<F::Address>)>(
        &self,
        table: Frame,
        level: Level,
        table_start: u64,
        pass: &mut Pass<'_, V>,
    ) -> ControlFlow<()> {
        let first = pass.resumed_at.saturating_sub(table_start) / level.span();
        if level == Level::LOWEST {
            return self.harvest_pages(table, first as usize, table_start, pass);
        }
        for index in first as usize..ENTRIES {
            let at = table_start + index as u64 * level.span();
            if at >= pass.cursor.end {
                break;
            }
            let reentered = pass.reenters(at, level);
            if !reentered && !pass.spend_one() {
                pass.cursor.next = at.max(pass.resumed_at);
                return ControlFlow::Break(());
            }
            let entry = self.memory().load(table, index);
            match (
                Entry::decode::<F>(entry, level),
                level.below(),
                level.leaf_size(),
            ) {
                (Entry::Table(child), Some(below), _) => {
                    if !reentered && !self.enters(table, index, entry, at, level, pass) {
                        continue;
                    }
                    pass.cursor.entered |= 1 << level.number();
                    self.harvest_table(child, below, at, pass)?;
                    pass.cursor.entered &= !(1 << level.number());
                }
                (Entry::Leaf, _, Some(_)) => {
                    pass.cursor.tally.leaves += 1;
                    if entry & (F::ACCESSED | F::DIRTY) != 0 {
                        let slot = Slot {
                            table,
                            index,
                            level,
                            value: entry,
                        };
                        let leaf = self.take_leaf(slot, at, pass.options);
                        pass.cursor.tally.note(&leaf);
                        (pass.visit)(leaf);
                    }
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// The lowest level, where nearly all entries are: what the budget and the range permit is read in one go.
    fn harvest_pages<V: FnMut(Touched<F::Address>)>(
        &self,
        table: Frame,
        first: usize,
        table_start: u64,
        pass: &mut Pass<'_, V>,
    ) -> ControlFlow<()> {
        let span = Level::LOWEST.span();
        let in_range = pass.cursor.end.saturating_sub(table_start).div_ceil(span);
        let last = (in_range.min(ENTRIES as u64) as usize).max(first);
        let affordable = usize::try_from(pass.budget).unwrap_or(usize::MAX);
        let stop = last.min(first.saturating_add(affordable));
        let mut tally = Tally::default();
        let mut pages = PagesInWord::EMPTY;
        for word in first / WORD..stop.div_ceil(WORD) {
            let mask = F::ACCESSED | F::DIRTY;
            self.read_pages(table, word, &(first..stop), mask, &mut pages);
            tally.leaves += u64::from(pages.mapped.count_ones());
            for (bit, value) in pages.each_used() {
                let index = word * WORD + bit;
                let slot = Slot {
                    table,
                    index,
                    level: Level::LOWEST,
                    value,
                };
                let leaf = self.take_leaf(slot, table_start + index as u64 * span, pass.options);
                tally.note(&leaf);
                (pass.visit)(leaf);
            }
        }
        let read = (stop - first) as u64;
        pass.budget -= read;
        tally.entries += read;
        pass.cursor.tally.add(tally);
        if stop < last {
            pass.cursor.next = (table_start + stop as u64 * span).max(pass.resumed_at);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Whether to descend into a table that this harvest sees for the first time; clears its A.
    fn enters<V>(
        &self,
        table: Frame,
        index: usize,
        entry: u64,
        at: u64,
        level: Level,
        pass: &Pass<'_, V>,
    ) -> bool {
        let accessed = entry & F::ACCESSED != 0;
        if !accessed {
            return pass.options.descend == Descend::Everywhere;
        }
        let covered = pass.cursor.start <= at && at + level.span() <= pass.cursor.end;
        if covered && pass.options.accessed == Bit::Clear {
            self.memory().fetch_and(table, index, !F::ACCESSED);
        }
        true
    }

    /// What a leaf with A or D says; clears what the options want cleared.
    fn take_leaf(&self, slot: Slot, at: u64, options: Options) -> Touched<F::Address> {
        let size = slot.level.leaf_size().unwrap_or(PageSize::Size4K);
        let mut mask = options.cleared::<F>();
        if mask & F::DIRTY != 0 && self.is_evidence(at, size) {
            mask &= !F::DIRTY;
        }
        // What the clearing operation returns is what is reported: a bit that a processor sets
        // between the read and the clear is neither lost nor reported twice.
        let entry = if slot.value & mask == 0 {
            slot.value
        } else {
            self.memory().fetch_and(slot.table, slot.index, !mask)
        };
        Touched {
            at: F::Address::from_offset(at),
            frame: F::leaf_frame(entry, size),
            size,
            accessed: entry & F::ACCESSED != 0,
            dirty: entry & F::DIRTY != 0,
        }
    }
}

impl<V> Pass<'_, V> {
    /// Whether the entry at `at` is an ancestor of the position where an earlier call paused.
    fn reenters(&self, at: u64, level: Level) -> bool {
        self.resumed_in & 1 << level.number() != 0
            && (at..at + level.span()).contains(&self.resumed_at)
    }

    fn spend_one(&mut self) -> bool {
        let Some(rest) = self.budget.checked_sub(1) else {
            return false;
        };
        self.budget = rest;
        self.cursor.tally.entries += 1;
        true
    }
}
