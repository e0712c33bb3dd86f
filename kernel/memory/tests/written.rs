//! What was written is the same by search and by log, whoever writes, and however small the processors' buffers are.

use memory::harvest::{Cursor, Options, Progress};
use memory::table::{Attributes, EptFormat, Lookup, NoProcessor, RadixTable, TableError};
use memory::testing::{Access, VecTables, touch};
use memory::written::{Source, Written};
use proptest::collection::vec;
use proptest::prelude::*;
use units::{Frame, Gpa, NodeId, PAGE_BYTES, PageSize};

const LARGE: u64 = 4;
const SMALL: u64 = 96;
const GRANULE: u64 = PageSize::Size2M.bytes();
const END: u64 = LARGE * GRANULE + SMALL * PAGE_BYTES;
/// Entries of a processor's buffer: few, so that they are often full.
const ROOM: usize = 3;

type Table<'m> = RadixTable<EptFormat, &'m VecTables>;

fn guest(memory: &VecTables) -> Table<'_> {
    let mut table = Table::new(memory, NodeId(0)).expect("room");
    let large = (0..LARGE).map(|i| (i * GRANULE, PageSize::Size2M));
    let small = (0..SMALL).map(|i| (LARGE * GRANULE + i * PAGE_BYTES, PageSize::Size4K));
    for (at, size) in large.chain(small) {
        table
            .map(Gpa(at), Frame(at >> 12), size, Attributes::GUEST_MEMORY)
            .expect("free")
            .carry_out(&NoProcessor);
    }
    table
}

fn is_dirty(table: &Table<'_>, at: Gpa) -> bool {
    matches!(table.translate(at), Ok(Lookup::Mapped(leaf)) if leaf.dirty)
}

/// What D says, without changing it.
fn truth(table: &Table<'_>) -> Vec<(u64, PageSize)> {
    let mut dirty = Vec::new();
    let end = table.harvest(&mut Cursor::ALL.clone(), Options::LOOK, u64::MAX, |leaf| {
        if leaf.dirty {
            dirty.push((leaf.at.0, leaf.size));
        }
    });
    assert_eq!(end, Progress::Finished);
    dirty
}

fn taken(written: &Written, table: &Table<'_>) -> (Source, Vec<(u64, PageSize)>) {
    let mut dirty = Vec::new();
    let source = written.take(core::slice::from_ref(table), |leaf| {
        dirty.push((leaf.at.0, leaf.size))
    });
    (source, dirty)
}

/// A processor that logs where it changes D from 0 to 1.
#[derive(Default)]
struct Processor(Vec<Gpa>);

impl Processor {
    fn store(&mut self, table: &Table<'_>, memory: &VecTables, at: Gpa, written: &Written) {
        if !is_dirty(table, at) {
            // As on hardware, it finds its log full before it sets D.
            if self.0.len() == ROOM {
                self.hand_on(written);
            }
            if written.is_kept() {
                self.0.push(Gpa(at.0 & !(PAGE_BYTES - 1)));
            }
        }
        assert!(touch::<EptFormat>(memory, table.root(), at, Access::Write).is_some());
    }

    fn hand_on(&mut self, written: &Written) {
        self.0.drain(..).for_each(|at| written.note(at));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Store(usize, u64),
    Leave(usize),
    Take,
    /// One granule becomes small pages or one leaf again.
    Resize(u64),
    Keep(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..2usize, 0..END).prop_map(|(cpu, at)| Op::Store(cpu, at)),
        2 => (0..2usize).prop_map(Op::Leave),
        3 => Just(Op::Take),
        1 => (0..LARGE).prop_map(Op::Resize),
        1 => any::<bool>().prop_map(Op::Keep),
    ]
}

