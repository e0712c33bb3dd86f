//! Page moves end to end: frames from the allocators, leaves in the tables, bytes in a mock memory.

use memory::buddy::{FrameMeta, Frames};
use memory::harvest::{Cursor, Options};
use memory::page_move::{Mirrored, MoveError, PageMove, Settled, Stage, shoot_down};
use memory::table::{
    Attributes, Flush, Lookup, NoProcessor, NptFormat, RadixTable, Rights, Shootdown, TableError,
};
use memory::testing::{Access, VecTables, touch};
use memory::written::{Source, Written};
use std::cell::RefCell;
use std::collections::BTreeMap;
use units::{Frame, Gpa, NodeId, PageSize};

const NEAR: NodeId = NodeId(0);
const FAR: NodeId = NodeId(1);
const PAGE: Gpa = Gpa(0x7000);
const SMALL: PageSize = PageSize::Size4K;

type Table<'m> = RadixTable<NptFormat, &'m VecTables>;

fn frames() -> Frames<'static> {
    let mut frames = Frames::new();
    for (node, base) in [(NEAR, 0x10_0000), (FAR, 0x20_0000)] {
        frames
            .add_zone(node, Frame(base), vec![FrameMeta::default(); 2048].leak())
            .expect("apart");
        frames.release(Frame(base), 2048).expect("fresh");
    }
    frames
}

/// Two replicas that map `PAGE` to a frame on the far node.
fn replicas<'m>(memory: &'m VecTables, frames: &mut Frames<'_>) -> (Vec<Table<'m>>, Frame) {
    let old = frames.allocate(FAR, SMALL, &[]).expect("free").into_frame();
    let table = |node| {
        let mut table = Table::new(memory, node).expect("room");
        let all = Attributes::GUEST_MEMORY;
        table
            .map(PAGE, old, SMALL, all)
            .expect("empty")
            .carry_out(&NoProcessor);
        table
    };
    (vec![table(NEAR), table(FAR)], old)
}

fn mapped_to(table: &Table<'_>, at: Gpa) -> Option<Frame> {
    match table.translate(at) {
        Ok(Lookup::Mapped(leaf)) => Some(leaf.frame),
        _ => None,
    }
}

/// Checks at each shootdown that the page is out of reach in every replica.
struct Recorder<'a> {
    memory: &'a VecTables,
    roots: Vec<Frame>,
    flushes: RefCell<Vec<Flush>>,
}

impl<'a> Recorder<'a> {
    fn new(memory: &'a VecTables, tables: &[Table<'_>]) -> Self {
        let roots = tables.iter().map(Table::root).collect();
        Self {
            memory,
            roots,
            flushes: RefCell::default(),
        }
    }
}

impl Shootdown for Recorder<'_> {
    fn shoot_down(&self, flush: Flush) {
        for &root in &self.roots {
            assert_eq!(
                touch::<NptFormat>(self.memory, root, PAGE, Access::Read),
                None
            );
        }
        self.flushes.borrow_mut().push(flush);
    }
}

#[test]
fn a_move_brings_the_bytes_and_frees_the_old_frame() {
    let memory = VecTables::new(16);
    let mut frames = frames();
    let (mut tables, old) = replicas(&memory, &mut frames);
    let mut bytes = BTreeMap::from([(old, 0xab)]);
    touch::<NptFormat>(&memory, tables[1].root(), PAGE, Access::Write).expect("mapped");

    let target = frames.allocate(NEAR, SMALL, &[]).expect("free");
    let new = target.frame();
    let page = PageMove::plan(PAGE, SMALL, target).expect("sizes agree");
    assert_eq!(page.stage(), Stage::Mapped);
    let page = page.freeze(&mut tables).expect("mapped alike");
    assert_eq!(page.stage(), Stage::Frozen);
    assert_eq!(
        touch::<NptFormat>(&memory, tables[0].root(), PAGE, Access::Read),
        None
    );
    assert!(matches!(
        tables[0].translate(PAGE),
        Ok(Lookup::Frozen {
            at: PAGE,
            size: SMALL
        })
    ));
    assert_eq!(
        tables[0].unmap(PAGE, SMALL).err(),
        Some(TableError::Frozen { at: PAGE.0 })
    );

    let recorder = Recorder::new(&memory, &tables);
    let page = page.shoot_down(&recorder);
    assert_eq!(
        *recorder.flushes.borrow(),
        [Flush::Range {
            first: PAGE.0,
            bytes: 4096
        }]
    );
    let page = page.copy(|from, to, pages| {
        assert_eq!((from, to, pages), (old, new, 1));
        let content = bytes[&from];
        bytes.insert(to, content);
    });
    let displaced = page.commit(&mut tables).expect("still frozen");
    assert_eq!((displaced.frame, bytes[&new]), (old, 0xab));
    for (table, written) in tables.iter().zip([false, true]) {
        let Ok(Lookup::Mapped(leaf)) = table.translate(PAGE) else {
            panic!("mapped again")
        };
        assert_eq!(
            (leaf.frame, leaf.attributes),
            (new, Attributes::GUEST_MEMORY)
        );
        assert_eq!(
            (leaf.accessed, leaf.dirty),
            (written, written),
            "each replica keeps its own A and D"
        );
    }
    let block = frames
        .take_back(displaced.frame, displaced.size)
        .expect("an allocated frame");
    frames
        .free(block.scrub(|frame, _| assert!(bytes.remove(&frame).is_some())))
        .expect("once");
    assert_eq!(frames.counters(FAR).map(|c| c.free), Some(2048));
    assert_eq!(frames.counters(NEAR).map(|c| c.free), Some(2047));
    assert_eq!(bytes, BTreeMap::from([(new, 0xab)]));
}

