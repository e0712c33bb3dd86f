//! Harvests find exactly what a walker touched, whatever the ranges, budgets and pauses.

use memory::harvest::{Bit, Cursor, Descend, Options, Progress, Touched};
use memory::table::{Attributes, EptFormat, NptFormat, RadixTable, TableFormat};
use memory::testing::{Access, VecTables, touch};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use units::{Frame, Gpa, NodeId, PageSize};

type Table<'m, F> = RadixTable<F, &'m VecTables>;

/// A guest of 1 GiB + 16 MiB + 64 pages below 1 GiB and some beyond 512 GiB, in leaves of every size.
const LAYOUT: [(u64, PageSize, u64); 5] = [
    (0, PageSize::Size4K, 64),
    (0x20_0000, PageSize::Size2M, 8),
    (0x4000_0000, PageSize::Size1G, 1),
    (0x80_0000_0000, PageSize::Size4K, 700),
    (0x80_4000_0000, PageSize::Size2M, 2),
];

fn leaves() -> Vec<(u64, PageSize)> {
    let leaves = LAYOUT
        .iter()
        .flat_map(|&(at, size, count)| (0..count).map(move |i| (at + i * size.bytes(), size)));
    leaves.collect()
}

fn guest<F: TableFormat<Address = Gpa>>(memory: &VecTables) -> Table<'_, F> {
    let mut table = Table::<F>::new(memory, NodeId(0)).expect("room");
    for (at, size) in leaves() {
        let frame = Frame((at >> 12) % (1 << 30));
        table
            .map(Gpa(at), frame, size, Attributes::GUEST_MEMORY)
            .expect("free")
            .carry_out(&memory::table::NoProcessor);
    }
    table
}

