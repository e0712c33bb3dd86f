//! A copy of a guest's memory that is kept by asking what was written is the memory in the end.
//!
//! That is the promise of [`memory::written`] with all its conditions: when a log begins, when it is asked, when
//! D is cleared. Two CPUs add to words; meanwhile somebody asks, makes CPUs forget, and copies what he was told. Once they
//! are done he asks once more. The kernel's order survives; orders that look almost like it leave the copy behind.

use memory::harvest::{Cursor, Options, Progress};
use memory::table::{Attributes, EptFormat, Flush, NoProcessor, RadixTable, Shootdown};
use memory::written::{Source, Written};
use model::{Cpu, Machine, Reach, first_failure};
use shuttle::sync::atomic::Ordering;
use shuttle::thread;
use std::collections::BTreeMap;
use std::sync::Arc;
use units::{Frame, Gpa, NodeId, PageSize};

const PAGES: [Gpa; 4] = [Gpa(0x3000), Gpa(0x4000), Gpa(0x5000), Gpa(0x20_0000)];
const END: u64 = 0x40_0000;
const CPUS: usize = 2;
/// Entries of a CPU's log.
const ROOM: usize = 2;

type Table = RadixTable<EptFormat, Arc<Machine>>;

/// What is wrong with the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defect {
    None,
    /// CPUs do not hand on what they have logged.
    KeepsEntries,
    /// D is cleared before all CPUs log.
    BeginsAtOnce,
    /// What was named before is forgotten after D was cleared, not before.
    TrustsLate,
    /// CPUs keep translations with D = 1 when it has been cleared.
    ForgetsNothing,
}

fn frame(page: Gpa) -> Frame {
    Frame(page.0 >> 12)
}

fn begin(machine: &Arc<Machine>, table: &Table, written: &Written, defect: Defect) {
    let flush = || machine.shootdown(Reach::Everyone).shoot_down(Flush::All);
    written.keep();
    if defect != Defect::BeginsAtOnce {
        flush();
    }
    if defect != Defect::TrustsLate {
        written.trust();
    }
    let end = table.harvest(&mut Cursor::ALL.clone(), Options::DIRTY, u64::MAX, |_| ());
    assert_eq!(end, Progress::Finished);
    if defect == Defect::TrustsLate {
        flush();
        written.trust();
    }
    flush();
}

fn scenario(defect: Defect) {
    let machine = Machine::new(CPUS, PAGES.map(frame));
    let mut table = Table::new(Arc::clone(&machine), NodeId(0)).expect("room");
    for page in PAGES {
        let size = match page.0 & (PageSize::Size2M.bytes() - 1) {
            0 => PageSize::Size2M,
            _ => PageSize::Size4K,
        };
        let mapped = table.map(page, frame(page), size, Attributes::GUEST_MEMORY);
        mapped.expect("empty").carry_out(&NoProcessor);
    }
    let (root, written) = (table.root(), Arc::new(Written::over(END).expect("room")));
    let guests: Vec<_> = (0..CPUS)
        .map(|id| {
            let (machine, written) = (Arc::clone(&machine), Arc::clone(&written));
            thread::spawn(move || {
                let mut cpu = Cpu::<EptFormat>::new(&machine, id, root, 1, &PAGES);
                cpu.logs_to(&written, ROOM, defect != Defect::KeepsEntries);
                for round in 0..6 {
                    cpu.increment(PAGES[(round * (id + 1) + id) % PAGES.len()]);
                }
                cpu.idle();
                cpu.pass_outside();
            })
        })
        .collect();
    begin(&machine, &table, &written, defect);
    let load = |page| machine.word(frame(page)).load(Ordering::SeqCst);
    let mut copy: BTreeMap<Gpa, u64> = PAGES.map(|page| (page, load(page))).into();
    let mut ask = || {
        let flush = || machine.shootdown(Reach::Everyone).shoot_down(Flush::All);
        flush();
        let mut pages = Vec::new();
        let source = written.take(core::slice::from_ref(&table), |leaf| pages.push(leaf.at));
        assert_eq!(source, Source::Log);
        if defect != Defect::ForgetsNothing {
            flush();
        }
        for page in pages {
            copy.insert(page, load(page));
        }
    };
    ask();
    ask();
    machine.stop();
    for guest in guests {
        guest.join().expect("a guest's CPU finishes");
    }
    let mut last = Vec::new();
    written.take(core::slice::from_ref(&table), |leaf| last.push(leaf.at));
    for page in last {
        copy.insert(page, load(page));
    }
    for page in PAGES {
        assert_eq!(
            copy.get(&page),
            Some(&load(page)),
            "the copy was left behind"
        );
    }
}

#[test]
fn the_copy_is_the_memory() {
    shuttle::check_random(|| scenario(Defect::None), 400);
}

fn is_caught(defect: Defect) {
    let run = || shuttle::check_random(move || scenario(defect), 4000);
    let text = first_failure(run).expect("the defect is caught");
    assert!(text.contains("left behind"), "{text}");
}

#[test]
fn a_cpu_that_keeps_its_entries_is_caught() {
    is_caught(Defect::KeepsEntries);
}

#[test]
fn a_log_that_begins_before_everybody_logs_is_caught() {
    is_caught(Defect::BeginsAtOnce);
}

#[test]
fn names_that_are_forgotten_late_are_caught() {
    is_caught(Defect::TrustsLate);
}

#[test]
fn translations_that_outlive_their_bit_are_caught() {
    is_caught(Defect::ForgetsNothing);
}