#[test]
fn an_abort_at_any_stage_leaves_the_guest_as_it_was() {
    for stage in 0..7 {
        let memory = VecTables::new(16);
        let mut frames = frames();
        let (mut tables, old) = replicas(&memory, &mut frames);
        touch::<NptFormat>(&memory, tables[0].root(), PAGE, Access::Write).expect("mapped");
        let before: Vec<_> = tables.iter().map(|table| table.translate(PAGE)).collect();
        let target = frames.allocate(NEAR, SMALL, &[]).expect("free");
        let page = PageMove::plan(PAGE, SMALL, target).expect("sizes agree");
        let target = match stage {
            0 => page.cancel(),
            1 => page.freeze(&mut tables).expect("mapped").abort(&mut tables),
            2 => page
                .freeze(&mut tables)
                .expect("mapped")
                .shoot_down(&NoProcessor)
                .abort(&mut tables),
            3 => page.arm(&mut tables).expect("mapped").abort(&mut tables),
            4 | 5 => {
                let armed = page.arm(&mut tables).expect("mapped");
                let watched = armed.shoot_down(&NoProcessor);
                if stage == 4 {
                    watched.abort(&mut tables)
                } else {
                    watched.mirror(|_, _, _| {}).abort(&mut tables)
                }
            }
            _ => {
                let quiet = page
                    .freeze(&mut tables)
                    .expect("mapped")
                    .shoot_down(&NoProcessor);
                quiet.copy(|_, _, _| {}).abort(&mut tables)
            }
        };
        assert_eq!(
            tables
                .iter()
                .map(|table| table.translate(PAGE))
                .collect::<Vec<_>>(),
            before
        );
        assert_eq!(mapped_to(&tables[0], PAGE), Some(old));
        frames.free(target.scrub(|_, _| {})).expect("allocated");
        assert_eq!(frames.counters(NEAR).map(|c| c.free), Some(2048));
    }
}

#[test]
fn replicas_that_disagree_refuse_and_stay_as_they_were() {
    let memory = VecTables::new(16);
    let mut frames = frames();
    let (mut tables, old) = replicas(&memory, &mut frames);
    let mut refuse = |tables: &mut [Table<'_>]| {
        let before: Vec<_> = tables.iter().map(|table| table.translate(PAGE)).collect();
        let target = frames.allocate(NEAR, SMALL, &[]).expect("free");
        let (error, target) = PageMove::plan(PAGE, SMALL, target)
            .expect("sizes agree")
            .freeze(tables)
            .expect_err("refused");
        assert_eq!(
            tables
                .iter()
                .map(|table| table.translate(PAGE))
                .collect::<Vec<_>>(),
            before,
            "{error}"
        );
        frames.free(target.scrub(|_, _| {})).expect("allocated");
        error
    };
    assert_eq!(refuse(&mut []), MoveError::NoTable { at: PAGE });
    let read = Attributes::memory(Rights::READ);
    tables[1]
        .protect(PAGE, SMALL, read)
        .expect("mapped")
        .carry_out(&NoProcessor);
    assert_eq!(refuse(&mut tables), MoveError::Replicas { at: PAGE });
    let leaf = tables[1]
        .unmap(PAGE, SMALL)
        .expect("mapped")
        .finish(&NoProcessor, &memory);
    assert_eq!(leaf.frame, old);
    assert_eq!(
        refuse(&mut tables),
        MoveError::Table(TableError::NotMapped { at: PAGE.0 })
    );
    let large = frames.allocate(NEAR, PageSize::Size2M, &[]).expect("free");
    let (error, _large) = PageMove::plan(PAGE, SMALL, large).expect_err("sizes differ");
    assert_eq!(
        error.to_string(),
        "the page at 0x7000 was not moved: it is a leaf of 4 KiB and the target has 2 MiB"
    );
}

