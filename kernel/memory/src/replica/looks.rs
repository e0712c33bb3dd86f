//! Looking at A and D of all replicas at once: each leaf is told once, with what any of them says.

use super::Replicas;
use crate::harvest::{Cursor, Options, Progress, Touched};
use crate::probe::Probe;
use crate::table::{Entry, Leaves, Level, RadixTable, TableAddress, TableFormat, TableMemory};
use alloc::vec::Vec;
use units::{NodeId, PageSet, PageSize};

impl<F: TableFormat, M: TableMemory + Clone> Replicas<F, M> {
    /// The nodes through whose tables what is around `at` was used. Asking clears, as [`RadixTable::probe`] does, so it is read
    /// to its end.
    pub fn probe(&self, at: F::Address) -> impl Iterator<Item = NodeId> {
        let used = move |table: &&RadixTable<F, M>| table.probe(at) == Probe::Accessed;
        self.tables.iter().filter(used).map(RadixTable::node)
    }

    /// As [`RadixTable::probe_pages`], for the tables of each node; whether small pages map what is around `at`.
    pub fn probe_pages(&self, at: F::Address, mut used: impl FnMut(NodeId, PageSet)) -> bool {
        let mut small = true;
        // Each is asked, for asking clears.
        for table in &self.tables {
            match table.probe_pages(at) {
                Some(pages) => used(table.node(), pages),
                None => small = false,
            }
        }
        small
    }

    /// Visits the leaves of `bytes` bytes from `first` that have A or D set anywhere; see [`harvest_all`].
    pub fn harvest(
        &self,
        first: F::Address,
        bytes: u64,
        options: Options,
        visit: impl FnMut(Touched<F::Address>),
    ) {
        harvest_all(&self.tables, first, bytes, options, visit);
    }

    /// All leaves, as the first replica has them.
    pub fn all_leaves(&self) -> Leaves<'_, F, M> {
        self.first().all_leaves()
    }

    /// How many leaves of this size there are, as the first replica has them; see [`RadixTable::count`].
    pub fn count(&self, size: PageSize) -> u64 {
        self.first().count(size)
    }

    /// As [`RadixTable::soil`]: D of a page is the OR over all, so one of them will do.
    pub fn soil(&self, at: F::Address) -> bool {
        self.first().soil(at)
    }

    /// Frames that the tables of all occupy.
    pub fn table_frames(&self) -> u64 {
        self.tables.iter().map(RadixTable::table_frames).sum()
    }
}

/// Visits the leaves of `bytes` bytes from `first` that have A or D set in any of the tables, which are replicas of each
/// other, in order of address and each once, as [`RadixTable::harvest`] would with a budget that has no end.
///
/// Where there are several, accessed bits of entries that span more than 2 MiB are left as they are.
pub fn harvest_all<F: TableFormat, M: TableMemory>(
    tables: &[RadixTable<F, M>],
    first: F::Address,
    bytes: u64,
    options: Options,
    mut visit: impl FnMut(Touched<F::Address>),
) {
    let whole = |table: &RadixTable<F, M>, mut cursor: Cursor, visit: &mut dyn FnMut(_)| {
        while table.harvest(&mut cursor, options, u64::MAX, &mut *visit) == Progress::Paused {}
    };
    let (one, start) = match (tables, first.to_offset()) {
        ([], _) | (_, None) => return,
        ([only], _) => return whole(only, Cursor::new(first, bytes), &mut visit),
        ([one, ..], Some(start)) => (one, start),
    };
    let end = start.saturating_add(bytes).min(1 << 48);
    let mut next = start;
    let mut found: Vec<Touched<F::Address>> = Vec::new();
    while next < end {
        let slot = one.find_at(next, Level::of(PageSize::Size2M));
        let stop = (next & !(slot.level.span() - 1)) + slot.level.span();
        let part = (next, stop.min(end));
        next = stop;
        if slot.entry::<F>() == Entry::Empty {
            continue;
        }
        let at = F::Address::from_offset(part.0);
        for table in tables {
            let cursor = Cursor::new(at, part.1 - part.0);
            whole(table, cursor, &mut |leaf| found.push(leaf));
        }
        found.sort_by_key(|leaf| leaf.at.to_offset());
        let same = |a: &Touched<_>, b: &Touched<_>| a.at == b.at;
        for alike in found.chunk_by(same) {
            let either = |all: Touched<_>, one: &Touched<_>| Touched {
                accessed: all.accessed | one.accessed,
                dirty: all.dirty | one.dirty,
                ..all
            };
            if let Some((leaf, others)) = alike.split_first() {
                visit(others.iter().fold(*leaf, either));
            }
        }
        found.clear();
    }
}
