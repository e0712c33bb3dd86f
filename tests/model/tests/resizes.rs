//! Splits and collapses under guests that write: no machine check, no lost write, no lost A or D.

use memory::harvest::{Cursor, Options, Progress};
use memory::table::{Attributes, Lookup, NoProcessor, NptFormat, RadixTable};
use model::{Cpu, Machine, Reach, first_failure};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::Ordering;
use shuttle::thread;
use std::sync::Arc;
use units::{Frame, Gpa, NodeId, PageSize};

const LARGE: Gpa = Gpa(0x20_0000);
const PAGES: [Gpa; 2] = [LARGE, Gpa(0x20_5000)];
const FRAME: Frame = Frame(0x400);
const CPUS: usize = 2;
const INCREMENTS: u64 = 3;

type Table = RadixTable<NptFormat, Arc<Machine>>;

fn scenario(reach: Reach) {
    let machine = Machine::new(CPUS, [FRAME, Frame(FRAME.0 + 5)]);
    let mut table = Table::new(Arc::clone(&machine), NodeId(0)).expect("room");
    let all = Attributes::GUEST_MEMORY;
    let flush = table.map(LARGE, FRAME, PageSize::Size2M, all);
    flush.expect("empty").carry_out(&NoProcessor);
    let root = table.root();
    let table = Arc::new(Mutex::new(table));
    let guests: Vec<_> = (0..CPUS)
        .map(|id| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let mut cpu = Cpu::<NptFormat>::new(&machine, id, root, 1, &PAGES);
                for _ in 0..INCREMENTS {
                    for page in PAGES {
                        cpu.increment(page);
                    }
                }
                cpu.idle();
            })
        })
        .collect();

    let lock = || table.lock().expect("no poison");
    let shootdown = machine.shootdown(reach);
    let splitting = lock().begin_split(LARGE, PageSize::Size2M).expect("mapped");
    let ready = splitting.shoot_down(&shootdown);
    lock().finish_split(ready).expect("frozen");
    let collapsing = lock()
        .begin_collapse(LARGE, PageSize::Size2M)
        .expect("uniform");
    let ready = collapsing.shoot_down(&shootdown);
    let flush = lock().finish_collapse(ready).expect("frozen");
    flush.carry_out(&shootdown);

    machine.stop();
    for guest in guests {
        guest.join().expect("a guest's CPU finishes");
    }
    for page in PAGES {
        let frame = Frame(FRAME.0 + (page.0 - LARGE.0) / 4096);
        let found = machine.word(frame).load(Ordering::SeqCst);
        assert_eq!(found, CPUS as u64 * INCREMENTS, "lost write");
    }
    let table = Arc::try_unwrap(table).expect("all threads are gone");
    let table = table.into_inner().expect("no poison");
    let Ok(Lookup::Mapped(leaf)) = table.translate(LARGE) else {
        panic!("mapped")
    };
    assert!(leaf.size == PageSize::Size2M && leaf.frame == FRAME);
    assert!(leaf.accessed && leaf.dirty, "A or D was lost");
    // The harvest still finds it from the root: no ancestor's A was lost either.
    let mut found = 0;
    let end = table.harvest(
        &mut Cursor::ALL.clone(),
        Options::FOOTPRINT,
        u64::MAX,
        |_| found += 1,
    );
    assert_eq!((end, found), (Progress::Finished, 1), "A or D was lost");
    table.destroy(&NoProcessor, |_| {});
    assert_eq!(machine.tables_in_use(), 0);
}

#[test]
fn the_kernels_protocol_survives() {
    shuttle::check_random(|| scenario(Reach::Everyone), 60);
}

#[test]
fn a_missing_flush_is_a_machine_check_or_a_lost_bit() {
    // An impatient one is no defect that shows here: installing 512 leaves takes longer than any access.
    for reach in [Reach::Nobody, Reach::AllButOne, Reach::WrongRange] {
        let run = || shuttle::check_random(move || scenario(reach), 300);
        let text = first_failure(run).unwrap_or_else(|| panic!("{reach:?} is not caught"));
        let seen = ["machine check", "lost", "after it was freed"];
        assert!(
            seen.iter().any(|defect| text.contains(defect)),
            "{reach:?}: {text}"
        );
    }
}