#[test]
fn a_batch_takes_one_flush_that_covers_every_page() {
    let memory = VecTables::new(16);
    let mut frames = frames();
    let (mut tables, _) = replicas(&memory, &mut frames);
    let all = Attributes::GUEST_MEMORY;
    let mut planned = vec![];
    for i in 0..8u64 {
        let at = Gpa(PAGE.0 + i * 4096);
        if i > 0 {
            let frame = frames.allocate(FAR, SMALL, &[]).expect("free").into_frame();
            for table in &mut tables {
                table
                    .map(at, frame, SMALL, all)
                    .expect("empty")
                    .carry_out(&NoProcessor);
            }
        }
        let target = frames.allocate(NEAR, SMALL, &[]).expect("free");
        planned.push(PageMove::plan(at, SMALL, target).expect("sizes agree"));
    }
    let frozen = planned
        .into_iter()
        .map(|page| page.freeze(&mut tables).expect("mapped"))
        .collect();
    let recorder = Recorder::new(&memory, &tables);
    let quiet = shoot_down(frozen, &recorder);
    assert_eq!(
        *recorder.flushes.borrow(),
        [Flush::Range {
            first: PAGE.0,
            bytes: 8 * 4096
        }]
    );
    for page in quiet {
        let (at, new) = (page.at(), page.target().frame());
        let displaced = page
            .copy(|_, _, _| {})
            .commit(&mut tables)
            .expect("still frozen");
        assert_eq!(frames.node_of(displaced.frame), Some(FAR));
        assert!(tables.iter().all(|table| mapped_to(table, at) == Some(new)));
        let block = frames
            .take_back(displaced.frame, displaced.size)
            .expect("allocated");
        frames.free(block.scrub(|_, _| {})).expect("once");
    }
    assert_eq!(frames.counters(FAR).map(|c| c.free), Some(2048));
}

#[test]
fn a_large_page_moves_whole() {
    let memory = VecTables::new(16);
    let mut frames = frames();
    let old = frames
        .allocate(FAR, PageSize::Size2M, &[])
        .expect("free")
        .into_frame();
    let mut table = [Table::new(&memory, NEAR).expect("room")];
    let at = Gpa(0x4000_0000);
    table[0]
        .map(at, old, PageSize::Size2M, Attributes::GUEST_MEMORY)
        .expect("empty")
        .carry_out(&NoProcessor);
    let target = frames.allocate(NEAR, PageSize::Size2M, &[]).expect("free");
    let new = target.frame();
    let page = PageMove::plan(at, PageSize::Size2M, target).expect("sizes agree");
    let page = page
        .freeze(&mut table)
        .expect("mapped")
        .shoot_down(&NoProcessor);
    let displaced = page
        .copy(|_, _, pages| assert_eq!(pages, 512))
        .commit(&mut table)
        .expect("still frozen");
    assert_eq!((displaced.frame, displaced.size), (old, PageSize::Size2M));
    assert_eq!(mapped_to(&table[0], Gpa(at.0 + 0x12_3456)), Some(new));
}

