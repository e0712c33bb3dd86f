//! Replicas of a table under random operations: all translate alike, and no A or D is lost.

use memory::harvest::{Bit, Descend, Options};
use memory::replica::{ReplicaError, Replicas};
use memory::table::{
    Attributes, EptFormat, LargeLeaves, Lookup, MemoryType, NoProcessor, NptFormat, Rights,
    TableError, TableFormat,
};
use memory::testing::{Access, VecTables, touch};
use proptest::prelude::*;
use std::collections::BTreeMap;
use units::{Frame, Gpa, NodeId, PageSize};

const SMALL: PageSize = PageSize::Size4K;
const LARGE: PageSize = PageSize::Size2M;

/// One operation; addresses are small numbers of granules and pages, so that they meet.
#[derive(Clone, Copy, Debug)]
enum Op {
    Map {
        granule: u64,
        page: Option<u64>,
        read_only: bool,
    },
    Unmap {
        granule: u64,
        page: Option<u64>,
    },
    Protect {
        granule: u64,
        page: Option<u64>,
        read_only: bool,
    },
    Split {
        granule: u64,
    },
    Collapse {
        granule: u64,
    },
    Touch {
        granule: u64,
        page: u64,
        node: u16,
        write: bool,
    },
    Harvest {
        accessed: bool,
        dirty: bool,
        granules: u64,
    },
    Add {
        node: u16,
    },
    Drop {
        node: u16,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let granule = || 0u64..4;
    let page = || prop_oneof![Just(None), (0u64..3).prop_map(Some)];
    prop_oneof![
        (granule(), page(), any::<bool>()).prop_map(|(granule, page, read_only)| Op::Map {
            granule,
            page,
            read_only
        }),
        (granule(), page()).prop_map(|(granule, page)| Op::Unmap { granule, page }),
        (granule(), page(), any::<bool>()).prop_map(|(granule, page, read_only)| Op::Protect {
            granule,
            page,
            read_only
        }),
        granule().prop_map(|granule| Op::Split { granule }),
        granule().prop_map(|granule| Op::Collapse { granule }),
        (granule(), 0u64..3, 0u16..4, any::<bool>()).prop_map(|(granule, page, node, write)| {
            Op::Touch {
                granule,
                page,
                node,
                write,
            }
        }),
        (any::<bool>(), any::<bool>(), 1u64..5).prop_map(|(accessed, dirty, granules)| {
            Op::Harvest {
                accessed,
                dirty,
                granules,
            }
        }),
        (0u16..4).prop_map(|node| Op::Add { node }),
        (0u16..4).prop_map(|node| Op::Drop { node }),
    ]
}

fn place(granule: u64, page: Option<u64>) -> (Gpa, PageSize) {
    match page {
        None => (Gpa(granule * LARGE.bytes()), LARGE),
        Some(page) => (Gpa(granule * LARGE.bytes() + page * SMALL.bytes()), SMALL),
    }
}

fn attributes(read_only: bool) -> Attributes {
    let rights = if read_only {
        Rights::READ
    } else {
        Rights::READ | Rights::WRITE | Rights::EXECUTE
    };
    Attributes {
        rights,
        memory_type: MemoryType::WriteBack,
    }
}

/// What every replica must say of the pages that operations reach.
fn translations<F: TableFormat<Address = Gpa>>(
    table: &memory::table::RadixTable<F, &VecTables>,
) -> Vec<(Gpa, Frame, PageSize, Attributes)> {
    table
        .all_leaves()
        .map(|l| (l.at, l.frame, l.size, l.attributes))
        .collect()
}

fn random_operations<F: TableFormat<Address = Gpa>>(
    ops: &[Op],
    room: usize,
) -> Result<(), TestCaseError> {
    let memory = VecTables::new(room);
    let mut all = Replicas::<F, _>::new(&memory, NodeId(0), LargeLeaves::Executable)
        .expect("room for a root");
    // Pages that were written, and touched, since they were mapped; by leaf address.
    let mut used: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
    for op in ops {
        let before = translations(all.first());
        let failed = match *op {
            Op::Map {
                granule,
                page,
                read_only,
            } => {
                let (at, size) = place(granule, page);
                let frame = Frame((granule + 1) * 512 + page.unwrap_or(0));
                let mapped = all.map(at, frame, size, attributes(read_only), &NoProcessor);
                mapped.map(|flush| flush.carry_out(&NoProcessor)).is_err()
            }
            Op::Unmap { granule, page } => {
                let (at, size) = place(granule, page);
                match all.unmap(at, size) {
                    Ok(unmapped) => {
                        let leaf = unmapped
                            .finish(&NoProcessor, &&memory)
                            .expect("there is a replica");
                        let (accessed, dirty) = used.remove(&at.0).unwrap_or_default();
                        prop_assert_eq!((leaf.accessed, leaf.dirty), (accessed, dirty));
                        false
                    }
                    Err(_) => true,
                }
            }
            Op::Protect {
                granule,
                page,
                read_only,
            } => {
                let (at, size) = place(granule, page);
                let flush = all.protect(at, size, attributes(read_only));
                flush.map(|flush| flush.carry_out(&NoProcessor)).is_err()
            }
            Op::Split { granule } => match all.begin_split(place(granule, None).0, LARGE) {
                Ok(split) => {
                    let busy = matches!(all.add(NodeId(9)), Err(ReplicaError::Busy { .. }));
                    prop_assert!(busy);
                    all.finish_split(split.shoot_down(&NoProcessor))
                        .expect("frozen");
                    if let Some(bits) = used.remove(&(granule << 21)) {
                        used.extend((0..512).map(|page| (granule << 21 | page << 12, bits)));
                    }
                    false
                }
                Err(_) => true,
            },
            Op::Collapse { granule } => match all.begin_collapse(place(granule, None).0, LARGE) {
                Ok(join) => {
                    let flush = all
                        .finish_collapse(join.shoot_down(&NoProcessor))
                        .expect("frozen");
                    flush.carry_out(&NoProcessor);
                    let mut parts = used.split_off(&(granule << 21));
                    used.extend(parts.split_off(&((granule + 1) << 21)));
                    let bits = parts
                        .values()
                        .fold((false, false), |a, b| (a.0 | b.0, a.1 | b.1));
                    used.insert(granule << 21, bits);
                    false
                }
                Err(_) => true,
            },
            Op::Touch {
                granule,
                page,
                node,
                write,
            } => {
                let gpa = place(granule, Some(page)).0;
                let access = if write { Access::Write } else { Access::Read };
                let root = all.of(NodeId(node)).root();
                if touch::<F>(&&memory, root, gpa, access).is_some() {
                    let Ok(Lookup::Mapped(leaf)) = all.first().translate(gpa) else {
                        return Err(TestCaseError::fail("touched but not mapped"));
                    };
                    let bits = used.entry(leaf.at.0).or_default();
                    *bits = (true, bits.1 | write);
                }
                false
            }
            Op::Harvest {
                accessed,
                dirty,
                granules,
            } => {
                let bit = |clear| if clear { Bit::Clear } else { Bit::Read };
                let options = Options {
                    accessed: bit(accessed),
                    dirty: bit(dirty),
                    descend: Descend::Everywhere,
                };
                let bytes = granules * LARGE.bytes();
                let mut found = Vec::new();
                all.harvest(Gpa(0), bytes, options, |leaf| {
                    found.push((leaf.at.0, (leaf.accessed, leaf.dirty)));
                });
                let inside = used.range_mut(..bytes);
                let touched = inside.filter(|(_, bits)| **bits != (false, false));
                let mut expected = Vec::new();
                for (at, bits) in touched {
                    expected.push((*at, *bits));
                    *bits = (bits.0 && !accessed, bits.1 && !dirty);
                }
                prop_assert_eq!(found, expected, "each once, with the bits of all");
                false
            }
            Op::Add { node } => all.add(NodeId(node)).is_err(),
            Op::Drop { node } => match all.unlink(NodeId(node)) {
                Ok(old) => {
                    all.retire(old, &NoProcessor);
                    false
                }
                Err(_) => true,
            },
        };
        // All alike, and what failed changed nothing.
        let now = translations(all.first());
        for table in all.all() {
            prop_assert_eq!(&translations(table), &now, "after {:?}", op);
        }
        prop_assert!(
            !failed || now == before,
            "{:?} failed and changed something",
            op
        );
        let only_roots = matches!(op, Op::Add { .. } | Op::Drop { .. });
        prop_assert!(!only_roots || now == before);
        for (at, ..) in now {
            let Ok(Lookup::Mapped(leaf)) = all.translate(at) else {
                return Err(TestCaseError::fail("a leaf that does not translate"));
            };
            let expected = used.get(&at.0).copied().unwrap_or_default();
            prop_assert_eq!(
                (leaf.accessed, leaf.dirty),
                expected,
                "{} after {:?}",
                at,
                op
            );
        }
    }
    let mut seen = 0;
    let leaves = all.first().all_leaves().count();
    all.destroy(&NoProcessor, |_| seen += 1);
    prop_assert_eq!(seen, leaves);
    prop_assert_eq!(memory.in_use(), 0, "every table went back");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]
    #[test]
    fn after_any_operations_all_replicas_translate_alike(
        ops in proptest::collection::vec(op(), 1..60),
        // Little room makes operations fail half-way through the replicas.
        room in prop_oneof![Just(64usize), 3usize..20],
    ) {
        random_operations::<NptFormat>(&ops, room)?;
        random_operations::<EptFormat>(&ops, room)?;
    }
}

