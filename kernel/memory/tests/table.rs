//! The radix table in all three formats against a `BTreeMap` of leaves.

use memory::table::{
    Attributes, EptFormat, Flush, HostFormat, LargeLeaves, Leaf, Lookup, MemoryType, NoProcessor,
    NptFormat, RadixTable, Rights, TableAddress, TableError, TableFormat, TableMemory,
};
use memory::testing::VecTables;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use units::{Frame, Gpa, NodeId, PageSize};

const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

/// Start, then (frame, size, attributes).
type Model = BTreeMap<u64, (Frame, PageSize, Attributes)>;

#[derive(Clone, Debug)]
enum Op {
    Map {
        at: u64,
        frame: u64,
        size: PageSize,
        attributes: Attributes,
    },
    MapRange {
        at: u64,
        frame: u64,
        pages: u64,
        largest: PageSize,
    },
    Unmap {
        at: u64,
        size: PageSize,
    },
    Protect {
        at: u64,
        size: PageSize,
        attributes: Attributes,
    },
    Split {
        at: u64,
        size: PageSize,
    },
    Collapse {
        at: u64,
        size: PageSize,
    },
}

/// Addresses around boundaries of every level, in both halves of the input.
fn address() -> impl Strategy<Value = u64> {
    let high = prop_oneof![
        Just(0u64),
        Just(511 << 30),
        Just(0x7fff_8000_0000),
        Just(0x8000_0000_0000)
    ];
    let low = (0..2u64, 0..3u64, prop_oneof![0..4u64, 508..512u64]);
    let odd = prop_oneof![12 => Just(0u64), 1 => Just(0x10)];
    (high, low, any::<[bool; 2]>(), odd).prop_map(|(high, (g, m, k), keep, odd)| {
        high + (g << 30)
            + if keep[0] { m << 21 } else { 0 }
            + if keep[0] && keep[1] { k << 12 } else { 0 }
            + odd
    })
}

