//! Every leaf in order of address.

use super::radix::leaf;
use core::fmt;

use super::{ENTRIES, Entry, Leaf, Level, RadixTable, TableAddress, TableFormat, TableMemory};
use units::{Frame, PageSize};

/// Iterator over the leaves of a table, frozen ones included; see [`RadixTable::leaves`].
pub struct Leaves<'t, F, M> {
    table: &'t RadixTable<F, M>,
    next: u64,
    end: u64,
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// The leaves that translate any address from `first` to `last`, both inclusive. Leaves inside
    /// a range that is being collapsed are not visited. Empty if `first` or `last` is beyond what a
    /// table translates.
    pub fn leaves(&self, first: F::Address, last: F::Address) -> Leaves<'_, F, M> {
        let (next, end) = match (first.to_offset(), last.to_offset()) {
            (Some(first), Some(last)) => (first, last.saturating_add(1)),
            _ => (0, 0),
        };
        Leaves {
            table: self,
            next,
            end,
        }
    }

    /// All leaves.
    pub fn all_leaves(&self) -> Leaves<'_, F, M> {
        Leaves {
            table: self,
            next: 0,
            end: 1 << super::address::INPUT_BITS,
        }
    }
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// How many leaves of this size there are, without those inside a range that is being collapsed.
    pub fn count(&self, size: PageSize) -> u64 {
        self.count_below(self.root(), Level::ROOT, size)
    }

    fn count_below(&self, table: Frame, level: Level, size: PageSize) -> u64 {
        let each = (0..ENTRIES).map(|index| {
            let value = self.memory.load(table, index);
            match (Entry::decode::<F>(value, level), level.below()) {
                (Entry::Leaf | Entry::FrozenLeaf, _) => u64::from(level.leaf_size() == Some(size)),
                (Entry::Table(child), Some(below)) if below.span() >= size.bytes() => {
                    self.count_below(child, below, size)
                }
                _ => 0,
            }
        });
        each.sum()
    }

    /// The first address that is frozen, as a leaf or as a table.
    pub(crate) fn first_frozen(&self) -> Option<u64> {
        let offset = self.frozen_below(self.root(), Level::ROOT, 0)?;
        Some(F::Address::from_offset(offset).bits())
    }

    fn frozen_below(&self, table: Frame, level: Level, start: u64) -> Option<u64> {
        (0..ENTRIES).find_map(|index| {
            let value = self.memory.load(table, index);
            let at = start + index as u64 * level.span();
            match (Entry::decode::<F>(value, level), level.below()) {
                (Entry::FrozenLeaf | Entry::FrozenTable(_), _) => Some(at),
                (Entry::Table(child), Some(below)) => self.frozen_below(child, below, at),
                _ => None,
            }
        })
    }
}

impl<F: TableFormat, M: TableMemory> Iterator for Leaves<'_, F, M> {
    type Item = Leaf<F::Address>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            let slot = self.table.find(self.next);
            let start = self.next & !(slot.level.span() - 1);
            self.next = start + slot.level.span();
            if let (Entry::Leaf | Entry::FrozenLeaf, Some(size)) =
                (slot.entry::<F>(), slot.level.leaf_size())
            {
                return Some(leaf::<F>(slot.value, F::Address::from_offset(start), size));
            }
        }
        None
    }
}

impl<F: TableFormat, M> fmt::Debug for Leaves<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves")
            .field("table", &self.table)
            .field("next", &self.next)
            .field("end", &self.end)
            .finish()
    }
}