#[test]
fn roots_are_added_and_dropped_by_rule() {
    let memory = VecTables::new(32);
    let mut all = Replicas::<NptFormat, _>::new(&memory, NodeId(2), LargeLeaves::NotExecutable)
        .expect("room");
    assert_eq!(
        all.unlink(NodeId(2)).map(|_| ()),
        Err(ReplicaError::Last(NodeId(2)))
    );
    assert_eq!(all.add(NodeId(2)), Err(ReplicaError::Exists(NodeId(2))));
    let flush = all.map(
        Gpa(0),
        Frame(512),
        LARGE,
        Attributes::GUEST_MEMORY,
        &NoProcessor,
    );
    flush.expect("empty").carry_out(&NoProcessor);
    assert_eq!(all.add(NodeId(0)), Ok(()));
    assert_eq!(all.of(NodeId(0)).node(), NodeId(0));
    assert_eq!(
        all.of(NodeId(1)).node(),
        NodeId(2),
        "a node without a root walks the first"
    );
    assert_ne!(all.of(NodeId(0)).root(), all.of(NodeId(2)).root());
    assert_eq!(
        all.unlink(NodeId(1)).map(|_| ()),
        Err(ReplicaError::Missing(NodeId(1)))
    );
    // Node 0 writes; its root is dropped, and the write is not forgotten.
    touch::<NptFormat>(
        &&memory,
        all.of(NodeId(0)).root(),
        Gpa(0x5000),
        Access::Write,
    )
    .expect("mapped");
    let old = all.unlink(NodeId(0)).expect("there are two");
    assert!(matches!(all.translate(Gpa(0)), Ok(Lookup::Mapped(leaf)) if !leaf.dirty));
    all.retire(old, &NoProcessor);
    assert!(
        matches!(all.translate(Gpa(0)), Ok(Lookup::Mapped(leaf)) if leaf.dirty && leaf.accessed)
    );
    assert_eq!(all.first().probe(Gpa(0)), memory::probe::Probe::Accessed);
    // Without room a root is not added, and nothing is left of the attempt.
    let full = VecTables::new(4);
    let mut all =
        Replicas::<NptFormat, _>::new(&full, NodeId(0), LargeLeaves::Executable).expect("room");
    let flush = all.map(
        Gpa(0),
        Frame(512),
        LARGE,
        Attributes::GUEST_MEMORY,
        &NoProcessor,
    );
    flush
        .expect("room for two more tables")
        .carry_out(&NoProcessor);
    let refused = all.add(NodeId(1));
    assert!(
        matches!(
            refused,
            Err(ReplicaError::Table(TableError::OutOfTables(_)))
        ),
        "{refused:?}"
    );
    assert_eq!((full.in_use(), all.all().len()), (3, 1));
}