fn size() -> impl Strategy<Value = PageSize> {
    prop_oneof![3 => Just(PageSize::Size4K), 3 => Just(PageSize::Size2M), 1 => Just(PageSize::Size1G)]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let rights = prop_oneof![8 => Just(Rights::READ), 1 => Just(Rights::empty())];
    let types = prop_oneof![
        Just(MemoryType::WriteBack),
        Just(MemoryType::WriteCombining),
        Just(MemoryType::Uncacheable),
        Just(MemoryType::WriteProtected),
        Just(MemoryType::WriteThrough)
    ];
    (rights, any::<[bool; 2]>(), types).prop_map(|(mut rights, [w, x], memory_type)| {
        rights.set(Rights::WRITE, w);
        rights.set(Rights::EXECUTE, x);
        Attributes {
            rights,
            memory_type,
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let frame = || {
        prop_oneof![
            Just(0u64),
            Just(0x4_0000),
            Just(0x4_0200),
            Just(0x12345),
            Just((1 << 40) - 512)
        ]
    };
    prop_oneof![
        4 => (address(), frame(), size(), attributes()).prop_map(|(at, frame, size, attributes)| Op::Map { at, frame, size, attributes }),
        3 => (address(), frame(), 0..1600u64, size()).prop_map(|(at, frame, pages, largest)| Op::MapRange { at, frame, pages, largest }),
        4 => (address(), size()).prop_map(|(at, size)| Op::Unmap { at, size }),
        2 => (address(), size(), attributes()).prop_map(|(at, size, attributes)| Op::Protect { at, size, attributes }),
        3 => (address(), size()).prop_map(|(at, size)| Op::Split { at, size }),
        3 => (address(), size()).prop_map(|(at, size)| Op::Collapse { at, size }),
    ]
}

fn smaller(size: PageSize) -> Option<PageSize> {
    match size {
        PageSize::Size4K => None,
        PageSize::Size2M => Some(PageSize::Size4K),
        PageSize::Size1G => Some(PageSize::Size2M),
    }
}

fn overlaps(model: &Model, start: u64, bytes: u64) -> bool {
    let before = model
        .range(..start)
        .next_back()
        .is_some_and(|(at, (_, size, _))| at + size.bytes() > start);
    before || model.range(start..start + bytes).next().is_some()
}

fn aligned(value: u64, size: PageSize) -> bool {
    value.is_multiple_of(size.bytes())
}

/// Applies the operation to the model: whether it must succeed.
fn expect(model: &mut Model, op: &Op) -> bool {
    let in_range = |at: u64, bytes: u64| bytes > 0 && at < 1 << 48 && at + bytes <= 1 << 48;
    match *op {
        Op::Map {
            at,
            frame,
            size,
            attributes,
        } => {
            let fits =
                aligned(at, size) && aligned(frame << 12, size) && frame + size.pages() <= 1 << 40;
            let ok = fits
                && in_range(at, size.bytes())
                && attributes.rights.contains(Rights::READ)
                && !overlaps(model, at, size.bytes());
            if ok {
                model.insert(at, (Frame(frame), size, attributes));
            }
            ok
        }
        Op::MapRange {
            at,
            frame,
            pages,
            largest,
        } => {
            let bytes = pages << 12;
            let ok = aligned(at, PageSize::Size4K)
                && in_range(at, bytes)
                && frame + pages <= 1 << 40
                && !overlaps(model, at, bytes);
            if ok {
                let (mut at, mut frame, mut pages) = (at, frame, pages);
                while pages > 0 {
                    let fits = |s: &&PageSize| {
                        **s <= largest
                            && s.pages() <= pages
                            && aligned(at, **s)
                            && aligned(frame << 12, **s)
                    };
                    let size = *SIZES.iter().rev().find(fits).expect("4 KiB always fits");
                    model.insert(at, (Frame(frame), size, Attributes::GUEST_MEMORY));
                    (at, frame, pages) = (
                        at + size.bytes(),
                        frame + size.pages(),
                        pages - size.pages(),
                    );
                }
            }
            ok
        }
        Op::Unmap { at, size } => {
            let ok = model.get(&at).is_some_and(|leaf| leaf.1 == size);
            if ok {
                model.remove(&at);
            }
            ok
        }
        Op::Protect {
            at,
            size,
            attributes,
        } => {
            let leaf = model.get_mut(&at).filter(|leaf| leaf.1 == size);
            match leaf {
                Some(leaf) if attributes.rights.contains(Rights::READ) => {
                    leaf.2 = attributes;
                    true
                }
                _ => false,
            }
        }
        Op::Split { at, size } => {
            let leaf = model.get(&at).filter(|leaf| leaf.1 == size).copied();
            let (Some((frame, _, attributes)), Some(part)) = (leaf, smaller(size)) else {
                return false;
            };
            for i in 0..512 {
                let frame = Frame(frame.0 + i * part.pages());
                model.insert(at + i * part.bytes(), (frame, part, attributes));
            }
            true
        }
        Op::Collapse { at, size } => {
            let Some(part) = smaller(size) else {
                return false;
            };
            let Some(&(frame, _, attributes)) = model.get(&at) else {
                return false;
            };
            let uniform = aligned(at, size)
                && aligned(frame.0 << 12, size)
                && (0..512).all(|i| {
                    let frame = Frame(frame.0 + i * part.pages());
                    model.get(&(at + i * part.bytes())) == Some(&(frame, part, attributes))
                });
            if uniform {
                for i in 0..512 {
                    model.remove(&(at + i * part.bytes()));
                }
                model.insert(at, (frame, size, attributes));
            }
            uniform
        }
    }
}

type Table<'m, F> = RadixTable<F, &'m VecTables>;

fn apply<F: TableFormat>(table: &mut Table<'_, F>, op: &Op) -> Result<(), TableError> {
    let memory = *table.memory();
    // Addresses beyond 48 bits must reach the table as they are.
    let a = |at: u64| {
        if at < 1 << 48 {
            F::Address::from_offset(at)
        } else {
            F::Address::from_offset(at & 0xffff_ffff_ffff | 1)
        }
    };
    match *op {
        Op::Map {
            at,
            frame,
            size,
            attributes,
        } => {
            let flush = table.map(a(at), Frame(frame), size, attributes)?;
            assert_eq!(flush, Flush::None);
        }
        Op::MapRange {
            at,
            frame,
            pages,
            largest,
        } => {
            let flush = table.map_range(
                a(at),
                Frame(frame),
                pages,
                Attributes::GUEST_MEMORY,
                largest,
            )?;
            assert_eq!(flush, Flush::None);
        }
        Op::Unmap { at, size } => {
            let unmapped = table.unmap(a(at), size)?;
            assert_eq!(
                unmapped.flush(),
                Flush::Range {
                    first: a(at).bits(),
                    bytes: size.bytes()
                }
            );
            let leaf = unmapped.finish(&NoProcessor, memory);
            assert_eq!((leaf.at, leaf.size), (a(at), size));
        }
        Op::Protect {
            at,
            size,
            attributes,
        } => {
            let before = table.translate(a(at));
            let flush = table.protect(a(at), size, attributes)?;
            let changed =
                !matches!(before, Ok(Lookup::Mapped(leaf)) if leaf.attributes == attributes);
            assert_eq!(flush != Flush::None, changed);
        }
        Op::Split { at, size } => {
            let splitting = table.begin_split(a(at), size)?;
            assert!(matches!(table.translate(a(at)), Ok(Lookup::Frozen { .. })));
            assert_eq!(
                table.begin_split(a(at), size).err(),
                Some(TableError::Frozen { at: a(at).bits() })
            );
            table.finish_split(splitting.shoot_down(&NoProcessor))?;
        }
        Op::Collapse { at, size } => {
            let collapsing = table.begin_collapse(a(at), size)?;
            assert!(matches!(table.translate(a(at)), Ok(Lookup::Frozen { .. })));
            assert_eq!(
                table.map(a(at), Frame(0), PageSize::Size4K, Attributes::GUEST_MEMORY),
                Err(TableError::Frozen { at: a(at).bits() })
            );
            let _flush = table.finish_collapse(collapsing.shoot_down(&NoProcessor))?;
        }
    }
    Ok(())
}

fn check<F: TableFormat>(table: &Table<'_, F>, model: &Model) {
    let leaves: Vec<(u64, (Frame, PageSize, Attributes))> = table
        .all_leaves()
        .map(|leaf| {
            (
                leaf.at.to_offset().expect("in range"),
                (leaf.frame, leaf.size, leaf.attributes),
            )
        })
        .collect();
    let expected: Vec<_> = model.iter().map(|(at, leaf)| (*at, *leaf)).collect();
    assert_eq!(leaves, expected);
    let of = |wanted| {
        leaves
            .iter()
            .filter(move |(_, (_, size, _))| *size == wanted)
    };
    for size in SIZES {
        assert_eq!(table.count(size), of(size).count() as u64);
    }
    // No empty tables: a table exists exactly if a leaf lies below it.
    let mut tables = BTreeSet::new();
    for (at, (_, size, _)) in model {
        let sizes = [12, 21, 30]
            .into_iter()
            .zip(SIZES)
            .filter(|(_, s)| s >= size);
        tables.extend(sizes.map(|(shift, _)| (shift, at >> (shift + 9))));
    }
    assert_eq!(table.table_frames(), 1 + tables.len() as u64);
    assert_eq!(table.memory().in_use() as u64, table.table_frames());
}

fn probe<F: TableFormat>(table: &Table<'_, F>, model: &Model, at: u64) {
    if at >= 1 << 48 {
        return;
    }
    let expected = model
        .range(..=at)
        .next_back()
        .filter(|(start, leaf)| *start + leaf.1.bytes() > at);
    match (table.translate(F::Address::from_offset(at)), expected) {
        (Ok(Lookup::Mapped(leaf)), Some((start, expected))) => {
            assert_eq!(leaf.at, F::Address::from_offset(*start));
            assert_eq!((leaf.frame, leaf.size, leaf.attributes), *expected);
            assert!(
                !leaf.accessed && !leaf.dirty && !leaf.frozen,
                "software sets no A or D"
            );
        }
        (Ok(Lookup::NotMapped { level }), None) => assert!(level.number() >= 1),
        (found, expected) => panic!("{at:#x}: {found:?} instead of {expected:?}"),
    }
}

fn run<F: TableFormat>(ops: &[Op], capacity: usize) {
    let memory = VecTables::new(capacity);
    let mut table = Table::<F>::new(&memory, NodeId(0)).expect("room for a root");
    let mut model = Model::new();
    for op in ops {
        let mut after = model.clone();
        let expected = expect(&mut after, op);
        match apply(&mut table, op) {
            Ok(()) => {
                assert!(expected, "{op:?} should have been refused");
                model = after;
            }
            Err(TableError::OutOfTables(_)) => assert!(expected && memory.in_use() <= capacity),
            Err(error) => assert!(!expected, "{op:?}: {error}"),
        }
        check(&table, &model);
        if let Op::Map { at, .. }
        | Op::Unmap { at, .. }
        | Op::Split { at, .. }
        | Op::MapRange { at, .. } = *op
        {
            for near in [
                at.wrapping_sub(1),
                at,
                at + 0xfff,
                at + 0x1000,
                at + 0x20_0000,
            ] {
                probe(&table, &model, near);
            }
        }
    }
    let mut visited = 0;
    table.destroy(&NoProcessor, |_leaf: Leaf<F::Address>| visited += 1);
    assert_eq!(visited, model.len());
    assert_eq!(
        memory.in_use(),
        0,
        "a table that is taken down returns every frame"
    );
}

fn cases() -> u32 {
    if cfg!(miri) { 2 } else { 32 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn npt_equals_the_model(ops in vec(op(), 1..40), capacity in 1..24usize) {
        run::<NptFormat>(&ops, capacity);
    }
    #[test]
    fn ept_equals_the_model(ops in vec(op(), 1..40), capacity in 1..24usize) {
        run::<EptFormat>(&ops, capacity);
    }
    #[test]
    fn host_equals_the_model(ops in vec(op(), 1..40), capacity in 1..24usize) {
        run::<HostFormat>(&ops, capacity);
    }
}

#[test]
fn a_terabyte_takes_the_largest_leaves() {
    let memory = VecTables::new(8);
    let mut table = Table::<NptFormat>::new(&memory, NodeId(0)).expect("room");
    let pages = (1u64 << 40 >> 12) + 512 + 1;
    let flush = table.map_range(
        units::Gpa(0),
        Frame(0),
        pages,
        Attributes::GUEST_MEMORY,
        PageSize::Size1G,
    );
    assert_eq!(flush, Ok(Flush::None));
    let count = |size| table.all_leaves().filter(|leaf| leaf.size == size).count();
    assert_eq!(SIZES.map(count), [1, 1, 1024]);
    assert_eq!(table.table_frames(), 1 + 3 + 1 + 1);
}

#[test]
fn splitting_and_collapsing_keep_accessed_and_dirty() {
    use memory::testing::{Access, touch};
    use units::Gpa;
    let memory = VecTables::new(8);
    let mut table = Table::<EptFormat>::new(&memory, NodeId(0)).expect("room");
    let at = Gpa(0x4000_0000);
    let all = Attributes::GUEST_MEMORY;
    table
        .map(at, Frame(0x200), PageSize::Size2M, all)
        .expect("empty")
        .carry_out(&NoProcessor);
    assert!(touch::<EptFormat>(&memory, table.root(), Gpa(at.0 + 0x5008), Access::Write).is_some());
    let splitting = table.begin_split(at, PageSize::Size2M).expect("mapped");
    assert_eq!(
        touch::<EptFormat>(&memory, table.root(), at, Access::Read),
        None,
        "the guest waits"
    );
    table
        .finish_split(splitting.shoot_down(&NoProcessor))
        .expect("frozen");
    assert_eq!(
        table
            .all_leaves()
            .filter(|leaf| leaf.accessed && leaf.dirty)
            .count(),
        512
    );

    // Forget all, touch one page while the collapse is under way, as a stale walker would.
    let mut cursor = memory::harvest::Cursor::ALL;
    let options = memory::harvest::Options {
        dirty: memory::harvest::Bit::Clear,
        ..memory::harvest::Options::FOOTPRINT
    };
    assert_eq!(
        table.harvest(&mut cursor, options, u64::MAX, |_| {}),
        memory::harvest::Progress::Finished
    );
    assert_eq!(cursor.tally().dirty_pages, 512);
    let collapsing = table.begin_collapse(at, PageSize::Size2M).expect("uniform");
    let child = (0x100..0x108)
        .map(Frame)
        .find(|f| memory.load(*f, 7) != 0 && memory.load(*f, 511) != 0)
        .expect("the child");
    let entry = memory.load(child, 7);
    memory.store(child, 7, entry | EptFormat::ACCESSED | EptFormat::DIRTY);
    let _none = table
        .finish_collapse(collapsing.shoot_down(&NoProcessor))
        .expect("frozen");
    let leaves: Vec<_> = table.all_leaves().collect();
    assert_eq!(leaves.len(), 1);
    assert!(leaves[0].size == PageSize::Size2M && leaves[0].accessed && leaves[0].dirty);
}

#[test]
fn no_range_crosses_the_hole_between_the_canonical_halves() {
    use memory::table::Va;
    let memory = VecTables::new(8);
    let mut table = Table::<HostFormat>::new(&memory, NodeId(0)).expect("room");
    let last = Va(0x7fff_ffff_f000);
    let mut map = |at, pages| {
        table.map_range(
            at,
            Frame(0),
            pages,
            Attributes::GUEST_MEMORY,
            PageSize::Size4K,
        )
    };
    assert_eq!(
        map(last, 2),
        Err(TableError::OutOfRange {
            at: last.0,
            pages: 2
        })
    );
    assert_eq!(map(last, 1), Ok(Flush::None));
    assert_eq!(map(Va(u64::MAX - 0xfff), 1), Ok(Flush::None));
    assert!(map(Va(u64::MAX - 0xfff), 2).is_err());
    assert!(map(Va(0x8000_0000_0000), 1).is_err());
    assert!(map(Va(0), 0).is_err() && map(Va(0), u64::MAX).is_err());
    assert!(matches!(
        table.translate(Va(u64::MAX)),
        Ok(Lookup::Mapped(_))
    ));
}

/// 512 leaves of `part` become one leaf only if nothing about them differs.
fn refuses_what_is_not_uniform<F: TableFormat>(part: PageSize, whole: PageSize) {
    let all = Attributes::GUEST_MEMORY;
    let combining = Attributes {
        memory_type: MemoryType::WriteCombining,
        ..all
    };
    let at = F::Address::from_offset(1 << 30);
    let odd = |i: u64| F::Address::from_offset((1 << 30) + i * part.bytes());
    let build = |memory, first: u64| {
        let mut table = Table::<F>::new(memory, NodeId(0)).expect("room");
        let pages = whole.pages();
        let flush = table.map_range(at, Frame(first), pages, all, part);
        flush.expect("empty").carry_out(&NoProcessor);
        table
    };
    let refusal = |table: &mut Table<'_, F>| table.begin_collapse(at, whole).err();
    let not_uniform = Some(TableError::NotUniform { at: at.bits() });

    let memory = VecTables::new(8);
    let mut table = build(&memory, whole.pages());
    let leaf = table
        .unmap(odd(77), part)
        .expect("mapped")
        .finish(&NoProcessor, &memory);
    assert_eq!(refusal(&mut table), not_uniform, "a leaf is missing");
    let map = |table: &mut Table<'_, F>, frame, attributes| {
        let flush = table.map(odd(77), frame, part, attributes);
        flush.expect("unmapped").carry_out(&NoProcessor);
        let refusal = refusal(table);
        let old = table.unmap(odd(77), part);
        assert_eq!(old.is_ok(), refusal.is_some());
        if let Ok(old) = old {
            old.finish(&NoProcessor, &memory);
        }
        refusal
    };
    assert_eq!(
        map(&mut table, leaf.frame, combining),
        not_uniform,
        "another memory type"
    );
    let read = Attributes::memory(Rights::READ | Rights::EXECUTE);
    assert_eq!(
        map(&mut table, leaf.frame, read),
        not_uniform,
        "other rights"
    );
    let elsewhere = Frame(leaf.frame.0 + 8 * whole.pages());
    assert_eq!(
        map(&mut table, elsewhere, all),
        not_uniform,
        "another frame"
    );
    assert_eq!(
        map(&mut table, leaf.frame, all),
        None,
        "and now all is well"
    );

    let memory = VecTables::new(8);
    let mut table = build(&memory, part.pages());
    assert_eq!(
        refusal(&mut table),
        not_uniform,
        "the block of frames is not aligned"
    );
}

#[test]
fn only_uniform_leaves_collapse() {
    for (part, whole) in [(SIZES[0], SIZES[1]), (SIZES[1], SIZES[2])] {
        refuses_what_is_not_uniform::<NptFormat>(part, whole);
        refuses_what_is_not_uniform::<EptFormat>(part, whole);
        refuses_what_is_not_uniform::<HostFormat>(part, whole);
    }
}

/// What an address translates to.
fn mapped(table: &RadixTable<EptFormat, VecTables>, at: u64) -> Leaf<Gpa> {
    match table.translate(Gpa(at)) {
        Ok(Lookup::Mapped(leaf)) => leaf,
        other => panic!("{at:#x} is {other:?}"),
    }
}

#[test]
fn large_leaves_that_may_not_be_executed_are_split_for_good_where_they_are() {
    const MIB2: u64 = 2 << 20;
    let large = PageSize::Size2M;
    let table = RadixTable::<EptFormat, _>::new(VecTables::new(64), NodeId(0))
        .expect("the test asks for what can be had");
    let mut table = table.with_large_leaves(LargeLeaves::NotExecutable);
    for at in [0, MIB2, 2 * MIB2] {
        let frame = Frame(0x10000 + (at >> 12));
        let flush = table.map(Gpa(at), frame, large, Attributes::GUEST_MEMORY);
        flush
            .expect("the test asks for what can be had")
            .carry_out(&NoProcessor);
    }
    let small = table.map(
        Gpa(3 * MIB2),
        Frame(7),
        PageSize::Size4K,
        Attributes::GUEST_MEMORY,
    );
    small
        .expect("the test asks for what can be had")
        .carry_out(&NoProcessor);
    let executable = |leaf: Leaf<Gpa>| leaf.attributes.rights.contains(Rights::EXECUTE);
    assert!(!executable(mapped(&table, 0)) && executable(mapped(&table, 3 * MIB2)));
    // Nobody can give the right back, neither by asking nor by a move.
    let asked = table
        .protect(Gpa(0), large, Attributes::GUEST_MEMORY)
        .expect("the test asks for what can be had");
    asked.carry_out(&NoProcessor);
    assert!(!executable(mapped(&table, 0)));

    // The first granule is executed, the second is looked at closely, the third is looked at and then executed.
    let split = table
        .begin_split(Gpa(0), large)
        .expect("the test asks for what can be had")
        .to_execute();
    table
        .finish_split(split.shoot_down(&NoProcessor))
        .expect("the test asks for what can be had");
    for at in [MIB2, 2 * MIB2] {
        let split = table
            .begin_split(Gpa(at), large)
            .expect("the test asks for what can be had");
        table
            .finish_split(split.shoot_down(&NoProcessor))
            .expect("the test asks for what can be had");
    }
    for page in 0..512 {
        assert!(executable(mapped(&table, page << 12)));
        assert!(!executable(mapped(&table, MIB2 + (page << 12))));
    }
    let page = Gpa(2 * MIB2 + 0x5000);
    let grown = table.protect(page, PageSize::Size4K, Attributes::GUEST_MEMORY);
    grown
        .expect("the test asks for what can be had")
        .carry_out(&NoProcessor);

    for (at, joins) in [(0, false), (MIB2, true), (2 * MIB2, false)] {
        match table.begin_collapse(Gpa(at), large) {
            Ok(collapse) => {
                let flush = table.finish_collapse(collapse.shoot_down(&NoProcessor));
                flush
                    .expect("the test asks for what can be had")
                    .carry_out(&NoProcessor);
                assert!(joins && mapped(&table, at).size == large, "{at:#x}");
                assert!(!executable(mapped(&table, at)));
            }
            Err(why) => assert!(
                !joins && matches!(why, TableError::NotUniform { .. }),
                "{at:#x}: {why}"
            ),
        }
    }
}
