//! Page moves under guests that write and read meanwhile.
//!
//! Each CPU counts its increments of a shared word; at the end the word must hold them all (no
//! write was lost), and no load may return less than what was known to be written before it (no
//! stale frame was read).

use memory::buddy::{FrameMeta, Frames};
use memory::page_move::PageMove;
use memory::table::{
    Attributes, Flush, Level, Lookup, NoProcessor, NptFormat, RadixTable, Rights, Shootdown,
    TableFormat, TableMemory,
};
use model::{Cpu, Machine, Reach, first_failure};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;
use std::sync::Arc;
use units::{Frame, Gpa, NodeId, PageSize};

const PAGE: Gpa = Gpa(0x3000);
const OTHER: Gpa = Gpa(0x4000);
const SMALL: PageSize = PageSize::Size4K;
const GUEST_CPUS: usize = 2;
const INCREMENTS: u64 = 3;

type Table = RadixTable<NptFormat, Arc<Machine>>;

/// How pages are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    /// As the kernel does, with a shootdown of this reach.
    Kernel(Reach),
    /// The new leaf is installed before the shootdown.
    InstallsEarly,
    /// The content is copied before the leaf is frozen.
    CopiesEarly,
    /// The leaf is write-protected, copied, and replaced by a writable one with one flush in between,
    /// while another CPU may still read the old frame.
    WriteProtects,
}

fn frames() -> Frames<'static> {
    let mut frames = Frames::new();
    for node in [0, 1] {
        let base = Frame(1 + u64::from(node));
        let metadata = vec![FrameMeta::default(); 1].leak();
        frames
            .add_zone(NodeId(node), base, metadata)
            .expect("apart");
        frames.release(base, 1).expect("fresh");
    }
    frames
}

/// The slot of the 4 KiB leaf of `PAGE`, for protocols that the types refuse.
fn slot(machine: &Machine, root: Frame) -> (Frame, usize) {
    let table = (0..3).fold(root, |table, _| {
        NptFormat::table_frame(machine.load(table, 0))
    });
    (table, (PAGE.0 / Level::LOWEST.span()) as usize)
}

/// Moves `PAGE` to the other node by `protocol`.
fn move_page(
    machine: &Arc<Machine>,
    table: &Mutex<Table>,
    frames: &mut Frames<'_>,
    to: NodeId,
    protocol: Protocol,
) {
    let target = frames
        .allocate(to, SMALL, &[])
        .expect("the frame that the last move left");
    let copy = |old: Frame, new: Frame| {
        let content = machine.word(old).load(Ordering::SeqCst);
        machine.word(new).store(content, Ordering::SeqCst);
    };
    let old = match protocol {
        Protocol::Kernel(reach) => {
            let page = PageMove::plan(PAGE, SMALL, target).expect("sizes agree");
            let page = page
                .freeze(std::slice::from_mut(&mut *table.lock().expect("no poison")))
                .expect("mapped");
            let page = page.shoot_down(&machine.shootdown(reach));
            let page = page.copy(|old, new, _| copy(old, new));
            let moved = page.commit(std::slice::from_mut(&mut *table.lock().expect("no poison")));
            moved.expect("frozen").frame
        }
        broken => break_a_move(machine, table, target.into_frame(), copy, broken),
    };
    let block = frames.take_back(old, SMALL).expect("allocated");
    let scrub = |frame, _| machine.word(frame).store(0, Ordering::SeqCst);
    frames.free(block.scrub(scrub)).expect("once");
}

/// The wrong orders, entry by entry: the types of `page_move` do not allow them. Returns the old frame.
fn break_a_move(
    machine: &Arc<Machine>,
    table: &Mutex<Table>,
    new: Frame,
    copy: impl Fn(Frame, Frame),
    protocol: Protocol,
) -> Frame {
    let mut table = table.lock().expect("no poison");
    let root = table.root();
    let Ok(Lookup::Mapped(leaf)) = table.translate(PAGE) else {
        panic!("mapped")
    };
    let (page_table, index) = slot(machine, root);
    let everyone = machine.shootdown(Reach::Everyone);
    let flush = || {
        everyone.shoot_down(Flush::Range {
            first: PAGE.0,
            bytes: SMALL.bytes(),
        })
    };
    let entry = |frame, attributes| NptFormat::leaf(frame, SMALL, attributes);
    let all = Attributes::GUEST_MEMORY;
    match protocol {
        Protocol::InstallsEarly => {
            machine.swap(page_table, index, 0);
            copy(leaf.frame, new);
            machine.swap(page_table, index, entry(new, all));
            flush();
        }
        Protocol::CopiesEarly => {
            copy(leaf.frame, new);
            machine.swap(page_table, index, 0);
            flush();
            machine.swap(page_table, index, entry(new, all));
        }
        Protocol::WriteProtects | Protocol::Kernel(_) => {
            let read = Attributes::memory(Rights::READ);
            table
                .protect(PAGE, SMALL, read)
                .expect("mapped")
                .carry_out(&everyone);
            copy(leaf.frame, new);
            machine.swap(page_table, index, entry(new, all));
            linger();
            flush();
        }
    }
    leaf.frame
}