/// Each look says through whose tables, of the granule and of its pages, and is about the time since the last one.
fn looks_say_through_whose_tables<F: TableFormat<Address = Gpa>>() {
    let memory = VecTables::new(64);
    let mut all = Replicas::<F, _>::new(&memory, NodeId(0), LargeLeaves::default()).expect("room");
    for page in 0..512 {
        let (at, frame) = (Gpa(page << 12), Frame(page));
        let flush = all.map(at, frame, SMALL, Attributes::GUEST_MEMORY, &NoProcessor);
        flush.expect("empty").carry_out(&NoProcessor);
    }
    for node in [2, 5] {
        all.add(NodeId(node)).expect("room");
    }
    let touch_by = |all: &Replicas<F, _>, node, page: u64| {
        let root = all.of(NodeId(node)).root();
        touch::<F>(&memory, root, Gpa(page << 12), Access::Read).expect("mapped");
    };
    // Node 7 has none of its own and walks the first.
    for (node, page) in [(7, 3), (5, 3), (5, 64), (0, 511)] {
        touch_by(&all, node, page);
    }
    assert!(all.probe(Gpa(0x1234)).eq([NodeId(0), NodeId(5)]));
    assert_eq!(all.probe(Gpa(0)).count(), 0);
    let pages = |all: &Replicas<F, _>| {
        let mut sets = Vec::new();
        assert!(all.probe_pages(Gpa(0), |node, set| sets.push((node, set))));
        let list = |(node, set): (NodeId, units::PageSet)| {
            assert!((0..512).all(|page| set.contains(page) == set.iter().any(|p| p == page)));
            (node.0, set.iter().collect::<Vec<u16>>())
        };
        sets.into_iter().map(list).collect::<Vec<_>>()
    };
    let none = || vec![(0, vec![]), (2, vec![]), (5, vec![])];
    assert_eq!(
        pages(&all),
        [(0, vec![3, 511]), (2, vec![]), (5, vec![3, 64])]
    );
    assert_eq!(pages(&all), none());
    touch_by(&all, 2, 9);
    assert!(all.probe(Gpa(0)).eq([NodeId(2)]));
    all.destroy(&NoProcessor, |_| {});
}

#[test]
fn looks_say_through_whose_tables_in_both_formats() {
    looks_say_through_whose_tables::<NptFormat>();
    looks_say_through_whose_tables::<EptFormat>();
}