fn resize(table: &mut Table<'_>, at: Gpa) -> Result<(), TableError> {
    match table.translate(at)? {
        Lookup::Mapped(leaf) if leaf.size == PageSize::Size2M => {
            let split = table.begin_split(at, PageSize::Size2M)?;
            table.finish_split(split.shoot_down(&NoProcessor))
        }
        _ => {
            let join = table.begin_collapse(at, PageSize::Size2M)?;
            let flush = table.finish_collapse(join.shoot_down(&NoProcessor))?;
            flush.carry_out(&NoProcessor);
            Ok(())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn log_and_bits_agree(ops in vec(op(), 1..200)) {
        let memory = VecTables::new(16);
        let mut table = guest(&memory);
        let written = Written::over(END).expect("room");
        let mut cpus = [Processor::default(), Processor::default()];
        for op in ops {
            match op {
                Op::Store(cpu, at) => cpus[cpu].store(&table, &memory, Gpa(at), &written),
                Op::Leave(cpu) => cpus[cpu].hand_on(&written),
                Op::Resize(granule) => {
                    written.doubt();
                    resize(&mut table, Gpa(granule * GRANULE)).expect("mapped");
                }
                Op::Take => {
                    cpus.iter_mut().for_each(|cpu| cpu.hand_on(&written));
                    let expected = truth(&table);
                    let (_, found) = taken(&written, &table);
                    prop_assert_eq!(found, expected);
                    prop_assert!(truth(&table).is_empty(), "D is cleared");
                }
                Op::Keep(true) => {
                    written.keep();
                    cpus.iter_mut().for_each(|cpu| cpu.hand_on(&written));
                    written.trust();
                    clean(&table);
                }
                Op::Keep(false) => {
                    cpus.iter_mut().for_each(|cpu| cpu.hand_on(&written));
                    written.drop_log();
                }
            }
        }
    }
}

/// Clears D everywhere.
fn clean(table: &Table<'_>) {
    let end = table.harvest(&mut Cursor::ALL.clone(), Options::DIRTY, u64::MAX, |_| ());
    assert_eq!(end, Progress::Finished);
}

/// That the log's answer comes from no search shows in what it lacks when a processor forgets an entry.
#[test]
fn an_entry_that_is_lost_is_missed() {
    let memory = VecTables::new(16);
    let table = guest(&memory);
    let written = Written::over(END).expect("room");
    written.keep();
    let mut cpu = Processor::default();
    for page in [3, 5, 90] {
        let at = Gpa(LARGE * GRANULE + page * PAGE_BYTES);
        cpu.store(&table, &memory, at, &written);
    }
    let lost = cpu.0.remove(1);
    cpu.hand_on(&written);
    let (source, found) = taken(&written, &table);
    assert_eq!((source, found.len()), (Source::Log, 2));
    assert_eq!(truth(&table), [(lost.0, PageSize::Size4K)]);
    // Doubt finds it.
    written.doubt();
    let (source, found) = taken(&written, &table);
    assert_eq!(
        (source, found),
        (Source::Search, vec![(lost.0, PageSize::Size4K)])
    );
    assert_eq!(taken(&written, &table), (Source::Log, vec![]));
}

#[test]
fn what_lies_beyond_brings_doubt_and_a_large_leaf_is_told_once() {
    let memory = VecTables::new(16);
    let table = guest(&memory);
    let written = Written::over(END).expect("room");
    assert_eq!(taken(&written, &table).0, Source::Search, "nobody logs");
    written.keep();
    let mut cpu = Processor::default();
    cpu.store(&table, &memory, Gpa(0x5000), &written);
    cpu.hand_on(&written);
    written.note(Gpa(0x7000));
    let once = vec![(0, PageSize::Size2M)];
    assert_eq!(taken(&written, &table), (Source::Log, once));
    written.note(Gpa(END.next_multiple_of(64 * PAGE_BYTES)));
    assert_eq!(taken(&written, &table).0, Source::Search);
    written.note(Gpa(u64::MAX));
    assert_eq!(taken(&written, &table).0, Source::Search);
}

#[test]
fn without_a_log_all_is_searched() {
    let memory = VecTables::new(16);
    let table = guest(&memory);
    let at = Gpa(LARGE * GRANULE);
    assert!(touch::<EptFormat>(&memory, table.root(), at, Access::Write).is_some());
    let written = Written::searched();
    let found = vec![(at.0, PageSize::Size4K)];
    assert_eq!(taken(&written, &table), (Source::Search, found));
    assert_eq!(taken(&written, &table), (Source::Search, vec![]));
}
