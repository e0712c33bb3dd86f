//! 2 MiB that move as 512 pages: what is copied is what was written, and whatever ends early leaves all as it was.

use memory::buddy::{Allocation, FrameMeta, Frames};
use memory::page_move::MoveError;
use memory::page_move::large::{LargeMove, Mirrored};
use memory::table::{Attributes, Lookup, NoProcessor, NptFormat, RadixTable, Rights, TableError};
use memory::testing::{Access, VecTables, touch};
use units::{Frame, Gpa, NodeId, PageSize};

const AT: Gpa = Gpa(0x4000_0000);
const WHOLE: PageSize = PageSize::Size2M;
const SMALL: PageSize = PageSize::Size4K;
const NEAR: NodeId = NodeId(0);
const FAR: NodeId = NodeId(1);

type Table<'m> = RadixTable<NptFormat, &'m VecTables>;

fn page(index: u64) -> Gpa {
    Gpa(AT.0 + index * 4096)
}

/// Two replicas that map 2 MiB of the far node by small pages.
fn split<'m>(memory: &'m VecTables) -> (Vec<Table<'m>>, Frame, Frames<'static>) {
    let mut frames = Frames::new();
    for (node, base) in [(NEAR, 0x10_0000), (FAR, 0x20_0000)] {
        let metadata = vec![FrameMeta::default(); 1024].leak();
        frames.add_zone(node, Frame(base), metadata).expect("apart");
        frames.release(Frame(base), 1024).expect("fresh");
    }
    let old = frames.allocate(FAR, WHOLE, &[]).expect("free").into_frame();
    let table = |node| {
        let mut table = Table::new(memory, node).expect("room");
        let mapped = table.map(AT, old, WHOLE, Attributes::GUEST_MEMORY);
        mapped.expect("empty").carry_out(&NoProcessor);
        let splitting = table.begin_split(AT, WHOLE).expect("mapped");
        let ready = splitting.shoot_down(&NoProcessor);
        table.finish_split(ready).expect("frozen");
        table
    };
    (vec![table(NEAR), table(FAR)], old, frames)
}

fn write(memory: &VecTables, table: &Table<'_>, pages: impl IntoIterator<Item = u64>) {
    for index in pages {
        let written = touch::<NptFormat>(memory, table.root(), page(index), Access::Write);
        written.expect("mapped");
    }
}