/// Widens a race: whoever initiates a flush may be interrupted before it does.
fn linger() {
    for _ in 0..20 {
        thread::yield_now();
    }
}

/// Two CPUs write and read, and a third one reads, while the page moves there and back.
fn scenario(protocol: Protocol) {
    let machine = Machine::new(GUEST_CPUS + 1, [Frame(1), Frame(2), Frame(9)]);
    let mut frames = frames();
    let mut table = Table::new(Arc::clone(&machine), NodeId(0)).expect("room");
    let first = frames
        .allocate(NodeId(0), SMALL, &[])
        .expect("free")
        .into_frame();
    let all = Attributes::GUEST_MEMORY;
    table
        .map(PAGE, first, SMALL, all)
        .expect("empty")
        .carry_out(&NoProcessor);
    table
        .map(OTHER, Frame(9), SMALL, all)
        .expect("empty")
        .carry_out(&NoProcessor);
    let root = table.root();
    let table = Arc::new(Mutex::new(table));

    let written = Arc::new(AtomicU64::new(0));
    let mut guests: Vec<_> = (0..GUEST_CPUS)
        .map(|id| {
            let (machine, written) = (Arc::clone(&machine), Arc::clone(&written));
            thread::spawn(move || {
                let mut cpu = Cpu::<NptFormat>::new(&machine, id, root, 1, &[PAGE, OTHER]);
                for _ in 0..INCREMENTS {
                    cpu.increment(PAGE);
                    written.fetch_add(1, Ordering::SeqCst);
                    cpu.increment(OTHER);
                    let known = written.load(Ordering::SeqCst);
                    let seen = cpu.load(PAGE);
                    assert!(
                        seen >= known,
                        "stale read: {seen} where {known} writes were known"
                    );
                }
                cpu.idle();
            })
        })
        .collect();
    guests.push({
        let (machine, written) = (Arc::clone(&machine), Arc::clone(&written));
        thread::spawn(move || {
            let mut cpu = Cpu::<NptFormat>::new(&machine, GUEST_CPUS, root, 1, &[PAGE, OTHER]);
            for _ in 0..8 {
                let known = written.load(Ordering::SeqCst);
                let seen = cpu.load(PAGE);
                assert!(
                    seen >= known,
                    "stale read: {seen} where {known} writes were known"
                );
            }
            cpu.idle();
        })
    });
    for to in [NodeId(1), NodeId(0)] {
        move_page(&machine, &table, &mut frames, to, protocol);
    }
    machine.stop();
    for guest in guests {
        guest.join().expect("a guest's CPU finishes");
    }

    let expected = GUEST_CPUS as u64 * INCREMENTS;
    let table = Arc::try_unwrap(table)
        .expect("all threads are gone")
        .into_inner()
        .expect("no poison");
    let Ok(Lookup::Mapped(leaf)) = table.translate(PAGE) else {
        panic!("mapped")
    };
    let found = machine.word(leaf.frame).load(Ordering::SeqCst);
    assert_eq!(found, expected, "lost write");
    assert_eq!(
        machine.word(Frame(9)).load(Ordering::SeqCst),
        expected,
        "lost write to a page that did not move"
    );
    assert_eq!(
        machine.word(Frame(2)).load(Ordering::SeqCst),
        0,
        "a freed frame was written after its scrub: lost write"
    );
    table.destroy(&NoProcessor, |_| {});
    assert_eq!(machine.tables_in_use(), 0);
}

/// Whether some of `schedules` interleavings loses a write or reads a stale frame.
fn is_caught(protocol: Protocol, schedules: usize) -> bool {
    let run = || shuttle::check_random(move || scenario(protocol), schedules);
    let Some(text) = first_failure(run) else {
        return false;
    };
    assert!(
        text.contains("lost write") || text.contains("stale read") || text.contains("scrub"),
        "{protocol:?}: {text}"
    );
    true
}

#[test]
fn the_kernels_protocol_loses_nothing() {
    shuttle::check_random(|| scenario(Protocol::Kernel(Reach::Everyone)), 1000);
    shuttle::check_pct(|| scenario(Protocol::Kernel(Reach::Everyone)), 300, 4);
}

#[test]
fn a_shootdown_that_misses_anything_is_caught() {
    for reach in [
        Reach::Nobody,
        Reach::AllButOne,
        Reach::Impatient,
        Reach::WrongRange,
    ] {
        assert!(is_caught(Protocol::Kernel(reach), 5000), "{reach:?}");
    }
}

#[test]
fn every_wrong_order_is_caught() {
    for protocol in [
        Protocol::InstallsEarly,
        Protocol::CopiesEarly,
        Protocol::WriteProtects,
    ] {
        assert!(is_caught(protocol, 5000), "{protocol:?}");
    }
}
