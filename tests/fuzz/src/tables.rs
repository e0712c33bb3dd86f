//! Any sequence of changes to a nested table, against a map of its leaves.

use crate::Input;
use memory::table::{
    Attributes, EptFormat, HostFormat, MemoryType, NoProcessor, NptFormat, RadixTable, Rights,
    TableAddress, TableError, TableFormat,
};
use memory::testing::VecTables;
use std::collections::BTreeMap;
use units::{Frame, NodeId, PageSize};

/// Changes that one input makes at most.
const CHANGES: usize = 64;
const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
const SPACE: u64 = 1 << 48;

type Leaves = BTreeMap<u64, (Frame, PageSize, Attributes)>;

/// A format and how many tables there may be, then changes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let capacity = 1 + usize::from(input.u8() % 32);
    match input.u8() % 3 {
        0 => changes::<NptFormat>(&mut input, capacity),
        1 => changes::<EptFormat>(&mut input, capacity),
        _ => changes::<HostFormat>(&mut input, capacity),
    }
}

/// One change.
#[derive(Clone, Copy, Debug)]
struct Change {
    what: u8,
    at: u64,
    frame: u64,
    size: PageSize,
    attributes: Attributes,
}

impl Change {
    fn of(input: &mut Input<'_>) -> Self {
        let what = input.u8() % 6;
        // Around the boundaries of every level, so that changes meet.
        let [giga, mega, small] = [0, 0, 0].map(|_: u64| u64::from(input.u8()));
        let at = input.choice(&[0, 511 << 30, 0x7fff_8000_0000]);
        let at = at + ((giga % 2) << 30) + ((mega % 4) << 21) + ((small % 4) << 12);
        let frame = input.choice(&[0, 0x4_0000, 0x4_0200, 0x12345, (1 << 40) - 512]);
        Self {
            what,
            at,
            frame: frame + u64::from(input.u8() % 4),
            size: input.choice(&SIZES),
            attributes: Attributes {
                rights: input.choice(&[
                    Rights::READ,
                    Rights::READ | Rights::WRITE,
                    Rights::READ | Rights::EXECUTE,
                ]),
                memory_type: input.choice(&[MemoryType::WriteBack, MemoryType::Uncacheable]),
            },
        }
    }

    /// What becomes of the leaves if it is carried out; `None` if it must be refused.
    fn expected(&self, leaves: &Leaves) -> Option<Leaves> {
        let mut after = leaves.clone();
        let bytes = self.size.bytes();
        let this = leaves.get(&self.at).filter(|leaf| leaf.1 == self.size);
        let free = |at: u64, bytes: u64| {
            let before = leaves.range(..at).next_back();
            before.is_none_or(|(first, leaf)| first + leaf.1.bytes() <= at)
                && leaves.range(at..at + bytes).next().is_none()
        };
        let fits = |at: u64, frame: u64, size: PageSize| {
            at.is_multiple_of(size.bytes())
                && frame.is_multiple_of(size.pages())
                && frame + size.pages() <= 1 << 40
        };
        let smaller = SIZES.iter().rev().find(|s| **s < self.size);
        match self.what {
            0 => {
                let ok = fits(self.at, self.frame, self.size)
                    && self.at + bytes <= SPACE
                    && free(self.at, bytes);
                let leaf = (Frame(self.frame), self.size, self.attributes);
                ok.then(|| after.insert(self.at, leaf))?;
            }
            1 => {
                let (mut at, mut frame, mut pages) = (self.at, self.frame, self.pages());
                let ok = at + pages * 4096 <= SPACE
                    && frame + pages <= 1 << 40
                    && pages > 0
                    && free(at, pages * 4096);
                ok.then_some(())?;
                while pages > 0 {
                    let size = SIZES
                        .iter()
                        .rev()
                        .find(|s| **s <= self.size && s.pages() <= pages && fits(at, frame, **s))?;
                    after.insert(at, (Frame(frame), *size, Attributes::GUEST_MEMORY));
                    (at, frame) = (at + size.bytes(), frame + size.pages());
                    pages -= size.pages();
                }
            }
            2 => drop(this.and_then(|_| after.remove(&self.at))?),
            3 => {
                this?;
                after.get_mut(&self.at)?.2 = self.attributes;
            }
            4 => {
                let ((frame, _, attributes), part) = (*this?, *smaller?);
                for i in 0..512 {
                    let leaf = (Frame(frame.0 + i * part.pages()), part, attributes);
                    after.insert(self.at + i * part.bytes(), leaf);
                }
            }
            _ => {
                let part = *smaller?;
                let (frame, _, attributes) = *leaves.get(&self.at)?;
                fits(self.at, frame.0, self.size).then_some(())?;
                for i in 0..512 {
                    let leaf = after.remove(&(self.at + i * part.bytes()))?;
                    let expected = (Frame(frame.0 + i * part.pages()), part, attributes);
                    (leaf == expected).then_some(())?;
                }
                after.insert(self.at, (frame, self.size, attributes));
            }
        }
        Some(after)
    }

    fn pages(&self) -> u64 {
        // Some pages, or a bit more than two larger leaves.
        let large = self.attributes.memory_type == MemoryType::Uncacheable;
        self.frame % 4 + if large { 1025 } else { 0 }
    }

    fn carry_out<F: TableFormat>(
        &self,
        table: &mut RadixTable<F, &VecTables>,
    ) -> Result<(), TableError> {
        let at = F::Address::from_offset(self.at);
        let memory = *table.memory();
        match self.what {
            0 => drop(table.map(at, Frame(self.frame), self.size, self.attributes)?),
            1 => {
                let all = Attributes::GUEST_MEMORY;
                let _flush =
                    table.map_range(at, Frame(self.frame), self.pages(), all, self.size)?;
            }
            2 => {
                let leaf = table.unmap(at, self.size)?.finish(&NoProcessor, memory);
                assert_eq!((leaf.at, leaf.size), (at, self.size));
            }
            3 => table
                .protect(at, self.size, self.attributes)?
                .carry_out(&NoProcessor),
            4 => {
                let splitting = table.begin_split(at, self.size)?;
                table.finish_split(splitting.shoot_down(&NoProcessor))?;
            }
            _ => {
                let collapsing = table.begin_collapse(at, self.size)?;
                let _flush = table.finish_collapse(collapsing.shoot_down(&NoProcessor))?;
            }
        }
        Ok(())
    }
}

fn changes<F: TableFormat>(input: &mut Input<'_>, capacity: usize) {
    let memory = VecTables::new(capacity);
    let Ok(mut table) = RadixTable::<F, _>::new(&memory, NodeId(0)) else {
        return;
    };
    let mut leaves = Leaves::new();
    for _ in 0..CHANGES {
        if input.is_empty() {
            break;
        }
        let change = Change::of(input);
        let expected = change.expected(&leaves);
        match change.carry_out(&mut table) {
            Ok(()) => leaves = expected.expect("it should have been refused"),
            Err(TableError::OutOfTables(_)) => assert!(expected.is_some(), "{change:?}"),
            Err(why) => assert!(expected.is_none(), "{change:?}: {why}"),
        }
        let found: Leaves = table
            .all_leaves()
            .filter_map(|l| Some((l.at.to_offset()?, (l.frame, l.size, l.attributes))))
            .collect();
        assert_eq!(found, leaves, "after {change:?}");
        assert_eq!(memory.in_use() as u64, table.table_frames());
    }
    let mut visited = 0;
    table.destroy(&NoProcessor, |_| visited += 1);
    assert_eq!((visited, memory.in_use()), (leaves.len(), 0));
}