/// Armed, flushed and copied for the first time.
fn mirrored(tables: &mut [Table<'_>], target: Allocation) -> LargeMove<Mirrored> {
    let planned = LargeMove::plan(AT, target).expect("2 MiB");
    let armed = planned.arm(tables).expect("alike");
    let (mirrored, copied) = armed.shoot_down(&NoProcessor).copy(|_, _, _| {});
    assert_eq!(copied, 512, "all of it, once");
    mirrored
}

#[test]
fn after_the_first_copy_what_is_copied_is_what_was_written() {
    let memory = VecTables::new(32);
    let (mut tables, old, mut frames) = split(&memory);
    // Written before: no reason to copy anything twice.
    write(&memory, &tables[0], [7, 8, 9]);
    let target = frames.allocate(NEAR, WHOLE, &[]).expect("free");
    let new = target.frame();
    let mirrored = mirrored(&mut tables, target);

    write(&memory, &tables[0], [0, 100]);
    write(&memory, &tables[1], [100, 511]);
    let (armed, written) = mirrored.again(&mut tables).expect("unchanged");
    assert_eq!(written, 3);
    let mut copies = Vec::new();
    let (mirrored, copied) = armed
        .shoot_down(&NoProcessor)
        .copy(|from, to, pages| copies.push((from.0 - old.0, to.0 - new.0, pages)));
    assert_eq!(
        (copied, copies),
        (3, vec![(0, 0, 1), (100, 100, 1), (511, 511, 1)])
    );

    let (armed, written) = mirrored.again(&mut tables).expect("unchanged");
    assert_eq!(written, 0, "nothing since");
    let (mirrored, copied) = armed.shoot_down(&NoProcessor).copy(|_, _, _| {});
    assert_eq!(copied, 0);

    // The hypervisor's own store, past the table.
    assert!(tables[0].soil(Gpa(page(33).0 + 5)));
    write(&memory, &tables[1], [34]);
    let frozen = mirrored.freeze(&mut tables).expect("unchanged");
    assert_eq!(
        touch::<NptFormat>(&memory, tables[1].root(), AT, Access::Read),
        None,
        "absent in every replica"
    );
    let quiet = frozen.shoot_down(&NoProcessor);
    let mut copies = Vec::new();
    let (done, copied) = quiet.copy(&tables, |from, _, _| copies.push(from.0 - old.0));
    assert_eq!((copied, copies), (2, vec![33, 34]));
    let displaced = done.commit(&mut tables).expect("still frozen");
    assert_eq!((displaced.frame, displaced.size), (old, WHOLE));
    for table in &tables {
        let Ok(Lookup::Mapped(leaf)) = table.translate(page(3)) else {
            panic!("mapped")
        };
        assert_eq!((leaf.frame, leaf.size, leaf.dirty), (new, WHOLE, true));
    }
    assert_eq!(
        memory.in_use(),
        2 * 3,
        "the tables of small leaves are gone"
    );
}

#[test]
fn an_abort_at_any_stage_leaves_the_pages_and_what_is_dirty() {
    for stage in 0..5 {
        let memory = VecTables::new(32);
        let (mut tables, old, mut frames) = split(&memory);
        write(&memory, &tables[0], [0]);
        let target = frames.allocate(NEAR, WHOLE, &[]).expect("free");
        let planned = LargeMove::plan(AT, target).expect("2 MiB");
        let target = match stage {
            0 => planned.cancel(),
            1 => planned.arm(&mut tables).expect("alike").abort(&mut tables),
            _ => {
                let armed = planned.arm(&mut tables).expect("alike");
                let (mirrored, _) = armed.shoot_down(&NoProcessor).copy(|_, _, _| {});
                match stage {
                    2 => mirrored.abort(&mut tables),
                    3 => mirrored
                        .freeze(&mut tables)
                        .expect("unchanged")
                        .abort(&mut tables),
                    _ => mirrored
                        .freeze(&mut tables)
                        .expect("unchanged")
                        .shoot_down(&NoProcessor)
                        .abort(&mut tables),
                }
            }
        };
        frames.free(target.scrub(|_, _| {})).expect("allocated");
        assert_eq!(frames.counters(NEAR).map(|c| c.free), Some(1024));
        for (i, table) in tables.iter().enumerate() {
            for index in [0, 1, 511] {
                let Ok(Lookup::Mapped(leaf)) = table.translate(page(index)) else {
                    panic!("mapped")
                };
                assert_eq!((leaf.frame.0, leaf.size), (old.0 + index, SMALL));
                assert_eq!(leaf.dirty, (i, index) == (0, 0), "stage {stage}");
            }
        }
        // Nothing is watched or frozen any more.
        let target = frames.allocate(NEAR, WHOLE, &[]).expect("free");
        let _again = mirrored(&mut tables, target);
    }
}

#[test]
fn whatever_changes_a_page_meanwhile_ends_the_move() {
    type Change = fn(&mut Table<'_>, &VecTables);
    let changes: [Change; 3] = [
        |table, _| {
            let read = Attributes::memory(Rights::READ);
            let flush = table.protect(page(9), SMALL, read).expect("mapped");
            flush.carry_out(&NoProcessor);
        },
        |table, memory| {
            let unmapped = table.unmap(page(9), SMALL).expect("mapped");
            unmapped.finish(&NoProcessor, &memory);
        },
        |table, _| {
            let join = table.begin_collapse(AT, WHOLE).expect("uniform");
            let flush = table.finish_collapse(join.shoot_down(&NoProcessor));
            flush.expect("frozen").carry_out(&NoProcessor);
        },
    ];
    for change in changes {
        let memory = VecTables::new(32);
        let (mut tables, _, mut frames) = split(&memory);
        let target = frames.allocate(NEAR, WHOLE, &[]).expect("free");
        let moving = mirrored(&mut tables, target);
        change(&mut tables[1], &memory);
        let (why, target) = moving.freeze(&mut tables).expect_err("changed");
        assert_eq!(why, MoveError::Changed { at: AT });
        frames.free(target.scrub(|_, _| {})).expect("allocated");

        // The replica that was not changed is not frozen either.
        assert!(matches!(tables[0].translate(AT), Ok(Lookup::Mapped(_))));
    }
}

#[test]
fn a_second_move_and_a_page_of_its_own_are_refused() {
    let memory = VecTables::new(32);
    let (mut tables, _, mut frames) = split(&memory);
    let target = frames.allocate(NEAR, WHOLE, &[]).expect("free");
    let first = mirrored(&mut tables, target);
    let target = frames.allocate(NEAR, WHOLE, &[]).expect("free");
    let second = LargeMove::plan(AT, target).expect("2 MiB");
    let (why, _target) = second.arm(&mut tables).expect_err("watched");
    assert_eq!(why, MoveError::Table(TableError::Watched { at: AT.0 }));
    let target = frames.allocate(FAR, SMALL, &[]).expect("free");
    let small = memory::page_move::PageMove::plan(page(4), SMALL, target).expect("4 KiB");
    let (why, _target) = small.arm(&mut tables).expect_err("watched");
    assert_eq!(why, MoveError::Table(TableError::Watched { at: page(4).0 }));
    assert!(first.again(&mut tables).is_ok(), "the first goes on");
    let target = frames.allocate(FAR, SMALL, &[]).expect("free");
    let (why, _target) = LargeMove::plan(AT, target).expect_err("4 KiB");
    assert!(
        why.to_string()
            .contains("leaf of 2 MiB and the target has 4 KiB")
    );
}