/// Armed, flushed and copied.
fn mirrored(tables: &mut [Table<'_>], frames: &mut Frames<'_>) -> PageMove<Mirrored> {
    let target = frames.allocate(NEAR, SMALL, &[]).expect("free");
    let planned = PageMove::plan(PAGE, SMALL, target).expect("sizes agree");
    let armed = planned.arm(tables).expect("mapped alike");
    armed.shoot_down(&NoProcessor).mirror(|_, _, _| {})
}

#[test]
fn a_copy_holds_unless_the_page_was_written_meanwhile() {
    type Meanwhile = fn(&VecTables, &[Table<'_>]);
    let meanwhiles: [(Meanwhile, bool); 4] = [
        (|_, _| {}, true),
        (
            |memory, tables| {
                let read = touch::<NptFormat>(memory, tables[1].root(), PAGE, Access::Read);
                read.expect("mapped");
            },
            true,
        ),
        (
            |memory, tables| {
                let written = touch::<NptFormat>(memory, tables[1].root(), PAGE, Access::Write);
                written.expect("mapped");
                // Somebody who counts writes takes the bits of all pages but those that are watched.
                let mut cursor = Cursor::ALL;
                let _finished = tables[1].harvest(&mut cursor, Options::DIRTY, u64::MAX, |_| {});
            },
            false,
        ),
        (|_, tables| assert!(tables[0].soil(PAGE)), false),
    ];
    for (i, (meanwhile, holds)) in meanwhiles.into_iter().enumerate() {
        let memory = VecTables::new(16);
        let mut frames = frames();
        let (mut tables, old) = replicas(&memory, &mut frames);
        // What was written before does not count.
        touch::<NptFormat>(&memory, tables[0].root(), PAGE, Access::Write).expect("mapped");
        let page = mirrored(&mut tables, &mut frames);
        meanwhile(&memory, &tables);
        let new = page.target().frame();
        let frozen = page.freeze(&mut tables).expect("unchanged");
        let copied = match frozen.shoot_down(&NoProcessor).settle() {
            Settled::Clean(page) => {
                assert!(holds, "{i}");
                page
            }
            Settled::Written(page) => {
                assert!(!holds, "{i}");
                page.copy(|_, _, _| {})
            }
        };
        let displaced = copied.commit(&mut tables).expect("still frozen");
        assert_eq!(displaced.frame, old);
        let Ok(Lookup::Mapped(leaf)) = tables[0].translate(PAGE) else {
            panic!("mapped")
        };
        assert_eq!((leaf.frame, leaf.dirty), (new, true), "as dirty as before");
    }
}

#[test]
fn a_page_that_changed_or_is_being_moved_is_left_alone() {
    let memory = VecTables::new(16);
    let mut frames = frames();
    let (mut tables, old) = replicas(&memory, &mut frames);
    let first = mirrored(&mut tables, &mut frames);
    let target = frames.allocate(NEAR, SMALL, &[]).expect("free");
    let second = PageMove::plan(PAGE, SMALL, target).expect("sizes agree");
    let (why, target) = second.arm(&mut tables).expect_err("watched");
    assert_eq!(why, MoveError::Table(TableError::Watched { at: PAGE.0 }));
    frames.free(target.scrub(|_, _| {})).expect("allocated");

    // It goes away and comes back with the same frame: another leaf.
    let leaf = tables[1].unmap(PAGE, SMALL).expect("mapped");
    let leaf = leaf.finish(&NoProcessor, &memory);
    let again = tables[1].map(PAGE, leaf.frame, SMALL, leaf.attributes);
    again.expect("empty").carry_out(&NoProcessor);
    let (why, target) = first.freeze(&mut tables).expect_err("changed");
    assert_eq!(why, MoveError::Changed { at: PAGE });
    frames.free(target.scrub(|_, _| {})).expect("allocated");
    assert!(
        tables
            .iter()
            .all(|table| mapped_to(table, PAGE) == Some(old))
    );
    assert!(!matches!(
        mirrored(&mut tables, &mut frames).freeze(&mut tables),
        Err((MoveError::Changed { .. }, _))
    ));
}

/// The D that a move judges by is not cleared by who asks what was written; so the log of writes, which names a page
/// only when its D becomes 1, cannot be relied on the next time.
#[test]
fn evidence_of_a_move_brings_the_log_of_writes_into_doubt() {
    let memory = VecTables::new(16);
    let mut frames = frames();
    let (mut tables, _) = replicas(&memory, &mut frames);
    let written = Written::over(16 * SMALL.bytes()).expect("room");
    written.keep();
    let page = mirrored(&mut tables, &mut frames);
    let root = tables[0].root();
    assert!(touch::<NptFormat>(&memory, root, PAGE, Access::Write).is_some());
    written.note(PAGE);
    let take = |table: &Table<'_>| {
        let mut seen = Vec::new();
        let source = written.take(core::slice::from_ref(table), |leaf| seen.push(leaf.at));
        (source, seen)
    };
    assert_eq!(take(&tables[0]), (Source::Log, vec![PAGE]));
    // A second store finds D set, and is not logged.
    assert!(touch::<NptFormat>(&memory, root, PAGE, Access::Write).is_some());
    assert_eq!(take(&tables[0]), (Source::Search, vec![PAGE]));
    let target = page.abort(&mut tables);
    frames.free(target.scrub(|_, _| {})).expect("allocated");
}
