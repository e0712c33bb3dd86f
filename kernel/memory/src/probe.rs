//! One look at one granule of 2 MiB: was anything in it used since the last look?
//!
//! The entry that spans 2 MiB has an accessed bit whether it is a leaf or refers to a table, and a walk sets it
//! either way. So a probe reads and clears one word, however the granule is mapped; where it is a table the bits of
//! the pages stay, for who wants to know more ([`crate::harvest`] with `Descend::Everywhere`: after a probe the
//! table's own bit no longer tells which pages were used). Ancestors are left alone.
//!
//! What A = 0 means, and when, is said in [`crate::harvest`]: who probes must know that every CPU has flushed since
//! the bit was cleared.

use crate::page_bits::WORD;
use crate::table::{ENTRIES, Entry, Level, RadixTable, TableAddress, TableFormat, TableMemory};
use units::{PageSet, PageSize, ones};

/// What a probe found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// Used since A was last cleared; it is cleared now.
    Accessed,
    /// Not used.
    Idle,
    /// Nothing is mapped there, or it is on its way to another frame or size.
    Absent,
}

impl<F: TableFormat, M: TableMemory> RadixTable<F, M> {
    /// Reads and clears A of each page of 4 KiB in the 2 MiB around `at`, and tells which were used; whatever A of their
    /// table says, since a probe has cleared it. None while nothing is mapped there, or something is on its way; no set if
    /// one leaf maps all.
    pub fn probe_pages(&self, at: F::Address) -> Option<PageSet> {
        let slot = self.find_at(at.to_offset()?, Level::of(PageSize::Size2M));
        let table = match slot.entry::<F>() {
            Entry::Table(table) => table,
            Entry::Leaf => return None,
            Entry::Empty | Entry::FrozenLeaf | Entry::FrozenTable(_) => {
                return Some(PageSet::default());
            }
        };
        let mut used = [0; ENTRIES / WORD];
        for (number, word) in used.iter_mut().enumerate() {
            *word = self.used_pages(table, number, F::ACCESSED);
            for bit in ones(*word) {
                let index = number * WORD + bit;
                self.memory().fetch_and(table, index, !F::ACCESSED);
            }
        }
        Some(PageSet::from_words(used))
    }

    /// Reads and clears A of the entry that maps the 2 MiB around `at`, or of the larger leaf that does.
    pub fn probe(&self, at: F::Address) -> Probe {
        let Some(offset) = at.to_offset() else {
            return Probe::Absent;
        };
        let slot = self.find_at(offset, Level::of(PageSize::Size2M));
        match slot.entry::<F>() {
            Entry::Leaf | Entry::Table(_) => {}
            Entry::Empty | Entry::FrozenLeaf | Entry::FrozenTable(_) => return Probe::Absent,
        }
        if slot.value & F::ACCESSED == 0 {
            return Probe::Idle;
        }
        let old = self
            .memory()
            .fetch_and(slot.table, slot.index, !F::ACCESSED);
        debug_assert!(F::is_present(old), "the owner's lock keeps writers out");
        Probe::Accessed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harvest::{Bit, Cursor, Descend, Options, Progress};
    use crate::table::{Attributes, EptFormat, NoProcessor, NptFormat};
    use crate::testing::{Access, VecTables, touch};
    use units::{Frame, Gpa, NodeId};

    fn probes_see_each_use_once<F: TableFormat<Address = Gpa>>() {
        let memory = VecTables::new(16);
        let mut table = RadixTable::<F, _>::new(&memory, NodeId(0)).expect("room");
        let large = Gpa(4 << 20);
        for (at, size) in [
            (Gpa(0x3000), PageSize::Size4K),
            (Gpa(0x5000), PageSize::Size4K),
            (large, PageSize::Size2M),
        ] {
            let flush = table.map(at, Frame(at.0 >> 12), size, Attributes::GUEST_MEMORY);
            flush.expect("empty").carry_out(&NoProcessor);
        }
        for (at, elsewhere) in [(Gpa(0x3000), large), (large, Gpa(0x3000))] {
            assert_eq!(table.probe(at), Probe::Idle);
            touch::<F>(&memory, table.root(), at, Access::Read).expect("mapped");
            assert_eq!(table.probe(elsewhere), Probe::Idle);
            assert_eq!(table.probe(Gpa(at.0 | 0xfff)), Probe::Accessed);
            assert_eq!(table.probe(at), Probe::Idle);
        }
        // The pages' own bits are still there, and are found although their table's is cleared.
        let options = Options {
            accessed: Bit::Clear,
            dirty: Bit::Read,
            descend: Descend::Everywhere,
        };
        let mut cursor = Cursor::new(Gpa(0), PageSize::Size2M.bytes());
        let mut found = alloc::vec::Vec::new();
        let progress = table.harvest(&mut cursor, options, u64::MAX, |leaf| found.push(leaf.at));
        assert_eq!(
            (progress, found),
            (Progress::Finished, alloc::vec![Gpa(0x3000)])
        );
        assert_eq!(table.probe(Gpa(1 << 30)), Probe::Absent);
        assert_eq!(table.probe(Gpa(1 << 50)), Probe::Absent);
        table.destroy(&NoProcessor, |_| {});
    }

    #[test]
    fn probes_see_each_use_once_in_both_formats() {
        probes_see_each_use_once::<NptFormat>();
        probes_see_each_use_once::<EptFormat>();
    }

    #[test]
    fn a_frozen_granule_is_absent() {
        let memory = VecTables::new(16);
        let mut table = RadixTable::<NptFormat, _>::new(&memory, NodeId(0)).expect("room");
        let flush = table.map(Gpa(0), Frame(0), PageSize::Size2M, Attributes::GUEST_MEMORY);
        flush.expect("empty").carry_out(&NoProcessor);
        touch::<NptFormat>(&memory, table.root(), Gpa(0), Access::Write).expect("mapped");
        let split = table
            .begin_split(Gpa(0), PageSize::Size2M)
            .expect("a large leaf");
        assert_eq!(table.probe(Gpa(0)), Probe::Absent);
        table
            .finish_split(split.shoot_down(&NoProcessor))
            .expect("frozen");
        assert_eq!(
            table.probe(Gpa(0)),
            Probe::Accessed,
            "the small leaves inherit"
        );
        table.destroy(&NoProcessor, |_| {});
    }
}
