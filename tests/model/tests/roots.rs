//! A root for each node: what entries and whoever drops a root promise each other.
//!
//! A virtual CPU wanders between two processors on two nodes, each of which loads the root of its node, and reads one
//! page. Meanwhile the second node's root is dropped, the page gets another frame, and the root comes back. The tables
//! of a dropped root are freed and the old frame is poisoned as soon as the promise says that nobody uses them.

use memory::entry::{Generations, Remembered, Whereabouts, Word, expel};
use memory::replica::Replicas;
use memory::table::{Attributes, Flush, LargeLeaves, NptFormat, Shootdown};
use model::{Access, Buffered, Cpu, Machine, Stores, is_stale};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;
use std::sync::Arc;
use units::{Frame, Gpa, NodeId, PageSize, VmId};

const VM: VmId = VmId(1);
const PAGE: Gpa = Gpa(0x3000);
const OLD: Frame = Frame(10);
const NEW: Frame = Frame(11);
const POISON: u64 = 0xdead;
/// The second node, whose root comes and goes.
const SECOND: NodeId = NodeId(1);
/// One tag for all roots, as with AMD's ASIDs.
const TAG: u16 = 7;

/// What is wrong with the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Defect {
    None,
    /// An entry reads the root before it says that its CPU is inside.
    ReadsTooEarly,
    /// Entries are told of the other root when the dropped one has been torn down.
    TellsTooLate,
    /// The page is changed in the first root only.
    ChangesOne,
}

struct Processor {
    whereabouts: Whereabouts<Buffered>,
    kicked: AtomicU64,
}

struct Hypervisor {
    machine: Arc<Machine>,
    /// One on each node.
    processors: Vec<Processor>,
    /// The root that each node's CPUs load.
    roots: Vec<Buffered>,
    generations: Generations<Buffered>,
}

type Tables = Replicas<NptFormat, Arc<Machine>>;

impl Hypervisor {
    fn publish(&self, tables: &Tables) {
        for (node, root) in (0..).map(NodeId).zip(&self.roots) {
            root.publish(tables.of(node).root().0);
        }
        self.generations.changed();
    }
}

impl Shootdown for Hypervisor {
    fn shoot_down(&self, _flush: Flush) {
        self.generations.changed();
        expel(
            VM,
            self.processors.iter().map(|p| (p, &p.whereabouts)),
            |p| p.kicked.store(1, Ordering::SeqCst),
            |_, _| thread::yield_now(),
        );
    }
}

/// A virtual CPU's life: it is on one processor at a time.
fn vcpu(hv: &Hypervisor, cpus: &mut [Cpu<NptFormat>], defect: Defect) {
    let (mut tag, mut walked, mut last) = (Remembered::default(), 0, 0);
    for _ in 0..6 {
        let here = thread_rng().gen_range(0..cpus.len());
        if here != last {
            tag.forget();
        }
        last = here;
        let (cpu, on, root) = (&mut cpus[here], &hv.processors[here], &hv.roots[here]);
        on.kicked.store(0, Ordering::SeqCst);
        let early = root.load();
        on.whereabouts.enter(VM);
        let root = match defect {
            Defect::ReadsTooEarly => early,
            _ => root.load(),
        };
        let another = core::mem::replace(&mut walked, root) != root;
        if !tag.is_current(hv.generations.now()) || another {
            cpu.forget_all();
        }
        cpu.switch(Frame(root), TAG);
        for _ in 0..2 {
            if on.kicked.load(Ordering::SeqCst) != 0 {
                break;
            }
            if let Some(frame) = cpu.translate(PAGE, Access::Read) {
                let word = hv.machine.word(frame).load(Ordering::SeqCst);
                assert_ne!(word, POISON, "a stale translation after a completed flush");
            }
        }
        on.whereabouts.leave();
    }
}

fn scenario(defect: Defect) {
    // The entries that a walk for the page meets: 0 on three levels, then 3.
    let machine = Machine::walking(0, [OLD, NEW], &[0, 3]);
    let word = || Buffered::new(Stores::Fenced);
    let hv = Arc::new(Hypervisor {
        machine: Arc::clone(&machine),
        processors: (0..2)
            .map(|_| Processor {
                whereabouts: Whereabouts::outside(word()),
                kicked: AtomicU64::new(0),
            })
            .collect(),
        roots: (0..2).map(|_| word()).collect(),
        generations: Generations::of_root(1, word(), word()),
    });
    let tables = Tables::new(Arc::clone(&machine), NodeId(0), LargeLeaves::Executable);
    let mut tables = tables.expect("room");
    map(&hv, &mut tables, OLD);
    tables.add(SECOND).expect("room");
    hv.publish(&tables);
    let guest = {
        let (hv, root) = (Arc::clone(&hv), tables.first().root());
        thread::spawn(move || {
            let cpu = |id| Cpu::new(&hv.machine, id, root, TAG, &[PAGE]);
            let mut cpus: Vec<_> = (0..2).map(cpu).collect();
            vcpu(&hv, &mut cpus, defect);
        })
    };
    let dropped = tables.unlink(SECOND).expect("there are two");
    if defect != Defect::TellsTooLate {
        hv.publish(&tables);
    }
    tables.retire(dropped, &*hv);
    hv.publish(&tables);
    tables.add(SECOND).expect("room");
    hv.publish(&tables);
    change(&hv, &mut tables, defect);
    guest.join().expect("the guest comes to its end");
}

/// The page gets another frame in all roots, and nobody reaches the old one any more.
fn change(hv: &Hypervisor, tables: &mut Tables, defect: Defect) {
    if defect == Defect::ChangesOne {
        let first = &mut tables.all_mut()[0];
        let unmapped = first.unmap(PAGE, PageSize::Size4K).expect("mapped");
        unmapped.finish(hv, &hv.machine);
    } else {
        let unmapped = tables.unmap(PAGE, PageSize::Size4K).expect("mapped");
        unmapped.finish(hv, &hv.machine);
    }
    hv.machine.word(OLD).store(POISON, Ordering::SeqCst);
    if defect != Defect::ChangesOne {
        map(hv, tables, NEW);
    }
}

fn map(hv: &Hypervisor, tables: &mut Tables, frame: Frame) {
    let (size, rights) = (PageSize::Size4K, Attributes::GUEST_MEMORY);
    let flush = tables.map(PAGE, frame, size, rights, hv);
    flush.expect("empty").carry_out(hv);
}

#[test]
fn nobody_walks_a_root_that_was_dropped() {
    shuttle::check_random(|| scenario(Defect::None), 2000);
}

fn is_caught(defect: Defect) {
    is_stale(|| shuttle::check_random(move || scenario(defect), 5000));
}

#[test]
fn a_root_that_is_read_before_the_cpu_says_that_it_is_inside_is_caught() {
    is_caught(Defect::ReadsTooEarly);
}

#[test]
fn a_root_that_is_torn_down_before_entries_load_another_is_caught() {
    is_caught(Defect::TellsTooLate);
}

#[test]
fn a_change_that_forgets_a_root_is_caught() {
    is_caught(Defect::ChangesOne);
}