#[derive(Clone, Debug)]
enum Op {
    Touch {
        leaf: usize,
        inside: u64,
        write: bool,
    },
    /// Starts a harvest of the leaves with these numbers, or of everything.
    Start {
        range: Option<(usize, usize)>,
        dirty: bool,
    },
    Continue {
        budget: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let n = leaves().len();
    prop_oneof![
        4 => (0..n, any::<u64>(), any::<bool>()).prop_map(|(leaf, inside, write)| Op::Touch { leaf, inside, write }),
        1 => (proptest::option::of((0..n, 0..n)), any::<bool>()).prop_map(|(range, dirty)| Op::Start { range, dirty }),
        3 => prop_oneof![0..40u64, 0..2000u64].prop_map(|budget| Op::Continue { budget }),
    ]
}

/// Bits that the walker set and no harvest has cleared: (accessed, dirty) by address.
type Pending = BTreeMap<u64, (bool, bool)>;

/// Takes what a harvest reports out of `pending`; panics at what was never set.
fn settle(pending: &mut Pending, leaf: Touched<Gpa>, options: Options) {
    let (accessed, dirty) = pending
        .get_mut(&leaf.at.0)
        .expect("only touched leaves are reported");
    assert_eq!(
        (leaf.accessed, leaf.dirty),
        (*accessed, *dirty),
        "at {}",
        leaf.at
    );
    *accessed &= options.accessed != Bit::Clear;
    *dirty &= options.dirty != Bit::Clear;
    if !*accessed && !*dirty {
        pending.remove(&leaf.at.0);
    }
}

fn run<F: TableFormat<Address = Gpa>>(ops: &[Op]) {
    let memory = VecTables::new(16);
    let table = guest::<F>(&memory);
    let leaves = leaves();
    let mut pending = Pending::new();
    let mut current: Option<(Cursor, Options)> = None;
    for op in ops {
        match *op {
            Op::Touch {
                leaf,
                inside,
                write,
            } => {
                let (at, size) = leaves[leaf];
                let access = if write { Access::Write } else { Access::Read };
                let gpa = Gpa(at + inside % size.bytes());
                assert!(touch::<F>(&memory, table.root(), gpa, access).is_some());
                let bits = pending.entry(at).or_default();
                *bits = (true, bits.1 || write);
            }
            Op::Start { range, dirty } => {
                // An abandoned harvest may have cleared ancestors: it is carried to its end.
                if let Some((mut cursor, options)) = current.take() {
                    let end = table.harvest(&mut cursor, options, u64::MAX, |leaf| {
                        settle(&mut pending, leaf, options)
                    });
                    assert_eq!(end, Progress::Finished);
                }
                let cursor = range.map_or(Cursor::ALL, |(a, b)| {
                    let (first, last) = (leaves[a.min(b)], leaves[a.max(b)]);
                    Cursor::new(Gpa(first.0), last.0 + last.1.bytes() - first.0)
                });
                let dirty = if dirty { Bit::Clear } else { Bit::Read };
                current = Some((
                    cursor,
                    Options {
                        dirty,
                        ..Options::FOOTPRINT
                    },
                ));
            }
            Op::Continue { budget } => {
                if let Some((cursor, options)) = &mut current {
                    let before = cursor.tally().entries;
                    let options = *options;
                    let end = table.harvest(cursor, options, budget, |leaf| {
                        settle(&mut pending, leaf, options)
                    });
                    assert!(
                        cursor.tally().entries - before <= budget.max(1),
                        "the budget is kept"
                    );
                    if end == Progress::Finished {
                        current = None;
                    }
                }
            }
        }
    }
    if let Some((mut cursor, options)) = current {
        let end = table.harvest(&mut cursor, options, u64::MAX, |leaf| {
            settle(&mut pending, leaf, options)
        });
        assert_eq!(end, Progress::Finished);
    }
    // Whatever was interleaved, descending by A alone finds every leaf with A set.
    let mut cursor = Cursor::ALL;
    let all = Options {
        dirty: Bit::Clear,
        ..Options::FOOTPRINT
    };
    let end = table.harvest(&mut cursor, all, u64::MAX, |leaf| {
        settle(&mut pending, leaf, all)
    });
    assert_eq!(end, Progress::Finished);
    let missed: Vec<_> = pending.iter().filter(|(_, bits)| bits.0).collect();
    assert!(missed.is_empty(), "touched and never reported: {missed:x?}");
    // Leaves that are dirty below an ancestor with A = 0 take a harvest that goes everywhere.
    let end = table.harvest(&mut Cursor::ALL.clone(), Options::DIRTY, u64::MAX, |leaf| {
        settle(&mut pending, leaf, Options::DIRTY)
    });
    assert_eq!(end, Progress::Finished);
    assert!(pending.is_empty(), "{pending:x?}");
}

fn cases() -> u32 {
    if cfg!(miri) { 2 } else { 128 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn npt_reports_each_touched_leaf_exactly_once(ops in vec(op(), 1..80)) {
        run::<NptFormat>(&ops);
    }
    #[test]
    fn ept_reports_each_touched_leaf_exactly_once(ops in vec(op(), 1..80)) {
        run::<EptFormat>(&ops);
    }
}

#[test]
fn an_idle_guest_costs_a_handful_of_entries() {
    let memory = VecTables::new(16);
    let table = guest::<NptFormat>(&memory);
    let mut cursor = Cursor::ALL;
    assert!(touch::<NptFormat>(&memory, table.root(), Gpa(0x80_0000_5000), Access::Read).is_some());
    assert_eq!(
        table.harvest(&mut cursor, Options::FOOTPRINT, u64::MAX, |_| {}),
        Progress::Finished
    );
    assert_eq!(
        (cursor.tally().accessed_pages, cursor.tally().leaves),
        (1, 512),
        "one table of leaves"
    );
    let mut cursor = Cursor::ALL;
    assert_eq!(
        table.harvest(&mut cursor, Options::FOOTPRINT, u64::MAX, |_| panic!(
            "idle"
        )),
        Progress::Finished
    );
    assert_eq!(
        (cursor.tally().entries, cursor.tally().leaves),
        (512, 0),
        "the root and nothing below"
    );
}

#[test]
fn one_regions_harvest_does_not_hide_its_neighbour() {
    let memory = VecTables::new(16);
    let table = guest::<EptFormat>(&memory);
    let (here, there) = (Gpa(0x20_0000), Gpa(0x40_0000));
    for at in [here, there] {
        assert!(touch::<EptFormat>(&memory, table.root(), at, Access::Read).is_some());
    }
    for at in [here, there] {
        let mut found = vec![];
        let mut cursor = Cursor::new(at, PageSize::Size2M.bytes());
        assert_eq!(
            table.harvest(&mut cursor, Options::FOOTPRINT, u64::MAX, |leaf| found
                .push(leaf.at)),
            Progress::Finished
        );
        assert_eq!(found, [at]);
    }
}

#[test]
fn a_stale_upper_entry_is_found_only_by_descending_everywhere() {
    let memory = VecTables::new(16);
    let table = guest::<NptFormat>(&memory);
    let at = Gpa(0x5000);
    assert!(touch::<NptFormat>(&memory, table.root(), at, Access::Write).is_some());
    // A processor whose paging-structure cache holds the lowest table sets A in the leaf alone.
    let mut cursor = Cursor::ALL;
    let mut leaf_only = Options {
        accessed: Bit::Clear,
        dirty: Bit::Read,
        descend: Descend::Everywhere,
    };
    assert_eq!(
        table.harvest(&mut cursor, leaf_only, u64::MAX, |_| {}),
        Progress::Finished
    );
    let low = lowest_table(&memory, &table);
    let entry = memory::table::TableMemory::load(&memory, low, 5);
    memory::table::TableMemory::store(&memory, low, 5, entry | NptFormat::ACCESSED);
    let mut found = 0;
    assert_eq!(
        table.harvest(
            &mut Cursor::ALL.clone(),
            Options::FOOTPRINT,
            u64::MAX,
            |_| found += 1
        ),
        Progress::Finished
    );
    assert_eq!(
        found, 0,
        "which is why the caller must know that everyone flushed"
    );
    leaf_only.accessed = Bit::Read;
    assert_eq!(
        table.harvest(&mut Cursor::ALL.clone(), leaf_only, u64::MAX, |_| found +=
            1),
        Progress::Finished
    );
    assert_eq!(found, 1);
}

/// The table that holds the 4 KiB leaf of the address 0.
fn lowest_table(memory: &VecTables, table: &Table<'_, NptFormat>) -> Frame {
    (0..3).fold(table.root(), |frame, _| {
        NptFormat::table_frame(memory::table::TableMemory::load(memory, frame, 0))
    })
}

/// Processors touch while a harvest runs: nothing that was touched stays hidden.
#[test]
fn concurrent_walkers_lose_nothing() {
    let rounds = if cfg!(miri) { 3 } else { 300 };
    let memory = VecTables::new(16);
    let table = guest::<NptFormat>(&memory);
    let root = table.root();
    let leaves = leaves();
    let (start, stop) = (Barrier::new(3), Barrier::new(3));
    let quit = AtomicBool::new(false);
    let touched = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for seed in [1u64, 2] {
            let (memory, leaves, touched) = (&memory, &leaves, &touched);
            let (start, stop, quit) = (&start, &stop, &quit);
            scope.spawn(move || {
                let mut state = seed;
                loop {
                    start.wait();
                    if quit.load(Ordering::Acquire) {
                        return;
                    }
                    let mut mine = vec![];
                    for _ in 0..20 {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let leaf = leaves[(state >> 33) as usize % leaves.len()].0;
                        assert!(
                            touch::<NptFormat>(memory, root, Gpa(leaf), Access::Read).is_some()
                        );
                        mine.push(leaf);
                    }
                    touched.lock().expect("no poison").extend(mine);
                    stop.wait();
                }
            });
        }
        for _ in 0..rounds {
            let mut found = std::collections::BTreeSet::new();
            start.wait();
            let mut cursor = Cursor::ALL;
            while table.harvest(&mut cursor, Options::FOOTPRINT, 100, |leaf| {
                found.insert(leaf.at.0);
            }) == Progress::Paused
            {}
            stop.wait();
            let end = table.harvest(
                &mut Cursor::ALL.clone(),
                Options::FOOTPRINT,
                u64::MAX,
                |leaf| {
                    found.insert(leaf.at.0);
                },
            );
            assert_eq!(end, Progress::Finished);
            let touched: std::collections::BTreeSet<u64> =
                touched.lock().expect("no poison").drain(..).collect();
            assert_eq!(found, touched);
        }
        quit.store(true, Ordering::Release);
        start.wait();
    });
}
